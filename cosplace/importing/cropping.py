"""Crops of all panoramas of a source: a dataset of perspective photos, with their positions and headings.

A run that was stopped, even killed, continues when it is started again: crops are written under a temporary name and
renamed, so those that exist are finished.  Side effects: writes below the folder of the dataset.
"""

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.config.panoramas import CropSettings
from cosplace.errors import ConfigError, DatasetError, ImageError, StorageError
from cosplace.importing.dataset_table import UNPLACED, WRITE_SECONDS, WRITE_SHARE, DatasetTable, locked_dataset
from cosplace.importing.exif_photos import PHOTOS_FOLDER
from cosplace.importing.panoramas import Panorama, crop_path, faces_north, list_images, read_panorama
from cosplace.importing.reading import find_timezone
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.report import REPORT_NAME, ImportReport
from cosplace.photos.opening import decode_pixels, read_file
from cosplace.photos.panoramas import CropView, crops_on_device, fitted_pitch, reduced, reduction, shows
from cosplace.photos.paths import path_from_text, path_text, printable
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, read_table
from cosplace.progress import Progress, format_count, no_progress
from cosplace.storage import remove_unfinished, write_atomically, write_text

if TYPE_CHECKING:
    import torch

SETTINGS_NAME = ".panoramas.json"
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, "420"
LARGE_PIXELS = 50_000_000  # larger panoramas are decoded one at a time
TASK = "panoramas"
HEADING_SOURCE = "panorama"  # of crops

_decoding_large = threading.Lock()


def _is_same_file(source: str, other: str) -> bool:
    """Whether two paths lead to the same file, or the first one to none."""
    try:
        return path_from_text(source).samefile(path_from_text(other))
    except OSError:
        return True


@dataclass(kw_only=True)
class CropResult:
    """What a run has done, or with `dry_run` would do."""

    folder: Path
    report: ImportReport
    num_panoramas: int = 0
    num_written: int = 0  # crops
    num_found: int = 0  # crops that existed before
    num_outside: int = 0  # crops that partial panoramas do not show
    num_photos: int = 0  # of the dataset
    headings_were_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Cropped:
    """What came of one panorama."""

    records: list[PhotoRecord] = field(default_factory=list)  # of its crops
    problems: list[Problem] = field(default_factory=list)
    num_written: int = 0
    num_outside: int = 0
    heading: float = math.nan  # of the panorama


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """How panoramas are cropped, and where to."""

    folder: Path
    settings: CropSettings
    sources: dict[str, str]  # panoramas of the crops by path: those in the table, and those of this run
    device: "torch.device | None" = None  # None: compiled functions
    timezone: str = ""
    keep_unplaced: bool = False
    dry_run: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, records: Sequence[PhotoRecord]) -> str:
        """Reserve the paths of the crops of a panorama; the other panorama if they are those of another one."""
        with self.lock:
            for record in records:
                before = self.sources.setdefault(record.path, record.source)
                if before != record.source and not _is_same_file(before, record.source):
                    return before
        return ""

    @property
    def view(self) -> CropView:
        """The camera of the crops; its pitch may depend on the panorama."""
        width, height = self.settings.size[0], self.settings.size[-1]
        return CropView(width=width, height=height, field_of_view=self.settings.field_of_view)


def run_panoramas(
    source: Path,
    folder: Path,
    settings: CropSettings,
    *,
    device: "torch.device | None" = None,
    num_workers: int = 1,
    timezone: str = "",
    keep_unplaced: bool = False,
    follow_outside: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> CropResult:
    """Cut crops from all panoramas of a source into the dataset `folder`, which is created or extended.

    Raises DatasetError or ConfigError for a source that cannot be used, before anything is written, and StorageError if
    the disk is full; the dataset then has the crops written so far.
    """
    if timezone:
        find_timezone(timezone)
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"--to {folder} is inside {source}, from which panoramas are read. Use another folder.")
    total = sum(isinstance(entry, FoundPhoto) for entry in list_images(source, follow_outside=follow_outside))
    if not total:
        raise DatasetError(f"{source} has no panoramas. Use the folder that contains them.")
    _check_settings(folder, settings)
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locked_dataset(folder))
            remove_unfinished(folder, older_than_s=0)  # of a run that was killed
            write_text(folder / SETTINGS_NAME, json.dumps(_content_settings(settings)) + "\n")
            stack.callback(_forget_settings, folder)
        report = ImportReport(None if dry_run else folder / REPORT_NAME)
        stack.callback(report.close)
        plan = CropPlan(
            folder=folder, settings=settings, sources=_known_sources(folder), device=device, timezone=timezone,
            keep_unplaced=keep_unplaced, dry_run=dry_run,
        )  # fmt: skip
        result = CropResult(folder=folder, report=report)
        collector = _Collector(plan, result)
        try:
            entries = list_images(source, follow_outside=follow_outside)
            for done, cropped in enumerate(_in_parallel(entries, plan, report, max(1, num_workers)), 1):
                collector.add(cropped)
                progress(TASK, done, max(done, total))
        except StorageError as error:
            collector.finish()
            so_far = f"{folder} has {format_count(result.num_photos, 'photo')} so far"
            raise StorageError(f"{error} {so_far}. Then run the same command again to continue.") from error
        except BaseException:
            collector.finish()
            raise
        collector.finish()
    return result


