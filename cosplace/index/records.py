"""Plain data that goes into an index and comes out of it.  Legend: I photos, Q queries, K neighbors, D dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model whose descriptors an index holds; those of other models are refused."""

    model: str  # as given to load_model: a name from the zoo, or the absolute path of a weights file
    checksum: str  # of structure and weights, see cosplace.models.weight_files.model_checksum
    dimension: int
    image_size: int | None = None  # pixels of the shorter side after resizing; None: photos are not resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The K most similar photos of each query, best first.  Rows with fewer than K photos end with id -1."""

    ids: np.ndarray  # (Q, K) int64, -1 for none
    similarities: np.ndarray  # (Q, K) float32, cosine; -inf for none
    latitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    longitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    headings: np.ndarray  # (Q, K) float32 degrees clockwise from north, nan where unknown
    times: np.ndarray  # (Q, K) float64 seconds since 1970 (UTC), nan where unknown
    paths: tuple[tuple[str, ...], ...]  # Q x K, "" for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One photo of an index; unknown values are None."""

    id: int
    path: str
    latitude: float | None
    longitude: float | None
    heading: float | None  # degrees clockwise from north
    time: float | None  # seconds since 1970 (UTC)
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Photos of an index as columns, by ascending id."""

    ids: np.ndarray  # (I,) int64
    latitudes: np.ndarray  # (I,) float64 degrees, nan where unknown
    longitudes: np.ndarray  # (I,) float64 degrees, nan where unknown
    headings: np.ndarray  # (I,) float32 degrees, nan where unknown
    times: np.ndarray  # (I,) float64 seconds since 1970 (UTC), nan where unknown
    row_ids: np.ndarray  # (I,) uint64: row ids of Lance
    texts: Any  # pyarrow strings: the paths

    def __len__(self) -> int:
        return len(self.ids)

    def paths(self, rows: np.ndarray | Sequence[int] | None = None) -> list[str]:
        """Paths of some rows, of all by default."""
        if rows is None:
            return self.texts.to_pylist()
        return [self.texts[int(row)].as_py() for row in rows]

    def take(self, rows: np.ndarray) -> "Columns":
        """Select rows (int64), in the order given."""
        columns = {name: getattr(self, name)[rows] for name in NUMBERS}
        return Columns(**columns, texts=self.texts.take(rows))

    def row_of(self, photo_id: int) -> int | None:
        """Row of a photo id; None if there is no such photo."""
        row = int(np.searchsorted(self.ids, photo_id))
        return row if row < len(self) and self.ids[row] == photo_id else None

    def photo(self, row: int, source: str = "") -> Photo:
        """One row as a photo."""

        def known(values: np.ndarray) -> float | None:
            return None if np.isnan(values[row]) else float(values[row])

        return Photo(
            id=int(self.ids[row]),
            path=self.texts[row].as_py(),
            latitude=known(self.latitudes),
            longitude=known(self.longitudes),
            heading=known(self.headings),
            time=known(self.times),
            source=source,
        )


NUMBERS = ("ids", "latitudes", "longitudes", "headings", "times", "row_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPhoto:
    """A photo to add to an index, without its descriptor."""

    path: str
    key: str  # equal for identical photos: an index holds each key once
    latitude: float = float("nan")
    longitude: float = float("nan")
    heading: float = float("nan")
    time: float = float("nan")
    source: str = ""
    num_bytes: int = 0  # of its file; 0 without a file
    modified_ns: int = 0  # modification time of its file
    thumbnail: bytes = b""  # JPEG; empty without a thumbnail


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """The result of adding photos to an index, in their order."""

    ids: np.ndarray  # (n,) int64: of the new photo, or of the identical one that is already there
    is_new: np.ndarray  # (n,) bool
