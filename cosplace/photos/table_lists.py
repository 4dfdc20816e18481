"""The photos of a table as a list: all of them, or a part such as DATASET/test/database.

A part is named like a folder of the dataset, and need not exist on disk: it has the photos whose column `split` is this
name, or starts with it.  In a table without splits, it has the photos below a folder of that name.
Side effects: reads tables.
"""

import logging
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.photos.headings import are_all_zero
from cosplace.photos.image_list import FOLLOW_OUTSIDE, ImageList, evenly_spaced
from cosplace.photos.parquet_files import arrow_compute
from cosplace.photos.paths import path_from_text, printable
from cosplace.photos.tables import TABLE_NAME, ZONE_ASSUMED, read_table
from cosplace.progress import format_count

if TYPE_CHECKING:
    import pyarrow as pa

    from cosplace.photos.labels import PhotoFields

MAX_DEPTH = 3  # levels of a part below its dataset, as in images/test/database
USUAL_PREFIXES = ("images/", "processed/", "small/", "raw/")  # between the name of a dataset and its splits
FILES_CHECKED = 100
NUMBERS = {
    "latitudes": "latitude", "longitudes": "longitude", "headings": "heading", "accuracies_m": "accuracy_m",
    "pitches": "pitch", "rolls": "roll", "altitudes_m": "altitude_m",
}  # fmt: skip
"""Fields of `PhotoFields` and their columns."""

_described: set[tuple[Path, int, int]] = set()  # path, bytes and time of tables that the log has described