def _in_parallel(
    entries: Iterator[FoundPhoto | Problem], plan: CropPlan, report: ImportReport, num_workers: int
) -> Iterator[Cropped]:
    """Results in the order of the panoramas.  Problems of the list go to the report."""
    waiting: deque[Future[Cropped]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="panoramas") as pool:
        try:
            for entry in entries:
                if isinstance(entry, Problem):
                    report.add(entry)
                    continue
                waiting.append(pool.submit(crop_panorama, entry, plan))
                if len(waiting) >= 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- settings of a dataset -------------------------------------------------------------------------------------------


def _content_settings(settings: CropSettings) -> dict[str, object]:
    """The settings that decide about the pixels of a crop."""
    return {
        "size": [settings.size[0], settings.size[-1]],
        "field_of_view": settings.field_of_view,
        "pitch": settings.pitch,
        "resampling": settings.resampling,
        "horizon_row": settings.horizon_row,
    }


def _check_settings(folder: Path, settings: CropSettings) -> None:
    """Raise ConfigError if the crops in a folder were made with other settings: they would be taken for finished."""
    try:
        before = json.loads((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name, value in _content_settings(settings).items():
        if isinstance(before, dict) and before.get(name) != value:
            raise ConfigError(
                f"The crops in {folder} have {_flag(name, before.get(name))}, not {_flag(name, value)}. Use the same "
                "settings, or another folder with --to."
            )


def _flag(name: str, value: object) -> str:
    """A setting as it is written on a command line."""
    if value is None:
        return f"no --{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _forget_settings(folder: Path) -> None:
    """Allow other settings next time if no crop was written."""
    if not (folder / PHOTOS_FOLDER).exists():
        (folder / SETTINGS_NAME).unlink(missing_ok=True)


def _known_sources(folder: Path) -> dict[str, str]:
    """Paths of the photos in the table of a folder, and the files that they come from."""
    if not (folder / TABLE_NAME).exists():
        return {}
    table = read_table(folder / TABLE_NAME, ("path", "source"))
    paths = [str(path_from_text(path)) for path in table["path"].to_pylist()]
    return dict(zip(paths, (source or "" for source in table["source"].to_pylist()), strict=True))


# --- one panorama ----------------------------------------------------------------------------------------------------


def crop_panorama(photo: FoundPhoto, plan: CropPlan) -> Cropped:
    """Write the crops of a panorama that do not exist yet.  Raises StorageError."""

    def left_out(reason: str) -> Cropped:
        return Cropped(problems=[Problem(name=str(photo.file), reason=reason)])

    panorama, doubts = read_panorama(photo, plan.settings.horizon_row, plan.timezone)
    if isinstance(panorama, Problem):
        return Cropped(problems=[panorama])
    if math.isnan(panorama.record.latitude) or math.isnan(panorama.record.longitude):
        if not plan.keep_unplaced:
            return left_out(UNPLACED)
        doubts.append(Problem(name=str(photo.file), reason=UNPLACED, is_left_out=False))
    view, problem = _fitted_view(panorama, plan)
    if problem:
        return left_out(problem)
    directions = plan.settings.directions
    yaws = [yaw for yaw in directions if shows(panorama.coverage, view, yaw)]
    if not yaws:
        return left_out("it does not show any of the crops: use a smaller --field_of_view, or other --yaws")
    records = [_crop_record(panorama, view, yaw) for yaw in yaws]
    if other := plan.claim(records):
        return left_out(
            f"another panorama with the same name is already in the dataset: {other}. Rename one of them, or use "
            "another folder with --to."
        )
    missing = [index for index, one in enumerate(records) if not (plan.folder / one.path).exists()]
    if not plan.dry_run:
        try:
            contents = _render(panorama, view, [yaws[index] for index in missing], plan) if missing else []
            for index, content in zip(missing, contents, strict=True):
                _write(plan.folder / records[index].path, content)
            records = [replace(one, checksum=_checksum(plan.folder / one.path)) for one in records]
        except ImageError as error:
            return left_out(str(error).removeprefix(printable(panorama.file)).strip())
    return Cropped(
        records=records, problems=doubts, num_written=len(missing), num_outside=len(directions) - len(yaws),
        heading=panorama.record.heading,
    )  # fmt: skip


def _fitted_view(panorama: Panorama, plan: CropPlan) -> tuple[CropView, str]:
    """The camera of the crops of a panorama, and why the panorama cannot show them; "" if it can."""
    view, coverage = plan.view, panorama.coverage
    low, high = coverage.elevations
    shown = f"it shows elevations from {low:.1f} to {high:.1f} degrees"
    if plan.settings.pitch is None:
        pitch = fitted_pitch(coverage, view)
        if pitch is None:
            return (
                view,
                f"its height does not suffice for the crops: {shown}. Use a smaller --field_of_view, or wider crops.",
            )
        return replace(view, pitch=pitch), ""
    view = replace(view, pitch=plan.settings.pitch)
    is_shown = shows(replace(coverage, width=round(coverage.full_width)), view)
    return (
        view,
        ""
        if is_shown
        else f"crops with this --pitch are partly outside the image: {shown}. Omit --pitch, or use another value.",
    )


def _crop_record(panorama: Panorama, view: CropView, yaw: float) -> PhotoRecord:
    whole = panorama.record
    heading = (whole.heading + yaw) % 360 % 360  # nan stays nan
    return replace(
        whole,
        path=crop_path(panorama, yaw, heading, view.pitch),
        heading=heading,
        heading_source="" if math.isnan(heading) else HEADING_SOURCE,
        pitch=view.pitch,
        roll=math.nan,
        field_of_view=view.field_of_view,
        projection="perspective",
        source=path_text(panorama.file),
        width=view.width,
        height=view.height,
        checksum="",
    )


def _render(panorama: Panorama, view: CropView, yaws: Sequence[float], plan: CropPlan) -> list[bytes]:
    """JPEG files of crops.  Raises ImageError."""
    from simplejpeg import encode_jpeg

    coverage = panorama.coverage
    is_large = coverage.width * coverage.height > LARGE_PIXELS
    with _decoding_large if is_large else nullcontext():
        pixels = decode_pixels(read_file(panorama.file), panorama.file)
        if plan.settings.resampling == "antialias":
            pixels, coverage = reduced(pixels, coverage, reduction(coverage, view))
        crops: Sequence[np.ndarray]
        if plan.device is None:
            from cosplace.photos.compiled_panoramas import fast_crop

            crops = [fast_crop(pixels, coverage, view, yaw) for yaw in yaws]
        else:
            crops = list(crops_on_device(pixels, coverage, view, yaws, plan.device))
    return [
        encode_jpeg(crop, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING) for crop in crops
    ]


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _checksum(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()


# --- the table -------------------------------------------------------------------------------------------------------


class _Collector:
    """Enters crops into the table of the dataset, which is written from time to time, and counts.

    If the headings of all panoramas are exactly 0, also of those of earlier runs, all headings are removed at the end:
    cameras without a compass write 0.
    """

    def __init__(self, plan: CropPlan, result: CropResult) -> None:
        self.plan, self.result = plan, result
        self.table = DatasetTable(plan.folder)
        earlier = self.table.headings_from(HEADING_SOURCE)
        self.has_heading = any(not faces_north(path, heading) for path, heading in earlier)  # whether one was not 0
        self.has_zero = False
        self.last_write, self.write_s = time.monotonic(), 0.0
        self.result.num_photos = len(self.table)

    def add(self, cropped: Cropped) -> None:
        result = self.result
        for problem in cropped.problems:
            result.report.add(problem)
        result.num_outside += cropped.num_outside
        if not cropped.records:
            return
        result.num_panoramas += 1
        result.num_written += cropped.num_written
        result.num_found += len(cropped.records) - cropped.num_written
        for record in cropped.records:
            if self.table.has(record.path):
                self.table.update(record)
            else:
                self.table.add(record)
        self.has_zero = self.has_zero or cropped.heading == 0
        self.has_heading = self.has_heading or not (cropped.heading == 0 or math.isnan(cropped.heading))
        seconds = time.monotonic() - self.last_write
        is_judged = self.has_heading or not self.has_zero
        if is_judged and not self.plan.dry_run and seconds > max(WRITE_SECONDS, self.write_s / WRITE_SHARE):
            start = time.monotonic()
            self.table.write()
            self.last_write = time.monotonic()
            self.write_s = self.last_write - start

    def finish(self) -> None:
        """Write the table.  Raises StorageError."""
        if not self.has_heading:
            self.result.headings_were_zero = self.table.forget_headings_from(HEADING_SOURCE)
        self.result.num_photos = len(self.table)
        if not self.plan.dry_run and len(self.table):
            self.table.write()
