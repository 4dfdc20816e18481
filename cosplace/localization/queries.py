"""Photos to calibrate an index with: photos of the index, of a folder, and images that show no place.

Legend: N queries, D dimension.  Side effects: reads photos.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from cosplace.config.values import loading_workers
from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError, ImageError
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.index.records import Columns
from cosplace.index.view_table import EncodedBatch
from cosplace.localization.confidence import NUM_FOLDS
from cosplace.localization.photo_changes import alter_photo, images_without_place
from cosplace.localization.stored_views import StoredViews
from cosplace.photos.loading import load_ahead
from cosplace.photos.metadata import PhotoMetadata, former_photo_key, photo_key, read_metadata
from cosplace.photos.opening import decode_image, read_file
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, format_count
from cosplace.retrieval.recall import RADIUS_M

NUM_WITHOUT_PLACE = 60  # images that show no place
TASK = "calibrating"
BATCH_SIZE = 16  # photos that are loaded and described together
MIN_UNLABELED = 100  # photos without positions; with fewer, they say too little about others

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Photos to locate, with their true positions."""

    descriptors: np.ndarray  # (N, D) float32, or (N, 5, D) of crops
    rows: np.ndarray  # (N,) int64: row of the photo in the index, -1 if it is not there
    latitudes: np.ndarray  # (N,) float64, nan for an image that shows no place
    longitudes: np.ndarray  # (N,) float64
    times: np.ndarray  # (N,) float64 seconds since 1970 (UTC), nan where unknown

    @property
    def shows_place(self) -> np.ndarray:
        """Which images show a place, (N,) bool."""
        return np.isfinite(self.latitudes)


def queries_of_index(columns: Columns, rows: np.ndarray, descriptors: np.ndarray) -> Queries:
    """Photos of an index.  rows: (N,) int64; descriptors: (N, D) float32, or (N, 5, D) of crops."""
    return Queries(
        descriptors=descriptors,
        rows=rows,
        latitudes=columns.latitudes[rows],
        longitudes=columns.longitudes[rows],
        times=columns.times[rows],
    )


def queries_of_folder(  # noqa: PLR0917
    index: PhotoIndex, folder: Path, encoder: Encoder, num_queries: int, rng: np.random.Generator, progress: Progress
) -> Queries:
    """Photos of a folder that can be read, have a position and are not in the index.

    Raises ConfigError if there are too few.
    """
    images = scan_images(folder)
    chosen = np.sort(rng.permutation(len(images))[:num_queries])
    descriptors, metadata, num_known = [], [], 0
    for number, row in enumerate(chosen.tolist()):
        progress(TASK, number, len(chosen))
        try:
            path = images.path(row)
            raw = read_file(path)
            known = read_metadata(path, raw, None if images.labels is None else images.label(row))
            if _is_in_index(index, raw, known):
                num_known += 1
            elif known.has_position and not known.accuracy_m > RADIUS_M:  # others have no exact position
                descriptors.append(encoder.encode(decode_image(raw, path)))
                metadata.append(known)
        except ImageError as error:
            log.warning("%s", error)
    if num_known:
        left_out = format_count(num_known, "photo is left out: it is", "photos are left out: they are")
        log.warning("%s: %s in the index, so the confidence would be too high or too low.", folder, left_out)
    if len(metadata) < 2 * NUM_FOLDS:
        new = "" if not num_known else " that are new"
        raise ConfigError(
            f"{folder} has {len(metadata)} readable photos with a position{new}, but calibration needs at least "
            f"{2 * NUM_FOLDS}. Use a folder with more photos, or omit --queries."
        )
    return Queries(
        descriptors=np.concatenate(descriptors),
        rows=np.full(len(metadata), -1, np.int64),
        latitudes=np.array([known.latitude for known in metadata]),
        longitudes=np.array([known.longitude for known in metadata]),
        times=np.array([known.time for known in metadata]),
    )


def _is_in_index(index: PhotoIndex, raw: bytes, metadata: PhotoMetadata) -> bool:
    """Whether a photo of the index has the same content, at any position and heading."""
    return bool(index.have_content([photo_key(raw, metadata), former_photo_key(raw, metadata)]).any())


def _too_few(folder: Path, found: str) -> str:
    return (
        f"{folder} has {found}, but --unlabeled needs {MIN_UNLABELED}. Use a folder with more photos, or omit "
        f"--unlabeled."
    )


