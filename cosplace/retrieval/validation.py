"""Check a dataset before it is used: photos that cannot be opened, and names with missing or contradictory positions.

Errors stop a command or make its result wrong; warnings do not.  Names are parsed as `cosplace eval` and `cosplace
train` parse them, without stopping at the first error.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError, ImageError, one_line
from cosplace.photos.image_list import OTHER_FILES, ImageList, rows_also_in
from cosplace.photos.names import (
    MAX_CONTRADICTION_M,
    UtmPositions,
    contradictions_m,
    different_zones,
    earth_positions,
    has_zone,
    optional_fields,
    zones_of,
)
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.dataset import USUAL_FOLDERS
from cosplace.retrieval.recall import RADIUS_M, find_positives

NUM_EXAMPLES = 3
MAX_TURNS_DEG = 720  # values beyond two turns are not headings, such as 65535 for unknown
UTM_LIMITS_M = (1e6, 1e7)  # of east and north in a zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One kind of problem with the photos of a folder."""

    kind: str
    count: int
    is_error: bool
    examples: list[str]  # the first names, in one line each


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What was found in one folder of photos."""

    folder: Path
    num_photos: int
    zones: list[int]  # UTM zones, negative south of the equator
    skipped: dict[str, int]  # files that are not photos, by kind
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, names: Iterable[str], *, is_error: bool, count: int) -> None:
        """Add a problem unless its count is 0."""
        if count:
            examples = [one_line(name) for name, _ in zip(names, range(NUM_EXAMPLES), strict=False)]
            self.problems.append(Problem(kind=kind, count=count, is_error=is_error, examples=examples))

    def add_rows(self, kind: str, images: ImageList, wrong: np.ndarray, *, is_error: bool) -> None:
        """Add a problem of some photos.  wrong: (I,) bool."""
        rows = np.flatnonzero(wrong).tolist()
        self.add(kind, (images.name(row) for row in rows), is_error=is_error, count=len(rows))


def validate(
    folder: str | Path, *, quick: bool = False, follow_outside: bool = False, progress: Progress = no_progress
) -> list[FolderReport]:
    """Check a dataset: its train/, val/ and test/, or database/ with queries, or all photos of any other folder.

    quick: do not open the photos.  Raises DatasetError if a folder is missing or has no photos.
    """
    folder = Path(folder)
    reports = []
    for part in _parts(folder):
        if not (part / "database").is_dir():
            images = scan_images(part, dataset=folder, follow_outside=follow_outside)
            reports.append(_check_list(images, for_training=part.name == "train", quick=quick, progress=progress)[0])
            continue
        names = [entry.name for entry in sorted(part.iterdir()) if entry.is_dir() and entry.name.startswith("quer")]
        database = scan_images(part / "database", dataset=folder, follow_outside=follow_outside)
        report, database_utm = _check_list(database, for_training=False, quick=quick, progress=progress)
        reports.append(report)
        for name in names:
            queries = scan_images(part / name, dataset=folder, follow_outside=follow_outside)
            report, query_utm = _check_list(queries, for_training=False, quick=quick, progress=progress)
            _check_queries(report, database, database_utm, queries, query_utm)
            reports.append(report)
        if not names:
            reports[-1].add("no query folder next to database/", (), is_error=True, count=1)
    return reports


def _parts(folder: Path) -> list[Path]:
    """The splits of a dataset; the folder itself if it is one split."""
    if (folder / "database").is_dir():
        return [folder]
    for between in USUAL_FOLDERS:
        splits = [folder / between / split for split in ("train", "val", "test")]
        if found := [split for split in splits if split.is_dir()]:
            return found
    return [folder]


def _check_list(
    images: ImageList, *, for_training: bool, quick: bool, progress: Progress
) -> tuple[FolderReport, UtmPositions]:
    """Check the photos of one folder; also returns their UTM positions, nan where unknown."""
    east, north, latitudes, longitudes, headings = optional_fields(
        images, ("utm_east", "utm_north", "latitude", "longitude", "heading")
    )
    zones = zones_of(images)
    report = FolderReport(
        folder=images.folder,
        num_photos=len(images),
        zones=different_zones(zones),
        skipped={kind: count for kind, count in images.skipped.counts.items() if kind != OTHER_FILES},
    )
    if not quick:
        _open_all(images, report, progress)
    missing = np.isnan(east) | np.isnan(north)
    report.add_rows("no position (fields 1 and 2 of the file name)", images, missing, is_error=True)
    unknown = (east == 0) & (north == 0)
    kind = "position 0, 0, which means unknown; left out"
    report.add_rows(kind, images, unknown, is_error=bool(unknown.all()))
    outside = (east <= 0) | (east >= UTM_LIMITS_M[0]) | (north < 0) | (north > UTM_LIMITS_M[1])
    impossible = has_zone(images) & ~unknown & outside | (np.abs(latitudes) > 90) | (np.abs(longitudes) > 180)
    report.add_rows("impossible position", images, impossible, is_error=True)
    utm = UtmPositions(east_north=np.where(missing | unknown | impossible, np.nan, [east, north]).T, zones=zones)
    contradictions = contradictions_m(images, utm) > MAX_CONTRADICTION_M
    kind = f"UTM fields more than {MAX_CONTRADICTION_M:g} m from latitude and longitude"
    report.add_rows(kind, images, contradictions, is_error=True)
    without_heading = np.isnan(headings)
    if for_training or not without_heading.all():
        report.add_rows("no heading (field 9 of the file name)", images, without_heading, is_error=for_training)
    report.add_rows("impossible heading", images, np.abs(headings) > MAX_TURNS_DEG, is_error=True)
    repeated = _repeated_names(images)
    report.add("same file name as a photo in another folder", repeated, is_error=False, count=len(repeated))
    return report, utm


def _open_all(images: ImageList, report: FolderReport, progress: Progress) -> None:
    """Add the photos that cannot be opened, with the reason."""

    def problem(row: int) -> str:
        try:
            open_image(images.path(row))
        except ImageError as error:
            return str(error)
        return ""

    messages = []
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        for done, message in enumerate(pool.map(problem, range(len(images))), 1):
            messages += [message] if message else []
            progress("opening photos", done, len(images))
    report.add("cannot be opened", messages, is_error=True, count=len(messages))


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


def _check_queries(
    report: FolderReport, database: ImageList, database_utm: UtmPositions, queries: ImageList, query_utm: UtmPositions
) -> None:
    """Add queries that are in the database too, and queries without positives."""
    shared = rows_also_in(queries, database)
    report.add("also in database/", map(queries.name, shared), is_error=True, count=len(shared))

    rows = [np.flatnonzero(~np.isnan(utm.east_north[:, 0])) for utm in (database_utm, query_utm)]
    positions = [
        UtmPositions(east_north=utm.east_north[known], zones=utm.zones[known])
        for utm, known in zip((database_utm, query_utm), rows, strict=True)
    ]
    points = [one.east_north for one in positions]
    if len(different_zones(*(one.zones for one in positions))) > 1:
        try:
            points = [
                earth_positions(images.subset(known.tolist()), one)
                for images, known, one in zip((database, queries), rows, positions, strict=True)
            ]
        except DatasetError as error:
            report.add("no UTM zone, but other photos are in several", [str(error)], is_error=True, count=1)
            return
    counts = find_positives(*points, RADIUS_M).counts
    alone = np.zeros(len(queries), bool)
    alone[rows[1]] = counts == 0
    report.add_rows(f"no database photo within {RADIUS_M:g} m; counts as a miss", queries, alone, is_error=False)