log = logging.getLogger("cosplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """A table, or a part of it."""

    table: Path
    part: str = ""  # "": all photos
    is_split: bool = True  # else a folder of a table without splits
    without: tuple[str, ...] = ()  # splits that are left out

    @property
    def folder(self) -> Path:
        """The folder that the paths in the table start from."""
        return self.table.parent

    def has(self, split: str) -> bool:
        """Whether a split is in the part."""
        is_below = not self.part or split == self.part or split.startswith(f"{self.part}/")
        return is_below and split not in self.without


def find_part(path: Path) -> TablePart | None:
    """The part of a table that a path names: a Parquet file, a folder with photos.parquet, or a path below these.

    None if there is no such table, or if it does not have this part.
    Raises DatasetError for a table that cannot be read, unless the path is a folder below it.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its name
    for ancestor in _ancestors(path):
        table = ancestor if ancestor.suffix.lower() == ".parquet" and ancestor.is_file() else ancestor / TABLE_NAME
        above = Path(os.path.abspath(ancestor))  # noqa: PTH100
        if not absolute.is_relative_to(above) or not table.is_file():
            continue
        part = absolute.relative_to(above).as_posix()
        try:
            return _part_of(table, "" if part == "." else part)
        except DatasetError:
            if part != "." and path.is_dir():
                return None
            raise
    return None


def _ancestors(path: Path) -> list[Path]:
    """A path and the folders above it, as the path spells them where it does."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    above = [] if path.is_absolute() else absolute.parents[len(path.parents) :]
    return [path, *path.parents, *above][: MAX_DEPTH + 1]


def _part_of(table: Path, name: str) -> TablePart | None:
    num_photos, splits = _summary(table)
    if not name:
        return TablePart(table=table) if num_photos else None
    for prefix in ("", *USUAL_PREFIXES):
        part = TablePart(table=table, part=name.removeprefix(prefix))
        if any(map(part.has, splits)):
            return part
    part = TablePart(table=table, part=name, is_split=False)
    return part if not splits and len(_rows_of(part, read_table(table, ("path", "split")))) else None


def _summary(table: Path) -> tuple[int, frozenset[str]]:
    """Number of photos and splits of a table."""
    try:
        status = table.stat()
    except OSError as error:
        raise DatasetError(f"{table} cannot be read ({error.strerror}).") from error
    return _read_summary(table, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _read_summary(table: Path, num_bytes: int, modified_ns: int) -> tuple[int, frozenset[str]]:
    splits = read_table(table, ("split",))["split"]
    return len(splits), frozenset(splits.unique().drop_null().to_pylist()) - {""}


def parts_in(path: Path) -> list[str]:
    """Names of the parts of a table directly below a part, such as database and queries; none without a table."""
    part = find_part(path)
    if part is None or not part.is_split:
        return []
    start = len(part.part) + 1 if part.part else 0
    return sorted({split[start:].partition("/")[0] for split in splits_of(part)} - {""})


def splits_of(part: TablePart) -> list[str]:
    """The splits in a part, sorted; none in a table without splits."""
    return sorted(filter(part.has, _summary(part.table)[1]))


def count_photos(part: TablePart) -> int:
    """The number of photos in a part."""
    return _summary(part.table)[0] if not part.part else len(_rows_of(part, read_table(part.table, ("path", "split"))))


# --- lists -----------------------------------------------------------------------------------------------------------


def list_part(part: TablePart, inside: tuple[str, ...]) -> ImageList:
    """The photos of a part of a table, sorted by path, with labels.

    The whole table decides about a local map, so that the parts of a table share it.  If all headings are exactly 0,
    they are unknown.
    inside: real folders that may hold the photos; () for any.
    Raises DatasetError for wrong paths, and if some files are missing.
    """
    from cosplace.photos.labels import choose_map, has_names, list_of_lines, with_labels  # imports pyproj

    table = read_table(part.table, ("path", "split", "time", "time_zone", *NUMBERS.values()))
    fields = _photo_fields(table)
    center = choose_map(fields)
    without_headings = are_all_zero(fields.headings)
    _describe(part.table, fields, center, without_headings=without_headings)
    if without_headings:
        fields = replace(fields, headings=np.full(len(table), np.nan))
    rows = _rows_of(part, table)
    rows, lines = _sorted_lines(part, rows, table["path"].combine_chunks().take(rows))
    if inside:
        _refuse_outside(part, lines)
    images = replace(list_of_lines(part.folder, lines), inside=inside)
    fields = fields.at(rows.to_numpy())
    if fields.has_position.any() or not has_names(images):  # else the '@' names have positions that are not on Earth
        images = with_labels(images, fields, center)
    for row in evenly_spaced(images, FILES_CHECKED):
        if not images.path(row).is_file():
            raise DatasetError(one_line(_missing(part.table, images.name(row))))
    return images


def _missing(table: Path, name: str) -> str:
    """Why the photos of a table cannot be listed, and what to do."""
    path = table.parent / name
    if path.is_symlink():
        return (
            f"{table} lists '{name}', which is a link to {printable(path.readlink())}, which is no file. Restore "
            f"the file; or remove the link, then run the same `cosplace import` again, which removes the row."
        )
    remedy = "remove its row."
    if table.name == TABLE_NAME:
        remedy = "run the same `cosplace import` again, which removes its row."
    return f"{table} lists '{name}', which is not in {table.parent}. Restore the file, or {remedy}"


def _photo_fields(table: "pa.Table") -> "PhotoFields":
    import pyarrow as pa

    from cosplace.photos.labels import PhotoFields

    micros = table["time"].cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy()
    columns = {name: np.array(table[column].to_numpy(), np.float64) for name, column in NUMBERS.items()}
    are_local = arrow_compute().equal(table["time_zone"], ZONE_ASSUMED).fill_null(False).to_numpy()
    return PhotoFields(times=np.array(micros, np.float64) / 1e6, are_local_times=are_local, **columns)


def _describe(
    table: Path, fields: "PhotoFields", center: tuple[float, float] | None, *, without_headings: bool
) -> None:
    """Report once what is special about a table."""
    from cosplace.photos.labels import describe_map

    status = table.stat()
    stamp = (table, status.st_size, status.st_mtime_ns)
    if stamp in _described:
        return
    _described.add(stamp)
    if center:
        log.info("%s: %s", printable(table), describe_map(fields, center))
    if without_headings:
        log.warning("%s: all headings are exactly 0, which means unknown.", printable(table))


def _rows_of(part: TablePart, table: "pa.Table") -> "pa.Array":
    """Rows of the table that are in a part, an Arrow array of int64."""
    import pyarrow as pa

    pc = arrow_compute()
    if not part.part:
        is_in = pc.invert(pc.is_in(table["split"], pa.array(part.without, pa.string())))
    elif part.is_split:
        is_in = pc.is_in(table["split"], pa.array(splits_of(part), pa.string()))
    else:
        is_in = pc.starts_with(table["path"], f"{part.part}/").fill_null(False)
    return pa.array(np.flatnonzero(is_in.to_numpy()))


def _sorted_lines(part: TablePart, rows: "pa.Array", paths: "pa.Array") -> tuple["pa.Array", "pa.Array"]:
    """Rows and their paths, each ended by a newline, sorted by the bytes of the paths.

    Raises DatasetError for a path that is missing or occurs twice.
    """
    import pyarrow as pa

    pc = arrow_compute()
    if paths.null_count or pc.any(pc.equal(paths, "")).as_py():
        raise DatasetError(f"{part.table} has a row without a path. Write the table again with `cosplace import`.")
    if pc.any(pc.match_substring(paths, "\\x")).as_py():  # bytes that are not UTF-8
        names = pa.array([os.fsencode(path_from_text(text)) for text in paths.to_pylist()], pa.large_binary())
    else:
        names = paths.cast(pa.large_binary())
    has_break = pc.match_substring(names, "\n")
    if num_breaks := pc.sum(has_break).as_py():
        photos = format_count(num_breaks, "photo")
        log.warning("%s: skipped %s with a line break in the name.", printable(part.table), photos)
        kept = pc.invert(has_break)
        rows, names = rows.filter(kept), names.filter(kept)
    if pc.any(pc.less(names[1:], names[:-1])).as_py():
        order = pc.sort_indices(names)
        rows, names = rows.take(order), names.take(order)
    if (twice := pc.index(pc.equal(names[1:], names[:-1]), True).as_py()) >= 0:
        name = printable(os.fsdecode(names[twice].as_py()))
        raise DatasetError(f"{part.table}: {name} occurs twice. Write the table again with `cosplace import`.")
    end = (pa.scalar(b"", pa.large_binary()), pa.scalar(b"\n", pa.large_binary()))
    return rows, pc.binary_join_element_wise(names, *end)


def _refuse_outside(part: TablePart, lines: "pa.Array") -> None:
    """Raise DatasetError for a path that is absolute or leaves the folder of the table."""
    pc = arrow_compute()
    is_outside = pc.or_(pc.starts_with(lines, "/"), pc.match_substring_regex(lines, r"(^|/)\.\.(/|\n)"))
    if (row := pc.index(is_outside, True).as_py()) >= 0:
        name = printable(os.fsdecode(lines[row].as_py()[:-1]))
        raise DatasetError(
            f"{part.table} lists '{name}', which is outside its folder. Write the table again.", FOLLOW_OUTSIDE
        )
