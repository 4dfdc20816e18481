"""The photos of a fine-tuning: training photos, a validation set, and the test set if there is one.

A dataset without a validation set gets one from a part of the training photos, in an area of its own.  Photos of a test
set are never used for a choice.  Legend: I photos.
"""

import hashlib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.config.splitting import SplitConfig
from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList, file_sizes_digest
from cosplace.photos.labels import with_positions
from cosplace.photos.names import (
    all_positions_unknown,
    optional_fields,
    unknown_positions_warning,
    utm_fields,
    without_rows,
)
from cosplace.photos.scanning import has_part, is_dataset_part, scan_images
from cosplace.progress import Progress, format_count, no_progress
from cosplace.retrieval.dataset import USUAL_FOLDERS, RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation_checks import check_places
from cosplace.retrieval.recall import RADIUS_M, find_positives
from cosplace.retrieval.splitting import plan_splits
from cosplace.retrieval.two_folders import with_copies
from cosplace.training.enough_places import points_of, split_places, unusable_headings

VAL_SHARE = 0.2  # of the training photos, for a validation set where there is none
FEWEST_QUERIES = 10  # with a positive: a validation set with fewer can choose nothing
RELEASED = "cosplace_resnet50_512"  # a model to recommend

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningPhotos:
    """All photos of a fine-tuning."""

    images: ImageList  # I training photos, all with a known position
    points: np.ndarray  # (I, 2) float64, meters east and north; (I, 3), earth-centered, if in several UTM zones
    headings: np.ndarray | None  # (I,) float64, degrees; None if they are unknown
    val: RetrievalDataset
    test: RetrievalDataset | None
    too_few: str = ""  # why the photos are too few to choose a model, if they are

    def digest(self) -> str:
        """Checksum of the names of all photos that are used for choices."""
        parts = hashlib.sha256()
        for images in (self.images, self.val.database, self.val.queries):
            parts.update(images.text(0, int(images.starts[-1])).tobytes())
        return parts.hexdigest()

    def sizes(self) -> str:
        """Checksum of the file sizes of the same photos."""
        return file_sizes_digest(self.images, self.val.database, self.val.queries)


def open_finetuning_photos(
    dataset: str | Path,
    queries_folder: str | None = None,
    *,
    follow_outside: bool = False,
    seed: int = 0,
    start: str = "",
    progress: Progress = no_progress,
) -> FinetuningPhotos:
    """Open a dataset: train/, val/ and test/, as folders or in its table; or photos that are not split.

    seed: of the choice of validation photos, where the dataset has none.
    start: the model, for advice; "" for ImageNet weights.
    A set of a single place measures nothing and is not used.  A validation set with few queries is kept, with the
    reason why it is not enough, if it cannot be replaced.
    Raises DatasetError if there are no training photos with positions, or too few for a validation set.
    """
    dataset = Path(dataset)
    images = _training_images(dataset, follow_outside=follow_outside, progress=progress)
    utm = utm_fields(images)
    if not utm.known.any():
        raise DatasetError(f"{images.folder}: {all_positions_unknown(images)}")
    if not utm.known.all():
        unknown = np.flatnonzero(~utm.known)
        log.warning("%s", unknown_positions_warning(images, unknown))
        images = without_rows(images, unknown)
    points = points_of(images)
    test, val = (
        open_split(dataset, split, queries_folder, follow_outside=follow_outside, progress=progress)
        for split in ("test", "val")
    )
    num_queries = 0 if val is None else num_with_positives(val)
    problem = ""
    if val is None or num_queries < FEWEST_QUERIES:
        try:
            rows, other = _split_off(images, points, dataset, seed=seed, start=start)
        except DatasetError:
            if val is None or not num_queries:
                raise
            have = "query of its validation set has" if num_queries == 1 else "queries of its validation set have"
            problem = f"only {num_queries} {have} a database photo within 25 m"
        else:
            if val is not None:
                log.warning(
                    "%s: only %s with a database photo within 25 m, too few to choose a model.",
                    val.folder, format_count(num_queries, "query", "queries"),
                )  # fmt: skip
            val, images, points = other, images.subset(rows.tolist()), points[rows]
            log.info(
                "training photos in separate areas are used for validation: %s, %s",
                format_count(len(val.database), "database photo"), format_count(len(val.queries), "query", "queries"),
            )  # fmt: skip
    return FinetuningPhotos(
        images=images, points=points, headings=_headings(images), val=val, test=test, too_few=problem
    )


