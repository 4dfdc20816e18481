"""The '@' file names of photos: the numbers of a whole list at once, or the fields of one name.

A name reads `@utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`, as in
SF-XL and the other datasets of the field.  Fields are counted by splitting the *file name*, not the path, on '@'.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList

FIELDS = {
    "utm_east": 1, "utm_north": 2, "zone": 3, "letter": 4, "latitude": 5, "longitude": 6, "pano_id": 7, "tile": 8,
    "heading": 9, "pitch": 10, "roll": 11, "height": 12, "timestamp": 13, "note": 14,
}  # fmt: skip
"""Number of each field, in the order of the name."""
NAMES_PER_CHUNK = 1 << 15  # names parsed at once: their bytes stay in the processor's cache


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
    """The '@' name of a photo, with the widths of SF-XL (heading unpadded)."""
    return (
        f"@{utm_east:010.2f}@{utm_north:010.2f}@{zone:02d}@{letter}@{latitude:09.5f}@{longitude:010.5f}"
        f"@{pano_id}@@{heading}@@@@{timestamp}@{note}@{suffix}"
    )


def split_name(path: str) -> dict[str, str]:
    """Text of each field in the '@' name of one photo, by the keys of FIELDS, without fields that the name lacks.

    The last field of a short name contains the suffix: "@1@2.jpg" gives {"utm_east": "1", "utm_north": "2.jpg"}.
    """
    texts = path.rpartition("/")[2].split("@")[1:]
    return dict(zip(FIELDS, texts, strict=False))


def parse_fields(images: ImageList, fields: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
    """Parse numbers in the names of a list; yield (rows, values (len(fields), rows) float64), chunk by chunk.

    fields: keys of FIELDS.  Values equal Python's float() of the text, bit for bit.
    Raises DatasetError that names the first photo and field without a number.
    """
    last_field = max(FIELDS[field] for field in fields)
    for first in range(0, len(images), NAMES_PER_CHUNK):
        rows = range(first, min(first + NAMES_PER_CHUNK, len(images)))
        starts = images.starts[rows.start : rows.stop + 1]
        text = images.text(int(starts[0]), int(starts[-1]))
        starts = starts - starts[0]
        # Padded, so that a name with too few '@' finds one outside of the name.
        separators = np.append(np.flatnonzero(text == ord("@")), np.full(last_field + 1, len(text)))
        first_separator = np.searchsorted(separators, _file_name_starts(text, starts))
        values = np.empty((len(fields), len(rows)))
        for index, field in enumerate(fields):
            begin = separators[first_separator + FIELDS[field] - 1] + 1
            end = separators[first_separator + FIELDS[field]]
            numbers = _numbers(text, begin, end) if (end < starts[1:]).all() else None
            # Python accepts some numbers that Arrow does not (1_0), and finds the name that is wrong.
            values[index] = [_number_in_name(images, row, field) for row in rows] if numbers is None else numbers
        yield slice(rows.start, rows.stop), values


def utm_positions(images: ImageList) -> np.ndarray:
    """UTM east and north in meters, (I, 2) float64.  Raises DatasetError for a name without them."""
    positions = np.empty((len(images), 2))
    for rows, values in parse_fields(images, ("utm_east", "utm_north")):
        positions[rows] = values.T
    return positions


def _file_name_starts(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where the file name of each path starts, (rows,): after its last slash, as folders may contain '@' too."""
    slashes = np.append(-1, np.flatnonzero(text == ord("/")))
    return np.maximum(starts[:-1], slashes[np.searchsorted(slashes, starts[1:]) - 1] + 1)


def _numbers(text: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray | None:
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


def _number_in_name(images: ImageList, row: int, field: str) -> float:
    """One number by Python's float().  Raises DatasetError."""
    name = images.name(row)
    ends_in_name = name.rpartition("/")[2].count("@") > FIELDS[field]
    text = split_name(name)[field] if ends_in_name else ""
    try:
        value = float(os.fsencode(text))  # of bytes: ASCII digits only
        if np.isfinite(value):
            return value
    except ValueError:
        pass
    problem = f"is '{text}', not a number" if text else "is missing"
    use = " CosPlace classes need it." if field == "heading" else ""
    raise DatasetError(
        f"{images.path(row)}: field {FIELDS[field]} of the file name ({field}) {problem}.{use} Rename the photo: "
        f"@utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@...@.jpg"
    )
