"""Check a dataset before it is used: photos, positions, headings, clocks, duplicates, and what its splits share.

Errors stop a command or make its result wrong; warnings do not.  Names are parsed as `cosplace eval` and `cosplace
train` parse them, without stopping at the first error.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import DatasetError
from cosplace.geo import bounding_box, geodesic_distances_m, lla_from_ecef, utm_zones
from cosplace.photos.headings import MAX_TURNS_DEG, are_all_zero
from cosplace.photos.image_list import OTHER_FILES, ImageList, rows_also_in
from cosplace.photos.labels import has_names, with_positions
from cosplace.photos.names import (
    MAX_CONTRADICTION_M,
    UtmPositions,
    contradictions_m,
    different_zones,
    earth_positions,
    fill_from_degrees,
    has_zone,
    hemisphere_is_ambiguous,
    lack_hemisphere,
    may_be_south,
    optional_fields,
    utm_points,
    zones_of,
)
from cosplace.photos.scanning import has_part, part_names, scan_images
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.capture_times import TableColumns, capture_times, clock_problems, read_columns, table_rows
from cosplace.retrieval.dataset import DATABASE_FOLDERS, USUAL_FOLDERS, is_line
from cosplace.retrieval.folder_report import FolderReport, Part, num_positives
from cosplace.retrieval.leaks import add_duplicates, add_position_leaks, add_trained_on_queries
from cosplace.retrieval.photo_contents import PhotoContents, read_contents
from cosplace.retrieval.recall import RADIUS_M

UTM_LIMITS_M = (1e6, 1e7)  # of east and north in a zone
ENOUGH_TO_DIFFER = 10  # photos; the positions or headings of so many are not all the same by chance
NUM_SIZES = 5  # most frequent sizes that a report names
NO_LETTER = "no letter of the UTM zone, but other photos in it are south of the equator"
NO_ZONE = "no UTM zone, but other photos are in several"
AMBIGUOUS = (
    "letter S of the zone means the band of 32° to 40° north or the southern hemisphere, so index and import take the "
    "position as unknown: add latitude and longitude (fields 5 and 6 of the name)"
)
NO_POSITION = (
    "no position in the table, so train, eval and index leave it out; add it with `cosplace import PHOTOS TABLE --to "
    "DATASET`"
)
NO_HEMISPHERE = "no letter of the UTM zone, and no latitude and longitude: unknown position for index and import"
TINY_PIXELS = 64  # of the shorter side; networks need more


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What was found in a dataset: one part for each of its folders or splits."""

    folder: Path
    parts: list[Part]
    num_unused: int = 0  # photos of the table that are in no split, if it has splits
    follow_outside: bool = False

    @property
    def folders(self) -> list[FolderReport]:
        """The reports of all parts."""
        return [part.report for part in self.parts]

    @property
    def train(self) -> Part | None:
        """The photos to train on: train/, or all photos of a folder without splits; None if there are none."""
        names = {part.name: part for part in self.parts}
        return names.get("train", names.get("."))

    def query_sets(self) -> list[tuple[Part, Part]]:
        """The database and the queries of each set of queries."""
        databases = {part.name.rpartition("/")[0]: part for part in self.parts if part.is_database}
        return [(databases[part.name.rpartition("/")[0]], part) for part in self.parts if part.is_queries]


