"""The '@' names of photos, read many at a time.

A name reads `@utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`;
fields are counted by splitting the *file name* on '@' (SF-XL and the other datasets of the field).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList

FIELDS = {"utm_east": 1, "utm_north": 2, "heading": 9}  # the fields that the field's tools rely on
CHUNK = 1 << 15  # names parsed at once: their bytes stay in the processor's cache

Bounds = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""From a field's number to where it begins and ends in each of some names, (rows,) int64 each."""


def format_image_name(
    *,
    utm_east: float,
    utm_north: float,
    zone: int,
    letter: str,
    latitude: float,
    longitude: float,
    pano_id: str = "",
    heading: int | str = "",
    timestamp: str = "",
    note: str = "",
    suffix: str = ".jpg",
) -> str:
    """The '@' name of a photo, with the widths that SF-XL uses (heading unpadded)."""
    return (
        f"@{utm_east:010.2f}@{utm_north:010.2f}@{zone:02d}@{letter}@{latitude:09.5f}@{longitude:010.5f}"
        f"@{pano_id}@@{heading}@@@@{timestamp}@{note}@{suffix}"
    )


def parse_fields(images: ImageList, fields: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
    """Numbers in the names: yields (rows, values (len(fields), rows) float64), some thousand names at a time.

    fields: keys of FIELDS.  Values equal Python's float() of the text, bit for bit.
    Raises DatasetError that names the first photo and field without a number.
    """
    for first in range(0, len(images), CHUNK):
        last = min(first + CHUNK, len(images))
        base = int(images.starts[first])
        # Eight bytes in front, so that the eight bytes before any number can be read.
        text = np.concatenate([np.zeros(8, np.uint8), images.text(base, int(images.starts[last]))])
        starts = images.starts[first:last] - (base - 8)
        ends = images.starts[first + 1 : last + 1] - (base - 7)
        values = np.empty((len(fields), last - first))
        bounds = _field_bounds(text, starts, ends, max(FIELDS[field] for field in fields))
        for row, field in enumerate(fields):
            values[row] = _parse_numbers(text, bounds(FIELDS[field]), partial(_python_float, images, first, field))
        yield slice(first, last), values


def utm_positions(images: ImageList) -> np.ndarray:
    """UTM east and north in meters, (I, 2) float64.  Raises DatasetError for a name without them."""
    positions = np.empty((len(images), 2))
    for rows, values in parse_fields(images, ("utm_east", "utm_north")):
        positions[rows] = values.T
    return positions


@dataclass(frozen=True, slots=True)
class _FieldBounds:
    """Where the fields of some file names lie in their text."""

    signs: np.ndarray  # positions of all '@'
    first: np.ndarray  # (rows,) the index in `signs` of each name's first '@'
    ends: np.ndarray  # (rows,) where each name ends

    def __call__(self, field: int) -> tuple[np.ndarray, np.ndarray]:
        """(begin, end) of one field, (rows,) int64 each; an empty stretch at the end of a name that lacks it."""
        begin, end = self.signs[self.first + (field - 1)] + 1, self.signs[self.first + field]
        if (inside := end < self.ends).all():
            return begin, end
        return np.where(inside, begin, self.ends), np.where(inside, end, self.ends)


def _field_bounds(text: np.ndarray, starts: np.ndarray, ends: np.ndarray, last_field: int) -> Bounds:
    """The function from a field to its bounds in each name, from all '@' of the text unless the names are alike."""
    if len(alike := _signs_if_alike(text, starts, ends)) > last_field:
        return lambda field: (alike[field - 1] + 1, alike[field])
    signs = np.flatnonzero(text == ord("@"))
    first = np.searchsorted(signs, _file_name_starts(text, starts, ends))
    signs = np.concatenate([signs, np.full(last_field + 1, len(text))])  # past the end, for names with too few
    return _FieldBounds(signs, first, ends)


def _signs_if_alike(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Where the '@' of the file names are, (rows,) int64 each, if all paths look like the first; none for others.

    They may differ in the length of one stretch between two signs, as names do by their headings.

    Each '@' and '/' of the first path is looked for at the same distance from the start of every path, or from its
    end; where all are there, counting these signs is enough to know that there are no others.
    """
    path = text[starts[0] : ends[0]]
    marks = np.flatnonzero((path == ord("@")) | (path == ord("/")))
    if len(marks) * len(starts) != sum(int(np.count_nonzero(text == ord(sign))) for sign in "@/"):
        return []
    leading = _held_by_all(text, starts, path, marks)
    trailing = _held_by_all(text, ends - len(path), path, marks[::-1])[::-1] if len(leading) < len(marks) else []
    for split in range(len(marks) - len(trailing), len(leading) + 1):
        places = [*leading[:split], *trailing[len(trailing) + split - len(marks) :]]
        # The same sign may have been found from both sides.
        around = [starts - 1, *places, ends][split : split + 2]
        if (around[0] < around[1]).all():
            return places[int((path[marks] == ord("/")).nonzero()[0].max(initial=-1)) + 1 :]
    return []


def _held_by_all(text: np.ndarray, origins: np.ndarray, path: np.ndarray, marks: np.ndarray) -> list[np.ndarray]:
    """Where every path has the first of these marks, (rows,) int64 each, up to one that is not there in all."""
    places: list[np.ndarray] = []
    for mark in marks.tolist():
        place = origins + mark
        if not (text.take(place, mode="clip") == path[mark]).all():
            break
        places.append(place)
    return places


def _file_name_starts(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(rows,) behind each path's last slash: fields count from the file name, not from an '@' in a folder's name."""
    slashes = np.flatnonzero(text == ord("/"))
    before = np.searchsorted(slashes, ends) - 1
    return np.maximum(starts, np.where(before >= 0, slashes[before] + 1, 0)) if len(slashes) else starts


def _words(text: np.ndarray) -> np.ndarray:
    """The eight bytes from each position on, as little-endian integers: a view."""
    return np.ndarray((len(text) - 7,), "<u8", buffer=text, strides=(1,))


def _all_bytes(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


ZEROS, POINTS, LOW, HIGH = _all_bytes(ord("0")), _all_bytes(ord(".")), _all_bytes(0x7F), _all_bytes(0xF0)
KEEP_LAST = np.array([(~0 << 8 * (8 - count)) & ~(~0 << 64) for count in range(9)], np.uint64)  # bytes of a word
POWERS = 10.0 ** np.arange(9)


def _parse_numbers(
    text: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], parse_other: Callable[[int, bytes], float]
) -> np.ndarray:
    """(rows,) float64: the decimal numbers text[begin:end], eight digits at a time; `parse_other` does the unusual.

    A number with up to 8 digits before the point and 7 after it is an integer below 2**53 over a power of ten, both
    exact, so one division rounds as float() does.  Anything else (and anything wrong) goes through float().
    """
    begin, end = bounds
    sign = text.take(begin, mode="clip")
    negative = sign == ord("-")
    length = end - begin
    length -= negative | (sign == ord("+"))
    words = _words(text)

    tail = words[end - 8]
    differs = (tail ^ POINTS) | ~KEEP_LAST.take(length, mode="clip")
    points = ~(((differs & LOW) + LOW) | differs | LOW)  # 0x80 in each byte that is a point
    has_point = points != 0
    num_fraction = (np.bitwise_count(~(points | (points - np.uint64(1)))) >> 3).astype(np.int64)  # 0 without a point
    num_whole = length - num_fraction - has_point

    values, plain = _eight_digits(words[np.maximum(end - num_fraction - has_point - 8, 0)], num_whole)
    plain &= (num_whole <= 8) & (num_whole + num_fraction >= 1)
    if num_fraction.any():
        fraction, fraction_plain = _eight_digits(tail, num_fraction)
        power = POWERS[num_fraction]
        values = (values * power + fraction) / power
        plain &= fraction_plain
    if negative.any():
        values = np.where(negative, -values, values)
    for row in np.flatnonzero(~plain):
        values[row] = parse_other(int(row), text[begin[row] : end[row]].tobytes())
    return values


def _eight_digits(words: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number that the last `count` bytes of each word spell, and whether they are all digits."""
    kept = KEEP_LAST.take(count, mode="clip")
    words = ((words ^ ZEROS) & kept) ^ ZEROS
    plain = ((words & HIGH) == ZEROS) & (((words + _all_bytes(6)) & HIGH) == ZEROS)
    words -= ZEROS
    # Neighbours join: 8 digits are 4 numbers below 100, then 2 below 10,000, then one.
    words = (words * np.uint64(10) + (words >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    words = (words * np.uint64(100) + (words >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    words = (words * np.uint64(10000) + (words >> np.uint64(32))) & np.uint64(0x00000000FFFFFFFF)
    return words.astype(np.float64), plain


def _python_float(images: ImageList, first: int, field: str, row: int, raw: bytes) -> float:
    try:
        value = float(raw)
        if np.isfinite(value):
            return value
    except ValueError:
        pass
    what = f"'{os.fsdecode(raw)}' is no number" if raw else "it is missing"
    needs = ", which CosPlace's classes need" if field == "heading" else ""
    raise DatasetError(
        f"{images.path(first + row)}: field {FIELDS[field]} of the name ({field}{needs}): {what}; "
        f"names read @utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@...@.jpg"
    )
