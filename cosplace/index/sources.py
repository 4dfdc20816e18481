"""Which photos of a folder are indexed: those of the database of a dataset, not its queries, and with positions.

Side effects: reads folders; `require_positions` reads some photos.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from cosplace.errors import DatasetError, ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.metadata import metadata_from_name, read_metadata
from cosplace.photos.opening import read_file
from cosplace.photos.paths import printable
from cosplace.photos.scanning import scan_images

DATABASES = ("database", "gallery")
SPLITS = ("", "test", "images/test")  # where a dataset has its databases
# Folders of queries as datasets name them: queries, queries_v1, query, 247query_v3, queries_real, night_queries.
QUERIES = re.compile(
    rb"(?:^|(?<=[/\n]))(?:[a-z0-9]+[_-])?[0-9]*quer(?:y|ies)(?:[_.-][^/\n]*|[0-9]*)(?=/)", re.IGNORECASE
)
NOT_PHOTOS = ("train", "val", "test", "images")  # other splits of a dataset
NUM_SAMPLED = 1000  # photos of which at least one must have a position
TABLES = (".csv", ".tsv", ".txt", ".mat", ".json", ".geojson", ".gpkg", ".parquet", ".npy")
NOT_TABLES = re.compile(r"_images_paths\.txt$|readme|license|requirements", re.IGNORECASE)
MAX_TABLES, MAX_ENTRIES = 3, 200

log = logging.getLogger("cosplace")


def find_photos(folder: str | Path, *, follow_outside: bool = False) -> ImageList:
    """List the photos of a folder that an index of it holds; the folder of the list has no links.

    Of a dataset these are the photos of its database/ or gallery/, alone or in test/ or images/test/.  Elsewhere,
    folders of queries are left out, with a warning: if queries were indexed, each would match itself.
    follow_outside: also use photos that links or a list file point to outside the folder (see `scan_images`).
    Raises DatasetError for a folder that is missing, has no photos, or has only folders of queries.
    """
    folder = dataset = Path(folder)
    for inside in (folder / split / name for split in SPLITS for name in DATABASES):
        if inside.is_dir():
            folder = inside
            _report_other_folders(inside)
            break
    photos = _without_queries(scan_images(folder, dataset=dataset, follow_outside=follow_outside))
    return replace(photos, folder=photos.folder.resolve())


def _report_other_folders(database: Path) -> None:
    """Say which folders next to a database are left out, unless they are those of queries."""
    others = [
        path.name
        for path in sorted(database.parent.iterdir())
        if path.is_dir() and path != database and not path.name.startswith(".") and path.name not in NOT_PHOTOS
        and not QUERIES.match(os.fsencode(path.name) + b"/")
    ]  # fmt: skip
    if others:
        names = ", ".join(map(printable, others[:MAX_TABLES])) + (", ..." if len(others) > MAX_TABLES else "")
        log.warning(
            "%s is indexed alone, as the database of a dataset. Left out next to it: %s. To index such a folder, too, "
            "use `cosplace index add`.",
            printable(database), names,
        )  # fmt: skip


def _without_queries(photos: ImageList) -> ImageList:
    if not QUERIES.search(photos.names.data):
        return photos
    kept, left_out = [], {}
    for row in range(len(photos)):
        found = QUERIES.search(os.fsencode(photos.name(row)))
        if found is None:
            kept.append(row)
        else:
            left_out[found[0]] = left_out.get(found[0], 0) + 1
    if not left_out:
        return photos
    names = ", ".join(printable(os.fsdecode(name)) for name in islice(sorted(left_out), MAX_TABLES))
    names += ", ..." if len(left_out) > MAX_TABLES else ""
    if not kept:
        raise DatasetError(
            f"{photos.folder} has photos only in folders of queries ({names}). To index queries, use their own folder."
        )
    log.warning(
        "%s: left out %s photos in folders of queries (%s): if queries were indexed, each would match itself. To index "
        "queries, use their own folder.",
        printable(photos.folder), f"{sum(left_out.values()):,}", names,
    )  # fmt: skip
    return replace(photos.subset(kept), skipped=photos.skipped)


def require_positions(photos: ImageList, dataset: str | Path) -> None:
    """Raise DatasetError if no photo has a position; of more than 1,000 photos, 1,000 are read.

    dataset: the folder that was given; the error names tables in it and next to it.
    """
    sample = evenly_spaced(photos, NUM_SAMPLED)
    if any(metadata_from_name(Path(photos.name(row)).name).has_position for row in sample):
        return
    if any(_has_position(photos, row) for row in sample):
        return
    if len(photos) == 1:
        problem = f"The only photo of {photos.folder} has no position, so an index of it cannot locate photos."
    else:
        which = f"the {len(photos):,}" if len(photos) <= NUM_SAMPLED else f"{NUM_SAMPLED:,}"
        problem = f"None of {which} photos of {photos.folder} has a position, so an index of them cannot locate photos."
    tables = [printable(path) for path in islice(_tables_beside(Path(dataset), photos), MAX_TABLES)]
    hint = f" Their positions may be in {', '.join(tables)}." if tables else ""
    raise DatasetError(
        f"{problem}{hint} Write positions into '@' names or EXIF (docs/index.md).",
        "use --without_positions to index them anyway",
    )


def _has_position(photos: ImageList, row: int) -> bool:
    try:
        path = photos.path(row)
        return read_metadata(path, read_file(path)).has_position
    except ImageError:  # reported when it is indexed
        return False


def _tables_beside(dataset: Path, photos: ImageList) -> Iterator[Path]:
    """Files that may contain positions: in and next to the dataset, and in the folders between it and its photos."""
    dataset = dataset.resolve()
    first = (photos.folder / photos.name(0)).parent
    between = [folder for folder in (first, *first.parents) if folder.is_relative_to(dataset)]
    seen = set()
    for folder in [*between, *_folders_in(dataset), dataset.parent, *_folders_in(dataset.parent)]:
        for path in _entries(folder):
            is_table = path.suffix.lower() in TABLES and not NOT_TABLES.search(path.name)
            if is_table and path not in seen and path.is_file():
                seen.add(path)
                yield path


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        return []