def validate(
    folder: str | Path, *, quick: bool = False, follow_outside: bool = False, progress: Progress = no_progress
) -> DatasetReport:
    """Check a dataset: its train/, val/ and test/, or database/ with queries, or all photos of any other folder.

    folder: also a table or a part of it, and a folder of photos with EXIF.
    quick: do not open the photos.  Raises DatasetError if a folder is missing or has no photos.
    """
    folder = Path(folder)
    columns = read_columns(folder)
    reader = _Reader(folder=folder, columns=columns, quick=quick, follow_outside=follow_outside, progress=progress)
    parts: list[Part] = []
    splits = _splits(folder)
    has_train = any(split.name == "train" for split in splits)
    for split in splits:
        place = _database(split)
        if place is None:
            parts.append(reader.read(split, for_training=split.name == "train", needs_headings=True))
            _check_zones(parts[-1:])
            continue
        database = reader.read(place, for_training=False, needs_headings=not has_train)
        parts.append(database)
        first = len(parts) - 1
        names = [name for name in part_names(split) if name.startswith("quer")]
        for name in names:
            queries = reader.read(split / name, for_training=False)
            _check_queries(database, queries)
            parts.append(queries)
        if not names:
            database.report.add("no query folder next to database/", (), is_error=True, count=1)
        _check_zones(parts[first:])
    add_trained_on_queries(parts)
    add_duplicates(parts)
    add_position_leaks(parts)
    has_splits = columns is not None and any(part.name != "." for part in parts)
    num_unused = int((columns.splits == "").sum()) if columns is not None and has_splits else 0
    return DatasetReport(folder=folder, parts=parts, num_unused=num_unused, follow_outside=follow_outside)


def _database(split: Path) -> Path | None:
    """The database of a split; None if there is none."""
    return next((split / name for name in DATABASE_FOLDERS if has_part(split, name)), None)


def _splits(folder: Path) -> list[Path]:
    """The splits of a dataset; the folder itself if it is one split."""
    if _database(folder) is not None:
        return [folder]
    for between in USUAL_FOLDERS:
        names = ("/".join(filter(None, (between, split))) for split in ("train", "val", "test"))
        if found := [folder / name for name in names if has_part(folder, name)]:
            return found
    return [folder]


# --- one folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """How the folders of a dataset are read."""

    folder: Path
    columns: TableColumns | None
    quick: bool
    follow_outside: bool
    progress: Progress

    def read(self, path: Path, *, for_training: bool, needs_headings: bool = False) -> Part:
        """Read and check the photos of one folder.

        for_training: whether they are those of train/.  needs_headings: report it if none has a heading.
        """
        images = scan_images(path, dataset=self.folder, follow_outside=self.follow_outside)
        report = FolderReport(
            folder=path,
            num_photos=len(images),
            zones=[],
            skipped={kind: count for kind, count in images.skipped.counts.items() if kind != OTHER_FILES},
        )
        contents = None if self.quick else read_contents(images, self.progress)
        if contents is not None:
            report.add("cannot be opened", contents.messages, is_error=True, count=len(contents.messages))
        labeled = _with_labels(images, self.progress)
        fields = _check_fields(report, labeled, for_training=for_training, needs_headings=needs_headings)
        if len(labeled) < len(images):
            names = {labeled.name(row) for row in range(len(labeled))}
            rows = np.array([row for row in range(len(images)) if images.name(row) in names], np.int64)
            fields = fields.of_all(rows, len(images))
            left_out = np.ones(len(images), bool)
            left_out[rows] = False
            report.add_rows("no position in EXIF; left out", images, left_out, is_error=False)
        times = capture_times(labeled, self.columns)
        times = times if fields.rows is None else times.of_all(fields.rows, len(images))
        part = Part(
            name=_part_name(path, self.folder),
            report=report,
            images=images,
            labeled=labeled,
            utm=fields.utm,
            points=fields.points,
            headings=fields.headings,
            times=times,
            contents=contents,
        )
        report.zones.extend(_zones(part))
        for kind, wrong in clock_problems(images, times, part.points):
            report.add_rows(kind, images, wrong, is_error=False)
        if contents is not None:
            _check_contents(part, contents, self.columns)
        repeated = _repeated_names(images)
        report.add("same file name as a photo in another folder", repeated, is_error=False, count=len(repeated))
        report.facts.update(_facts(part))
        return part


