"""Which photos of a folder or table are indexed: those of the database of a dataset, not its queries, with positions.

Side effects: reads folders; `require_positions` reads some photos.
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from cosplace.errors import DatasetError, ImageError, none_readable
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.labels import IMPORT_ADVICE, tables_hint
from cosplace.photos.metadata import metadata_from_name, read_metadata
from cosplace.photos.opening import open_image, read_file
from cosplace.photos.paths import printable
from cosplace.photos.scanning import has_part, part_names, scan_images, subfolders
from cosplace.photos.table_lists import TablePart, count_photos, find_part, list_part, splits_of
from cosplace.photos.tables import has_own_splits
from cosplace.progress import format_count

ALL, DATABASE = PARTS = ("all", "database")  # of a dataset that may be indexed
DATABASES = ("database", "gallery")
SPLITS = ("", "test", "images/test")  # where a dataset has its databases
# Folders of queries as people name them: queries, queries_v1, 247query_v3, night_queries, QUERY IMAGES, query.images.
QUERIES = re.compile(
    rb"(?:^|(?<=[/\n]))(?:[a-z0-9]*[^a-z0-9/\n]+)?[0-9]*quer(?:y|ies)(?:[^a-z/\n][^/\n]*)?(?=/)", re.IGNORECASE
)
NOT_PHOTOS = ("train", "val", "test", "images")  # other splits of a dataset
NUM_SAMPLED = 1000  # photos of which at least one must have a position
MAX_NAMES = 3  # of folders that are left out, to report

log = logging.getLogger("cosplace")


def find_photos(folder: str | Path, *, part: str | None = None, follow_outside: bool = False) -> ImageList:
    """List the photos of a folder or a table that an index of it holds; the folder of the list has no links.

    Of a dataset that came with a database/ or gallery/, alone or in test/ or images/test/, these are the photos there.
    Of all others, also of a table that `cosplace split` has divided, these are all photos but those in folders named
    like queries, which are left out with a warning: if queries were indexed, each would match itself.
    part: "all" for all photos, queries too; "database" for those of the database.  What is left out is in the log.
    follow_outside: also use photos that links or a list file point to outside the folder (see `scan_images`).
    Raises DatasetError for a folder that is missing, has no photos, or has only folders of queries, or no database.
    """
    dataset = Path(folder)
    table = find_part(dataset)
    is_own = table is not None and not table.part and bool(splits_of(table)) and has_own_splits(table.table)
    names = (f"{split}/{name}" if split else name for split in SPLITS for name in DATABASES)
    database = next((name for name in names if has_part(dataset, name)), None)
    if part == DATABASE and database is None:
        other = f"{dataset / 'val'}, which has a database" if has_part(dataset, "val/database") else f"`--part {ALL}`"
        raise DatasetError(f"{dataset} has no database/ or gallery/, alone or in test/. Use {other}.")
    if part == ALL or (part is None and is_own):
        photos = scan_images(dataset, dataset=dataset, follow_outside=follow_outside)
        photos = photos if part == ALL else _without_queries(photos)
    elif database is not None:
        photos = scan_images(dataset / database, dataset=dataset, follow_outside=follow_outside)
        _report_other_folders(dataset / database)
    elif table is not None and splits_of(table):
        inside = () if follow_outside else (os.path.realpath(table.folder), os.path.realpath(dataset))
        photos = list_part(_part_without_queries(table), inside)
    else:
        photos = _without_queries(scan_images(dataset, dataset=dataset, follow_outside=follow_outside))
    _report_count(photos, dataset, table, None if part == ALL or (part is None and is_own) else database)
    return replace(photos, folder=photos.folder.resolve())


def _report_count(photos: ImageList, dataset: Path, table: TablePart | None, database: str | None) -> None:
    """Say how many photos of a dataset are indexed.  database: the part that they are; None for all."""
    num_photos = len(photos) if table is None else count_photos(table)
    if len(photos) < num_photos:
        which = f", those of {database}" if database else ""
        log.info(
            "indexed: %s of %s of %s%s; `--part %s` indexes the others too",
            f"{len(photos):,}", format_count(num_photos, "photo"), printable(dataset), which, ALL,
        )  # fmt: skip
    elif database and (others := _other_parts(dataset, database)):
        log.info(
            "indexed: %s of %s, not those next to it (%s); `--part %s` indexes them too",
            format_count(len(photos), "photo"), printable(dataset / database),
            ", ".join(map(printable, others[:MAX_NAMES])) + (", ..." if len(others) > MAX_NAMES else ""), ALL,
        )  # fmt: skip
    elif table is not None and splits_of(table):
        log.info("indexed: all %s of %s", format_count(num_photos, "photo"), printable(dataset))


def _other_parts(dataset: Path, database: str) -> list[str]:
    """Folders of a dataset next to those that its database is in: images/train for images/test/gallery."""
    used = [Path(database), *Path(database).parents][:-1]  # images/test/gallery, images/test, images
    folders = [folder.parent for folder in reversed(used)]
    parts = [str(folder / name) for folder in folders for name in part_names(dataset / folder)]
    return [name for name in parts if Path(name) not in used]


def _part_without_queries(part: TablePart) -> TablePart:
    """A part of a table without its queries, unless it has nothing else."""
    splits = splits_of(part)
    queries = [split for split in splits if QUERIES.search(os.fsencode(split.removeprefix(part.part) + "/"))]
    if not queries or len(queries) == len(splits):
        return part
    log.warning(
        "%s: left out its queries (%s): if queries were indexed, each would match itself.",
        printable(part.table), ", ".join(map(printable, queries[:MAX_NAMES])),
    )  # fmt: skip
    return replace(part, without=tuple(queries))


def _report_other_folders(database: Path) -> None:
    """Say which folders next to a database are left out, unless they are those of queries."""
    others = [
        name
        for name in ([] if find_part(database) else subfolders(database.parent))
        if name not in (database.name, *NOT_PHOTOS) and not QUERIES.match(os.fsencode(name) + b"/")
    ]
    if others:
        names = ", ".join(map(printable, others[:MAX_NAMES])) + (", ..." if len(others) > MAX_NAMES else "")
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
    names = ", ".join(printable(os.fsdecode(name)) for name in islice(sorted(left_out), MAX_NAMES))
    names += ", ..." if len(left_out) > MAX_NAMES else ""
    if not kept:
        raise DatasetError(
            f"{photos.folder} has photos only in folders of queries ({names}). To index queries, use their own folder."
        )
    log.warning(
        "%s: left out %s in folders of queries (%s): if queries were indexed, each would match itself. To index them, "
        "too, use `--part %s`.",
        printable(photos.folder), format_count(sum(left_out.values()), "photo"), names, ALL,
    )  # fmt: skip
    return replace(photos.subset(kept), skipped=photos.skipped)


def require_positions(photos: ImageList, dataset: str | Path) -> None:
    """Raise DatasetError if no photo has a position, ImageError if none can be read.  Reads at most 1,000.

    dataset: the folder that was given; the error names tables in it and next to it.
    """
    sample = evenly_spaced(photos, NUM_SAMPLED)
    if any(metadata_from_name(photos.label(row)).has_position for row in sample):
        return
    if any(_has_position(photos, row) for row in sample):
        return
    if errors := _opening_errors(photos, sample):
        raise none_readable(errors)
    if len(photos) == 1:
        problem = f"The only photo of {photos.folder} has no position, so an index of it cannot locate photos."
    else:
        which = f"the {len(photos):,}" if len(photos) <= NUM_SAMPLED else f"{NUM_SAMPLED:,}"
        problem = f"None of {which} photos of {photos.folder} has a position, so an index of them cannot locate photos."
    raise DatasetError(
        f"{problem}{tables_hint(Path(dataset), photos)} {IMPORT_ADVICE}",
        "use --without_positions to index them anyway",
    )


def _opening_errors(photos: ImageList, rows: Iterable[int]) -> list[str]:
    """The error of opening each of some photos; empty if one can be opened."""
    errors = []
    for row in rows:
        try:
            open_image(photos.path(row))
        except ImageError as error:
            errors.append(str(error))
        else:
            return []
    return errors


def _has_position(photos: ImageList, row: int) -> bool:
    try:
        path = photos.path(row)
        label = None if photos.labels is None else photos.label(row)
        return read_metadata(path, read_file(path), label).has_position
    except ImageError:  # reported when it is indexed
        return False
