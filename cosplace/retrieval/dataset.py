"""A database with its queries, all with known positions.

Photos that are all in one UTM zone, or whose names have no zone, are compared by east and north.  Photos of several
zones are compared by earth-centered points.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import (
    UtmPositions,
    contradiction_warning,
    different_zones,
    earth_positions,
    unknown_positions_warning,
    utm_fields,
    without_rows,
)
from cosplace.photos.scanning import scan_images

QUERIES_FOLDERS = ("queries_v1", "queries")
USUAL_FOLDERS = ("", "images", "processed")  # between the name of a dataset and its splits
SPLITS = ("", "test", "val", "train")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalDataset:
    """A database of R photos and Q queries, all with known positions."""

    name: str
    folder: Path
    database: ImageList
    queries: ImageList
    # (R, 2) float64, UTM east and north in meters; (R, 3), earth-centered points, if photos are in several zones
    database_positions: np.ndarray
    query_positions: np.ndarray  # (Q, 2) or (Q, 3) float64
    zones: tuple[int, ...] = ()  # UTM zones, negative south of the equator; none where names have no zone


def open_retrieval_dataset(
    folder: str | Path, queries_folder: str | None = None, *, follow_outside: bool = False
) -> RetrievalDataset:
    """Open the dataset in a folder: database/ and the queries in `queries_folder` (default: queries_v1, else queries).

    follow_outside: also use photos that links or a list file point to outside the folder (see `scan_images`).
    Photos whose position is 0, 0, which means unknown, are left out, with a warning.
    Raises DatasetError when a folder is missing or empty, or a file name has no coordinates.
    """
    folder = Path(folder)
    if not folder.is_dir():
        parent = folder.parent
        is_split = (parent / "database").is_dir()
        advice = f"Did you mean {parent}?" if is_split else "Use the folder that contains database/ and queries/."
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise DatasetError(f"{folder} {problem}. {advice}", *["If so, use --test_set_folder."] * is_split)
    if not (folder / "database").is_dir():
        found = next((place for place in usual_places(folder) if (place / "database").is_dir()), None)
        advice = f"Did you mean {found}?" if found else "Use the folder that contains database/ and queries/."
        raise DatasetError(f"{folder} has no subfolder database/. {advice}")
    candidates = [queries_folder] if queries_folder else QUERIES_FOLDERS
    queries = next((name for name in candidates if (folder / name).is_dir()), None)
    if queries is None:
        others = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "database")
        hint = [f"Choose one of its subfolders with --queries_folder: {', '.join(others[:8])}."] if others else []
        raise DatasetError(f"{folder} has no subfolder of queries ({' or '.join(candidates)}).", *hint)
    database, database_utm = _with_positions(
        scan_images(folder / "database", dataset=folder, follow_outside=follow_outside)
    )
    query_images, query_utm = _with_positions(
        scan_images(folder / queries, dataset=folder, follow_outside=follow_outside)
    )
    zones = different_zones(database_utm.zones, query_utm.zones)
    if len(zones) > 1:
        positions = earth_positions(database, database_utm), earth_positions(query_images, query_utm)
    else:
        positions = database_utm.east_north, query_utm.east_north
    return RetrievalDataset(
        name=f"{folder.resolve().name}/{queries}",
        folder=folder,
        database=database,
        queries=query_images,
        database_positions=positions[0],
        query_positions=positions[1],
        zones=tuple(zones),
    )


def usual_places(folder: Path) -> list[Path]:
    """Folders in which the splits of a dataset usually are, such as pitts30k/images/test for pitts30k."""
    return [folder / between / split for between in USUAL_FOLDERS for split in SPLITS]


def _with_positions(images: ImageList) -> tuple[ImageList, UtmPositions]:
    """Photos with known positions, and these; warns about the others, and about names that contradict themselves.

    Raises DatasetError if no position is known.
    """
    utm = utm_fields(images)
    if warning := contradiction_warning(images):
        log.warning("%s", warning)
    known = utm.known
    if known.all():
        return images, utm
    unknown = np.flatnonzero(~known)
    if len(unknown) == len(images):
        raise DatasetError(f"{images.folder}: all positions are 0, 0, which means unknown. Correct the file names.")
    log.warning("%s", unknown_positions_warning(images, unknown))
    return without_rows(images, unknown), UtmPositions(east_north=utm.east_north[known], zones=utm.zones[known])
