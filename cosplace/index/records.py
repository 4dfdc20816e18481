"""Plain data that goes into an index and comes out of it.  Legend: I photos, Q queries, K neighbors, D dimension."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cosplace.config.defaults import MAX_IMAGE_SIZE
from cosplace.errors import ConfigError, DamagedIndexError, PhotoIndexError
from cosplace.index.checksums import path_check
from cosplace.index.roots import join_path
from cosplace.models.views import PLAIN_VIEWS, PhotoViews, views_from_record


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model whose descriptors an index holds; those of other models are refused."""

    model: str  # as given to load_model: a name from the zoo, or the absolute path of a weights file
    checksum: str  # of structure and weights, see cosplace.models.weight_files.model_checksum
    dimension: int
    image_size: int | None = None  # pixels of the shorter side after resizing; None: photos are not resized
    views: PhotoViews = PLAIN_VIEWS
    engine: str = "torch"  # that computed the first descriptors, see `engines.kinds`; those of all but int8 agree
    engine_file: str = ""  # SHA-256 of the file of an int8 engine, whose descriptors agree with no others

    def __post_init__(self) -> None:
        if (side := self.views.largest_side(self.image_size)) > MAX_IMAGE_SIZE:
            raise ConfigError(
                f"An index encodes at most {MAX_IMAGE_SIZE} x {MAX_IMAGE_SIZE} pixels at once, in all crops of a query "
                f"and at the largest scale, got {side:.0f} x {side:.0f}. Use a smaller --image_size, --query_size or "
                "--scales."
            )

    def choose_engine(self, engine: str | None, address: str) -> str:
        """The engine for photos of an index: the given one, else torch, or the int8 engine of the index.

        Raises PhotoIndexError if its descriptors would not agree with those of the index.
        """
        built = self.engine if self.engine_file else None
        if engine is None:
            return built or "torch"
        if engine != built and (built or "int8" in engine):
            advice = f"Use --engine {built}" if built else f"Omit --engine {engine}"
            raise PhotoIndexError(
                f"{address} was built with the engine {self.engine}, whose descriptors cannot be compared with those "
                f"of {engine}. {advice}, or build a new index."
            )
        return engine

    def record(self) -> dict[str, Any]:
        """As JSON."""
        plain: dict[str, Any] = {"model": self.model, "checksum": self.checksum, "dimension": self.dimension}
        views = self.views.record()
        plain |= {"image_size": self.image_size} | ({"views": views} if views else {})
        plain |= {"engine": self.engine} if self.engine != "torch" else {}
        return plain | ({"engine_file": self.engine_file} if self.engine_file else {})


