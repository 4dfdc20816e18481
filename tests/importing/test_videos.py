"""Frames of videos, with tracks inside and outside of them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from simplejpeg import decode_jpeg

pytest.importorskip("av")
pytest.importorskip("gpxpy")
pytest.importorskip("mapillary_tools")

from cosplace.config.importing import ImportConfig, ImportSettings, TrackSettings
from cosplace.errors import ConfigError
from cosplace.geo import destination, geodesic_distances_m
from cosplace.importing import video_tracks
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.tracks import TrackPoint
from cosplace.importing.video_tracks import read_video_track
from cosplace.importing.videos import detects, read
from tests.importing.track_samples import (
    START,
    add_blackvue,
    add_camm,
    add_gpmf,
    camm_point,
    gpmf_payload,
    gpx,
    gray_of,
    nmea,
    write_video,
)

pytestmark = pytest.mark.slow  # too many files for make check; make test runs all

CREATED = "2026-05-01T10:00:00.000000Z"


def straight(times: np.ndarray, speed_m_s: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of a drive to the east."""
    return destination(45.0, 7.6, speed_m_s * times, 0 * times)


def frames(
    path: Path, settings: ImportSettings | None = None, **options: object
) -> tuple[list[FoundPhoto], list[Problem]]:
    settings = settings or ImportSettings(tracks=TrackSettings(**options))  # ty: ignore[invalid-argument-type]
    entries = list(read(path, settings))
    return ([entry for entry in entries if isinstance(entry, FoundPhoto)],
            [entry for entry in entries if isinstance(entry, Problem)])  # fmt: skip


def pixels(photo: FoundPhoto) -> np.ndarray:
    assert photo.content is not None
    return decode_jpeg(photo.content).astype(int)


def gray(photo: FoundPhoto) -> int:
    return int(np.median(pixels(photo)[20:, :, 1]))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "ride.mp4"
    write_video(path, created=CREATED)
    return path


def test_frames_by_time(video: Path) -> None:
    assert detects(video)
    found, problems = frames(video, every_s=2.5)
    assert [one.record.path for one in found] == [f"photos/ride/{t:08d}.jpg" for t in (0, 2500, 5000, 7500)]
    for one, index in zip(found, (0, 25, 50, 75), strict=True):
        assert abs(gray(one) - gray_of(index)) <= 1
        assert pixels(one)[:8].min() > 240  # the band is at the top
        assert one.record.video_time == index / 10
        assert one.record.time == START + index / 10
        assert (one.record.sequence, one.use_exif, one.file) == ("ride", False, video)
    assert not problems
    assert len(frames(video)[0]) == 10  # every second without a track


@pytest.mark.parametrize(("degrees", "matrix"), [
    (90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0)),
])  # fmt: skip
def test_rotated_video(video: Path, degrees: int, matrix: tuple[int, ...]) -> None:
    """The display matrix of the header turns the frames clockwise, as OpenCV shows them."""
    cv2 = pytest.importorskip("cv2")
    raw = bytearray(video.read_bytes())
    place = raw.index(b"tkhd") + 44  # of the matrix in version 0
    a, b, c, d = (value << 16 for value in matrix)
    raw[place : place + 36] = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    )
    video.write_bytes(raw)
    first = frames(video, every_s=100)[0][0]
    ok, shown = cv2.VideoCapture(str(video)).read()
    assert ok
    assert pixels(first).shape == shown.shape
    assert np.abs(pixels(first) - shown.astype(int)).mean() < 6
    assert pixels(first).shape[:2] == ((64, 48) if degrees != 180 else (48, 64))


def camm(path: Path, epoch_offset_s: float = 0) -> None:
    times = np.arange(0, 10.1, 0.5)
    measurements = [camm_point(t, lat, lon, START + 100 + t + epoch_offset_s) for t, lat, lon in
                    zip(times, *straight(times), strict=True)]  # fmt: skip
    measurements[3] = camm_point(1.5, 10.0, 10.0, START + 101.5 + epoch_offset_s, fix=0)
    add_camm(path, measurements)


def gpmf(path: Path) -> None:
    payloads = []
    for second in range(10):
        times = second + np.arange(0, 1, 0.25)
        rows = list(zip(*straight(times), strict=True))
        payloads.append(gpmf_payload(rows, START + 100 + second, fix=0 if second == 9 else 3))
    add_gpmf(path, payloads)


