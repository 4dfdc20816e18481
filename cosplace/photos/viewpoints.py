"""Viewpoints: whether a photo is one of a set of photos, decided by position, heading and time alone.

A model keeps a digest of the photos that it was trained on, 32 bits each, so that an index can tell which of its photos
the model has seen.  Positions are rounded to 1e-5 degrees (about 1 m), headings to degrees, times to seconds.
Legend: I photos, H hashes.  Pure.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from cosplace.errors import CheckpointError
from cosplace.geo import lla_from_ecef
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import earth_positions, optional_fields, utm_fields

CELLS_PER_DEGREE = 100_000
MAX_HASHES = 1 << 20  # 4 MB, 2 MB compressed
UNKNOWN_HEADING, UNKNOWN_TIME = 360, -(1 << 62)
SEEN, UNSEEN, UNDECIDED = 1, 0, -1
END_OF_SECOND = 0.002  # seconds
SHIFTED_PHOTOS, SHIFTED_SHARE, MIN_SHIFTED = 1000, 0.15, 3  # photos that are compared; those that must match
MAX_SHIFT_HOURS = 14  # between a time zone and UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewpoints:
    """Where, in which direction and when photos were taken; nan for unknown values."""

    latitudes: np.ndarray  # (I,) float64 degrees
    longitudes: np.ndarray  # (I,) float64 degrees
    headings: np.ndarray  # (I,) float degrees
    times: np.ndarray  # (I,) float64 seconds since 1970 (UTC)

    def without_times(self) -> "Viewpoints":
        """The same viewpoints at unknown times."""
        return replace(self, times=np.full(len(self.times), np.nan))

    def without_headings(self) -> "Viewpoints":
        """The same viewpoints with unknown headings; no position for those whose heading is unknown anyway."""
        return replace(
            self,
            latitudes=np.where(np.isnan(self.headings), np.nan, self.latitudes),
            headings=np.full(len(self.headings), np.nan),
        )

    def in_next_second(self) -> "Viewpoints":
        """Those at the end of a second, in the next one; no position for the others.

        A timestamp of 17 digits, as in a name, is a float64 with steps of 0.004 s, so .999 may be the next second.
        """
        later = np.floor(self.times + END_OF_SECOND)
        return replace(self, latitudes=np.where(later > np.floor(self.times), self.latitudes, np.nan), times=later)

    def moved_in_time(self, seconds: float) -> "Viewpoints":
        """The same viewpoints at other times."""
        return replace(self, times=self.times + seconds)

    def take(self, rows: np.ndarray) -> "Viewpoints":
        """Some of the viewpoints."""
        return Viewpoints(**{name: getattr(self, name)[rows] for name in self.__slots__})

    def with_zero_as_unknown(self) -> "Viewpoints":
        """The same viewpoints with heading 0 where it is unknown, and the reverse; no position for the others."""
        is_unknown = np.isnan(self.headings)
        concerned = is_unknown | (self.headings == 0)
        return replace(
            self,
            latitudes=np.where(concerned, self.latitudes, np.nan),
            headings=np.where(is_unknown, 0.0, np.nan),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewpointDigest:
    """The hashes of a set of viewpoints, or of one in `every` of them, chosen by hash."""

    num_photos: int  # of the whole set
    every: int
    hashes: np.ndarray  # (H,) uint32, ascending, multiples of `every`

    def status(self, viewpoints: Viewpoints) -> np.ndarray:
        """SEEN, UNSEEN or UNDECIDED for each photo, (I,) int8.

        A photo without a position is undecided; so are most photos if the digest does not have all hashes.  Positions
        may differ by a rounding step.  A photo of the set whose time or heading is unknown matches any, and a heading
        of 0 matches an unknown one: where all are 0, they are left out of tables and indexes.  Times may be in another
        time zone, if several photos are in it.
        """
        decided = np.isfinite(viewpoints.latitudes) & np.isfinite(viewpoints.longitudes)
        found = np.zeros(len(viewpoints.latitudes), bool)
        for points in (viewpoints, viewpoints.with_zero_as_unknown(), viewpoints.without_headings()):
            for one in (points, points.in_next_second(), points.without_times()):
                self._find(one, found)
        for seconds in self._time_shifts(viewpoints, found):
            for points in (viewpoints, viewpoints.in_next_second(), viewpoints.without_headings()):
                self._find(points.moved_in_time(seconds), found)
        decided &= found | (_hashes(viewpoints) % self.every == 0)
        return np.where(decided, np.where(found, SEEN, UNSEEN), UNDECIDED).astype(np.int8)

    def _find(self, points: Viewpoints, found: np.ndarray) -> None:
        """Mark the viewpoints that are in the set in `found`, (I,) bool."""
        rows = np.flatnonzero(~found & np.isfinite(points.latitudes) & np.isfinite(points.longitudes))
        if not len(rows) or not len(self.hashes):
            return
        points = points.take(rows)
        for north in (0, -1, 1):
            for east in (0, -1, 1):
                found[rows] |= self._has(_hashes(points, north, east))

    def _has(self, hashes: np.ndarray) -> np.ndarray:
        """Whether hashes (n,) are in the digest, (n,) bool."""
        places = np.searchsorted(self.hashes, hashes)
        return self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes

    def _time_shifts(self, viewpoints: Viewpoints, found: np.ndarray) -> list[float]:
        """Differences of time zones, in seconds, with which several of the photos not yet found are in the set."""
        rows = np.flatnonzero(~found & np.isfinite(viewpoints.latitudes) & np.isfinite(viewpoints.times))
        if not len(rows) or not len(self.hashes):
            return []
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SHIFTED_PHOTOS)).astype(np.int64))]
        some, shifts = viewpoints.take(rows), []
        for quarters in range(-4 * MAX_SHIFT_HOURS, 4 * MAX_SHIFT_HOURS + 1):
            matching = np.zeros(len(rows), bool)
            for points in (some, some.in_next_second(), some.without_headings()):
                self._find(points.moved_in_time(900.0 * quarters), matching)
            if quarters and matching.sum() >= max(MIN_SHIFTED, SHIFTED_SHARE * len(rows)):
                shifts.append(900.0 * quarters)
        return shifts


def digest_of(parts: Iterable[Viewpoints], max_hashes: int = MAX_HASHES) -> ViewpointDigest:
    """Digest of viewpoints that are given in parts.  Those without a position are left out."""
    num_photos, every = 0, 1
    kept = np.empty(0, np.uint32)
    for points in parts:
        num_photos += len(points.latitudes)
        has_position = np.isfinite(points.latitudes) & np.isfinite(points.longitudes)
        hashes = _hashes(points)[has_position]
        kept = np.union1d(kept, hashes[hashes % every == 0])
        while len(kept) > max_hashes:
            every *= 2
            kept = kept[kept % every == 0]
    return ViewpointDigest(num_photos=num_photos, every=every, hashes=kept)


def merge_digests(a: ViewpointDigest, b: ViewpointDigest) -> ViewpointDigest:
    """Digest of the photos of both sets."""
    every = math.lcm(a.every, b.every)
    hashes = np.union1d(*(digest.hashes[digest.hashes % every == 0] for digest in (a, b)))
    return ViewpointDigest(num_photos=a.num_photos + b.num_photos, every=every, hashes=hashes)


def _hashes(points: Viewpoints, north: int = 0, east: int = 0) -> np.ndarray:
    """Hash (I,) uint32 of each viewpoint, moved by some rounding steps."""
    headings = np.where(np.isfinite(points.headings), np.round(np.nan_to_num(points.headings)) % 360, UNKNOWN_HEADING)
    times = np.where(np.isfinite(points.times), np.floor(np.nan_to_num(points.times)), UNKNOWN_TIME)
    values = np.zeros(len(points.latitudes), np.uint64)
    for column in (
        np.round(np.nan_to_num(points.latitudes) * CELLS_PER_DEGREE) + north,
        np.round(np.nan_to_num(points.longitudes) * CELLS_PER_DEGREE) + east,
        headings,
        times,
    ):
        values = _mix(values ^ column.astype(np.int64).view(np.uint64))
    return (values >> np.uint64(32)).astype(np.uint32)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): every bit of the input changes each bit of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def viewpoints_of_names(images: ImageList) -> Viewpoints:
    """Viewpoints in the '@' names of a list.  Raises DatasetError for a name without east and north or without zone."""
    utm = utm_fields(images)
    latitudes, longitudes = lla_from_ecef(earth_positions(images, utm))
    headings, timestamps = optional_fields(images, ("heading", "timestamp"))
    return Viewpoints(
        latitudes=np.where(utm.known, latitudes, np.nan),
        longitudes=np.where(utm.known, longitudes, np.nan),
        headings=headings,
        times=_times_of_timestamps(timestamps),
    )


def _times_of_timestamps(timestamps: np.ndarray) -> np.ndarray:
    """Seconds since 1970 of timestamps (I,) such as 201903 or 20190331, nan for others; see `photos.metadata`."""
    times = np.full(len(timestamps), np.nan)
    for num_digits in (4, 6, 8, 12, 14):
        rows = np.flatnonzero((timestamps >= 10 ** (num_digits - 1)) & (timestamps < 10**num_digits))
        # YYYYMMDDhhmmss: a missing month or day is the first, a missing time is midnight.
        rest = (timestamps[rows] % 10 ** (num_digits - 4)) * 10 ** (14 - num_digits)
        years = timestamps[rows] // 10 ** (num_digits - 4)
        months, days, hours, minutes, seconds = (rest // 10**at % 100 for at in (8, 6, 4, 2, 0))
        months, days = (months + (num_digits < 6)), days + (num_digits < 8)
        first = (years - 1970).astype("M8[Y]").astype("M8[M]") + (months - 1).astype("m8[M]")
        date = first.astype("M8[D]") + (days - 1).astype("m8[D]")
        is_valid = (months >= 1) & (months <= 12) & (days >= 1) & (date.astype("M8[M]") == first)
        is_valid &= (hours < 24) & (minutes < 60) & (seconds <= 60)  # 59.999 may be 60 as a float64
        values = date.astype("M8[s]").astype(np.int64) + hours * 3600 + minutes * 60 + seconds
        times[rows] = np.where(is_valid, values, np.nan)
    return times


# --- as text ---------------------------------------------------------------------------------------------------------


def digest_text(digest: ViewpointDigest) -> str:
    """A digest as JSON; hashes as compressed differences."""
    differences = np.diff(digest.hashes, prepend=np.uint32(0)).astype("<u4")
    content = base64.b85encode(zlib.compress(differences.tobytes(), 6)).decode()
    return json.dumps({"photos": digest.num_photos, "every": digest.every, "hashes": content})


def digest_from_text(text: str) -> ViewpointDigest:
    """The digest of a text.  Raises CheckpointError if it is damaged."""
    try:
        record = json.loads(text)
        num_photos, every = int(record["photos"]), int(record["every"])
        raw = decompress(base64.b85decode(record["hashes"]), 4 * MAX_HASHES)
        hashes = np.cumsum(np.frombuffer(raw, "<u4"), dtype=np.uint64)
        if not (0 <= num_photos < 1 << 62 and 1 <= every < 1 << 32) or (len(hashes) and hashes[-1] >> np.uint64(32)):
            raise ValueError("numbers out of range")
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, zlib.error
    ) as error:  # fmt: skip
        raise CheckpointError(f"The list of training photos in the model card is damaged ({error}).") from error
    return ViewpointDigest(num_photos=num_photos, every=every, hashes=hashes.astype(np.uint32))


def decompress(content: bytes, max_bytes: int) -> bytes:
    """Decompress zlib data.  Raises ValueError if the result has more than max_bytes, or the data ends early."""
    stream = zlib.decompressobj()
    raw = stream.decompress(content, max_bytes)
    if not stream.eof:
        raise ValueError("the data is too long or cut off")
    return raw
