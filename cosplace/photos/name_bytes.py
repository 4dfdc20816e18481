"""The bytes of the '@' names of a list of photos: where the fields are, and the numbers in them.  Pure functions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cosplace.photos.image_list import ImageList

FIELDS = {
    "utm_east": 1, "utm_north": 2, "zone": 3, "letter": 4, "latitude": 5, "longitude": 6, "pano_id": 7, "tile": 8,
    "heading": 9, "pitch": 10, "roll": 11, "height": 12, "timestamp": 13, "note": 14,
}  # fmt: skip
"""Number of each field, in the order of the name."""
NAMES_PER_CHUNK = 1 << 15  # names parsed at once: their bytes stay in the processor's cache
_SOUTHERN = np.isin(np.arange(256), list(b"CDEFGHJKLMcdefghjklm"))  # (256,) bool, of the letters of latitude bands


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The names of some rows of a list, and where their '@' are."""

    rows: range
    text: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (rows,) where each path ends, after its newline
    separators: np.ndarray  # the places of all '@', then one past the text for fields that are missing
    first_separator: np.ndarray  # (rows,) the first '@' of each file name, as an index into `separators`

    def field(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a field begins and ends in `text`, and whether it ends with an '@' of its own name; (rows,) each."""
        place = self.first_separator + FIELDS[name]
        begin, end = self.separators[place - 1] + 1, self.separators[place]
        return begin, end, end < self.ends


def name_chunks(images: ImageList, last_field: int) -> Iterator[Chunk]:
    """The names of a list, or its labels, chunk by chunk.  last_field: the largest number of a field that is read."""
    images = images if images.labels is None else images.labels
    for first in range(0, len(images), NAMES_PER_CHUNK):
        rows = range(first, min(first + NAMES_PER_CHUNK, len(images)))
        starts = images.starts[rows.start : rows.stop + 1]
        text = images.text(int(starts[0]), int(starts[-1]))
        starts = starts - starts[0]
        # Padded, so that a name with too few '@' finds one outside of the name.
        separators = np.append(np.flatnonzero(text == ord("@")), np.full(last_field + 1, len(text)))
        first_separator = np.searchsorted(separators, _file_name_starts(text, starts))
        yield Chunk(rows=rows, text=text, ends=starts[1:], separators=separators, first_separator=first_separator)


def zones_in_names(chunk: Chunk) -> np.ndarray:
    """Zones of the names of a chunk, (rows,) int8, as in `UtmPositions.zones`."""
    if _same_zone_texts(chunk):
        first = replace(chunk, rows=chunk.rows[:1], ends=chunk.ends[:1], first_separator=chunk.first_separator[:1])
        return np.repeat(_parse_zones(first), len(chunk.rows))
    return _parse_zones(chunk)


def _same_zone_texts(chunk: Chunk) -> bool:
    """Whether zone, letter and the first character of the latitude are those of the first name: true for most chunks.

    One comparison of eight bytes per name; false if eight bytes are too few to decide.
    """
    begin = chunk.separators[chunk.first_separator + FIELDS["zone"] - 1] + 1
    if begin.max() > len(chunk.text) - 8:
        return False
    first = chunk.text[begin[0] : begin[0] + 8].tobytes()
    zone, letter = (*first.split(b"@"), b"")[:2]
    length = len(zone) + len(letter) + 3
    if length > 8 or first.count(b"@") < 2 or b"\n" in first[:length]:
        return False
    if not zone and first[length - 1 : length] != b"@":  # the longitude decides
        return False
    eight_bytes = np.ndarray(len(chunk.text) - 7, "<u8", chunk.text, strides=(1,))
    texts = eight_bytes[begin] << np.uint64(64 - 8 * length)
    return bool((texts == texts[0]).all())


def _parse_zones(chunk: Chunk) -> np.ndarray:
    text, last = chunk.text, len(chunk.text) - 1
    begin, end, in_name = chunk.field("zone")
    width = np.where(in_name, end - begin, 0)
    digits = text[np.minimum(begin, last)] - np.uint8(ord("0")), text[np.minimum(begin + 1, last)] - np.uint8(ord("0"))
    zones = np.where(width == 1, digits[0], 10 * digits[0].astype(np.int64) + digits[1])
    plain = ((width == 1) | (width == 2)) & (digits[0] < 10) & ((width == 1) | (digits[1] < 10))
    zones[~plain] = 0
    for row in np.flatnonzero((width > 0) & ~plain).tolist():
        found = re.fullmatch(rb"0*(\d{1,2})(?:\.0*)?[A-Za-z]?", text[begin[row] : end[row]].tobytes())  # 10.0, 10S
        zones[row] = int(found[1]) if found else 0
    zones[(zones < 1) | (zones > 60)] = 0
    begin, end, in_name = chunk.field("letter")
    south = in_name & (end > begin) & _SOUTHERN[text[np.minimum(begin, last)]]
    begin, end, in_name = chunk.field("latitude")
    has_latitude = in_name & (end > begin)
    south = np.where(has_latitude, text[np.minimum(begin, last)] == ord("-"), south)
    if (has_latitude & (zones == 0)).any():
        latitudes, longitudes = optional_numbers(chunk, "latitude"), optional_numbers(chunk, "longitude")
        found = np.flatnonzero((zones == 0) & is_position(latitudes, longitudes))
        zones[found] = np.floor((longitudes[found] + 180) / 6) % 60 + 1
    return np.where(south, -zones, zones).astype(np.int8)


def optional_numbers(chunk: Chunk, field: str) -> np.ndarray:
    """Numbers in one field of a chunk, (rows,) float64; nan where a name has no such number."""
    values = np.full(len(chunk.rows), np.nan)
    begin, end, in_name = chunk.field(field)
    found = np.flatnonzero(in_name & (end > begin))
    if len(found):
        numbers = parse_numbers(chunk.text, begin[found], end[found])
        if numbers is None:
            numbers = [parse_number(chunk.text[begin[row] : end[row]].tobytes()) for row in found]
        values[found] = numbers
    return values


def _file_name_starts(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where the file name of each path starts, (rows,): after its last slash, as folders may contain '@' too."""
    slashes = np.append(-1, np.flatnonzero(text == ord("/")))
    return np.maximum(starts[:-1], slashes[np.searchsorted(slashes, starts[1:]) - 1] + 1)


def parse_numbers(text: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """The numbers text[begin:end], (rows,) float64; None if Arrow cannot parse one of them."""
    import pyarrow as pa

    # The text as one Arrow array, without a copy: every second item is a field, the others are the text between.
    bounds = np.append(np.stack([begin, end], 1), len(text))
    items = pa.LargeStringArray.from_buffers(2 * len(begin), pa.py_buffer(bounds), pa.py_buffer(text))
    try:
        values = items.take(pa.array(np.arange(0, len(items), 2))).cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return values if np.isfinite(values).all() else None


def parse_number(text: bytes) -> float:
    """One number by Python's float(); nan for other text."""
    try:
        value = float(text)  # of bytes: ASCII digits only
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def is_position(latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """Which are positions on Earth, and not 0, 0, which means unknown."""
    return (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180) & ((latitudes != 0) | (longitudes != 0))
