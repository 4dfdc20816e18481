"""Photos get positions and headings from tracks, by time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gpxpy")

from cosplace.config.importing import ImportSettings, TrackSettings
from cosplace.importing.positions import PhotoStream
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.track_positions import detects, read
from cosplace.photos.tables import PhotoRecord
from tests.importing.track_samples import START, figure_eight, gpx, points, spiral

TIMES = np.arange(0, 1200.0)


def photo(name: str, time: float, **values: object) -> FoundPhoto:
    return FoundPhoto(file=Path(name), record=PhotoRecord(path=f"photos/{name}", time=time, **values))  # ty: ignore


def annotate(
    track: Path, photos: Sequence[FoundPhoto], **settings: float
) -> tuple[dict[str, PhotoRecord], list[Problem]]:
    """Records by name, and problems."""
    source = read([track], ImportSettings(tracks=TrackSettings(**settings)))  # ty: ignore[invalid-argument-type]
    entries = list(source.annotate(PhotoStream(photos, lambda: iter(one.file for one in photos))))
    found = [entry for entry in entries if isinstance(entry, FoundPhoto)]
    assert sorted(one.file.name for one in found) == sorted(one.file.name for one in photos)
    return {one.file.name: one.record for one in found}, [one for one in entries if isinstance(one, Problem)]


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    path = tmp_path / "walk.gpx"
    path.write_text(gpx([points(TIMES, *figure_eight(TIMES)[:2])]))
    return path


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    path = tmp_path / "walk.gpx"
    path.write_text(gpx([points(TIMES, *spiral(TIMES))]))
    return path


@pytest.mark.parametrize("mount_angle", [0, 90, -45, 350])
def test_position_and_heading(eight: Path, mount_angle: float) -> None:
    assert detects(eight)
    taken = np.array([33.3, 150.0, 640.25])
    photos = [photo(f"{row}.jpg", START + t) for row, t in enumerate(taken)]
    found, _ = annotate(eight, photos, mount_angle=mount_angle)
    for row, wanted in enumerate(zip(*figure_eight(taken), strict=True)):
        record = found[f"{row}.jpg"]
        assert (record.latitude, record.longitude) == pytest.approx(wanted[:2], abs=1e-6)
        assert abs((record.heading - wanted[2] - mount_angle + 180) % 360 - 180) < 1
        assert 0 <= record.heading < 360
        assert (record.heading_source, record.sequence, record.altitude_m) == ("track", "walk", 250.5)


def test_own_values_are_kept(walk: Path) -> None:
    latitudes, longitudes = spiral(np.array([100.0, 200.0]), noise_m=4)
    photos = [
        photo("own.jpg", START + 100, latitude=latitudes[0], longitude=longitudes[0], heading=12.0,
              heading_source="exif", sequence="mine"),
        photo("no-heading.jpg", START + 200, latitude=latitudes[1], longitude=longitudes[1]),
        photo("heading.jpg", START + 300, heading=77.0, heading_source="exif"),
        photo("elsewhere.jpg", START + 400, latitude=-33.0, longitude=18.0),
    ]  # fmt: skip
    found, _ = annotate(walk, photos)
    own = found["own.jpg"]
    assert (own.latitude, own.heading, own.heading_source, own.sequence) == (latitudes[0], 12, "exif", "mine")
    assert (found["no-heading.jpg"].latitude, found["no-heading.jpg"].heading_source) == (latitudes[1], "track")
    assert (found["heading.jpg"].heading, found["heading.jpg"].heading_source) == (77, "exif")
    assert not np.isnan(found["heading.jpg"].latitude)
    assert (found["elsewhere.jpg"].latitude, found["elsewhere.jpg"].heading_source) == (-33, "")


def test_given_clock_offset(walk: Path) -> None:
    found, problems = annotate(walk, [photo("a.jpg", START + 100 + 7213)], clock_offset=-7213)
    assert found["a.jpg"].latitude == pytest.approx(spiral(np.array([100.0]))[0][0], abs=1e-6)
    assert found["a.jpg"].time == START + 100
    assert not problems


def test_clock_offsets_of_two_cameras(walk: Path) -> None:
    """A phone that knows its positions is 2 h 13 s behind; a camera without positions shows local time."""
    taken = np.linspace(10, 1190, 60)
    latitudes, longitudes = spiral(taken, noise_m=3)
    own = [{"latitude": lat, "longitude": lon} for lat, lon in zip(latitudes, longitudes, strict=True)]
    phone = [photo(f"phone{row:02d}.jpg", START + t - 7213, camera="Phone", **({} if row % 3 else own[row]))
             for row, t in enumerate(taken)]  # fmt: skip
    camera = [photo(f"camera{row:02d}.jpg", START + t + 7200, camera="Camera") for row, t in enumerate(taken)]
    found, problems = annotate(walk, [*phone, *camera])
    exact, _ = spiral(taken)
    for row in range(60):
        assert found[f"phone{row:02d}.jpg"].latitude == pytest.approx(exact[row], abs=2e-4)
    # Whole hours fit this short track only once.
    assert [round(found[f"camera{row:02d}.jpg"].latitude, 5) for row in range(60)] == list(np.round(exact, 5))
    reasons = {problem.name: problem.reason for problem in problems}
    assert "+2 h 00 min 1" in reasons["Phone"]
    assert "-2 h 00 min 0 s" in reasons["Camera"]


def test_photos_outside_are_listed(tmp_path: Path) -> None:
    known = points(TIMES, *spiral(TIMES))
    path = tmp_path / "parts.gpx"
    path.write_text(gpx([known[:400], known[600:]]))
    photos = [photo("in.jpg", START + 100), photo("gap.jpg", START + 500), photo("after.jpg", START + 1300),
              photo("timeless.jpg", float("nan"))]  # fmt: skip
    found, problems = annotate(path, photos, clock_offset=0.0)
    assert [name for name, record in found.items() if not np.isnan(record.latitude)] == ["in.jpg"]
    reasons = {problem.name: problem.reason for problem in problems}
    assert "1 min 40 s" in reasons["photos/gap.jpg"]
    assert "1 min 41 s" in reasons["photos/after.jpg"]
    assert "no time" in reasons["photos/timeless.jpg"]


def test_frames_of_videos(walk: Path) -> None:
    """Their clock is that of the video, which the video has corrected."""
    frames = [photo("placed.jpg", START + 100, video_time=3.0, latitude=1.0, longitude=2.0),
              photo("frame.jpg", START + 100, video_time=3.0)]  # fmt: skip
    found, problems = annotate(walk, frames, clock_offset=50.0)
    assert found["frame.jpg"].latitude == pytest.approx(spiral(np.array([100.0]))[0][0], abs=1e-6)
    assert found["placed.jpg"].latitude == 1
    assert not problems


@pytest.mark.parametrize(("shift_degrees", "is_used"), [(0.0, True), (0.0001, True), (1.0, False)])
def test_two_tracks_at_one_time_have_to_agree(tmp_path: Path, shift_degrees: float, is_used: bool) -> None:
    latitudes, longitudes = figure_eight(TIMES)[:2]
    path = tmp_path / "walk.gpx"
    path.write_text(gpx([points(TIMES, latitudes, longitudes), points(TIMES, latitudes + shift_degrees, longitudes)]))
    found, problems = annotate(path, [photo("a.jpg", START + 300.5)], clock_offset=0.0)
    assert (not np.isnan(found["a.jpg"].latitude)) == is_used
    assert any("on two tracks at once, 11" in problem.reason for problem in problems) == (not is_used)
