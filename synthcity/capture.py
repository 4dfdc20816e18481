"""Poses to files: names in SF-XL's grammar, pictures rendered by several threads, a folder that can be resumed.

    OUT/city.json                            settings, counts, version: written last, so its presence means complete
    OUT/train/<latitude>/@east@north@...jpg
    OUT/val/database/  OUT/val/queries/
    OUT/test/database/  OUT/test/queries_v1/

While a build runs, `city.partial.json` stands in the place of `city.json`.
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
from cosplace.storage import storage_errors, write_text
from synthcity.poses import FIRST_YEAR, LETTER, TRAIN, ZONE, CityPlan, Shots, plan_city
from synthcity.settings import CitySettings, settings_to_json

CITY_VERSION = 1  # raised whenever the same settings give other pictures or names
RECORD, PARTIAL = "city.json", "city.partial.json"
PIXELS_PER_TASK = 600_000
MOST_PER_TASK = 64
Keep = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CitySummary:
    """What a build left on disk."""

    folder: Path
    counts: dict[str, int]  # pictures by subfolder
    num_written: int
    num_found: int  # pictures that an earlier, interrupted build had left


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Some pictures of one folder, rendered and written by one thread."""

    shots: Shots
    rows: np.ndarray  # (I,) int64 of shots.poses
    shade: tuple[np.ndarray, float, float]


def build_city(
    out: str | Path, settings: CitySettings, progress: Progress | None = None, keep: Keep | None = None
) -> CitySummary:
    """Render a city into `out`, in the layout of SF-XL.  A build that was interrupted goes on where it stopped.

    progress: called with (pictures done, pictures in all) from the calling thread.
    keep: called once with UTM east, UTM north (meters, (I,) float64) and heading (whole degrees, (I,) int64) of all
    training images as their file names say them; returns a mask (I,) bool of those to make.  Queries and databases
    are always whole.  Kept pictures are the same as without a mask.
    Raises ConfigError when numba is missing, DatasetError when `out` holds anything but this very city, StorageError
    when a file cannot be written.
    """
    renderer = _load_renderer()
    out = Path(out)
    plan = plan_city(settings)
    rows = _chosen_rows(plan, keep)
    record = _record(plan, rows)
    _claim_folder(out, record)
    total, done, written = sum(len(chosen) for chosen in rows), 0, 0
    with ThreadPoolExecutor(settings.threads) as pool:
        work = partial(_make_pictures, renderer, out, settings)
        waiting: deque[tuple[int, Future[int]]] = deque()
        try:
            for task in _tasks(plan, rows, renderer):
                waiting.append((len(task.rows), pool.submit(work, task)))
                if len(waiting) > 3 * settings.threads:
                    done, written = _collect(waiting, done, written, total, progress)
            while waiting:
                done, written = _collect(waiting, done, written, total, progress)
        finally:
            for _, future in waiting:
                future.cancel()
    write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    (out / PARTIAL).unlink(missing_ok=True)
    counts = {shots.folder: len(chosen) for shots, chosen in zip(plan.shots, rows, strict=True)}
    return CitySummary(folder=out, counts=counts, num_written=written, num_found=total - written)


def image_names(shots: Shots, rows: np.ndarray) -> list[str]:
    """Paths relative to the city's folder of some pictures of one folder."""
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
    """UTM east and north (I,) float64 in meters of pictures, rounded to centimeters as in their names."""
    east, north = shots.district.to_utm(shots.poses["x"][rows], shots.poses["y"][rows])
    return np.round(east, 2), np.round(north, 2)


def _load_renderer() -> Any:
    """Import the compiled half of the city, which raises ConfigError where numba is missing."""
    from synthcity import render

    return render


def _chosen_rows(plan: CityPlan, keep: Keep | None) -> list[np.ndarray]:
    """Rows of the poses to render, one array (I,) int64 for each folder."""
    chosen = []
    for shots in plan.shots:
        rows = np.arange(len(shots))
        if keep is not None and shots.folder == TRAIN:
            east, north = named_positions(shots, rows)
            mask = np.asarray(keep(east, north, shots.poses["heading"].astype(np.int64)))
            assert mask.shape == rows.shape, f"keep returned shape {mask.shape} for {rows.shape} images"
            rows = rows[mask.astype(bool)]
            if not len(rows):
                raise DatasetError("The mask `keep` leaves no training image: keep more, or pass keep=None.")
        chosen.append(rows)
    return chosen


