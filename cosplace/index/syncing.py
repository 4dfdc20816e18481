"""Synchronize an index with a folder: add new photos, update moved and changed ones, remove those that are gone.

A drive that is not mounted looks like an empty folder, so removing many photos must be allowed.  Side effects:
reads photos, writes the index.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.index.building import IndexingResult, add_photos, plan_photos, rows_below
from cosplace.index.parts import choose_part, record_part
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.sources import DATABASE, find_photos, require_positions
from cosplace.photos.image_list import ImageList
from cosplace.photos.paths import path_from_text, path_text, printable
from cosplace.photos.table_lists import TablePart, find_part
from cosplace.photos.tables import read_table

log = logging.getLogger("cosplace")

MAX_REMOVED_SHARE = 0.5  # of the photos of the index below the folder


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a synchronization has done, or would do."""

    indexing: IndexingResult | None  # None if the folder has no photos
    num_removed: int


def sync_folder(
    index: PhotoIndex,
    encoder: Encoder | None,
    folder: str | Path,
    *,
    allow_many: bool = False,
    dry_run: bool = False,
    part: str | None = None,
    without_positions: bool = False,
    follow_outside: bool = False,
    **options: Any,
) -> SyncResult:
    """Add the photos of a folder to an index, and remove those below it whose files are gone.

    allow_many: remove photos even if the folder is missing or empty, or if more than half of its photos are gone.
    dry_run: change nothing; encoder may be None.  part: see `find_photos`; by default, as when the folder was indexed.
    without_positions: accept a folder in which no photo has a position.  options: of `add_photos`.
    Raises DatasetError instead of removing many photos, before anything is changed.
    """
    part = choose_part(index, folder, part)
    try:
        photos = find_photos(folder, part=part, follow_outside=follow_outside)
    except DatasetError as error:
        if not allow_many:
            raise DatasetError(
                f"{error} Nothing was removed.", "use --yes to remove its photos from the index"
            ) from error
        photos = None
    if photos is not None and not without_positions:
        require_positions(photos, folder)
    table = None if photos is None else find_part(Path(folder))
    dataset = folder
    folder = folder if table is None else table.folder
    listed = None if table is None else _listed(table)
    num_known = len(rows_below(index.columns().paths(), folder))
    most = MAX_REMOVED_SHARE * num_known
    gone, result = _gone(index, folder, listed), None
    if photos is not None and (dry_run or (len(gone) > most and not allow_many)):
        plan_options = {name: options[name] for name in ("num_workers", "progress", "check_content") if name in options}
        result, moved = plan_photos(index, photos, **plan_options)
        gone = gone[~np.isin(gone, list(moved))]
    if len(gone) > most and not allow_many:
        raise DatasetError(
            f"{len(gone):,} of {num_known:,} indexed photos below {folder} no longer exist. Is a "
            "drive not mounted? Nothing was changed.",
            "use --yes to remove them",
        )
    if photos is not None and not dry_run:
        assert encoder is not None
        record_part(index, dataset, photos.folder, part)
        result = add_photos(index, encoder, photos, **options)
        gone = _gone(index, folder, listed)
    if part == DATABASE and photos is not None and table is not None:
        _report_other_parts(index, folder, photos)
    return SyncResult(indexing=result, num_removed=len(gone) if dry_run else index.remove(gone))


def _report_other_parts(index: PhotoIndex, folder: str | Path, database: ImageList) -> None:
    """Warn about indexed photos of a table that are not in its database, perhaps since it was split anew."""
    paths = index.columns().paths()
    wanted = {path_text(os.path.normpath(database.path(row))) for row in range(len(database))}
    if others := sum(paths[row] not in wanted for row in rows_below(paths, folder)):
        log.warning(
            "%s indexed photos of %s are not in its database, such as queries, which find themselves. They are kept: "
            "build a new index to measure with its queries.",
            f"{others:,}", printable(folder),
        )  # fmt: skip


def _listed(part: TablePart) -> frozenset[str]:
    """Absolute paths, as text, of all photos of a table, also those of its other parts."""
    folder = part.folder.resolve()
    names = read_table(part.table, ("path",))["path"].to_pylist()
    return frozenset(path_text(os.path.normpath(folder / path_from_text(name))) for name in names)


def _gone(index: PhotoIndex, folder: str | Path, listed: frozenset[str] | None) -> np.ndarray:
    """Ids of the photos below a folder whose files do not exist, or which its table does not list.

    Photos whose files cannot be checked are kept.  listed: paths in the table; None without one.
    """
    columns = index.columns()
    paths = columns.paths()
    is_listed = [True] * len(paths) if listed is None else [path in listed for path in paths]
    rows = [row for row in rows_below(paths, folder) if not is_listed[row] or not _exists(paths[row])]
    return columns.ids[np.array(rows, np.int64)]


def _exists(path: str) -> bool:
    try:
        os.lstat(path_from_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # such as a missing permission
        return True
    return True
