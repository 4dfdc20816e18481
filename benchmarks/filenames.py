"""Generated lists of '@' file names: panoramas along the streets of two cities, as in SF-XL."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

HEADINGS = 12  # per panorama
PANORAMAS_PER_BLOCK_OF_LINES = 20_000
STREET_SPACING_M = 103  # not a multiple of N cells, so that every group has images
PANORAMAS_PER_CITY_BLOCK = 400  # about 20 images per class, as in SF-XL
FAR_CITY_SHARE = 50  # one of this number of panoramas is in the second city
CITIES = ((540_000, 4_170_000), (310_000, 5_810_000))  # UTM east, north; far apart, to check that class keys fit
LINE = b"37.00/@0000000.00@0000000.00@10@S@037.77510@-122.42940@0000000000000000000000@@000@@@@201311@@.jpg\n"
FOLDER_AT, EAST_AT, NORTH_AT, ID_AT, HEADING_AT = 3, 7, 18, 55, 79  # offsets in LINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """A list of photos on disk.  Only the photos exist that the package checks."""

    folder: Path
    list_file: Path
    num_images: int


def write_names(folder: Path, num_images: int) -> Names:
    """Write a sorted list of distinct SF-XL names: panoramas of several years, with 12 headings each.

    Works in blocks, so that 41 million lines (4 GB) need little memory.
    """
    from cosplace.photos.scanning import LISTED_FILES_CHECKED

    names = Names(folder=folder / "train", list_file=folder / "train_images_paths.txt", num_images=num_images)
    names.folder.mkdir()
    panoramas = _sorted_panoramas(-(-num_images // HEADINGS))
    checked = np.unique(np.linspace(0, num_images - 1, LISTED_FILES_CHECKED).astype(np.int64))
    with names.list_file.open("wb") as file:
        for first in range(0, panoramas.shape[1], PANORAMAS_PER_BLOCK_OF_LINES):
            lines = _lines(panoramas[:, first : first + PANORAMAS_PER_BLOCK_OF_LINES], first)[
                : num_images - first * HEADINGS
            ]
            _write_lines(file, lines)
            rows = checked - first * HEADINGS
            for line in lines[rows[(rows >= 0) & (rows < len(lines))]]:
                path = names.folder / line[line != 0].tobytes().decode().rstrip("\n")
                path.parent.mkdir(exist_ok=True)
                path.touch()
    return names


def _sorted_panoramas(count: int) -> np.ndarray:
    """(3, count) int64: east and north in centimeters, first heading in degrees; in the order of their names."""
    rng = np.random.default_rng(0)
    far = count // FAR_CITY_SHARE
    east, north = np.concatenate(
        [city_positions(rng, part, corner) for part, corner in zip((count - far, far), CITIES, strict=True)], axis=1
    )
    order = np.lexsort((north, east, north // 100_000 % 100))
    return np.stack([east[order], north[order], rng.integers(0, 360 // HEADINGS, count)])


def city_positions(
    rng: np.random.Generator, count: int, corner: tuple[int, int], panoramas_per_block: int = PANORAMAS_PER_CITY_BLOCK
) -> np.ndarray:
    """(2, count) int64: east and north in centimeters of panoramas along a grid of streets."""
    side = max(2, round(np.sqrt(count / panoramas_per_block)))
    street = rng.integers(0, side, count) * STREET_SPACING_M + 4.0
    along = rng.uniform(0, side * STREET_SPACING_M, count)
    turned = rng.random(count) < 0.5
    places = np.where(turned, [street, along], [along, street]) + rng.normal(0, 1, (2, count)).clip(-4, 4)
    return np.round(100 * (places + np.array(corner)[:, None])).astype(np.int64)


def _lines(panoramas: np.ndarray, first: int) -> np.ndarray:
    """(panoramas * 12, bytes) uint8: their sorted lines; missing digits of a heading are 0 bytes."""
    east, north, first_heading = panoramas
    block = np.tile(np.frombuffer(LINE, np.uint8), (len(east), 1))
    _put_digits(block, FOLDER_AT, north // 100_000 % 100, 2)
    for at, centimeters in ((EAST_AT, east), (NORTH_AT, north)):
        _put_digits(block, at, centimeters // 100, 7)
        _put_digits(block, at + 8, centimeters % 100, 2)
    _put_digits(block, ID_AT, first + np.arange(len(east)), 22)
    block = np.repeat(block, HEADINGS, axis=0)
    step = 360 // HEADINGS
    sorted_headings = np.array([sorted(range(start, 360, step), key=lambda h: f"{h}@") for start in range(step)])
    headings = sorted_headings[first_heading].ravel()
    _put_digits(block, HEADING_AT, headings, 3)
    block[headings < 100, HEADING_AT] = 0
    block[headings < 10, HEADING_AT + 1] = 0
    return block


def _put_digits(block: np.ndarray, at: int, values: np.ndarray, count: int) -> None:
    for place in range(count - 1, -1, -1):
        values, digit = np.divmod(values, 10)
        block[:, at + place] = digit + ord("0")


def _write_lines(file: BinaryIO, lines: np.ndarray) -> None:
    file.write(lines[lines != 0].data)