def blackvue(path: Path) -> None:
    times = np.arange(0, 11.0)
    lines = [nmea(START + 100 + t, lat, lon)[1] for t, lat, lon in zip(times, *straight(times), strict=True)]
    add_blackvue(path, lines, START + 100 + 7200)  # the camera shows local time


@pytest.mark.parametrize("kind", ["CAMM", "GPMF", "BlackVue"])
def test_track_inside_a_video(video: Path, kind: str) -> None:
    {"CAMM": camm, "GPMF": gpmf, "BlackVue": blackvue}[kind](video)
    inside = read_video_track(video, 30)
    assert inside is not None
    assert inside.kind == kind
    end = 8.75 if kind == "GPMF" else 10.0
    assert (inside.track.start, inside.track.end) == pytest.approx((0, end), abs=0.01)
    found, problems = frames(video)
    assert not problems
    assert len(found) == 8 - (kind == "GPMF")  # 40 m, every 5 m
    times = np.array([one.record.video_time for one in found])
    np.testing.assert_allclose(np.diff(times), 1.25, atol=0.11)
    for one, time in zip(found, times, strict=True):
        latitude, longitude = straight(time)
        assert geodesic_distances_m(one.record.latitude, one.record.longitude, latitude, longitude) < 0.3
        assert one.record.heading == pytest.approx(90, abs=1)
        assert one.record.heading_source == "track"
        assert abs(gray(one) - gray_of(round(10 * time))) <= 1
    assert found[0].record.time == pytest.approx(START + 100 + times[0], abs=0.02)
    assert found[0].record.camera == {"CAMM": "Test Cam 1", "GPMF": "GoPro Hero8 Black", "BlackVue": "BlackVue"}[kind]
    if kind == "GPMF":
        assert found[0].record.accuracy_m == pytest.approx(7.5)
    if kind == "CAMM":
        assert found[0].record.accuracy_m == pytest.approx(2.5)


@pytest.mark.parametrize("since_1980", [True, False])
@pytest.mark.parametrize("created", [START, np.nan])
def test_epochs_of_camm(video: Path, since_1980: bool, created: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_tracks, "time", SimpleNamespace(time=lambda: START + 86_400))
    camm(video, -315_964_800 + 18 if since_1980 else 0)
    inside = read_video_track(video, 30, created=created)
    assert inside is not None
    assert inside.start == pytest.approx(START + 100, abs=0.01)


@pytest.mark.parametrize("table", [b"stts", b"stsz"])
def test_a_header_with_billions_of_samples_is_not_expanded(video: Path, table: bytes) -> None:
    camm(video)
    raw = bytearray(video.read_bytes())
    place = raw.rindex(table) + 12  # number of samples: of the first row, or of all
    raw[place : place + 4] = b"\xff" * 4
    video.write_bytes(raw)
    assert read_video_track(video, 30) is None


def import_settings(video: Path, *tracks: Path, **options: object) -> ImportConfig:
    return ImportConfig(sources=tuple(map(str, (video, *tracks))), tracks=TrackSettings(**options))  # ty: ignore


def write_gpx(path: Path, offset_s: float = 0, seconds: int = 600) -> Path:
    times = np.arange(0, float(seconds))
    path.write_text(gpx([[TrackPoint(START + offset_s + t, lat, lon) for t, lat, lon in
                          zip(times, *straight(times - 60), strict=True)]]))  # fmt: skip
    return path


def test_track_outside_of_a_video(video: Path, tmp_path: Path) -> None:
    track = write_gpx(tmp_path / "ride.gpx", -60)
    found, problems = frames(video, import_settings(video, track, mount_angle=-90.0, every_m=8.0))
    assert [one.record.video_time for one in found] == pytest.approx([0, 2, 4, 6, 8], abs=0.11)
    assert found[1].record.longitude == pytest.approx(straight(np.array(found[1].record.video_time))[1], abs=1e-6)
    assert (found[1].record.heading + 180) % 360 == pytest.approx(180, abs=0.5)
    assert found[1].record.time == pytest.approx(START + found[1].record.video_time)
    assert not problems


