"""GPX files and NMEA logs."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("gpxpy")
pytest.importorskip("pynmea2")

from cosplace.errors import DatasetError
from cosplace.importing.track_files import is_track_file, read_track_file
from cosplace.importing.tracks import METERS_PER_DOP, positions_at
from tests.importing.track_samples import START, gpx, nmea, points, sentence, spiral

TIMES = np.arange(0, 60.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "track"


def test_gpx(file: Path) -> None:
    known = points(TIMES, *spiral(TIMES))
    file.write_text(gpx([known[:30], known[35:]], "<ele>250.5</ele><hdop>1.2</hdop>"))
    assert is_track_file(file)
    track, problems = read_track_file(file, 30)
    assert not problems
    assert [len(segment) for segment in track.segments] == [30, 25]
    found = positions_at(track, START + np.array([0, 10.5, 31.5, 59]))
    assert found.latitudes[2] == pytest.approx(known[29].latitude, abs=1e-8)  # held, not interpolated
    assert found.accuracies_m[2] > found.accuracies_m[1]
    assert found.latitudes[0] == pytest.approx(known[0].latitude, abs=1e-8)
    assert found.altitudes_m[1] == 250.5
    assert found.accuracies_m[1] == pytest.approx(1.2 * METERS_PER_DOP)


def test_gpx_times_have_zones(file: Path) -> None:
    text = gpx([points(TIMES[:2], *spiral(TIMES[:2]))])
    file.write_text(text.replace("10:00:00+00:00", "12:00:00+02:00").replace("10:00:01+00:00", "10:00:01"))
    track, _ = read_track_file(file, 30)
    assert (track.start, track.end) == (START, START + 1)


@pytest.mark.parametrize("prefix", ["", "g:", "gpx-1.1:"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "iso-8859-1", "idna"])
def test_gpx_in_any_encoding_and_with_a_prefix(file: Path, encoding: str, prefix: str) -> None:
    text = gpx([points(TIMES, *spiral(TIMES))]).replace("UTF-8", encoding[:6] if "16" in encoding else encoding)
    text = re.sub("<(/?)(?=[a-z])", rf"<\1{prefix}", text)
    if prefix:
        text = text.replace("xmlns=", f"xmlns:{prefix[:-1]}=")
    file.write_bytes(text.encode("ascii" if encoding == "idna" else encoding))
    assert is_track_file(file)
    track, problems = read_track_file(file, 30)
    assert not problems and [len(segment) for segment in track.segments] == [60]


def test_gpx_in_utf_8_that_declares_utf_16(file: Path) -> None:
    file.write_text(gpx([points(TIMES, *spiral(TIMES))]).replace("UTF-8", "UTF-16"))
    assert len(read_track_file(file, 30)[0].segments[0]) == 60


def test_entities_in_utf_16_are_refused(file: Path) -> None:
    text = gpx([points(TIMES, *spiral(TIMES))])
    file.write_bytes(text.replace("<gpx", '<!DOCTYPE gpx [<!ENTITY a "b">]><gpx').encode("utf-16"))
    with pytest.raises(DatasetError, match="document type declaration"):
        read_track_file(file, 30)


def test_gpx_without_time_is_refused(file: Path) -> None:
    known = points(TIMES, *spiral(TIMES))
    file.write_text(gpx([known], with_time=False))
    with pytest.raises(DatasetError, match="points have no time"):
        read_track_file(file, 30)
    file.write_text(gpx([]))
    with pytest.raises(DatasetError, match="no track points"):
        read_track_file(file, 30)


def test_gpx_with_some_untimed_points(file: Path) -> None:
    known = points(TIMES, *spiral(TIMES))
    text = gpx([known])
    file.write_text(text.replace("<time>2026-05-01T10:00:07+00:00</time>", ""))
    track, problems = read_track_file(file, 30)
    assert track.num_points == 59
    assert "1 points without a time" in problems[0].reason


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_gpx_gives_what_precedes_the_damage(file: Path, share: float) -> None:
    text = gpx([points(TIMES, *spiral(TIMES))])
    file.write_text(text[: int(share * len(text))])
    track, problems = read_track_file(file, 30)
    assert 60 * share - 3 <= track.num_points < 60 * share + 2
    assert "damaged" in problems[0].reason


@pytest.mark.parametrize(
    "text", ["<gpx", "<gpx><trk></gpx>", "<gpx></gpx>", '<!DOCTYPE x [<!ENTITY a "b">]><gpx>&a;</gpx>']
)
def test_invalid_gpx_is_refused_in_one_line(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_track_file(file, 30)
    assert "\n" not in str(caught.value)


def test_gpx_in_another_encoding(file: Path) -> None:
    text = gpx([points(TIMES, *spiral(TIMES))]).replace("UTF-8", "ISO-8859-1").replace("walk", "Straße")
    file.write_bytes(text.encode("latin-1"))
    assert read_track_file(file, 30)[0].num_points == 60


# --- NMEA ------------------------------------------------------------------------------------------------------------


def log(start: float = START, seconds: int = 60) -> list[tuple[str, str]]:
    times = np.arange(0, float(seconds))
    return [nmea(start + t, lat, lon) for t, lat, lon in zip(times, *spiral(times), strict=True)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nmea(file: Path, order: tuple[int, int]) -> None:
    file.write_text("".join(pair[order[0]] + sentence("GPGSV,1,1,00") + pair[order[1]] for pair in log()))
    assert is_track_file(file)
    track, problems = read_track_file(file, 30)
    assert not problems
    assert track.num_points == 60
    latitudes, longitudes = spiral(TIMES)
    found = positions_at(track, START + TIMES)
    np.testing.assert_allclose(found.latitudes, latitudes, atol=1e-7)
    np.testing.assert_allclose(found.longitudes, longitudes, atol=1e-7)
    assert set(found.altitudes_m) == {250.5}
    np.testing.assert_allclose(found.accuracies_m, 0.9 * METERS_PER_DOP)


def test_nmea_south_west_and_prefixed_lines(file: Path) -> None:
    lines = [nmea(START + t, -33.5 - 1e-5 * t, -70.25) for t in range(10)]
    file.write_text("".join(f"[{t}000] {gga.strip()}\n[{t}000] {rmc}" for t, (gga, rmc) in enumerate(lines)))
    track, _ = read_track_file(file, 30)
    assert track.segments[0].latitudes[3] == pytest.approx(-33.50003)
    assert track.segments[0].longitudes[3] == pytest.approx(-70.25)


def test_nmea_without_fix_and_with_wrong_checksums(file: Path) -> None:
    pairs = log()
    pairs[5] = nmea(START + 5, 45, 7, fix=False)
    damaged = pairs[20][0].replace("*", "1*"), pairs[20][1].replace(",A,", ",B,")
    pairs[20] = damaged
    file.write_text("".join("".join(pair) for pair in pairs))
    track, problems = read_track_file(file, 30)
    assert START + 5 not in track.segments[0].times
    assert START + 20 not in track.segments[0].times
    assert track.num_points == 58
    reasons = " ".join(problem.reason for problem in problems)
    assert "2 sentences with a wrong checksum" in reasons
    assert "1 times without a fix" in reasons


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nmea_at_midnight(file: Path, order: tuple[int, int]) -> None:
    midnight = (START // 86_400 + 1) * 86_400
    file.write_text("".join(pair[order[0]] + pair[order[1]] for pair in log(midnight - 30)))
    track, _ = read_track_file(file, 30)
    np.testing.assert_allclose(np.concatenate([s.times for s in track.segments]), midnight - 30 + TIMES)


def test_nmea_dates_of_zda_only(file: Path) -> None:
    midnight = (START // 86_400 + 1) * 86_400
    dates = sentence("GPZDA,235945.00,01,05,2026,00,00"), sentence("GPZDA,000015.00,02,05,2026,00,00")
    lines = [gga for gga, _ in log(midnight - 30)]
    file.write_text("".join([*lines[:15], dates[0], *lines[15:45], dates[1], *lines[45:]]))
    track, _ = read_track_file(file, 30)
    np.testing.assert_allclose(track.segments[0].times, midnight - 30 + TIMES)


def test_nmea_without_a_date_or_a_fix_is_refused(file: Path) -> None:
    file.write_text("".join(gga for gga, _ in log()))
    with pytest.raises(DatasetError, match="no date"):
        read_track_file(file, 30)
    file.write_text("".join("".join(nmea(START + t, 45, 7, fix=False)) for t in range(9)))
    with pytest.raises(DatasetError, match="no fix"):
        read_track_file(file, 30)
    file.write_text("".join("".join(nmea(315_964_800.0 + t, 45, 7)) for t in range(9)))  # 1980
    with pytest.raises(DatasetError, match="no date"):
        read_track_file(file, 30)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_read_or_refused_in_one_line(file: Path, data: st.DataObject) -> None:
    known = points(TIMES[:6], *spiral(TIMES[:6]))
    text = data.draw(st.sampled_from([gpx([known]), "".join("".join(pair) for pair in log(seconds=6))]))
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    file.write_bytes(raw)
    try:
        track, _ = read_track_file(file, 30)
    except DatasetError as error:
        assert "\n" not in str(error)
    else:
        assert track.num_points >= 1
        assert all((np.diff(segment.times) > 0).all() for segment in track.segments)


def test_other_files_are_not_tracks(file: Path) -> None:
    for text in ("filename,latitude,longitude\n", "{}", "", "$100 for a map\n"):
        file.write_text(text)
        assert not is_track_file(file)
    assert not is_track_file(file.parent)
