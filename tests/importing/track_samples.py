"""Tracks with known formulas, as points and as files in real formats."""

import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.geo import destination
from cosplace.importing.tracks import TrackPoint

START = datetime(2026, 5, 1, 10, 0, 0, tzinfo=UTC).timestamp()
LATITUDE, LONGITUDE = 45.0, 7.6


def figure_eight(
    times: np.ndarray, size_m: float = 150, period_s: float = 300
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitudes, longitudes and directions of travel at seconds (T,) on x = a sin wt, y = a/2 sin 2wt."""
    w = 2 * np.pi / period_s
    east_m, north_m = size_m * np.sin(w * times), size_m / 2 * np.sin(2 * w * times)
    latitudes, longitudes = destination(LATITUDE, LONGITUDE, east_m, north_m)
    headings = np.degrees(np.arctan2(size_m * w * np.cos(w * times), size_m * w * np.cos(2 * w * times))) % 360
    return latitudes, longitudes, headings


def spiral(times: np.ndarray, noise_m: float = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A walk that never returns to the same place: x = r cos, y = r sin with a growing radius."""
    angle, radius_m = times / 90, 100 + times / 8
    noise = np.random.default_rng(seed).normal(0, noise_m, (2, len(times)))
    return destination(LATITUDE, LONGITUDE, radius_m * np.cos(angle) + noise[0], radius_m * np.sin(angle) + noise[1])


def points(times: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray) -> list[TrackPoint]:
    return [TrackPoint(START + t, lat, lon) for t, lat, lon in zip(times, latitudes, longitudes, strict=True)]


def gpx(segments: Iterable[Sequence[TrackPoint]], extra: str = "<ele>250.5</ele>", with_time: bool = True) -> str:
    """The text of a GPX file."""

    def one(point: TrackPoint) -> str:
        time = f"<time>{datetime.fromtimestamp(point.time, UTC).isoformat()}</time>" if with_time else ""
        return f'<trkpt lat="{point.latitude:.9f}" lon="{point.longitude:.9f}">{extra}{time}</trkpt>'

    body = "".join(f"<trkseg>{''.join(map(one, segment))}</trkseg>" for segment in segments)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<gpx version="1.1" creator="test" '
        f'xmlns="http://www.topografix.com/GPX/1/1"><trk><name>walk</name>{body}</trk></gpx>'
    )


def sentence(body: str) -> str:
    """An NMEA sentence with its checksum."""
    checksum = 0
    for byte in body.encode():
        checksum ^= byte
    return f"${body}*{checksum:02X}\r\n"


def nmea_degrees(value: float, letters: str, width: int) -> str:
    degrees, minutes = divmod(abs(value) * 60, 60)
    return f"{int(degrees):0{width}d}{minutes:09.6f},{letters[int(value < 0)]}"


def nmea(time: float, latitude: float, longitude: float, fix: bool = True, dop: float = 0.9) -> tuple[str, str]:
    """GGA and RMC sentences of one position."""
    utc = datetime.fromtimestamp(time, UTC)
    clock = f"{utc:%H%M%S}.{utc.microsecond // 10000:02d}"
    place = f"{nmea_degrees(latitude, 'NS', 2)},{nmea_degrees(longitude, 'EW', 3)}"
    gga = sentence(f"GPGGA,{clock},{place},{int(fix)},08,{dop},250.5,M,47.0,M,,")
    rmc = sentence(f"GPRMC,{clock},{'A' if fix else 'V'},{place},3.1,120.0,{utc:%d%m%y},,,A")
    return gga, rmc


# --- videos ----------------------------------------------------------------------------------------------------------


def gray_of(index: int) -> int:
    """Gray value of a frame of `write_video`."""
    return 20 + 2 * index


