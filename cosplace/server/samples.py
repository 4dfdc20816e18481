"""Photos that the map offers to try: three of a folder, or else three of the index.

They are kept in memory as small JPEGs without metadata, as visitors may not see the files themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import ConfigError, CosPlaceError, DamagedIndexError
from cosplace.index.photo_index import PhotoIndex
from cosplace.photos.opening import read_file
from cosplace.photos.paths import path_from_text
from cosplace.photos.scanning import scan_images
from cosplace.photos.thumbnails import make_thumbnail

NO_SAMPLES = "none"
NUM_SAMPLES = 3
MAX_TRIES = 5  # photos that are tried for each sample
SIDE = 1_024  # pixels of the longer side


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One photo to try."""

    jpeg: bytes
    photo_id: int | None  # of a photo of the index, which finds itself


def read_samples(folder: str | None, index: PhotoIndex) -> tuple[Sample, ...]:
    """Read up to three photos of a folder, spread evenly; None: of the index, if it has thumbnails; "none": no photos.

    Photos of the index are left out if their files are missing.  Raises ConfigError or DatasetError for a folder
    without photos.
    """
    if folder == NO_SAMPLES:
        return ()
    if folder is not None:
        images = scan_images(Path(folder))
        found = [_first_readable((images.path(row), None) for row in rows) for rows in _spread(len(images))]
        samples = tuple(sample for sample in found if sample is not None)
        if not samples:
            raise ConfigError(f"No photo in {folder} can be read. Use another folder for --samples, or `none`.")
        return samples
    columns = index.columns()
    if index.settings.thumbnail_size == 0:  # its photos are not shown
        return ()
    found = []
    for rows in _spread(len(columns)):
        try:
            paths = [path_from_text(path) for path in columns.paths(rows)]
        except DamagedIndexError:  # the commands that need the paths report it
            continue
        found.append(_first_readable(zip(paths, columns.ids[rows].tolist(), strict=True)))
    return tuple(sample for sample in found if sample is not None)


def _spread(count: int) -> list[list[int]]:
    """Rows to try for each sample: those from the middle of each third on."""
    thirds = np.array_split(np.arange(count), NUM_SAMPLES)
    return [third[len(third) // 2 :][:MAX_TRIES].tolist() for third in thirds if len(third)]


def _first_readable(photos: Iterator[tuple[Path, int | None]]) -> Sample | None:
    for path, photo_id in photos:
        try:
            jpeg = make_thumbnail(read_file(path), SIDE)
        except (CosPlaceError, OSError):
            continue
        if jpeg:
            return Sample(jpeg=jpeg, photo_id=photo_id)
    return None


def describe(samples: Sequence[Sample]) -> list[dict[str, int | None]]:
    """Return the samples as JSON for the map: `photo` is the id of a photo of the index, None for other photos."""
    return [{"photo": sample.photo_id} for sample in samples]
