"""What goes into an index and comes out of it: plain data.  Legend: I photos, Q queries, K neighbours, D dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THUMBNAIL_SIZE = 192  # pixels of the longer side
EXACT_ROWS = 50_000  # up to so many photos, every search looks at all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model whose descriptors an index holds; another one has no business there."""

    model: str  # what load_model takes: a name of the zoo, or the absolute path of weights
    checksum: str  # of structure and weights, as cosplace.models.weight_files.model_checksum gives it
    dimension: int
    image_size: int | None = None  # pixels of the shorter side after resizing; None keeps each photo's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an index keeps its photos, chosen when it is created."""

    stored_dtype: str = "float32"  # of descriptors: float32 or float16
    thumbnail_size: int = THUMBNAIL_SIZE  # pixels of the longer side; 0 keeps none
    exact_rows: int = EXACT_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The k most similar photos of each query, best first; places that stay empty have id -1."""

    ids: np.ndarray  # (Q, K) int64, -1 for none
    similarities: np.ndarray  # (Q, K) float32, cosine; -inf for none
    latitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    longitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    headings: np.ndarray  # (Q, K) float32 degrees clockwise from north, nan where unknown
    times: np.ndarray  # (Q, K) float64 seconds since 1970 (UTC), nan where unknown
    paths: tuple[tuple[str, ...], ...]  # Q x K, "" for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One photo of an index; what is unknown is None."""

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
    row_ids: np.ndarray  # (I,) uint64: where the store keeps each photo
    texts: Any  # pyarrow strings: the paths, without an object for each

    def __len__(self) -> int:
        return len(self.ids)

    def paths(self, rows: np.ndarray | Sequence[int] | None = None) -> list[str]:
        """Paths of some rows, by default of all."""
        if rows is None:
            return self.texts.to_pylist()
        return [self.texts[int(row)].as_py() for row in rows]

    def take(self, rows: np.ndarray) -> "Columns":
        """Some rows (int64), in the order given."""
        columns = {name: getattr(self, name)[rows] for name in NUMBERS}
        return Columns(**columns, texts=self.texts.take(rows))

    def row_of(self, photo_id: int) -> int | None:
        """The row of an id; None when it is not there."""
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
    """A photo that is about to join an index; its descriptor comes beside it."""

    path: str
    key: str  # equal for equal photos: an index holds each key once
    latitude: float = float("nan")
    longitude: float = float("nan")
    heading: float = float("nan")
    time: float = float("nan")
    source: str = ""
    num_bytes: int = 0  # of its file, 0 where there is none
    modified_ns: int = 0  # its file's time of change
    thumbnail: bytes = b""  # JPEG; empty for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of the photos that were handed to an index, in their order."""

    ids: np.ndarray  # (n,) int64: of a new photo, or of the equal one that was there
    is_new: np.ndarray  # (n,) bool