def _record(plan: CityPlan, rows: list[np.ndarray]) -> dict[str, Any]:
    """Describe as JSON what makes a city this very city."""
    digest = hashlib.sha256(b"".join(chosen.astype("<i8").tobytes() for chosen in rows)).hexdigest()
    return {
        "what": "synthetic city of cosplace",
        "version": CITY_VERSION,
        "settings": settings_to_json(plan.settings),
        "counts": {shots.folder: len(chosen) for shots, chosen in zip(plan.shots, rows, strict=True)},
        "selection": digest[:16],
    }


def _claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Mark `out` as being built; raise DatasetError when it holds something else."""
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file: give a folder for the city.")
    for name in (RECORD, PARTIAL):
        found = _read_record(out / name)
        if found is None:
            continue
        differing = _difference(found, record)
        if differing:
            raise DatasetError(f"{out} holds another city ({differing}): choose another folder or delete this one.")
        if name == RECORD:
            return
    if not (out / PARTIAL).is_file():
        foreign = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if foreign:
            raise DatasetError(f"{out} holds other files ({foreign[0]}): choose an empty folder for the city.")
        write_text(out / PARTIAL, json.dumps(record, indent=2) + "\n")


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as the record of a city: delete its folder.") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{path} is not the record of a city: delete its folder.")
    return record


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Tell in words the first difference of two records; an empty text when they are the same city."""
    theirs, ours = found.get("settings"), wanted["settings"]
    if isinstance(theirs, dict):
        for name, value in ours.items():
            if theirs.get(name) != value:
                return f"{name} {theirs.get(name)} instead of {value}"
    for name in ("version", "settings", "selection"):
        if found.get(name) != wanted[name]:
            return f"another {name}" if name != "selection" else "another selection of training images"
    return ""


def _tasks(plan: CityPlan, rows: list[np.ndarray], renderer: Any) -> Iterator[_Task]:
    """Cut the pictures into tasks; shadow maps are cast once for each district, when it comes up."""
    size = min(MOST_PER_TASK, max(1, PIXELS_PER_TASK // plan.settings.image_size**2))
    shades: dict[str, tuple[np.ndarray, float, float]] = {}
    for shots, chosen in zip(plan.shots, rows, strict=True):
        if shots.district.name not in shades:
            shades = {shots.district.name: renderer.district_shade(shots.district)}
        for start in range(0, len(chosen), size):
            yield _Task(shots=shots, rows=chosen[start : start + size], shade=shades[shots.district.name])


def _collect(
    waiting: deque[tuple[int, Future[int]]], done: int, written: int, total: int, progress: Progress | None
) -> tuple[int, int]:
    count, future = waiting.popleft()
    written += future.result()
    done += count
    if progress is not None:
        progress(done, total)
    return done, written


def _make_pictures(renderer: Any, out: Path, settings: CitySettings, task: _Task) -> int:
    """Render and write the pictures of a task that are not there yet; returns how many."""
    paths = [out / name for name in image_names(task.shots, task.rows)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if not missing:
        return 0
    poses = task.shots.poses[task.rows[missing]]
    pictures, _ = renderer.render(
        task.shots.district.scene, task.shade, task.shots.lights, poses, settings.image_size, settings.samples_per_pixel
    )
    for index, picture in zip(missing, pictures, strict=True):
        _write_jpeg(paths[index], picture, settings.jpeg_quality)
    return len(missing)


def _write_jpeg(path: Path, picture: np.ndarray, quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    # A rename without a sync: a killed build leaves whole pictures only, and a million of them stay cheap.
    beside = path.with_name(f".{path.name[-80:]}.part")
    with storage_errors(path):
        try:
            beside.write_bytes(buffer.getvalue())
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(buffer.getvalue())
        beside.replace(path)