def _part_name(path: Path, dataset: Path) -> str:
    """Name of a part, such as test/database, without images/ or processed/; "." for the whole dataset."""
    name = path.relative_to(dataset).as_posix()
    for between in USUAL_FOLDERS:
        name = name.removeprefix(f"{between}/") if between else name
    return name


def _with_labels(images: ImageList, progress: Progress) -> ImageList:
    """The list with labels from EXIF if its names have no positions; unchanged if EXIF has none, either."""
    try:
        return with_positions(images, progress)
    except DatasetError:
        return images


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields:
    """Where the photos of a list were taken; nan where unknown."""

    rows: np.ndarray | None  # row of each photo with labels; None for all photos
    utm: UtmPositions
    points: np.ndarray
    headings: np.ndarray

    def of_all(self, rows: np.ndarray, count: int) -> "_Fields":
        """The same for a longer list in which these photos have some rows."""

        def spread(values: np.ndarray, empty: float) -> np.ndarray:
            result = np.full((count, *values.shape[1:]), empty, values.dtype)
            result[rows] = values
            return result

        utm = UtmPositions(east_north=spread(self.utm.east_north, np.nan), zones=spread(self.utm.zones, 0))
        return _Fields(rows=rows, utm=utm, points=spread(self.points, np.nan), headings=spread(self.headings, np.nan))


def _check_fields(report: FolderReport, images: ImageList, *, for_training: bool, needs_headings: bool) -> _Fields:
    """Check the positions and headings of a list."""
    east, north, latitudes, longitudes, headings = optional_fields(
        images, ("utm_east", "utm_north", "latitude", "longitude", "heading")
    )
    zones = zones_of(images)
    if images.labels is None:
        east, north = east_north = np.stack([east, north])
        fill_from_degrees(east_north, np.where(has_zone(images), zones, 0), latitudes, longitudes)
    missing = np.isnan(east) | np.isnan(north)
    kind = "no position (fields 1 and 2 of the file name)"
    if missing.all() and np.isfinite(latitudes + longitudes).all():
        kind = "only latitude and longitude, no UTM position: `cosplace import` computes it"
    elif missing.all() and not has_names(images):
        kind += ", and none in EXIF: combine photos and positions with `cosplace import`"
    report.add_rows(kind, images, missing, is_error=True)
    on_line = not missing.any() and is_line(images, UtmPositions(east_north=np.stack([east, north], 1), zones=zones))
    unknown = (east == 0) & (north == 0) & (not on_line)
    kind = "position 0, 0, which means unknown; left out" if images.labels is None else NO_POSITION
    report.add_rows(kind, images, unknown, is_error=bool(unknown.all()))
    outside = (east <= 0) | (east >= UTM_LIMITS_M[0]) | (north < 0) | (north > UTM_LIMITS_M[1])
    impossible = has_zone(images) & ~unknown & outside | (np.abs(latitudes) > 90) | (np.abs(longitudes) > 180)
    report.add_rows("impossible position", images, impossible, is_error=True)
    utm = UtmPositions(east_north=np.where(missing | unknown | impossible, np.nan, [east, north]).T, zones=zones)
    if images.labels is None:
        contradictions = contradictions_m(images, utm) > MAX_CONTRADICTION_M
        kind = f"UTM fields more than {MAX_CONTRADICTION_M:g} m from latitude and longitude"
        report.add_rows(kind, images, contradictions, is_error=True)
        ambiguous = hemisphere_is_ambiguous(images, utm_points(utm))
        report.add_rows(AMBIGUOUS, images, ambiguous, is_error=len(different_zones(zones)) > 1)
        without = lack_hemisphere(images) & (zones != 0) & np.isfinite(utm.east_north[:, 0])
        report.add_rows(NO_HEMISPHERE, images, without, is_error=False)
    same = _all_equal(utm.east_north[:, 0]) and _all_equal(utm.east_north[:, 1])
    report.add("the same position as all others: counts as missing", (), is_error=False, count=len(images) * same)
    needs_headings = for_training or (needs_headings and not missing.all())
    _check_headings(report, images, headings, for_training=for_training, needs_headings=needs_headings)
    headings = np.mod(np.where(np.abs(headings) <= MAX_TURNS_DEG, headings, np.nan), 360)
    return _Fields(rows=None, utm=utm, points=_points(images, utm), headings=headings)


