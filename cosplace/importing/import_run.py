"""The import: reads photos in parallel, gives them positions, copies or links them, and writes the table.

At any time, the dataset is valid: a photo enters the table after its file is in place, and the table is replaced in one
step.  An import that was stopped, even killed, continues when it is started again: photos that are in place are
recognized by path and checksum.  The result is that of an import without interruption, because photos keep their order.
Side effects: writes below the folder of the dataset.
"""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, DatasetError, StorageError
from cosplace.importing.columns import parse_named_columns
from cosplace.importing.coordinate_systems import parse_crs
from cosplace.importing.dataset_table import UNPLACED, WRITE_SECONDS, WRITE_SHARE, locked_dataset
from cosplace.importing.placement import ADDED, RESERVED, UNCHANGED, UPDATED, Job, Placement, is_within
from cosplace.importing.poses import parse_origin
from cosplace.importing.positions import Annotations, PhotoStream, has_position
from cosplace.importing.reading import find_timezone, read_photo
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.report import REPORT_NAME, ImportReport
from cosplace.importing.sources import Source, find_source
from cosplace.photos.paths import printable
from cosplace.photos.tables import PhotoRecord
from cosplace.progress import Progress, format_count, no_progress
from cosplace.storage import storage_errors

T = TypeVar("T")
R = TypeVar("R")

TEMPORARY = ".import"  # folder of a dataset for unfinished files
PHOTOS_PER_TASK = 16  # small photos are read faster than a thread starts on the next one
NUM_THREADS = 4
NUM_WAITING = 64  # photos that are copied at a time
RESERVE = "reserve"  # file of the temporary folder, which is removed to make room for the table
RESERVED_BYTES, BYTES_PER_ROW = 1 << 16, 512
NUM_FIRST = 5  # photos that a dry run shows


