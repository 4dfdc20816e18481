"""From poses to files: '@' file names, images rendered by several threads, builds that can be resumed.

    OUT/city.json                            settings, counts, version; written last, so a city with it is complete
    OUT/train/<latitude>/@east@north@...jpg
    OUT/val/database/  OUT/val/queries/
    OUT/test/database/  OUT/test/queries_v1/

During a build, the file is named `city.partial.json`.
"""

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosplace.errors import DatasetError
from cosplace.geo import utm_to_latlon
from cosplace.photos.names import format_image_name
from cosplace.progress import Progress, no_progress
from cosplace.storage import storage_errors, write_text
from synthcity.poses import FIRST_YEAR, LETTER, TRAIN, ZONE, CityPlan, Shots, plan_city
from synthcity.settings import CitySettings, settings_to_json

CITY_VERSION = 1  # raised when the same settings give different images or names
RECORD, PARTIAL = "city.json", "city.partial.json"
PIXELS_PER_TASK = 600_000
MOST_PER_TASK = 64
Keep = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(UTM east, UTM north, heading) of images -> mask of the images to render."""

TASK = "rendering images"


@dataclass(frozen=True, slots=True, kw_only=True)
class CitySummary:
    """The images of a build."""

    folder: Path
    counts: dict[str, int]  # images by subfolder
    num_written: int
    num_found: int  # images that existed before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Images of one folder that one thread renders and writes."""

    shots: Shots
    rows: np.ndarray  # (I,) int64 of shots.poses
    shade: tuple[np.ndarray, float, float]


def build_city(
    out: str | Path, settings: CitySettings, progress: Progress = no_progress, keep: Keep | None = None
) -> CitySummary:
    """Render a city into the folder `out`, in the layout of SF-XL.  Continues an interrupted build.

    keep: called once with UTM east and north (meters, (I,) float64) and heading (whole degrees, (I,) int64) of all
    training images, as in their file names; returns a mask (I,) bool of the images to render.  It does not change these
    images.  Queries and databases are always complete.
    Raises ConfigError without numba, DatasetError if `out` contains something else than this city, StorageError if a
    file cannot be written.
    """
    renderer = _load_renderer()
    out = Path(out)
    plan = plan_city(settings)
    rows = _chosen_rows(plan, keep)
    record = _record(plan, rows)
    _start_build(out, record)
    total, done, written = sum(len(chosen) for chosen in rows), 0, 0
    with ThreadPoolExecutor(settings.threads) as pool:
        work = partial(_render_images, renderer, out, settings)
        waiting: deque[tuple[int, Future[int]]] = deque()
        try:
            for task in _tasks(plan, rows, renderer):
                waiting.append((len(task.rows), pool.submit(work, task)))
                if len(waiting) > 3 * settings.threads:
                    done, written = _finish_task(waiting, done, written, total, progress)
            while waiting:
                done, written = _finish_task(waiting, done, written, total, progress)
        finally:
            for _, future in waiting:
                future.cancel()
    write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    (out / PARTIAL).unlink(missing_ok=True)
    counts = {shots.folder: len(chosen) for shots, chosen in zip(plan.shots, rows, strict=True)}
    return CitySummary(folder=out, counts=counts, num_written=written, num_found=total - written)


def image_names(shots: Shots, rows: np.ndarray) -> list[str]:
    """Paths of images of one folder, relative to the folder of the city."""
    poses = shots.poses[rows]
    east, north = named_positions(shots, rows)
    latitude, longitude = utm_to_latlon(east, north, ZONE, LETTER)
    months = shots.lights["month"][poses["light"]]
    names = []
    for index, pose in enumerate(poses):
        name = format_image_name(
            utm_east=east[index],
            utm_north=north[index],
            zone=ZONE,
            letter=LETTER,
            latitude=latitude[index],
            longitude=longitude[index],
            pano_id=f"{shots.prefix}{pose['site']:06d}y{pose['year']}",
            heading=int(pose["heading"]),
            timestamp=f"{FIRST_YEAR + pose['year']}{months[index]:02d}",
        )
        nested = f"{np.floor(latitude[index] * 100) / 100:.2f}/" if shots.folder == TRAIN else ""
        names.append(f"{shots.folder}/{nested}{name}")
    return names