def _check_headings(
    report: FolderReport, images: ImageList, headings: np.ndarray, *, for_training: bool, needs_headings: bool
) -> None:
    """Check headings.  Photos that all lack one can be trained on with --alpha 360, which is a warning."""
    missing = np.isnan(headings)
    if missing.all():
        if needs_headings:
            report.add("no heading, as all photos", (), is_error=False, count=len(images))
        return
    if for_training or not missing.all():
        is_error = for_training and images.labels is None
        kind = "no heading (field 9 of the file name)" if images.labels is None else "no heading"
        report.add_rows(kind, images, missing, is_error=is_error)
    report.add_rows("impossible heading", images, np.abs(headings) > MAX_TURNS_DEG, is_error=True)
    known = headings[~missing]
    if are_all_zero(known):
        report.add("heading exactly 0, as all photos: counts as missing", (), is_error=False, count=len(known))
    elif _all_equal(known):
        report.add(f"heading {known[0]:g}, as all photos: counts as missing", (), is_error=False, count=len(known))


def are_headings_known(headings: np.ndarray) -> bool:
    """Whether headings (I,) can form classes: all are known, and they are not all 0 or all the same."""
    if np.isnan(headings).any() or not headings.any():
        return False
    return not _all_equal(headings)


def _all_equal(values: np.ndarray) -> bool:
    """Whether the known ones of many values are all equal."""
    known = values[~np.isnan(values)]
    return len(known) >= ENOUGH_TO_DIFFER and bool((known == known[0]).all())


def _points(images: ImageList, utm: UtmPositions) -> np.ndarray:
    """Points of a list as in `Part.points`."""
    points = np.full((len(images), 3), np.nan)
    rows = np.flatnonzero(~np.isnan(utm.east_north[:, 0]))
    if not len(rows):
        return points
    known = images if len(rows) == len(images) else images.subset(rows.tolist())
    try:
        points[rows] = earth_positions(known, UtmPositions(east_north=utm.east_north[rows], zones=utm.zones[rows]))
    except DatasetError:  # names without a zone, or with an ambiguous one
        return utm.east_north.copy()
    return points


def _zones(part: Part) -> list[int]:
    """UTM zones of a part, also of photos on a local map."""
    if part.labeled.map_center is None:
        return different_zones(part.utm.zones)
    return different_zones(utm_zones(*lla_from_ecef(part.points[part.is_located])))


def _check_contents(part: Part, contents: PhotoContents, columns: TableColumns | None) -> None:
    """Add photos that are too small, and photos that changed since they were imported."""
    sizes = contents.sizes
    tiny = contents.opened & (sizes.min(axis=1) < TINY_PIXELS)
    part.report.add_rows(f"smaller than {TINY_PIXELS} pixels", part.images, tiny, is_error=False)
    if columns is not None:
        rows = table_rows(part.images, columns)
        changed = np.array(
            [
                row >= 0 and columns.checksums[row] not in ("", checksum.ljust(32, b"\0").hex())
                for row, checksum in zip(rows.tolist(), contents.checksums.tolist(), strict=True)
            ],
            bool,
        )
        kind = "changed since the import: import the photos again"
        part.report.add_rows(kind, part.images, changed & contents.opened, is_error=False)


def _repeated_names(images: ImageList) -> list[str]:
    """Paths whose file name an earlier path has too, in another folder."""
    seen, repeated = set(), []
    for row in range(len(images)):
        path = images.name(row)
        name = path.rpartition("/")[2]
        if name in seen:
            repeated.append(path)
        seen.add(name)
    return repeated


