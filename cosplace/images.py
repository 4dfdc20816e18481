"""Photos as files: their '@' names, the scan of a folder, opening one photo.

A name reads `@utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`;
fields are counted by splitting the *file name* on '@' (SF-XL and the other datasets of the field).  A list of names
is one block of bytes with offsets into it: 41 million photos are an array, not 41 million Python objects.
"""

import os
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import DatasetError, ImageError

if TYPE_CHECKING:  # torch takes seconds to import, and scanning does not need it
    import torch

SUFFIXES = (b".jpg", b".jpeg", b".png")
LIST_SUFFIX = "_images_paths.txt"
FIELDS = {"utm_east": 1, "utm_north": 2, "heading": 9}  # the fields that the field's tools rely on
MAX_PIXELS = 200_000_000  # a picture larger than this is refused before it is decoded
MAX_FILE_BYTES = 500_000_000
CHUNK = 1 << 15  # names parsed at once: their bytes stay in the processor's cache
BLOCK = 1 << 16  # bytes of a list looked at once, likewise
LISTED_FILES_CHECKED = 100

Bounds = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""From a field's number to where it begins and ends in each of some names, (rows,) int64 each."""


# --- lists of photos -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """The photos below a folder, sorted by relative path."""

    folder: Path
    names: np.ndarray  # (bytes,) uint8: the relative paths, each ended by a newline
    starts: np.ndarray  # (I + 1,) int64: where each path starts in `names`
    list_file: Path | None = None  # set when `names` is that very file, mapped into memory

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, first: int, last: int) -> np.ndarray:
        """Bytes first … last - 1 of `names`, read and not mapped: a pass over all names leaves no pages behind."""
        if self.list_file is None:
            return self.names[first:last]
        return np.fromfile(self.list_file, np.uint8, count=last - first, offset=first)

    def name(self, index: int) -> str:
        """Path of one photo relative to the folder."""
        return os.fsdecode(self.text(int(self.starts[index]), int(self.starts[index + 1]) - 1).tobytes())

    def path(self, index: int) -> Path:
        """Path of one photo."""
        return self.folder / self.name(index)

    def positions(self) -> np.ndarray:
        """UTM east and north in meters, (I, 2) float64.  Raises DatasetError for a name without them."""
        positions = np.empty((len(self), 2))
        for rows, values in parse_fields(self, ("utm_east", "utm_north")):
            positions[rows] = values.T
        return positions


def image_list(folder: Path, names: Sequence[str]) -> ImageList:
    """A list of photos from their relative paths, which it sorts."""
    return _sorted_list(folder, [os.fsencode(name) for name in names])


def _sorted_list(folder: Path, lines: list[bytes]) -> ImageList:
    lines.sort()
    return _as_list(folder, b"".join(line + b"\n" for line in lines))


def _as_list(folder: Path, text: bytes | bytearray) -> ImageList:
    names = np.frombuffer(bytes(text), np.uint8)
    ends = [np.flatnonzero(names[at : at + BLOCK] == ord("\n")) + (at + 1) for at in range(0, len(names), BLOCK)]
    return ImageList(folder=folder, names=names, starts=np.concatenate([np.zeros(1, np.int64), *ends]))