def named_positions(shots: Shots, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UTM east and north (I,) float64 in meters of images, rounded to centimeters as in their names."""
    east, north = shots.district.to_utm(shots.poses["x"][rows], shots.poses["y"][rows])
    return np.round(east, 2), np.round(north, 2)


def _load_renderer() -> Any:
    """Import the compiled renderer.  Raises ConfigError without numba."""
    from synthcity import render

    return render


def _chosen_rows(plan: CityPlan, keep: Keep | None) -> list[np.ndarray]:
    """Rows of the poses to render: one array (I,) int64 per folder."""
    chosen = []
    for shots in plan.shots:
        rows = np.arange(len(shots))
        if keep is not None and shots.folder == TRAIN:
            east, north = named_positions(shots, rows)
            mask = np.asarray(keep(east, north, shots.poses["heading"].astype(np.int64)))
            assert mask.shape == rows.shape, f"keep returned shape {mask.shape} for {rows.shape} images"
            rows = rows[mask.astype(bool)]
            if not len(rows):
                raise DatasetError(
                    "The function `keep` selects no training image. Select at least one, or pass keep=None."
                )
        chosen.append(rows)
    return chosen


def _record(plan: CityPlan, rows: list[np.ndarray]) -> dict[str, Any]:
    """Everything that determines the images and names of a city, as JSON."""
    digest = hashlib.sha256(b"".join(chosen.astype("<i8").tobytes() for chosen in rows)).hexdigest()
    return {
        "what": "synthetic city of cosplace",
        "version": CITY_VERSION,
        "settings": settings_to_json(plan.settings),
        "counts": {shots.folder: len(chosen) for shots, chosen in zip(plan.shots, rows, strict=True)},
        "selection": digest[:16],
    }


def _start_build(out: Path, record: dict[str, Any]) -> None:
    """Write the record of an unfinished build.  Raises DatasetError if `out` contains something else."""
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file. Choose a folder for the city.")
    for name in (RECORD, PARTIAL):
        found = _read_record(out / name)
        if found is None:
            continue
        differing = _difference(found, record)
        if differing:
            raise DatasetError(
                f"{out} contains a different city ({differing}). Choose another folder, or delete this one."
            )
        if name == RECORD:
            return
    if not (out / PARTIAL).is_file():
        foreign = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if foreign:
            raise DatasetError(f"{out} contains other files ({foreign[0]}). Choose an empty folder for the city.")
        write_text(out / PARTIAL, json.dumps(record, indent=2) + "\n")


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is not a readable record of a city. Delete its folder.") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{path} is not a record of a city. Delete its folder.")
    return record


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first difference of two records, in words; empty if they describe the same city."""
    theirs, ours = found.get("settings"), expected["settings"]
    if isinstance(theirs, dict):
        for name, value in ours.items():
            if theirs.get(name) != value:
                return f"{name} {theirs.get(name)} instead of {value}"
    for name in ("version", "settings", "selection"):
        if found.get(name) != expected[name]:
            return f"different {name}" if name != "selection" else "different selection of training images"
    return ""


def _tasks(plan: CityPlan, rows: list[np.ndarray], renderer: Any) -> Iterator[_Task]:
    """Split the images into tasks.  Shadow maps are computed once per district, before its first task."""
    size = min(MOST_PER_TASK, max(1, PIXELS_PER_TASK // plan.settings.image_size**2))
    shades: dict[str, tuple[np.ndarray, float, float]] = {}
    for shots, chosen in zip(plan.shots, rows, strict=True):
        if shots.district.name not in shades:
            shades = {shots.district.name: renderer.district_shade(shots.district)}
        for start in range(0, len(chosen), size):
            yield _Task(shots=shots, rows=chosen[start : start + size], shade=shades[shots.district.name])


def _finish_task(
    waiting: deque[tuple[int, Future[int]]], done: int, written: int, total: int, progress: Progress
) -> tuple[int, int]:
    count, future = waiting.popleft()
    written += future.result()
    done += count
    progress(TASK, done, total)
    return done, written


def _render_images(renderer: Any, out: Path, settings: CitySettings, task: _Task) -> int:
    """Render and write the missing images of a task; returns their number."""
    paths = [out / name for name in image_names(task.shots, task.rows)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if not missing:
        return 0
    poses = task.shots.poses[task.rows[missing]]
    images, _ = renderer.render(
        task.shots.district.scene, task.shade, task.shots.lights, poses, settings.image_size, settings.samples_per_pixel
    )
    for index, image in zip(missing, images, strict=True):
        _write_jpeg(paths[index], image, settings.jpeg_quality)
    return len(missing)


def _write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    # Renamed without a sync: a killed build leaves only complete images, and a million images stay cheap.
    partial_path = path.with_name(f".{path.name[-80:]}.part")
    with storage_errors(path):
        try:
            partial_path.write_bytes(buffer.getvalue())
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial_path.write_bytes(buffer.getvalue())
        partial_path.replace(path)