@dataclass(kw_only=True)
class ImportResult:
    """What an import has done, or with `dry_run` would do."""

    folder: Path
    report: ImportReport
    num_added: int = 0
    num_updated: int = 0
    num_unchanged: int = 0
    num_photos: int = 0  # in the dataset
    num_symbolic_links: int = 0
    counts: dict[str, int] | None = None  # photos of the dataset with position, heading, time
    bounds: tuple[float, ...] = ()  # of their positions: west, south, east, north in degrees
    has_positions: bool = False  # whether a source has positions for the photos of others
    zero_headings: dict[str, int] | None = None  # by camera: photos whose heading of 0 was removed
    first: tuple[PhotoRecord, ...] = ()  # of those added


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to import, and how."""

    folder: Path
    photos: tuple[tuple[Source, Path], ...]
    annotations: tuple[Annotations, ...]
    used: frozenset[str]  # resolved paths of the sources of positions, which may lie among the photos
    settings: ImportSettings
    temporary: Path | None
    keep_unplaced: bool

    def entries(self, *, quickly: bool = False) -> Iterator[Entry]:
        """All photos of the sources, not read.  quickly: without those that are decoded from videos."""
        for source, path in self.photos:
            if not (quickly and source.makes_photos):
                entries = source.load().read(path, self.settings)
                for entry in _new_entries(self.folder, entries, is_inside=is_within(path, self.folder)):
                    if not (isinstance(entry, Problem) and os.path.realpath(entry.name) in self.used):
                        yield entry
        if not self.photos:
            for one in self.annotations:
                yield from one.photos()

    def list_files(self) -> Iterator[Path]:
        """The files of the photos."""
        return (entry.file for entry in self.entries(quickly=True) if isinstance(entry, FoundPhoto))


def _new_entries(folder: Path, entries: Iterable[Entry], *, is_inside: bool) -> Iterator[Entry]:
    """Entries without the dataset's own files, which are listed if a source contains the dataset.

    is_inside: whether the source is inside the dataset, so that photos there are meant.
    """
    for entry in entries:
        path = entry.file if isinstance(entry, FoundPhoto) else Path(entry.name)
        if not (path.name in RESERVED if is_inside else is_within(path, folder)):
            yield entry


def _check_flags(settings: ImportSettings) -> None:
    """Raise ConfigError for invalid flags, also for those that no source uses."""
    if settings.timezone:
        find_timezone(settings.timezone)
    if settings.tables.crs:
        parse_crs(settings.tables.crs)
    if settings.poses.origin:
        parse_origin(settings.poses.origin)
    parse_named_columns(settings.tables.column)


def run_import(
    sources: Sequence[Path],
    folder: Path | None,
    settings: ImportSettings,
    *,
    formats: Sequence[str] = (),
    keep_unplaced: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ImportResult:
    """Import photos into the dataset `folder`, which is created or extended.

    formats: the kind of all sources, or of each; empty: recognized.
    Raises DatasetError or ConfigError for sources that cannot be used, before anything is written, and StorageError if
    the disk is full; the dataset then has the photos imported so far.
    """
    _check_flags(settings)
    photos, positions = _find_sources(sources, formats, folder)
    folder = folder or _folder_of_photos(photos, positions, settings.mode)
    read = [(source, source.load().read(paths, settings)) for source, paths in positions.items()]
    if any(one.needs_positions for _, one in read):
        read.sort(key=lambda one: one[0].name != "table")
    annotations = tuple(one for _, one in read)
    plan = Plan(
        folder=folder,
        photos=tuple(photos),
        annotations=annotations,
        used=frozenset(os.path.realpath(path) for paths in positions.values() for path in paths),
        settings=settings,
        temporary=None if dry_run else folder / TEMPORARY,
        keep_unplaced=keep_unplaced,
    )
    total = sum(1 for _ in plan.list_files())
    if not total and not any(source.makes_photos for source, _ in photos):
        raise DatasetError(_no_photos(sources, photos))
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locked_dataset(folder))
            _clear_temporary(folder)
            with storage_errors(folder):
                (folder / TEMPORARY).mkdir()
            stack.callback(_clear_temporary, folder)
        return _import(plan, total, progress)


def _find_sources(
    sources: Sequence[Path], formats: Sequence[str], folder: Path | None
) -> tuple[list[tuple[Source, Path]], dict[Source, list[Path]]]:
    """Sources of photos, in order; and those of positions, with all their files."""
    if len(formats) not in (0, 1, len(sources)):
        raise ConfigError(
            f"--format has {len(formats)} names for {len(sources)} sources. Use one for all, or one for each, in order."
        )
    names = list(formats) * len(sources) if len(formats) == 1 else list(formats) or [""] * len(sources)
    photos: list[tuple[Source, Path]] = []
    positions: dict[Source, list[Path]] = {}
    for path, name in zip(sources, names, strict=True):
        source = find_source(path, name)
        is_dataset_itself = folder is None or is_within(path, folder)
        if source.name == "imported" and not name and is_dataset_itself:  # whose folders may have further photos
            source = find_source(path, "photos")
        if source.has_photos:
            photos.append((source, path))
        else:
            positions.setdefault(source, []).append(path)
    return photos, positions


def _folder_of_photos(photos: Sequence[tuple[Source, Path]], positions: dict[Source, list[Path]], mode: str) -> Path:
    """The folder of the dataset if the user does not name one, which only --mode table allows."""
    paths = [path for _, path in photos] or [path.parent for paths in positions.values() for path in paths]
    folders = {path if path.is_dir() else path.parent for path in paths}
    if mode != "table" or len(folders) != 1:
        raise ConfigError("Specify the dataset to create or extend: --to DATASET.")
    return folders.pop()


def _no_photos(sources: Sequence[Path], photos: Sequence[tuple[Source, Path]]) -> str:
    names = ", ".join(map(printable, sources[:3]))
    if photos:
        return f"{names}: no photos were found. Pass the folder that contains the photos."
    return (
        f"{names}: none of the photos that it names was found next to it. Also pass the folder of the photos as SOURCE."
    )


def _reserve_space(temporary: Path, num_bytes: int) -> None:
    """Keep disk space for the table and the report of an import that ends because the disk is full."""
    with suppress(OSError), (temporary / RESERVE).open("wb") as file:
        for start in range(0, num_bytes, RESERVED_BYTES):
            file.write(bytes(min(RESERVED_BYTES, num_bytes - start)))


def _free_space(temporary: Path) -> None:
    """Remove the reserve and unfinished copies, but not the report."""
    with suppress(OSError):
        for path in temporary.iterdir():
            if path.name != REPORT_NAME:
                path.unlink()


def _clear_temporary(folder: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(folder / TEMPORARY)


# --- the stages ------------------------------------------------------------------------------------------------------


def _import(plan: Plan, total: int, progress: Progress) -> ImportResult:
    report = ImportReport(plan.temporary and plan.temporary / REPORT_NAME)
    result = ImportResult(folder=plan.folder, report=report, has_positions=bool(plan.annotations))
    placement = Placement(plan.folder, plan.settings.mode, plan.temporary)
    table = placement.table
    if plan.temporary is not None:
        _reserve_space(plan.temporary, RESERVED_BYTES + BYTES_PER_ROW * (len(table) + total))
    try:
        with ThreadPoolExecutor(NUM_THREADS) as readers, ThreadPoolExecutor(NUM_THREADS) as copiers:
            stream = _without_problems(_read_in_parallel(plan, readers), report)
            for one in plan.annotations:
                stream = _without_problems(one.annotate(PhotoStream(stream, plan.list_files)), report)
            jobs = _without_problems(_decisions(stream, placement, keep_unplaced=plan.keep_unplaced), report)
            placed = _in_order(jobs, lambda job: copiers.submit(placement.place, job), NUM_WAITING)
            _record_all(placed, placement, result, total, progress)
        for problem in placement.remove_missing():
            report.add(problem)
        result.zero_headings = table.clear_zero_headings()
        if plan.temporary is not None:
            placement.write()
    except BaseException as error:
        if plan.temporary is not None:
            _free_space(plan.temporary)
            with suppress(StorageError):
                placement.write()
            with suppress(StorageError):
                _publish(report, plan.folder)
        if isinstance(error, StorageError):
            so_far = f"{printable(plan.folder)} has {format_count(placement.num_written, 'photo')} so far"
            so_far += "; there was no space for a table of the last ones" if placement.has_changed else ""
            raise StorageError(f"{error} {so_far}. Then run the same command again to continue.") from error
        raise
    if plan.temporary is not None:
        _publish(report, plan.folder)
    result.num_photos, result.counts, result.bounds = len(table), table.summary(), table.area()
    result.num_symbolic_links = placement.num_symbolic_links
    return result


def _read_in_parallel(plan: Plan, pool: ThreadPoolExecutor) -> Iterator[Entry]:
    """All photos of the sources with what is known of them, in order; and problems."""

    def read(entries: Sequence[Entry]) -> list[Entry]:
        found: list[Entry] = []
        for entry in entries:
            if isinstance(entry, FoundPhoto):
                found += read_photo(entry, plan.temporary, plan.settings.mode, plan.settings.timezone)
            else:
                found.append(entry)
        return found

    for found in _in_order(_tasks(plan.entries()), lambda task: pool.submit(read, task), 2 * NUM_THREADS):
        yield from found


def _tasks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while task := list(islice(iterator, PHOTOS_PER_TASK)):
        yield task


def _without_problems(entries: Iterable[Problem | T], report: ImportReport) -> Iterator[T]:
    """The entries that are not problems; problems go to the report."""
    for entry in entries:
        if isinstance(entry, Problem):
            report.add(entry)
        else:
            yield entry


def _in_order(items: Iterable[T], submit: Callable[[T], Future[R]], num_waiting: int) -> Iterator[R]:
    """Results of tasks that run in parallel, in the order of the items."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            if len(waiting) >= num_waiting:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _decisions(photos: Iterable[FoundPhoto], placement: Placement, *, keep_unplaced: bool) -> Iterator[Job | Problem]:
    """Where each photo goes, or why it is left out."""
    for photo in photos:
        decision = placement.decide(photo)
        if isinstance(decision, Job) and decision.is_new and not (has_position(photo) or photo.record.place):
            yield Problem(name=placement.name_of(photo), reason=UNPLACED, is_left_out=not keep_unplaced)
            if not keep_unplaced:
                placement.cancel(decision)
                continue
        if isinstance(decision, Job) and decision.is_new and (other := placement.other_with_content(decision)):
            reason = (
                f"a photo with the same content is in the dataset at another position or heading: {printable(other)}"
            )
            yield Problem(name=placement.name_of(photo), reason=reason, is_left_out=False)
        yield decision