def scan_images(folder: str | Path) -> ImageList:
    """All .jpg, .jpeg and .png files below a folder (any case, nested, links followed; hidden files left out).

    Where `<folder>_images_paths.txt` lies beside the folder, its lines (paths relative to the folder) replace the
    scan.  Raises DatasetError when the folder is missing, holds no photos, or does not match its list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {what}: give the folder that holds the photos.")
    listed = folder.resolve().parent / (folder.resolve().name + LIST_SUFFIX)
    beside = folder.parent / (folder.name + LIST_SUFFIX)
    for list_file in (beside, listed):
        if list_file.is_file():
            return _read_list(folder, list_file)
    names = bytearray()
    try:
        _scan_into(names, os.fsencode(folder), b"", frozenset())
    except OSError as error:
        raise DatasetError(f"Cannot read {error.filename}: {error.strerror}.") from error
    if not names:
        raise DatasetError(f"{folder} holds no photos (.jpg, .jpeg or .png, in any subfolder).")
    return _as_list(folder, names)


def _scan_into(names: bytearray, folder: bytes, prefix: bytes, parents: frozenset[tuple[int, int]]) -> None:
    """Append the relative paths below `folder` in sorted order, without a list of all of them."""
    status = os.stat(folder)  # noqa: PTH116 - bytes, as names need not be text
    if (status.st_dev, status.st_ino) in parents:  # a link back to a folder above
        return
    parents |= {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        # A folder sorts as its name with the slash: then depth first is the order of whole paths.
        found = [entry.name + b"/" if entry.is_dir() else entry.name for entry in entries]
    found.sort()
    del found[bisect_left(found, b".") : bisect_left(found, b"/")]  # hidden ones: "/" comes right after "."
    wanted = (*SUFFIXES, b"/")
    found = [name for name in found if name.endswith(wanted) or name.lower().endswith(wanted)]
    any_folder = b"/" in b"".join(found)
    folders = [place for place, name in enumerate(found) if name.endswith(b"/")] if any_folder else []
    at = 0
    for place in folders:
        _append_photos(names, prefix, found[at:place])
        _scan_into(names, folder + b"/" + found[place][:-1], prefix + found[place], parents)
        at = place + 1
    _append_photos(names, prefix, found[at:])


def _append_photos(names: bytearray, prefix: bytes, photos: list[bytes]) -> None:
    if photos:
        names += prefix
        first, line = len(names), b"\n" + prefix
        names += line.join(photos) + b"\n"
        if names.count(b"\n", first) != len(photos):
            bad = next(name for name in photos if b"\n" in name)
            raise DatasetError(f"The file name {os.fsdecode(prefix + bad)!r} holds a line break: rename it.")


def _read_list(folder: Path, list_file: Path) -> ImageList:
    """The photos that a list names; the file itself is mapped into memory when it is sorted and clean."""
    starts = _starts_if_clean(list_file)
    if starts is not None:
        names = np.memmap(list_file, np.uint8, mode="r")
        images = ImageList(folder=folder, names=names, starts=starts, list_file=list_file)
    else:
        images = _sorted_list(folder, [line for line in list_file.read_bytes().splitlines() if line.strip()])
    if not len(images):
        raise DatasetError(f"{list_file} lists no photos: delete it, or list the photos of {folder} in it.")
    _check_listed(images, list_file)
    return images


def _starts_if_clean(list_file: Path) -> np.ndarray | None:
    """(I + 1,) int64: where the lines start and the last one ends; None unless they are sorted and none is blank."""
    starts, at, rest, previous = [np.zeros(1, np.int64)], 0, b"", b""
    with list_file.open("rb") as file:
        while block := file.read(BLOCK):
            block = rest + block
            lines = block.split(b"\n")
            rest = lines.pop()
            if not lines:
                continue
            # Sorting what is sorted takes one comparison a line.
            if b"\r" in block or not lines[0] or lines[0] < previous or lines != sorted(lines):
                return None
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (at + 1)
            starts.append(ends)
            at, previous = int(ends[-1]), lines[-1]
    return np.concatenate(starts) if at and not rest else None


def _words(text: np.ndarray) -> np.ndarray:
    """The eight bytes from each position on, as little-endian integers: a view."""
    return np.ndarray((len(text) - 7,), "<u8", buffer=text, strides=(1,))


def _check_listed(images: ImageList, list_file: Path) -> None:
    """Look whether listed photos exist: all of a short list, an even sample of a long one."""
    for index in np.unique(np.linspace(0, len(images) - 1, LISTED_FILES_CHECKED).astype(np.int64)):
        if not images.path(int(index)).is_file():
            raise DatasetError(
                f"{list_file} lists '{images.name(int(index))}', which is not in {images.folder}: "
                f"correct or delete the list (without it the folder is scanned)."
            )


# --- the '@' names ---------------------------------------------------------------------------------------------------


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


# --- one photo -------------------------------------------------------------------------------------------------------


def open_image(path: str | Path) -> "torch.Tensor":
    """One photo as RGB, (3, H, W) uint8, upright as its EXIF orientation says.

    Raises ImageError that names the file when it is missing, empty, truncated, no picture, or larger than
    MAX_PIXELS (checked before decoding).
    """
    raw = _read_file(Path(path))
    _check_size(raw, path)
    try:
        return _fast_decoder()(raw)
    except RuntimeError:  # CMYK and 16-bit pictures and the like, or no picture at all
        return _open_with_pillow(raw, path)


@cache
def _fast_decoder() -> "Callable[[bytearray], torch.Tensor]":
    """Torchvision's decoder: the pixels of Pillow in less than half of its time."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    # torchvision 0.29 announces that torchcodec will take this over; until then it is the decoder that is everywhere.
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", module="torchvision")

    def decode(raw: bytearray) -> "torch.Tensor":
        return decode_image(torch.frombuffer(raw, dtype=torch.uint8), ImageReadMode.RGB, apply_exif_orientation=True)

    return decode


def _read_file(path: Path) -> bytearray:
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB: no photo.")
            raw = bytearray(size)  # as one block that the decoder reads, not copied again
            view, done = memoryview(raw), 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}).") from error
    if not done:
        raise ImageError(f"{path} is empty.")
    return raw if done == size else raw[:done]


def _check_size(raw: bytes | bytearray, path: str | Path) -> None:
    """Refuse by the header a picture whose pixels would fill the memory."""
    size = _jpeg_size(raw) if raw[:2] == b"\xff\xd8" else None
    if size is None and raw[:8] == b"\x89PNG\r\n\x1a\n" and len(raw) >= 24:
        size = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{path} claims {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,} in all: refused.")


def _jpeg_size(raw: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height in the frame header (marker SOF) of a JPEG; None where there is none."""
    at = 2
    while at + 9 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(raw[at + 7 : at + 9], "big"), int.from_bytes(raw[at + 5 : at + 7], "big")
        # Fill bytes and the markers without a length are one byte and two bytes long.
        lone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += 1 if marker == 0xFF else 2 if lone else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None


def _open_with_pillow(raw: bytes | bytearray, path: str | Path) -> "torch.Tensor":
    import io

    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ImageError(f"{path} claims {picture.width} x {picture.height} pixels: refused.")
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is no picture.") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(f"{path} cannot be decoded ({str(error).rstrip('.') or type(error).__name__}).") from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def stack_by_shape(photos: "Sequence[torch.Tensor]") -> "list[tuple[list[int], torch.Tensor]]":
    """Photos (3, H, W) of any sizes as stacks (n, 3, H, W), one per size, each with the places of its photos."""
    import torch

    places_of: dict[torch.Size, list[int]] = {}
    for place, photo in enumerate(photos):
        places_of.setdefault(photo.shape, []).append(place)
    # The decoder's pixels lie side by side, channel after channel in each: so their stack is a plain copy.
    return [
        (places, torch.stack([photos[place].permute(1, 2, 0) for place in places]).permute(0, 3, 1, 2))
        for places in places_of.values()
    ]
