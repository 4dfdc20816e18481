"""Sequences: tracks, times of frames, videos, GPX; the loop closure example."""

import importlib.util
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import destination, geodesic_distances_m
from cosplace.index.photo_index import create_index
from cosplace.localization.answers import Location, Unreadable
from cosplace.localization.localizer import Localizer
from cosplace.localization.sequences import estimate_track
from cosplace.localization.tracks import frame_times, gpx_text, is_video, video_frames
from tests.places import SPEC, D, new_photos, units

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Street:
    """A street of 40 places 10 m apart, and a copy 3 km away that looks the same except for every fifth place."""

    def __init__(
        self, address: Path, latitude: float = 45.0, longitude: float = 7.0, min_confidence: float = 0.0
    ) -> None:
        rng = np.random.default_rng(0)
        self.vectors = units(rng.standard_normal((40, D)))
        along = 10.0 * np.arange(40)
        self.latitudes, self.longitudes = destination(latitude, longitude, along, np.zeros(40))
        lat_2, lon_2 = destination(latitude, longitude, along, np.full(40, 3000.0))
        copies = self.vectors + 0.02 * rng.standard_normal((40, D))
        copies[::5] = rng.standard_normal((8, D))
        with create_index(address, SPEC) as index:
            index.add(
                new_photos(np.concatenate([self.latitudes, lat_2]), np.concatenate([self.longitudes, lon_2])),
                units(np.concatenate([self.vectors, copies])),
            )
        self.localizer = Localizer(address, uncalibrated=True, min_confidence=min_confidence)

    def frames(self, seed: int = 1, noise: float = 0.15) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return units(self.vectors + noise * rng.standard_normal(self.vectors.shape) / np.sqrt(D) * 3)

    def errors_m(self, answers: list[Location], rows: slice = slice(None)) -> np.ndarray:
        lat = np.array([np.nan if a.latitude is None else a.latitude for a in answers])
        lon = np.array([np.nan if a.longitude is None else a.longitude for a in answers])
        found = geodesic_distances_m(lat, lon, self.latitudes[rows], self.longitudes[rows])
        return np.nan_to_num(found, nan=np.inf)


@pytest.mark.parametrize("at", [(45.0, 7.0), (-17.0, 179.999), (84.0, 12.0)])
def test_a_track_finds_places_that_single_frames_cannot(tmp_path: Path, at: tuple[float, float]) -> None:
    street = Street(tmp_path / "index", *at)
    frames, names, times = street.frames(), [f"{n}.jpg" for n in range(40)], np.arange(40.0)
    single = street.errors_m(street.localizer.locate_descriptors(frames, names)) <= 25
    together = street.localizer.locate_sequence(frames, names, times, max_speed_mps=15)
    found = street.errors_m(together) <= 25
    assert 0.3 < single.mean() < 0.9  # half of the frames match the copy as well
    assert found.all()
    assert min(answer.confidence for answer in together) > 0.8
    assert [answer.photo for answer in together] == names
    assert together[3].neighbours[0].distance_m is not None


def test_the_speed_limit_prevents_jumps(tmp_path: Path) -> None:
    street = Street(tmp_path / "index")
    frames, names, times = street.frames(), [str(n) for n in range(40)], np.arange(40.0)
    free = street.localizer.locate_sequence(frames, names, times, max_speed_mps=1e6)
    assert (street.errors_m(free) <= 25).mean() < 0.9
    bound = street.localizer.locate_sequence(frames, names, times, max_speed_mps=15)
    steps = geodesic_distances_m(*_positions(bound[1:]), *_positions(bound[:-1]))
    assert steps.max() < 15 + 2 * 15  # the limit and its slack


def _positions(answers: list[Location]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a.latitude for a in answers]), np.array([a.longitude for a in answers])


@pytest.mark.parametrize(("num_hidden", "seconds", "is_filled"), [(3, 1.0, True), (3, 5.0, False), (9, 1.0, False)])
def test_a_short_gap_is_interpolated_and_a_long_one_stays_unknown(
    tmp_path, num_hidden: int, seconds: float, is_filled: bool
) -> None:
    street = Street(tmp_path / "index", min_confidence=0.5)
    frames = street.frames()
    frames[10 : 10 + num_hidden] = units(np.random.default_rng(3).standard_normal((num_hidden, D)))
    answers = street.localizer.locate_sequence(
        frames, [str(n) for n in range(40)], np.arange(40) * seconds, max_speed_mps=15 / seconds
    )
    correct = street.errors_m(answers) <= 25
    assert correct[:10].all() and correct[10 + num_hidden :].all()
    hidden = answers[10 : 10 + num_hidden]
    if is_filled:
        assert correct.all() and any("interpolated between" in answer.reason for answer in hidden)
    else:
        assert sum(answer.unknown for answer in hidden) >= num_hidden - 1


