"""Photos -> a store of descriptors by a Ray cluster: one task per shard.

Ray chooses the machine of each task, and repeats tasks of machines that are lost.  All machines must reach the photos,
the model and the store by the same addresses, and have the same version of this program.
Side effects: starts tasks; they read photos and write the store.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from cosplace.config.extraction import ExtractConfig
from cosplace.config.values import from_values
from cosplace.errors import DeviceError
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress
from cosplace.ray_cluster import check_same_versions, open_cluster, package_versions, remote, wait_for
from cosplace.retrieval.descriptor_store import finished_shards
from cosplace.retrieval.extraction import TASK
from cosplace.retrieval.extraction_job import ExtractionJob, open_job, rows_of_shard, shard_numbers
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
    with open_cluster() as cluster:
        ray: Any = import_module("ray")
        num_gpus = 1 if config.device.device != "cpu" and cluster.num_gpus else 0
        task = remote(compute_shard, num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES)
        given, rows = (dict(values), dict(about or {}), package_versions()), rows_of_shard(config, len(images))
        left = sum(min(rows, len(images) - number * rows) for number in _missing(config, len(images), rows))
        num_before, num_done = len(images) - left, 0
        for _ in range(MAX_ROUNDS):
            missing = _missing(config, len(images), rows)
            # The first one runs alone: it writes meta.json, and fails early if it must.
            for numbers in (missing[:1], missing[1:]):
                waiting = [task.remote(number, *given) for number in numbers]
                while waiting:
                    finished, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
                    num_done += sum(wait_for(partial(ray.get, result)) for result in finished)
                    progress(
                        TASK, min(num_before + num_done, len(images)), len(images), f"{len(waiting):,} shards left"
                    )
            if not missing:
                return num_done
        raise DeviceError("Ray finished its tasks, but shards are missing. Run the same command again to continue.")


def compute_shard(number: int, values: dict[str, Any], about: dict[str, Any], versions: dict[str, str]) -> int:
    """Compute one shard, in a process of the cluster; returns the number of photos, 0 if it was finished already.

    versions: of the packages of the process that started the task; raises ConfigError if this one has others.
    """
    check_same_versions(versions)
    job = _opened(tuple(sorted((name, value) for name, value in values.items())))
    # Claims do not count here: Ray runs each task once.  They are written for --status.
    return job.run(only=[number], wait=False, stale_s=0.0, about=about)


@lru_cache(maxsize=1)
def _opened(values: tuple[tuple[str, Any], ...]) -> ExtractionJob:
    """The job of this process, which Ray uses for many tasks."""
    return open_job(from_values(ExtractConfig, dict(values)))


def _missing(config: ExtractConfig, num_photos: int, shard_rows: int) -> list[int]:
    files = open_files(config.to)
    meta, sizes = read_meta(files), files.sizes()
    numbers = shard_numbers(num_photos, shard_rows)
    if meta is None:
        return list(numbers)
    done = frozenset(finished_shards(meta, sizes))
    missing = [number for number in numbers if number not in done]
    return missing or ([0] if PHOTOS not in sizes else [])