def _record_all(
    placed: Iterable[Job | Problem], placement: Placement, result: ImportResult, total: int, progress: Progress
) -> None:
    """Enter the photos that are in place into the table, which is written from time to time."""
    last_write, write_s, done = time.monotonic(), 0.0, 0
    for done, job in enumerate(placed, 1):
        if isinstance(job, Problem):
            result.report.add(job)
            continue
        outcome = placement.record(job)
        result.num_added += outcome == ADDED
        result.num_updated += outcome == UPDATED
        result.num_unchanged += outcome == UNCHANGED
        if outcome == ADDED and len(result.first) < NUM_FIRST:
            result.first += (job.photo.record,)
        progress("import", done, max(done + 1, total))
        if placement.temporary is not None and not done % PHOTOS_PER_TASK:
            start = time.monotonic()
            if start - last_write > max(WRITE_SECONDS, write_s / WRITE_SHARE):
                placement.write()
                last_write = time.monotonic()
                write_s = last_write - start
    progress("import", max(done, 1), max(done, 1))


def _publish(report: ImportReport, folder: Path) -> None:
    """Put the finished report into the folder of the dataset."""
    report.close()
    if report.path is not None and report.path.exists():
        with storage_errors(folder / REPORT_NAME):
            report.path.replace(folder / REPORT_NAME)