def test_out_of_index_frames_are_lost(tmp_path: Path) -> None:
    street = Street(tmp_path / "index")
    out_of_index = units(np.random.default_rng(4).standard_normal((30, D)))
    matches = street.localizer.search(out_of_index)
    fusion = street.localizer.fuse(matches)
    positions = matches.latitudes, matches.longitudes
    track = estimate_track(fusion, *positions, np.full(30, 0.1), np.arange(30.0), max_speed_mps=15)
    assert (track.confidences < 0.5).mean() > 0.9
    known = street.localizer.search(street.frames())
    track = estimate_track(
        street.localizer.fuse(known), known.latitudes, known.longitudes, np.full(40, 0.5), np.arange(40.0),
        max_speed_mps=15,
    )  # fmt: skip
    assert (track.confidences > 0.9).mean() > 0.9  # frames with a confidence of 0.5 support each other


def test_many_frames_of_one_moment_count_little(tmp_path: Path) -> None:
    street = Street(tmp_path / "index")
    frame = street.frames()[7:8]
    slow = street.localizer.locate_sequence(np.repeat(frame, 30, 0), [""] * 30, np.arange(30) / 1000)
    alone = street.localizer.locate_descriptors(frame)[0]
    assert slow[0].confidence < alone.confidence + 0.35  # 30 independent frames would reach 1


def test_one_frame_and_no_frames(tmp_path: Path) -> None:
    street = Street(tmp_path / "index")
    assert street.localizer.locate_sequence(np.empty((0, D)), [], []) == []
    one = street.localizer.locate_sequence(street.frames()[:1], ["a"], [5.0])
    assert street.errors_m(one, slice(1))[0] < 25


def test_invalid_times_and_speeds_raise(tmp_path: Path) -> None:
    street = Street(tmp_path / "index")
    frames = street.frames()[:3]
    for times in ([0, 2, 1], [0, math.nan, 1]):
        with pytest.raises(ConfigError, match="unknown or not in order"):
            street.localizer.locate_sequence(frames, ["a", "b", "c"], times)
    for speed in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="--max_speed"):
            street.localizer.locate_sequence(frames, ["a", "b", "c"], [0, 1, 2], max_speed_mps=speed)


# --- times of frames -------------------------------------------------------------------------------------------------


def _photo(path: Path, taken: str = "", modified: float = 0.0, fraction: str = "") -> Path:
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    if fraction:
        exif.get_ifd(0x8769)[0x9291] = fraction
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    os.utime(path, (modified, modified))
    return path


def test_frames_are_sorted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    paths = [_photo(tmp_path / f"frame{number}.jpg") for number in (10, 9, 100, 1)]
    ordered, times = frame_times(paths, fps=2)
    assert [path.name for path in ordered] == ["frame1.jpg", "frame9.jpg", "frame10.jpg", "frame100.jpg"]
    assert times == [0, 0.5, 1, 1.5]


def test_frames_are_sorted_by_exif_times_and_spread_over_a_second(tmp_path: Path) -> None:
    at = ["2024:05:01 10:00:02", "2024:05:01 10:00:01", "2024:05:01 10:00:01"]
    paths = [_photo(tmp_path / f"{n}.jpg", text, modified=50 + n) for n, text in enumerate(at)]
    ordered, times = frame_times(paths, fps=None)
    assert [path.name for path in ordered] == ["1.jpg", "2.jpg", "0.jpg"]
    assert np.diff(times).tolist() == [0.5, 0.5]
    paths.append(_photo(tmp_path / "none.jpg", modified=10))  # a photo without EXIF: the times of the files are used
    assert [path.name for path in frame_times(paths, fps=None)[0]] == ["none.jpg", "0.jpg", "1.jpg", "2.jpg"]


def test_frames_of_one_second_are_sorted_by_their_fractions(tmp_path: Path) -> None:
    fractions = ["90", "10", "5", "5"]
    paths = [_photo(tmp_path / f"{n}.jpg", "2024:05:01 10:00:01", 0, text) for n, text in enumerate(fractions)]
    ordered, times = frame_times(paths, fps=None)
    assert [path.name for path in ordered] == ["1.jpg", "2.jpg", "3.jpg", "0.jpg"]
    assert np.diff(times) == pytest.approx([0.4, 0.2, 0.2], abs=1e-6)  # two equal ones are spread up to the next


