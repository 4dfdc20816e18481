"""A database with its queries, all with known positions.

Photos that are all in one UTM zone or on one local map, or whose names have no zone, are compared by east and north.
Photos of several zones are compared by earth-centered points.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError, NoPositionsError
from cosplace.importing.dataset_layouts import RetrievalLists, retrieval_lists
from cosplace.importing.report import problem_lines
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import NO_LABELS, with_positions
from cosplace.photos.names import (
    UtmPositions,
    all_positions_unknown,
    check_hemispheres,
    contradiction_warning,
    different_zones,
    earth_positions,
    look_like_degrees,
    unknown_positions_warning,
    utm_fields,
    without_rows,
)
from cosplace.photos.paths import printable
from cosplace.photos.scanning import has_part, is_dataset_part, missing_folder, part_names, scan_images
from cosplace.progress import Progress, no_progress
from cosplace.storage import problem_with_kind

QUERIES_FOLDERS = ("queries_v1", "queries")
DATABASE_FOLDERS = ("database", "gallery")
USUAL_FOLDERS = ("", "images", "processed", "small", "raw")  # between the name of a dataset and its splits
SPLITS = {"test": ("", "test", "val", "train"), "val": ("", "val")}  # where a set may be, the best place first
LINE_NOTE = "positions are numbers along a line, such as those of frames or pairs of photos, not places on Earth."

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
    note: str = ""  # what distances are, if they are not meters on the ground
    num_unknown_database: int = 0  # photos that were left out, because their position is unknown
    num_unknown_queries: int = 0
    copies: str = ""  # how many queries are in the database too, in words; "" if none are, or if nobody looked


def open_retrieval_dataset(
    folder: str | Path,
    queries_folder: str | None = None,
    *,
    split: str = "test",
    follow_outside: bool = False,
    progress: Progress = no_progress,
) -> RetrievalDataset:
    """Open the dataset in a folder: database/ and the queries in `queries_folder` (default: queries_v1, else queries).

    queries_folder: a name next to database/, or the path of any folder (see `queries_place`).
    Both may be parts of a table, and photos without '@' names may have their positions in EXIF.  A folder above them is
    searched at the usual places, such as images/test/.  It may also have a dataset of the field as it is downloaded
    (see `cosplace.importing.dataset_layouts`).
    split: the set that is wanted, test or val.  A test set is never opened for val.
    follow_outside: also use photos that links or a list file point to outside the folder (see `scan_images`).
    Photos whose position is unknown (0, 0 in names) are left out, with a warning.
    Raises DatasetError when a folder is missing or empty, or photos have no coordinates.
    """
    return with_known_positions(
        dataset_lists(folder, queries_folder, split=split, follow_outside=follow_outside), progress
    )


def dataset_lists(
    folder: str | Path, queries_folder: str | None = None, *, split: str = "test", follow_outside: bool = False
) -> RetrievalLists:
    """Photos of the dataset in a folder, also those without positions; arguments as for `open_retrieval_dataset`."""
    folder = Path(folder)
    database_folder = next(
        (
            folder / place / name
            for place in usual_places(split)
            for name in DATABASE_FOLDERS
            if has_part(folder, f"{place}/{name}" if place else name)
        ),
        None,
    )
    if database_folder is None:
        lists = retrieval_lists(folder, queries_folder, split=split, follow_outside=follow_outside)
        if lists is None:
            raise _missing(folder)
        log.info("%s: %s", printable(folder), lists.name)
        for warning in problem_lines(lists.problems):
            log.warning("%s", warning)
        return lists
    if database_folder.parent != folder:
        folder = database_folder.parent
        log.info("the %s set is %s", split, printable(folder))
    queries = queries_place(folder, queries_folder)
    is_part = queries.is_relative_to(folder)  # else the queries are in a folder elsewhere
    database = scan_images(database_folder, dataset=folder, follow_outside=follow_outside)
    query_images = scan_images(queries, dataset=folder if is_part else None, follow_outside=follow_outside)
    own, other = folder.resolve().name, queries.relative_to(folder) if is_part else queries.resolve().name
    name = f"{own}/{other}" if is_part else f"{own}+{other}"
    return RetrievalLists(name=name, folder=folder, database=database, queries=query_images)


def two_folder_lists(
    database_folder: str | Path, queries_folder: str | None = None, *, follow_outside: bool = False
) -> RetrievalLists:
    """Photos of any two folders, also those without positions.

    queries_folder: a name next to the database, or the path of any folder (see `queries_place`).
    Raises DatasetError when a folder is missing or has no photos.
    """
    database_folder = Path(database_folder)
    queries_folder_path = queries_place(database_folder.parent, queries_folder, database=database_folder.name)
    database, queries = (
        scan_images(path, follow_outside=follow_outside) for path in (database_folder, queries_folder_path)
    )
    name = f"{database_folder.resolve().name}+{queries_folder_path.resolve().name}"
    return RetrievalLists(name=name, folder=database_folder, database=database, queries=queries)


def queries_place(folder: Path, queries_folder: str | None = None, *, database: str = "database") -> Path:
    """The folder of queries: a name next to the database, which is in `folder`, or the path of any folder.

    None: queries_v1, else queries, next to the database; in a table with splits, only these count.
    database: name of the folder of the database, which a hint leaves out.
    Raises DatasetError for a folder that does not exist, and for a relative path that could mean two folders.
    """
    candidates = [queries_folder] if queries_folder else QUERIES_FOLDERS
    if queries_folder:
        beside = folder / queries_folder if is_dataset_part(folder / queries_folder) else None
    else:
        beside = next((folder / name for name in QUERIES_FOLDERS if has_part(folder, name)), None)
    elsewhere = Path(queries_folder) if queries_folder and is_dataset_part(queries_folder) else None
    if beside is not None and elsewhere is not None and beside.resolve() != elsewhere.resolve():
        raise DatasetError(
            f"--queries_folder {queries_folder} may be {beside} or {elsewhere.absolute()}. Use the absolute path of "
            f"the one that you mean."
        )
    found = beside or elsewhere
    if found is None:
        for path in (folder / candidates[0], Path(candidates[0])):
            if path.exists() and not path.is_dir():
                raise missing_folder(path, "Use the folder of the queries.")
        others = [name for name in part_names(folder) if name not in (*DATABASE_FOLDERS, database)]
        hint = [f"Choose one of its subfolders with --queries_folder: {', '.join(others[:8])}."] if others else []
        raise DatasetError(f"{folder} has no subfolder of queries ({' or '.join(candidates)}).", *hint)
    return found


def _missing(folder: Path) -> DatasetError:
    """The error for a folder that has no database."""
    if is_dataset_part(folder):
        return DatasetError(
            f"{folder} has no subfolder database/. Use the folder that contains database/ and queries/."
        )
    parent = folder.parent
    is_split = is_dataset_part(parent / "database")
    if not is_split:
        return missing_folder(folder, "Use the folder that contains database/ and queries/.")
    return DatasetError(
        f"{folder} {problem_with_kind(folder, 'folder')}. Did you mean {parent}?", "If so, use --test_set_folder."
    )


def usual_places(split: str) -> list[str]:
    """Where a set of a dataset usually is, relative to it, such as images/test; "" is the dataset itself."""
    return ["/".join(filter(None, (between, name))) for between in USUAL_FOLDERS for name in SPLITS[split]]


def with_known_positions(lists: RetrievalLists, progress: Progress = no_progress) -> RetrievalDataset:
    """The photos of two lists whose positions are known, and these; warns about the others.

    Raises NoPositionsError if no position of a list is known, DatasetError for names without coordinates.
    """
    return dataset_of_lists(
        lists, photos_with_positions(lists.database, progress), photos_with_positions(lists.queries, progress)
    )


def dataset_of_lists(
    lists: RetrievalLists, with_database: tuple[ImageList, UtmPositions], with_queries: tuple[ImageList, UtmPositions]
) -> RetrievalDataset:
    """The dataset of two lists.  with_database, with_queries: what `photos_with_positions` returns for them."""
    (database, database_utm), (queries, query_utm) = with_database, with_queries
    zones = different_zones(database_utm.zones, query_utm.zones)
    for images, utm in (with_database, with_queries):
        _check_positions(images, utm, zones)
    if len(zones) > 1 or database.map_center != queries.map_center:
        positions = earth_positions(database, database_utm), earth_positions(queries, query_utm)
    else:
        positions = database_utm.east_north, query_utm.east_north
    note = lists.note
    if is_line(database, database_utm) and is_line(queries, query_utm):
        note = note or LINE_NOTE
        log.info("%s: %s", printable(lists.folder), note)
    return RetrievalDataset(
        name=lists.name,
        folder=lists.folder,
        database=database,
        queries=queries,
        database_positions=positions[0],
        query_positions=positions[1],
        zones=tuple(zones),
        note=note,
        num_unknown_database=len(lists.database) - len(database),
        num_unknown_queries=len(lists.queries) - len(queries),
    )


def _check_positions(images: ImageList, utm: UtmPositions, zones: Sequence[int]) -> None:
    """Raise DatasetError for a photo that may be on either side of the equator; warn about degrees.

    zones: of the database and the queries.
    """
    check_hemispheres(images, utm.zones, zones)
    if images.labels is None and look_like_degrees(utm):
        log.warning(
            "%s: the first two fields of the names, such as %g and %g, look like degrees, and are taken as meters. "
            "If they are latitude and longitude, import the photos with a table of positions (`cosplace import`).",
            printable(images.folder), *utm.east_north[0],
        )  # fmt: skip


def is_line(images: ImageList, utm: UtmPositions) -> bool:
    """Whether positions are numbers along a line: all without a zone and at the same east, 0 in prepared datasets.

    A photo at 0, 0 then is the first one of the line, not one whose position is unknown.
    """
    east, north = utm.east_north.T
    if images.map_center or len(east) < 2 or utm.zones.any():
        return False
    return bool((east == east[0]).all() and (north != north[0]).any())


def photos_with_positions(images: ImageList, progress: Progress = no_progress) -> tuple[ImageList, UtmPositions]:
    """Photos with known positions, and these; warns about the others, and about names that contradict themselves.

    Raises NoPositionsError if no position is known.
    """
    images = with_positions(images, progress)
    utm = utm_fields(images)
    if warning := contradiction_warning(images):
        log.warning("%s", warning)
    known = utm.known
    if known.all() or is_line(images, utm):
        return images, utm
    unknown = np.flatnonzero(~known)
    if len(unknown) == len(images):
        raise NoPositionsError(f"{images.folder}: {all_positions_unknown(images)}", NO_LABELS)
    log.warning("%s", unknown_positions_warning(images, unknown))
    return without_rows(images, unknown), UtmPositions(east_north=utm.east_north[known], zones=utm.zones[known])