def write_video(
    path: Path, num_frames: int = 100, fps: int = 10, created: str = "", faststart: bool = False, codec: str = "mpeg4"
) -> None:
    """A video of 64 x 48 pixels whose frames have the gray value `gray_of`, with a white band at the top."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        if created:
            container.metadata["creation_time"] = created
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for index in range(num_frames):
            pixels = np.full((48, 64, 3), gray_of(index), np.uint8)
            pixels[:12] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def add_camm(path: Path, measurements: Sequence[Any]) -> None:
    """Add a CAMM track with GPS points (`CAMMGPSPoint` of mapillary_tools) to a video."""
    from mapillary_tools.camm.camm_builder import camm_sample_generator2
    from mapillary_tools.camm.camm_parser import CAMMInfo
    from mapillary_tools.mp4.simple_mp4_builder import transform_mp4

    info = CAMMInfo(gps=list(measurements), make="Test", model="Cam 1")
    content = transform_mp4(io.BytesIO(path.read_bytes()), camm_sample_generator2(info)).read()
    path.write_bytes(content)


def camm_point(time: float, latitude: float, longitude: float, epoch: float, fix: int = 3) -> Any:
    from mapillary_tools.telemetry import CAMMGPSPoint

    return CAMMGPSPoint(
        time=time, lat=latitude, lon=longitude, alt=250.5, angle=None, time_gps_epoch=epoch, gps_fix_type=fix,
        horizontal_accuracy=2.5, vertical_accuracy=5.0, velocity_east=0, velocity_north=0, velocity_up=0,
        speed_accuracy=0.1,
    )  # fmt: skip


def klv(key: bytes, kind: bytes, size: int, repeat: int, data: bytes) -> bytes:
    """One value of GPMF: key, type, size of a sample, number of samples, data padded to 4 bytes."""
    return key + kind + bytes([size]) + repeat.to_bytes(2, "big") + data + bytes(-len(data) % 4)


def gpmf_payload(rows: Sequence[tuple[float, float]], time: float, fix: int = 3, dop: float = 1.5) -> bytes:
    """One payload of a GoPro: positions as GPS5, with fix, precision and time."""

    def integers(values: Iterable[float], bytes_each: int = 4) -> bytes:
        return b"".join(round(value).to_bytes(bytes_each, "big", signed=True) for value in values)

    utc = datetime.fromtimestamp(time, UTC)
    clock = f"{utc:%y%m%d%H%M%S}.{utc.microsecond // 1000:03d}".encode()
    gps5 = b"".join(integers((lat * 1e7, lon * 1e7, 250_500, 1400, 140)) for lat, lon in rows)
    stream = b"".join([
        klv(b"GPSF", b"L", 4, 1, fix.to_bytes(4, "big")),
        klv(b"GPSU", b"U", 16, 1, clock),
        klv(b"GPSP", b"S", 2, 1, round(100 * dop).to_bytes(2, "big")),
        klv(b"SCAL", b"l", 4, 5, integers((1e7, 1e7, 1000, 1000, 100))),
        klv(b"GPS5", b"l", 20, len(rows), gps5),
    ])  # fmt: skip
    device = klv(b"DVID", b"L", 4, 1, (1).to_bytes(4, "big")) + klv(b"DVNM", b"c", 11, 1, b"Hero8 Black")
    device += klv(b"STRM", b"\0", 1, len(stream), stream)
    return klv(b"DEVC", b"\0", 1, len(device), device)


def add_gpmf(path: Path, payloads: Sequence[bytes], seconds_each: float = 1.0) -> None:
    """Add a GPMF track, as GoPro cameras write it, to a video."""
    from mapillary_tools.camm.camm_builder import create_camm_trak
    from mapillary_tools.mp4 import simple_mp4_builder as builder
    from mapillary_tools.mp4.construct_mp4_parser import CMAP, Box32ConstructBuilder, find_box_at_pathx
    from mapillary_tools.mp4.mp4_sample_parser import RawSample

    def add(_: Any, moov: list[Any]) -> list[io.BytesIO]:
        samples = [RawSample(1, 0, len(one), round(1000 * seconds_each), 0, True) for one in payloads]
        trak = create_camm_trak(samples, 1000)
        boxes = builder.build_stbl_from_raw_samples(
            [{"format": b"gpmd", "data_reference_index": 1, "data": b""}], samples
        )
        stbl = find_box_at_pathx(trak, [b"trak", b"mdia", b"minf", b"stbl"])
        stbl["data"] = Box32ConstructBuilder(CMAP[b"stbl"]).build_boxlist(boxes)
        moov.append(trak)
        return [io.BytesIO(one) for one in payloads]

    content = builder.transform_mp4(io.BytesIO(path.read_bytes()), add).read()
    path.write_bytes(content)


def add_blackvue(path: Path, lines: Iterable[str], start: float) -> None:
    """Add the `gps ` box of a BlackVue camera: NMEA sentences with the time of the camera in milliseconds."""
    log = "".join(f"[{round(1000 * (start + second))}]{line}" for second, line in enumerate(lines)).encode()
    inner = (len(log) + 8).to_bytes(4, "big") + b"gps " + log
    raw = path.read_bytes().replace(b"\0\0\0\x08free", b"\0\0\0\x08skip")  # the first `free` box counts
    path.write_bytes(raw + (len(inner) + 8).to_bytes(4, "big") + b"free" + inner)