def test_frames_with_equal_times_need_fps(tmp_path: Path) -> None:
    paths = [_photo(tmp_path / f"{n}.jpg", modified=50) for n in range(3)]
    with pytest.raises(ConfigError, match=r"same time.*--fps"):
        frame_times(paths, fps=None)
    for fps in (0, -2, math.nan, math.inf):
        with pytest.raises(ConfigError, match="--fps"):
            frame_times(paths, fps=fps)


def test_frames_of_a_video(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    assert is_video(Path("a.MP4")) and not is_video(Path("a.jpg"))
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for number in range(30):
        writer.write(np.full((24, 32, 3), (0, 0, 8 * number), np.uint8))  # blue, green, red
    writer.release()
    frames = list(video_frames(path, fps=2))
    assert [at for _, at, _ in frames] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert frames[2][0].endswith("a.avi#t=1.00")
    assert frames[2][2].shape == (24, 32, 3) and abs(int(frames[2][2][0, 0, 0]) - 80) < 8 > frames[2][2][0, 0, 2]
    (tmp_path / "b.avi").write_bytes(b"no video")
    with pytest.raises(DatasetError, match="cannot be read as a video"):
        next(video_frames(tmp_path / "b.avi", fps=1))


def test_times_of_a_video_with_a_variable_rate(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 64
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in (*range(0, 10_000, 1000), *(10_000 + round(number / 0.03) for number in range(60))):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times = {fps: [at for _, at, _ in video_frames(path, fps)] for fps in (0.5, 1, 2)}
    assert times[0.5] == pytest.approx([0, 2, 4, 6, 8, 10])
    assert times[1] == pytest.approx(range(12))
    assert times[2] == pytest.approx([*range(11), 10.5, 11, 11.5])  # no more frames than that after 10 s


def test_a_truncated_video_is_refused_without_a_line_of_ffmpeg(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp41\0\0\1\0mdat" + bytes(300))
    code = "import sys; from cosplace.localization.tracks import *; next(video_frames(Path(sys.argv[1]), 1))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "cannot be read as a video" in done.stderr and "moov" not in done.stderr


# --- GPX -------------------------------------------------------------------------------------------------------------


def test_gpx_is_valid_and_has_a_new_segment_after_an_unknown_frame() -> None:
    def location(photo: str, latitude: float | None) -> Location:
        unknown = latitude is None
        return Location(photo=photo, latitude=latitude, longitude=None if unknown else 7.5, radius_m=None,
                        confidence=0.9, unknown=unknown, reason="", neighbours=())  # fmt: skip

    answers = [
        location("a<&>\x07.jpg", 45.0),
        location("b", 45.1),
        location("c", None),
        Unreadable(photo="d", error=""),
        location("e", -45.2),
    ]
    text = gpx_text(answers, [1.6e9, 1.6e9 + 0.5, 1.6e9 + 1, 1.6e9 + 2, 1.6e9 + 3])
    space = {"g": "http://www.topografix.com/GPX/1/1"}
    root = ElementTree.fromstring(text.encode())
    segments = root.findall("g:trk/g:trkseg", space)
    assert [len(segment) for segment in segments] == [2, 1]
    point = segments[0][0]
    assert point.attrib == {"lat": "45.0000000", "lon": "7.5000000"}
    assert point.findtext("g:name", None, space) == "a<&>?.jpg"
    assert point.findtext("g:cmt", None, space) == "Found: 90% sure"
    assert segments[0][1].findtext("g:time", None, space) == "2020-09-13T12:26:40.500Z"
    from_video = ElementTree.fromstring(gpx_text(answers, [0, 1, 2, 3, 4]).encode())
    assert from_video.find(".//g:time", space) is None
    assert ElementTree.fromstring(gpx_text([], []).encode()).find(".//g:trkseg", space) is None


# --- the example -----------------------------------------------------------------------------------------------------


def test_the_loop_closure_example_recognizes_the_second_round(capsys, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("loop_closure", EXAMPLES / "loop_closure.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loop_closure", example)
    spec.loader.exec_module(example)
    rows, places = example.synthetic_drive(300, 64)
    closures, query_s, add_s = example.run(rows, threshold=0.6)
    assert len(query_s) == len(add_s) == 600
    correct = [abs(int(places[closure.query]) - int(places[closure.match])) <= 2 for closure in closures]
    assert len(closures) > 270 and np.mean(correct) > 0.99
    unrelated = units(np.random.default_rng(1).standard_normal((600, 64)))
    assert example.run(unrelated, threshold=0.6)[0] == []
    monkeypatch.setattr(sys, "argv", ["loop_closure.py", "--places", "200", "--dimension", "32"])
    example.main()
    assert "query     p50" in capsys.readouterr().out