def photos_of_folder(  # noqa: PLR0917
    index: PhotoIndex, folder: Path, encoder: Encoder, max_photos: int, rng: np.random.Generator, progress: Progress
) -> Queries:
    """Photos of a folder that can be read, without positions: each once, and none that is in the index.

    Raises ConfigError if there are too few; if the folder has too few, before any is read.
    """
    images = scan_images(folder)
    if len(images) < MIN_UNLABELED:
        raise ConfigError(_too_few(folder, format_count(len(images), "photo")))
    chosen = np.sort(rng.permutation(len(images))[:max_photos])
    descriptors, contents, num_known = [], set[bytes](), 0
    for number, row in enumerate(chosen.tolist()):
        progress(TASK, number, len(chosen))
        try:
            path = images.path(row)
            raw = read_file(path)
            content = hashlib.sha256(raw).digest()
            label = None if images.labels is None else images.label(row)
            metadata = read_metadata(path, raw, label)
            if content in contents or _is_in_index(index, raw, metadata):
                num_known += 1
                continue
            descriptors.append(encoder.encode(decode_image(raw, path)))
            contents.add(content)
        except ImageError as error:
            log.warning("%s", error)
    if num_known:
        left_out = format_count(num_known, "photo is left out: it is", "photos are left out: they are")
        log.warning("%s: %s in the index, or %s.", folder, left_out, "a copy" if num_known == 1 else "copies")
    if len(descriptors) < MIN_UNLABELED:
        new = format_count(len(descriptors), "readable photo that is new", "readable photos that are new")
        raise ConfigError(_too_few(folder, new))
    return _without_place(np.concatenate(descriptors))


def altered_queries(  # noqa: PLR0917
    index: PhotoIndex,
    encoder: Encoder,
    columns: Columns,
    rows: np.ndarray,
    rng: np.random.Generator,
    progress: Progress,
    stored: StoredViews | None = None,
) -> Queries:
    """Photos in other light and another crop; photos without a file or a thumbnail are left out.

    Threads open and alter the next photos while the network describes some.  stored: see `described_queries`.
    """
    size, seed = encoder.views.size_of_query(encoder.image_size), int(rng.integers(2**63))

    def alter(row: int, pixels: Tensor) -> Tensor:  # depends on the row alone, so photos may be loaded in any order
        return alter_photo(pixels, np.random.default_rng([seed, row]), size)

    return described_queries(
        index, encoder, columns, rows, alter, progress, name=f"altered, seed {seed}, size {size}", stored=stored
    )


def described_queries(  # noqa: PLR0917
    index: PhotoIndex,
    encoder: Encoder,
    columns: Columns,
    rows: np.ndarray,
    change: Callable[[int, Tensor], Tensor],
    progress: Progress,
    *,
    name: str,
    stored: StoredViews | None = None,
) -> Queries:
    """Photos of an index, encoded as queries; those without a file or a thumbnail are left out.

    change: what is encoded in place of a photo, from its row and its pixels.  name: of that change, with its settings.
    stored: has what a calibration that was stopped has encoded, and gets the rest.
    """
    paths = dict(zip(rows.tolist(), columns.paths(rows), strict=True))

    def load(batch: Sequence[int]) -> dict[int, Tensor]:
        opened = ((row, photo_pixels(index, int(columns.ids[row]), paths[row])) for row in batch)
        return {row: change(row, pixels) for row, pixels in opened if pixels is not None}

    batches = [rows[at : at + BATCH_SIZE].tolist() for at in range(0, len(rows), BATCH_SIZE)]
    keys = [""] * len(batches) if stored is None else stored.keys(encoder, name, batches)
    known = {} if stored is None else stored.find(keys)
    if known:
        num_known = sum(len(batch.rows) for batch in known.values())
        log.info("%d of %d photos that calibration encodes again are already encoded", num_known, len(rows))
    described = []
    missing = [batch for batch, key in zip(batches, keys, strict=True) if key not in known]
    with closing(load_ahead(load, missing, num_workers=loading_workers(None), loader="threads")) as loaded:
        for number, key in enumerate(keys):
            batch = known.get(key)
            if batch is None:
                photos = next(loaded)
                descriptors = encoder.encode(list(photos.values()), batch_size=BATCH_SIZE)
                batch = EncodedBatch(rows=np.array(list(photos), np.int64), descriptors=descriptors)
                if stored is not None:
                    stored.add(key, batch)
            described.append(batch)
            progress(TASK, min(len(rows), (number + 1) * BATCH_SIZE), len(rows) + len(columns))
    return queries_of_index(
        columns,
        np.concatenate([batch.rows for batch in described]),
        np.concatenate([batch.descriptors for batch in described]),
    )


def queries_without_place(encoder: Encoder, rng: np.random.Generator) -> Queries:
    """Images that show no place."""
    images = images_without_place(NUM_WITHOUT_PLACE, rng)
    return _without_place(encoder.encode(images))


def _without_place(descriptors: np.ndarray) -> Queries:
    unknown = np.full(len(descriptors), np.nan)
    return Queries(
        descriptors=descriptors,
        rows=np.full(len(descriptors), -1, np.int64),
        latitudes=unknown,
        longitudes=unknown,
        times=unknown,
    )
