"""Photos -> a store of descriptors by a Ray cluster: one task per shard.

Ray chooses the machine of each task, and repeats tasks of machines that are lost.  All machines must reach the photos,
the model and the store by the same addresses, and have the same version of this program.
Side effects: starts tasks; they read photos and write the store.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from cosplace.config.extraction import ExtractConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, CosPlaceError, DeviceError, one_line
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.descriptor_store import finished_shards
from cosplace.retrieval.extraction import TASK
from cosplace.retrieval.extraction_job import ExtractionJob, open_job, shard_numbers
from cosplace.retrieval.shards import read_meta
from cosplace.retrieval.store_files import open_files
from cosplace.retrieval.stored_photos import PHOTOS

POLL_S = 1.0
MAX_RETRIES = 20  # of a task whose process or machine ends: a photo that always ends it must not be tried forever
MAX_ROUNDS = 3  # a shard that is missing after its task was finished this number of times is an error


def extract_by_ray(
    config: ExtractConfig,
    values: Mapping[str, Any],
    images: ImageList,
    *,
    about: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> int:
    """Compute what is missing in a store, by tasks of a Ray cluster; returns the number of photos.

    values: the settings of the command by name, as `to_values` gives them; tasks get them.
    Raises ConfigError if Ray is missing or the cluster has another version, DeviceError if it cannot be reached, and
    what the tasks raise.
    """
    ray = _connect()
    has_gpus = config.device.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    task = ray.remote(num_cpus=1, num_gpus=1 if has_gpus else 0, max_retries=MAX_RETRIES)(compute_shard)
    try:
        rows = config.storage.shard_rows
        left = sum(min(rows, len(images) - number * rows) for number in _missing(config, len(images)))
        num_before, num_done = len(images) - left, 0
        for _ in range(MAX_ROUNDS):
            missing = _missing(config, len(images))
            # The first one runs alone: it writes meta.json, and fails early if it must.
            for numbers in (missing[:1], missing[1:]):
                waiting = [task.remote(dict(values), number, dict(about or {})) for number in numbers]
                while waiting:
                    finished, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
                    num_done += sum(_result(ray, result) for result in finished)
                    progress(
                        TASK, min(num_before + num_done, len(images)), len(images), f"{len(waiting):,} shards left"
                    )
            if not missing:
                return num_done
        raise DeviceError("Ray finished its tasks, but shards are missing. Run the same command again to continue.")
    finally:
        ray.shutdown()


def _result(ray: Any, reference: Any) -> int:
    """What a task returned; raises its error as this process would have raised it."""
    try:
        return ray.get(reference)
    except CosPlaceError:
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CosPlaceError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        text = one_line(" ".join(str(error).split()))[:200]
        raise DeviceError(f"Ray cannot run a task ({text}). Run the same command again to continue.") from error


def compute_shard(values: dict[str, Any], number: int, about: dict[str, Any]) -> int:
    """Compute one shard, in a process of the cluster; returns the number of photos, 0 if it was finished already."""
    job = _opened(tuple(sorted((name, value) for name, value in values.items())))
    # Claims do not count here: Ray runs each task once.  They are written for --status.
    return job.run(only=[number], wait=False, stale_s=0.0, about=about)


@lru_cache(maxsize=1)
def _opened(values: tuple[tuple[str, Any], ...]) -> ExtractionJob:
    """The job of this process, which Ray uses for many tasks."""
    return open_job(from_values(ExtractConfig, dict(values)))


def _missing(config: ExtractConfig, num_photos: int) -> list[int]:
    files = open_files(config.to)
    meta, sizes = read_meta(files), files.sizes()
    numbers = shard_numbers(num_photos, config.storage.shard_rows)
    if meta is None:
        return list(numbers)
    done = frozenset(finished_shards(meta, sizes))
    missing = [number for number in numbers if number not in done]
    return missing or ([0] if PHOTOS not in sizes else [])


def _connect() -> Any:
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray. Run `pip install 'cosplace[cluster]'`.") from error
    started = time.perf_counter()
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=None, ignore_reinit_error=True)
    except (RuntimeError, ConnectionError, TimeoutError, OSError) as error:
        text = one_line(" ".join(str(error).split()))
        if "ersion mismatch" in text:
            raise ConfigError(
                f"The Ray cluster has another version of Ray or Python than this process: {text[:200].rstrip('. ')}. "
                f"Install the same versions on all machines."
            ) from error
        seconds = time.perf_counter() - started
        raise DeviceError(
            f"The Ray cluster cannot be reached after {seconds:.0f} s ({text[:200].rstrip('. ')}). Check RAY_ADDRESS."
        ) from error
    return ray