def _facts(part: Part) -> dict[str, Any]:
    """Facts about a part that JSON can hold."""
    seconds = part.times.seconds[~np.isnan(part.times.seconds)]
    facts: dict[str, Any] = {
        "num_located": int(part.is_located.sum()),
        "num_headings": int((~np.isnan(part.headings)).sum()),
        "num_sequences": len(np.unique(part.times.sequences[part.times.sequences >= 0])),
        "first_time": _date(seconds.min()) if len(seconds) else None,
        "last_time": _date(seconds.max()) if len(seconds) else None,
        "extent": _extent(part),
    }
    if part.contents is not None:
        opened = part.contents.sizes[part.contents.opened]
        counts = Counter(map(tuple, opened.tolist()))
        facts["sizes"] = [
            {"width": width, "height": height, "count": count}
            for (width, height), count in counts.most_common(NUM_SIZES)
        ]
        facts["num_sizes"] = len(counts)
    return facts


def _date(seconds: float) -> str | None:
    """A time as text, 2020-06-01T12:00:00Z; None for one that no calendar has."""
    try:
        return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return None


def _extent(part: Part) -> dict[str, float] | None:
    """West, south, east and north in degrees, where the photos have a position on Earth; width and height in meters."""
    points = part.points[part.is_located]
    if not len(points):
        return None
    if points.shape[1] == 2:
        width, height = np.ptp(points, axis=0).tolist()
        return {"width_m": round(width, 1), "height_m": round(height, 1)}
    box = bounding_box(*lla_from_ecef(points))
    assert box is not None
    west, south, east, north = box
    middle = (south + north) / 2
    # In two steps, as a geodesic takes the shorter way around the Earth.
    width = (east - west) % 360 / 2
    width = 2 * float(geodesic_distances_m(middle, west, middle, west + width))
    height = float(geodesic_distances_m(south, west, north, west))
    return {
        "west": round(west, 6), "south": round(south, 6), "east": round(east, 6), "north": round(north, 6),
        "width_m": round(width, 1), "height_m": round(height, 1),
    }  # fmt: skip


# --- databases and queries -------------------------------------------------------------------------------------------


def _check_zones(parts: list[Part]) -> None:
    """Add photos without a UTM zone among others that have one.  parts: those that are compared with each other."""
    zones = different_zones(*(part.utm.zones for part in parts))
    for part in parts:
        part.report.add_rows(NO_LETTER, part.images, may_be_south(part.labeled, part.utm.zones, zones), is_error=True)
        without = (part.utm.zones == 0) & part.is_located & (part.labeled.map_center is None)
        if len(zones) == 1:
            kind = "no UTM zone, but other photos have one; taken as in the same zone"
            part.report.add_rows(kind, part.images, without, is_error=False)
        elif zones:
            part.report.add_rows(NO_ZONE, part.images, without, is_error=True)


def _check_queries(database: Part, queries: Part) -> None:
    """Add queries that are in the database too, and queries without positives."""
    report = queries.report
    shared = rows_also_in(queries.images, database.images)
    report.add("also in database/", map(queries.images.name, shared), is_error=True, count=len(shared))
    zones = different_zones(database.utm.zones, queries.utm.zones)
    for part in (database, queries):
        if len(zones) > 1 and part.points.shape[1] == 2:  # positions that cannot be compared; see `_check_zones`
            if not ((part.utm.zones == 0) & part.is_located).any():
                kind = (
                    "positions that are not on Earth or ambiguous: correct zone and letter (fields 3 and 4 of the name)"
                )
                report.add(kind, (), is_error=True, count=1)
            return
    alone = (num_positives(database, queries) == 0) & queries.is_located
    report.add_rows(f"no database photo within {RADIUS_M:g} m; counts as a miss", queries.images, alone, is_error=False)
    report.facts["share_without_positives"] = round(float(alone.sum() / max(queries.is_located.sum(), 1)), 4)
