"""The list of photos in a store: paths and positions, so that it can be searched and evaluated without the dataset.

    <store>/photos.parquet   path, relative to the folder of the photos, and label, an '@' text (see `photos.labels`)

A photo without label has no known position, unless all have their positions in '@' names.
Legend: I images.  Side effects: reads and writes that file; reads positions from EXIF where names have none.
"""

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import DatasetError, NoPositionsError
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import list_of_lines, with_positions
from cosplace.photos.parquet_files import arrow_compute, open_parquet
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.store_files import StoreFiles
from cosplace.retrieval.store_shapes import is_map_center

if TYPE_CHECKING:
    import pyarrow as pa

PHOTOS = "photos.parquet"
ROWS_PER_GROUP = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPhotos:
    """All photos of a store, in the order of its rows."""

    images: ImageList  # I photos, without labels
    labels: ImageList | None  # of the photos that have one, in order; None where names have the positions
    has_label: np.ndarray  # (I,) bool
    map_center: tuple[float, float] | None

    def labeled(self) -> tuple[ImageList, np.ndarray]:
        """The photos with labels, and their rows; all photos where names have the positions."""
        rows = np.flatnonzero(self.has_label)
        if self.labels is None:
            return self.images, np.arange(len(self.images))
        images = self.images if len(rows) == len(self.images) else self.images.subset(rows.tolist())
        return replace(images, labels=self.labels, map_center=self.map_center), rows


def write_photos(files: StoreFiles, images: ImageList, progress: Progress = no_progress) -> None:
    """Write the list of photos, with the positions that names, a table or EXIF have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels, has_label, center = None, np.zeros(len(images), bool), None
    try:
        labeled = with_positions(images, progress)
    except NoPositionsError:  # such a store can be searched, but not evaluated
        labeled = images
    if labeled.labels is not None:
        labels, center, has_label = labeled.labels, labeled.map_center, rows_in(labeled, images)
    schema = pa.schema([("path", pa.binary()), ("label", pa.binary())]).with_metadata(
        {"folder": os.fsencode(images.folder.resolve()), "map_center": json.dumps(center)}
    )
    memory, next_label = io.BytesIO(), 0
    with pq.ParquetWriter(memory, schema, compression="zstd") as writer:
        for first in range(0, len(images), ROWS_PER_GROUP):
            rows = range(first, min(first + ROWS_PER_GROUP, len(images)))
            texts: list[bytes | None] = [None] * len(rows)
            if labels is not None:
                for row in np.flatnonzero(has_label[rows.start : rows.stop]).tolist():
                    texts[row] = _line(labels, next_label)
                    next_label += 1
            table = {"path": [_line(images, row) for row in rows], "label": texts}
            writer.write_table(pa.table(table, schema=schema))
    files.write(PHOTOS, [memory.getbuffer()])


def _line(images: ImageList, row: int) -> bytes:
    return images.text(int(images.starts[row]), int(images.starts[row + 1]) - 1).tobytes()


def rows_in(some: ImageList, images: ImageList) -> np.ndarray:
    """Which photos of a list are in a list of some of them, in the same order; (I,) bool."""
    if len(some) == len(images):
        return np.ones(len(images), bool)
    found, number = np.zeros(len(images), bool), 0
    for row in range(len(images)):
        if number < len(some) and _line(images, row) == _line(some, number):
            found[row] = True
            number += 1
    assert number == len(some)
    return found


def read_photos(files: StoreFiles) -> StoredPhotos:
    """The photos of a store.  Raises DatasetError if the list is missing or damaged."""
    import pyarrow as pa

    place = f"{files.address}/{PHOTOS}"
    try:
        path = files.local_path(PHOTOS)
        with open_parquet(path if path is not None and path.is_file() else io.BytesIO(files.read(PHOTOS))) as file:
            table = file.read()
        metadata = table.schema.metadata or {}
        folder, center = Path(os.fsdecode(metadata[b"folder"])), json.loads(metadata[b"map_center"])
        if "\0" in str(folder):
            raise ValueError(folder)
        if center is not None:
            if not is_map_center(center):
                raise ValueError(center)
            center = (float(center[0]), float(center[1]))
        paths, texts = (table[name].cast(pa.large_binary()).combine_chunks() for name in ("path", "label"))
    except FileNotFoundError as error:
        raise DatasetError(f"{place} is missing. Run the same extraction again to complete the store.") from error
    except (pa.ArrowException, KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise DatasetError(f"{place} is damaged. Delete it and run the same extraction again.") from error
    has_label = np.asarray(texts.is_valid())
    images = list_of_lines(folder, _with_newlines(paths))
    labels = list_of_lines(folder, _with_newlines(texts.drop_null())) if has_label.any() else None
    return StoredPhotos(images=images, labels=labels, has_label=has_label, map_center=center)


def _with_newlines(texts: "pa.Array") -> "pa.Array":
    import pyarrow as pa

    binary = pa.large_binary()
    joined = arrow_compute().binary_join_element_wise(texts, pa.scalar(b"\n", binary), pa.scalar(b"", binary))
    return joined.combine_chunks() if hasattr(joined, "chunks") else joined