def _training_images(dataset: Path, *, follow_outside: bool, progress: Progress) -> ImageList:
    if not is_dataset_part(dataset):
        raise DatasetError(f"{dataset} does not exist. Use a dataset, a folder of photos or a table.")
    folder = find_split(dataset, "train")
    if folder is None:
        if find_split(dataset, "test") is not None or has_part(dataset, "database"):
            raise DatasetError(
                f"{dataset} has no train/: there are no photos to train on. Add them, or split all photos with "
                f"`cosplace split {dataset}`."
            )
        folder = dataset  # photos that are not split
    return with_positions(scan_images(folder, dataset=dataset, follow_outside=follow_outside), progress)


def find_split(dataset: Path, split: str) -> Path | None:
    """The folder of a split of a dataset, or this part of its table; None if there is none."""
    names = ("/".join(filter(None, (between, split))) for between in USUAL_FOLDERS)
    return next((dataset / name for name in names if has_part(dataset, name)), None)


def open_split(
    dataset: Path, split: str, queries_folder: str | None, *, follow_outside: bool, progress: Progress
) -> RetrievalDataset | None:
    """The validation or test set of a dataset; None if there is none."""
    folder = find_split(dataset, split)
    if folder is None or not has_part(folder, "database"):
        return None
    found = open_retrieval_dataset(folder, queries_folder, follow_outside=follow_outside, progress=progress)
    try:
        check_places(found, RADIUS_M)
    except DatasetError as error:
        log.warning("%s is not used: %s", folder, error)
        return None
    return with_copies(found)


def num_with_positives(val: RetrievalDataset) -> int:
    """Number of queries with a database photo within 25 m."""
    return int((find_positives(val.database_positions, val.query_positions).counts > 0).sum())


def _headings(images: ImageList) -> np.ndarray | None:
    """Headings (I,) in degrees; None if they are unknown."""
    headings = optional_fields(images, ("heading",))[0]
    if reason := unusable_headings(headings):
        log.info("headings are not used: %s", reason)
        return None
    return headings


# --- a validation set from training photos ---------------------------------------------------------------------------


def _split_off(
    images: ImageList, points: np.ndarray, dataset: Path, *, seed: int, start: str
) -> tuple[np.ndarray, RetrievalDataset]:
    """Rows of the photos to train on, and a validation set of areas with about VAL_SHARE of the photos.

    Photos in a buffer around these areas are in neither.
    """
    places = split_places(images, points, dataset)
    config = SplitConfig(dataset=str(dataset), val=VAL_SHARE, test=0.0, query_share=0.3, seed=seed)
    try:
        splits = plan_splits(places, config).splits
    except DatasetError as error:
        raise _too_few(dataset, start, "they cover too small an area, or show each place only once") from error
    train, of_database, of_queries = (
        np.flatnonzero(splits == split) for split in ("train", "val/database", "val/queries")
    )
    val = RetrievalDataset(
        name="validation photos",
        folder=images.folder,
        database=images.subset(of_database.tolist()),
        queries=images.subset(of_queries.tolist()),
        database_positions=points[of_database],
        query_positions=points[of_queries],
    )
    if (num := num_with_positives(val)) < FEWEST_QUERIES:
        found = format_count(num, "query", "queries")
        raise _too_few(dataset, start, f"only {found} would have another photo within 25 m")
    return train, val


def _too_few(dataset: Path, start: str, reason: str) -> DatasetError:
    model = start or RELEASED
    command = shlex.join(["cosplace", "index", "build", str(dataset), "--model", model, "--to", "INDEX"])
    how = "without training" if start else "with a released model, as ImageNet weights were not trained on places"
    return DatasetError(
        f"{dataset} has no validation set, and its training photos are too few to make one: {reason}. Training "
        f"does not help then: add photos, or index them {how}: `{command}`."
    )