def test_two_tracks_of_different_places_are_not_used_for_a_video(video: Path, tmp_path: Path) -> None:
    track = write_gpx(tmp_path / "ride.gpx", -60)
    other = tmp_path / "other.gpx"
    other.write_text(track.read_text().replace('lat="45', 'lat="46'))
    assert other.read_text() != track.read_text()
    found, problems = frames(video, import_settings(video, track, other, clock_offset=0.0))
    assert found and all(np.isnan(one.record.latitude) for one in found)
    assert "is on two tracks at once, 111," in problems[0].reason
    found, problems = frames(video, import_settings(video, track, track, clock_offset=0.0))
    assert not any(np.isnan(one.record.latitude) for one in found) and not problems


def test_start_of_a_video(video: Path, tmp_path: Path) -> None:
    track = write_gpx(tmp_path / "ride.gpx", 7140)
    by_hand = import_settings(video, track, video_start="2026-05-01T14:00:00+02:00")
    estimated = import_settings(video, track)
    shifted = import_settings(video, track, clock_offset=7200.0)
    for settings in (by_hand, shifted):
        found, _ = frames(video, settings)
        assert len(found) == 8
        assert found[0].record.time == pytest.approx(START + 7200)
        assert found[0].record.longitude == pytest.approx(7.6, abs=1e-6)
    assert not frames(video, estimated)[0]  # no time zone near Italy is two hours behind UTC
    with pytest.raises(ConfigError, match="--video_start must be a time"):
        frames(video, import_settings(video, track, video_start="noon"))


def test_video_without_a_duration(tmp_path: Path) -> None:
    path = tmp_path / "ride.avi"
    write_video(path, 30)
    assert [one.record.video_time for one in frames(path)[0]] == [0, 1, 2]
    raw = path.read_bytes()
    place = raw.index(b"strh") + 8 + 32  # number of frames in the header of the stream
    path.write_bytes(raw[:place] + bytes(4) + raw[place + 4 :])
    assert [one.record.video_time for one in frames(path)[0]] == [0, 1, 2]


def test_distances_need_a_track(video: Path) -> None:
    found, problems = frames(video, every_m=3.0)
    assert len(found) == 10
    assert "has no track" in problems[0].reason


def test_video_that_the_track_does_not_cover(video: Path, tmp_path: Path) -> None:
    found, problems = frames(video, import_settings(video, write_gpx(tmp_path / "ride.gpx", 86_400 * 3)))
    assert not found
    assert "no position during the video" in problems[-1].reason


def test_standing_still_gives_one_frame(video: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.8, (2, 21))
    latitudes, longitudes = destination(45.0, 7.6, *noise)
    times = np.arange(0, 10.1, 0.5)
    add_camm(
        video, [camm_point(t, lat, lon, START + t) for t, lat, lon in zip(times, latitudes, longitudes, strict=True)]
    )
    found, _ = frames(video, every_m=8.0)
    assert len(found) == 1
    assert np.isnan(found[0].record.heading)


@pytest.mark.parametrize("damage", ["truncated", "zeros"])
def test_damaged_video_gives_the_frames_before(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.mp4"
    write_video(path, faststart=True)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] if damage == "truncated" else raw[:middle] + bytes(400) + raw[middle + 400 :])
    found, problems = frames(path)
    assert 2 <= len(found) < 8
    for one in found:
        assert abs(gray(one) - gray_of(round(10 * one.record.video_time))) <= 1
    assert "is damaged after" in problems[0].reason
    assert not problems[0].is_left_out


@pytest.mark.parametrize("content", [b"", b"#EXTM3U\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n", b"\0\0\0\x18ftypmp42"])
def test_files_that_are_not_videos(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    write_video(tmp_path / "other.mp4", 5)
    path.write_bytes(content)
    found, problems = frames(path)
    assert not found
    assert problems[0].is_left_out


def test_folder_of_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4"):
        write_video(tmp_path / name, 15)
    (tmp_path / "a.lrv").write_bytes(b"small copy")
    assert detects(tmp_path)
    assert [one.record.sequence for one in frames(tmp_path)[0]] == ["a", "a", "b", "b"]
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    assert not detects(tmp_path)


def test_same_settings_give_the_same_names(video: Path) -> None:
    camm(video)
    first, second = ([(repr(one.record), one.content) for one in frames(video)[0]] for _ in range(2))
    assert first == second
