"""Files of tracks: GPX, and NMEA logs of receivers.  Side effects: reads files.

Times are UTC.  A damaged part is left out, with a reason; a file without a usable point is refused.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from cosplace.errors import DatasetError, one_line
from cosplace.importing.packages import optional_module
from cosplace.importing.records import Problem
from cosplace.importing.tracks import METERS_PER_DOP, UNKNOWN, Track, TrackPoint, build_track

MAX_TRACK_BYTES = 500_000_000
HEAD_BYTES = 65_536  # enough to recognize a file
FIRST_YEAR = 1990  # receivers that do not know the time yet write 1980
UTF_16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}  # by the first bytes
GPX_START = re.compile(r"<([\w.-]+:)?gpx\b")
NMEA_SENTENCE = re.compile(rb"\$[A-Z]{2}(?:RMC|GGA|ZDA),[^\r\n$]*")
DAY_S = 86_400


def is_gpx(path: Path) -> bool:
    """Whether a file is GPX."""
    head = _xml_text(_head(path))
    return GPX_START.search(head) is not None and "\0" not in head


def is_nmea(path: Path) -> bool:
    """Whether a file is a log of NMEA sentences; text may precede each sentence."""
    head = _head(path)
    return NMEA_SENTENCE.search(head) is not None and b"\0" not in head


def is_track_file(path: Path) -> bool:
    """Whether a file is a track of a supported format."""
    return path.is_file() and (is_gpx(path) or is_nmea(path))


def read_track_file(path: Path, max_gap_s: float) -> tuple[Track, list[Problem]]:
    """The track of a GPX file or an NMEA log, and what of the file could not be used.

    Raises DatasetError for a file that is too large or has no point with a time and a position.
    """
    size = path.stat().st_size
    if size > MAX_TRACK_BYTES:
        raise DatasetError(f"{path} has {size / 1e6:,.0f} MB; the limit is {MAX_TRACK_BYTES / 1e6:,.0f} MB. Split it.")
    raw = path.read_bytes()
    return read_gpx(raw, path, max_gap_s) if is_gpx(path) else read_nmea(raw, path, max_gap_s)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


# --- GPX -------------------------------------------------------------------------------------------------------------


def read_gpx(raw: bytes, path: Path, max_gap_s: float) -> tuple[Track, list[Problem]]:
    """The track of a GPX file; each of its segments stays a segment.  Routes and waypoints are not used."""
    gpx, problems = _parse_gpx(raw, path)
    segments, num_untimed = [], 0
    for track in gpx.tracks:
        for segment in track.segments:
            timed = [point for point in segment.points if point.time is not None]
            num_untimed += len(segment.points) - len(timed)
            segments.append([_gpx_point(point) for point in timed])
    if not any(segments):
        if num_untimed or gpx.routes:
            reason = "its points have no times, as in a planned route. Export the recorded track"
        else:
            reason = "it has no track points. Export the recorded track"
        raise DatasetError(f"{path} gives no positions: {reason}.")
    if num_untimed:
        problems.append(_doubt(path, f"{num_untimed:,} points without a time are left out"))
    return _built(segments, path, max_gap_s), problems


def _parse_gpx(raw: bytes, path: Path) -> tuple[Any, list[Problem]]:
    """The parsed file; of a truncated file, the part before the damage."""
    gpxpy = optional_module("gpxpy", "Reading GPX")
    text = _xml_text(raw)
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DatasetError(f"{path} has a document type declaration, which GPX does not need. Export it again.")
    start = GPX_START.search(text)
    if start and start[1]:  # a prefix of the namespace, which gpxpy does not know
        text = re.sub(rf"(</?){re.escape(start[1])}", r"\1", text)
    try:
        return gpxpy.parse(text), []
    except Exception as error:  # of gpxpy, or of the XML parser that it found
        complete, end, _ = text.rpartition("</trkpt>")
        damage = one_line(str(error).partition("\n")[0])
        if not end:
            raise DatasetError(f"{path} is not valid GPX ({damage}). Export it again.") from error
    try:
        gpx = gpxpy.parse(f"{complete}{end}</trkseg></trk></gpx>")
    except Exception as error:
        raise DatasetError(f"{path} is not valid GPX ({damage}). Export it again.") from error
    return gpx, [_doubt(path, f"the file is damaged ({damage}); the part before the damage is used")]


def _xml_text(raw: bytes) -> str:
    """Text of an XML file, or of its start, without the declaration."""
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"'](?!(?i:utf-?16))([\w-]+)[\"']", raw)
    encoding = UTF_16.get(raw[:2]) or (declared[1].decode() if declared else "utf-8-sig")
    try:
        text = raw.decode(encoding, "replace")
    except (LookupError, ValueError):  # not an encoding of text
        text = raw.decode("utf-8-sig", "replace")
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1)


def _gpx_point(point: Any) -> TrackPoint:
    time = point.time if point.time.tzinfo else point.time.replace(tzinfo=UTC)
    dop = point.horizontal_dilution or point.position_dilution
    return TrackPoint(
        time=time.timestamp(),
        latitude=point.latitude,
        longitude=point.longitude,
        altitude_m=UNKNOWN if point.elevation is None else point.elevation,
        accuracy_m=dop * METERS_PER_DOP if dop else UNKNOWN,
    )


# --- NMEA ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fix:
    """One sentence with a position: RMC with a date, or GGA without one."""

    clock_s: float  # since midnight
    day: date | None
    is_valid: bool
    point: TrackPoint  # without time


def read_nmea(raw: bytes, path: Path, max_gap_s: float) -> tuple[Track, list[Problem]]:
    """The track of an NMEA log: positions of RMC and GGA, dates of RMC and ZDA.

    Sentences of the same time are one point.  Those without a fix, or with a wrong checksum, are dropped and counted.
    """
    fixes, days, num_wrong = _read_sentences(raw)
    problems = []
    if num_wrong:
        reason = f"{num_wrong:,} sentences with a wrong checksum or damaged fields are left out"
        problems.append(_doubt(path, reason))
    if not days:
        raise DatasetError(f"{path} gives no positions: it has no date. Also log RMC or ZDA sentences.")
    points: dict[float, TrackPoint] = {}
    without_fix: set[float] = set()
    for fix, time in _dated(fixes, days):
        if not fix.is_valid:
            without_fix.add(time)
            continue
        known = points.get(time, fix.point)
        points[time] = replaced(known, fix.point)._replace(time=time)
    for time in without_fix:
        points.pop(time, None)
    if without_fix:
        problems.append(_doubt(path, f"{len(without_fix):,} times without a fix are left out"))
    if not points:
        raise DatasetError(f"{path} gives no positions: the receiver had no fix. Use another log.")
    return _built([list(points.values())], path, max_gap_s), problems


def replaced(point: TrackPoint, other: TrackPoint) -> TrackPoint:
    """A point with the values that only the other one knows."""
    return TrackPoint(*(its if math.isnan(value) else value for value, its in zip(point, other, strict=True)))


def _read_sentences(raw: bytes) -> tuple[list[_Fix], list[tuple[int, date, float]], int]:
    """Positions in the order of the log; (number of positions before it, day, clock) of dates; damaged sentences."""
    pynmea2 = optional_module("pynmea2", "Reading NMEA logs")
    fixes: list[_Fix] = []
    days: list[tuple[int, date, float]] = []
    num_wrong = 0
    for match in NMEA_SENTENCE.finditer(raw):
        try:
            sentence = pynmea2.parse(match[0].decode("ascii").strip())
            kind, time = sentence.sentence_type, sentence.timestamp
            if not time:  # before the first fix
                continue
            clock_s = time.hour * 3600 + time.minute * 60 + time.second + time.microsecond / 1e6
            day = _day(sentence)
            if day is not None:
                days.append((len(fixes), day, clock_s))
            if kind == "RMC":
                is_valid = sentence.status == "A" and bool(sentence.lat and sentence.lon)
                point = TrackPoint(UNKNOWN, sentence.latitude, sentence.longitude) if is_valid else NO_POINT
                fixes.append(_Fix(clock_s, day, is_valid, point))
            elif kind == "GGA":
                is_valid = (sentence.gps_qual or 0) > 0 and bool(sentence.lat and sentence.lon)
                fixes.append(_Fix(clock_s, None, is_valid, _gga_point(sentence) if is_valid else NO_POINT))
        except (ValueError, TypeError, AttributeError, UnicodeDecodeError):  # pynmea2 raises all of them
            num_wrong += 1
    return fixes, days, num_wrong


NO_POINT = TrackPoint(UNKNOWN, UNKNOWN, UNKNOWN)


def _gga_point(sentence: Any) -> TrackPoint:
    dop = float(sentence.horizontal_dil or 0)
    return TrackPoint(
        time=UNKNOWN,
        latitude=sentence.latitude,
        longitude=sentence.longitude,
        altitude_m=UNKNOWN if sentence.altitude is None else float(sentence.altitude),
        accuracy_m=dop * METERS_PER_DOP if dop > 0 else UNKNOWN,
    )


def _day(sentence: Any) -> date | None:
    """The date of a sentence; None without one, and for those of a receiver that does not know it yet."""
    if sentence.sentence_type == "RMC":
        day = sentence.datestamp or None
    elif sentence.sentence_type == "ZDA" and sentence.year:
        day = date(int(sentence.year), int(sentence.month), int(sentence.day))
    else:
        day = None
    return day if day is not None and day.year >= FIRST_YEAR else None


def _dated(fixes: Iterable[_Fix], days: list[tuple[int, date, float]]) -> Iterator[tuple[_Fix, float]]:
    """Positions with their times in seconds since 1970: the day is that of the nearest date in the log."""
    place = 0
    for number, fix in enumerate(fixes):
        while place + 1 < len(days) and abs(days[place + 1][0] - number) <= abs(days[place][0] - number):
            place += 1
        _, day, clock_s = days[place]
        # The clock may have passed midnight between the two.
        days_later = 0 if fix.day is not None else round((clock_s - fix.clock_s) / DAY_S)
        midnight = datetime.combine(fix.day or day, datetime.min.time(), UTC).timestamp()
        yield fix, midnight + days_later * DAY_S + fix.clock_s


def _doubt(path: Path, reason: str) -> Problem:
    """A part of a track that is not used; the rest is."""
    return Problem(name=str(path), reason=reason, is_left_out=False)


def _built(segments: list[list[TrackPoint]], path: Path, max_gap_s: float) -> Track:
    track = build_track(segments, max_gap_s)
    if track is None:
        raise DatasetError(f"{path} gives no positions: none of its points has valid coordinates. Export it again.")
    return track
