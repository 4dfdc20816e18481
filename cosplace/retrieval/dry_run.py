"""Estimate the time, memory and disk space of an evaluation from a few batches of it, before it runs.

The batches come from the real photos, loader, network and device.  Nothing is written.
Legend: R database images, Q queries, D descriptor dimension.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cosplace.device import choose_device
from cosplace.memory import peak_bytes
from cosplace.models.inference import find_dimension
from cosplace.photos.crops import NUM_CROPS, SEVERAL_CROPS
from cosplace.photos.image_list import evenly_spaced
from cosplace.progress import Progress, format_bytes, format_count, format_duration, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.search import nearest

MEASURED_BATCHES = 4  # per worker
MEASURED_ROWS, MEASURED_QUERIES = 20_000, 64  # of the search


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will need."""

    seconds: float
    memory_bytes: int  # at the peak: of the device, or of the main process on a CPU
    disk_bytes: int
    lines: tuple[str, ...]  # the same and its details as text


def estimate_evaluation(
    model: nn.Module, dataset: RetrievalDataset, settings: EvaluationSettings, progress: Progress = no_progress
) -> Estimate:
    """Estimate an evaluation from the descriptors of some database photos and a small search.

    Raises what an evaluation raises.
    """
    device = choose_device(str(settings.extraction.device))
    reset_peak_memory(device)
    num_crops = NUM_CROPS if settings.query_policy in SEVERAL_CROPS else 1
    extraction = extraction_seconds(
        model, dataset, settings.extraction, part_of(progress, "measuring"), num_crops=num_crops
    )
    dimension = find_dimension(model.to(device), device)
    search = _search_seconds(len(dataset.queries), len(dataset.database), dimension, device)
    size, folder = descriptor_bytes(dataset, dimension, settings.extraction.stored_dtype), settings.descriptors_folder
    in_memory = not folder and device.type == "cpu"
    memory = peak_memory_bytes(device) + (size if in_memory else 0)
    images_per_second = (len(dataset.database) + len(dataset.queries)) / extraction
    lines = (
        f"photos: {format_count(len(dataset.database), 'database image')}, "
        f"{format_count(len(dataset.queries), 'query', 'queries')}; "
        f"{images_per_second:,.1f} images/s",
        f"time: {format_duration(extraction + search)}, including {format_duration(search)} for the search",
        f"memory: {format_bytes(memory)} {memory_name(device)}; descriptors need {format_bytes(size)} "
        + (f"in {folder}" if folder else "in memory (on disk with --descriptors_folder)"),
        f"disk: {format_bytes(size)}{free_space_text(Path(folder), size)}" if folder else "disk: only the report",
    )
    return Estimate(seconds=extraction + search, memory_bytes=memory, disk_bytes=size if folder else 0, lines=lines)


def extraction_seconds(
    model: nn.Module,
    dataset: RetrievalDataset,
    settings: ExtractionSettings,
    progress: Progress = no_progress,
    *,
    num_crops: int = 1,
) -> float:
    """Estimate the seconds to extract all descriptors of a dataset, from an even sample of its database.

    num_crops: of each query, as if they had the size of database photos.
    """
    num_queries = num_crops * len(dataset.queries)
    database, batch_size = dataset.database, settings.batch_size
    small = database.subset(evenly_spaced(database, batch_size))
    large = database.subset(evenly_spaced(database, batch_size * (1 + MEASURED_BATCHES * max(1, settings.num_workers))))
    small_seconds = extract(model, small, settings, progress=progress).seconds
    if len(large) == len(small):  # the whole database fits in one batch
        return small_seconds * (1 + num_queries / len(database))
    # The difference of two measurements leaves out the time to start the workers.
    large_seconds = extract(model, large, settings, progress=progress).seconds
    seconds_per_image = max(large_seconds - small_seconds, 1e-9) / (len(large) - len(small))
    return small_seconds + seconds_per_image * (len(database) + num_queries)


def _search_seconds(num_queries: int, num_database: int, dimension: int, device: torch.device) -> float:
    """Estimate the seconds of an exact search, which are proportional to Q x R, from a small one."""
    rng = np.random.default_rng(0)
    database = rng.standard_normal((min(MEASURED_ROWS, num_database), max(1, dimension)), np.float32)
    queries = database[: min(MEASURED_QUERIES, num_queries)]
    k = min(20, len(database))
    nearest(queries, database, k, device=device)  # warm-up
    started = time.perf_counter()
    nearest(queries, database, k, device=device)
    return (time.perf_counter() - started) * (num_queries * num_database) / (len(queries) * len(database))


# --- measurements ----------------------------------------------------------------------------------------------------


def descriptor_bytes(dataset: RetrievalDataset, dimension: int, dtype: str = "float32") -> int:
    """Return the size of all descriptors of a dataset."""
    return np.dtype(dtype).itemsize * dimension * (len(dataset.database) + len(dataset.queries))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak memory again, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory used so far: of the device, or of this process on a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_bytes()


def memory_name(device: torch.device) -> str:
    """Name the memory of a device: `of main memory`, `on cuda:0`."""
    return "of main memory" if device.type == "cpu" else f"on {device}"


def free_space_text(folder: Path, needed_bytes: int) -> str:
    """Format the free space of a folder, which need not exist yet: ` (12 GB free)`, ` (12 MB free: not enough)`."""
    existing = next((parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), Path())
    free = shutil.disk_usage(existing).free
    return f" ({format_bytes(free)} free{': not enough' if free < needed_bytes else ''})"