def spec_from_record(record: dict[str, Any]) -> ModelSpec:
    """The spec that `ModelSpec.record` gave.  Raises ConfigError, TypeError or ValueError for a damaged record."""
    values: dict[str, Any] = {name: value for name, value in record.items() if name != "views"}
    return ModelSpec(**values, views=views_from_record(record.get("views", {})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The K most similar photos of each query, best first.  Rows with fewer than K photos end with id -1."""

    ids: np.ndarray  # (Q, K) int64, -1 for none
    similarities: np.ndarray  # (Q, K) float32, cosine; -inf for none
    latitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    longitudes: np.ndarray  # (Q, K) float64 degrees, nan where unknown
    headings: np.ndarray  # (Q, K) float32 degrees clockwise from north, nan where unknown
    times: np.ndarray  # (Q, K) float64 seconds since 1970 (UTC), nan where unknown
    accuracies_m: np.ndarray  # (Q, K) float32 position error in meters, nan where unknown
    names: tuple[tuple[str, ...], ...]  # Q x K, paths relative to the photos' root, "" for none
    paths: tuple[tuple[str, ...], ...]  # Q x K, absolute paths, "" for none
    voted: np.ndarray | None = None  # (Q, K) float32 similarities after the votes of crops; None without votes

    @property
    def scores(self) -> np.ndarray:
        """What the photos are ordered by, and answers are computed from: similarities (Q, K), after any votes."""
        return self.similarities if self.voted is None else self.voted


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One photo of an index; unknown values are None."""

    id: int
    name: str  # path relative to the photos' root, with "/"
    path: str  # absolute
    latitude: float | None
    longitude: float | None
    heading: float | None  # degrees clockwise from north
    time: float | None  # seconds since 1970 (UTC)
    accuracy_m: float | None  # position error
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Photos of an index as columns, by ascending id."""

    ids: np.ndarray  # (I,) int64
    latitudes: np.ndarray  # (I,) float64 degrees, nan where unknown
    longitudes: np.ndarray  # (I,) float64 degrees, nan where unknown
    headings: np.ndarray  # (I,) float32 degrees, nan where unknown
    times: np.ndarray  # (I,) float64 seconds since 1970 (UTC), nan where unknown
    accuracies_m: np.ndarray  # (I,) float32 position error in meters, nan where unknown
    row_ids: np.ndarray  # (I,) uint64: row ids of Lance
    roots: np.ndarray  # (I,) int32: which of `folders` a photo is below
    texts: Any  # pyarrow strings: the paths relative to it
    folders: tuple[str, ...] = ("",)  # absolute
    path_checks: np.ndarray | None = None  # (I,) int64 checksums of the texts, -1 for none

    def __len__(self) -> int:
        return len(self.ids)

    def names(self, rows: np.ndarray | Sequence[int] | None = None) -> list[str]:
        """Paths relative to the photos' roots, with "/", of some rows; of all by default.

        Raises DamagedIndexError.
        """
        if rows is None:
            texts, rows = self.texts.to_pylist(), np.arange(len(self))
        else:
            texts = [self.texts[int(row)].as_py() for row in rows]
        if self.path_checks is not None:
            check_paths(self.ids[np.asarray(rows, np.int64)], texts, self.path_checks[np.asarray(rows, np.int64)])
        return texts

    def path_of(self, row: int, name: str) -> str:
        """Absolute path of a row whose name is known."""
        return join_path(self.folders[self.roots[row]], name)

    def paths(self, rows: np.ndarray | Sequence[int] | None = None) -> list[str]:
        """Absolute paths of some rows, of all by default."""
        roots = self.roots if rows is None else self.roots[np.asarray(rows, np.int64)]
        return [
            join_path(self.folders[root], name) for root, name in zip(roots.tolist(), self.names(rows), strict=True)
        ]

    def take(self, rows: np.ndarray) -> "Columns":
        """Select rows (int64), in the order given."""
        columns = {name: getattr(self, name)[rows] for name in NUMBERS}
        checks = None if self.path_checks is None else self.path_checks[rows]
        return Columns(**columns, texts=self.texts.take(rows), folders=self.folders, path_checks=checks)

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
            name=self.texts[row].as_py(),
            path=self.paths([row])[0],
            latitude=known(self.latitudes),
            longitude=known(self.longitudes),
            heading=known(self.headings),
            time=known(self.times),
            accuracy_m=known(self.accuracies_m),
            source=source,
        )


NUMBERS = ("ids", "latitudes", "longitudes", "headings", "times", "accuracies_m", "row_ids", "roots")


def check_paths(ids: np.ndarray, paths: Sequence[str], checks: np.ndarray) -> None:
    """Compare paths as stored with their checksums (n,), -1 for none.  Raises DamagedIndexError."""
    for photo_id, path, check in zip(ids.tolist(), paths, checks.tolist(), strict=True):
        if check >= 0 and check != path_check(photo_id, path):
            raise DamagedIndexError(
                f"The stored path of photo {photo_id} is damaged. Run `cosplace index verify` for this index."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPhoto:
    """A photo to add to an index, without its descriptor."""

    path: str  # absolute
    key: str  # content, position and heading, see `photo_key`: an index holds each photo once
    former_key: str = ""  # in indexes of earlier versions
    latitude: float = float("nan")
    longitude: float = float("nan")
    heading: float = float("nan")
    time: float = float("nan")
    accuracy_m: float = float("nan")  # position error
    source: str = ""
    num_bytes: int = 0  # of its file; 0 without a file
    modified_ns: int = 0  # modification time of its file
    thumbnail: bytes = b""  # JPEG; empty without a thumbnail

    def without_thumbnail(self) -> "NewPhoto":
        """The same photo, but its thumbnail."""
        return replace(self, thumbnail=b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """The result of adding photos to an index, in their order."""

    ids: np.ndarray  # (n,) int64: of the new photo, or of the identical one that is already there
    is_new: np.ndarray  # (n,) bool
