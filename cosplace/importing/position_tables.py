"""Tables of positions: CSV, JSON, Parquet, GeoJSON or GeoPackage with one row for each photo.

A row is joined to its photo by path or file name.  Its values replace those in the photo's EXIF.  See
`position_columns` for what a table may contain.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.geo import geodesic_distances_m, magnetic_declination, wrap_heading
from cosplace.importing.columns import parse_named_columns
from cosplace.importing.exif_photos import PHOTOS_FOLDER
from cosplace.importing.photo_references import spellings
from cosplace.importing.position_columns import MOSTLY, SWAPPED, PositionTable, column_names, read_position_table
from cosplace.importing.positions import PhotoStream, has_position
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.row_names import RowNames
from cosplace.importing.table_files import (
    GEOPACKAGE_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
)
from cosplace.photos.metadata import year_of
from cosplace.photos.tables import UNKNOWN, PhotoRecord

NUM_COMPARED = 50  # photos whose own positions are compared with those of the table before any is used
SWAPPED_M, FAR_M = 1_000.0, 10_000.0  # own position from that of the swapped columns, and of the columns as they are


def detects(path: Path) -> bool:
    """Whether a path is a file with the suffix of a table."""
    suffixes = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES, *GEOPACKAGE_SUFFIXES)
    return path.is_file() and path.suffix.lower() in suffixes


def read(paths: Sequence[Path], settings: ImportSettings) -> "TablePositions":
    """Read tables.  Raises DatasetError for a table without file names or positions, or with swapped columns."""
    named = parse_named_columns(settings.tables.column)
    return TablePositions([read_position_table(path, named, settings.tables.crs, settings.timezone) for path in paths])


class TablePositions:
    """Positions from tables, as `Annotations`."""

    def __init__(self, tables: Sequence[PositionTable]) -> None:
        self.tables = tables
        self.rows = [RowNames(table.names, table.path.parent) for table in tables]

    @property
    def needs_positions(self) -> bool:
        """Always false, see `Annotations`."""
        return False

    def photos(self) -> Iterator[Entry]:
        """The photos that rows name, relative to the folder of their table; never outside of it."""
        seen = set()
        for table in self.tables:
            folder = table.path.parent
            for name in chain.from_iterable(map(spellings, table.names)):
                path = Path(name.replace("\\", "/"))
                if path.is_absolute() and path.is_relative_to(folder.absolute()):
                    path = path.relative_to(folder.absolute())
                if not name or path.is_absolute() or ".." in path.parts or folder / path in seen:
                    continue
                if (folder / path).is_file() and (folder / path).resolve().is_relative_to(folder.resolve()):
                    seen.add(folder / path)
                    yield FoundPhoto(file=folder / path, record=PhotoRecord(path=f"{PHOTOS_FOLDER}/{path.as_posix()}"))

    def annotate(self, photos: PhotoStream) -> Iterator[Entry]:
        """Every photo with the values of its rows; then the rows without photo."""
        for rows in self.rows:
            rows.compare(photos.list_files())
        stream = iter(photos)
        first = [photo for _, photo in zip(range(NUM_COMPARED), stream, strict=False)]
        self._refuse_swapped(first)
        for photo in chain(first, stream):
            yield from self._annotate(photo)
        for table, rows in zip(self.tables, self.rows, strict=True):
            yield from table.problems
            for row in rows.unused():
                if row in table.repeated:
                    continue
                name = table.names[row]
                reason = f"no photo is named {name}" if name else "has no photo name"
                if row in rows.unclear:
                    reason = f"{name} is in several rows, or is the name of several photos"
                if name and os.path.lexists(table.path.parent / name):
                    reason = f"{name} was not imported: it is listed with the reason, or it is not among the sources"
                yield Problem(name=f"{table.path} row {row + 1}", reason=reason)

    def _annotate(self, photo: FoundPhoto) -> Iterator[Entry]:
        reasons, is_named, is_magnetic = [], False, False
        for table, rows in zip(self.tables, self.rows, strict=True):
            row, reason = rows.find(photo.named_file)
            if row is not None:
                photo, is_named = replace(photo, record=_with_row(photo.record, table, row)), True
                if "heading" in table.values and not math.isnan(table.values["heading"][row]):
                    is_magnetic = bool(table.is_magnetic[row])
            elif reason:
                reasons.append(f"{reason} (in {table.path})")
        if not is_named:
            reason = "; ".join(reasons) or "no row names this photo"
            yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        if is_magnetic:  # last, because tables may give the position or the time after the heading
            photo = replace(photo, record=_with_true_heading(photo.record))
            if math.isnan(photo.record.heading):
                reason = "its magnetic heading cannot be converted without a position, or near a magnetic pole"
                yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        yield photo

    def _refuse_swapped(self, photos: Sequence[FoundPhoto]) -> None:
        """Raise DatasetError if photos that know their position show that the columns of a table are swapped."""
        for table, rows in zip(self.tables, self.rows, strict=True):
            found = [(photo, rows.find(photo.named_file)[0]) for photo in photos if has_position(photo)]
            found = [(photo, row) for photo, row in found if row is not None and not math.isnan(table.latitudes[row])]
            num_swapped = 0
            for photo, row in found:
                own = photo.record.latitude, photo.record.longitude
                there = table.latitudes[row], table.longitudes[row]
                if abs(there[1]) <= 90 and geodesic_distances_m(*own, *there) > FAR_M:
                    num_swapped += bool(geodesic_distances_m(*own, there[1], there[0]) < SWAPPED_M)
            if num_swapped > MOSTLY * len(found):
                why = "the positions in the photos say so"
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **column_names(table.columns)))


def _with_row(record: PhotoRecord, table: PositionTable, row: int) -> PhotoRecord:
    """A record with the known values of a row."""
    values: dict[str, Any] = {}
    if not math.isnan(table.latitudes[row]):
        values = {"latitude": float(table.latitudes[row]), "longitude": float(table.longitudes[row])}
        values["accuracy_m"] = UNKNOWN  # that of another position
    for name, column in table.values.items():
        value = column[row]
        if isinstance(value, str):
            if value:
                values[name] = value
        elif not math.isnan(value):
            values[name] = float(value)
            if name == "heading":
                values["heading_source"] = "table"
    return replace(record, **values)


def _with_true_heading(record: PhotoRecord) -> PhotoRecord:
    """A record whose heading is from magnetic north, with that from true north at its position and time."""
    declination = magnetic_declination(record.latitude, record.longitude, year_of(record.time))
    heading = wrap_heading(record.heading + declination)
    return replace(record, heading=heading, heading_source="" if math.isnan(heading) else record.heading_source)
