"""The speeds of this machine, for `cosplace plan --measure`.

CPU speeds are per second of CPU time of one core, which other programs disturb less than elapsed time.
Side effects: writes temporary files, and removes them; uses the device.
"""

import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cosplace.config.index import IndexSettings
from cosplace.config.names import BACKBONES
from cosplace.config.planning import PlanConfig
from cosplace.device import choose_device, mixed_precision
from cosplace.errors import DatasetError
from cosplace.index.approximate import MIN_PARTITIONS, ROWS_PER_PARTITION
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.models.inference import optimize_for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.zoo import MODELS
from cosplace.photos.opening import open_pixels
from cosplace.photos.scanning import scan_images
from cosplace.planning.constants import Constant, constants
from cosplace.planning.plan import CODE_BITS, CODES_NEED
from cosplace.planning.workload import PlannedNetwork
from cosplace.progress import Progress, no_progress
from cosplace.storage import write_atomically

TASK = "measuring"
MIN_SECONDS = 2.0  # of each measurement
MAX_PHOTOS = 256  # that are decoded
GENERATED_PHOTOS, GENERATED_SIDE = 16, 512
WRITTEN_BYTES, WRITTEN_FILES = 32_000_000, 4
INDEX_ROWS, ROWS_PER_ADD, PHOTOS_PER_PLACE = 200_000, 20_000, 10
NUM_QUERIES, WARM_QUERIES, K = 60, 10, 20
CENTERS, ASSIGNED_ROWS = 4096, 4096  # of the product that assigns descriptors to partitions
CPU_BATCH, GPU_BATCH = 4, 64

Measured = dict[str, Constant]


def measure_machine(config: PlanConfig, network: PlannedNetwork, progress: Progress = no_progress) -> Measured:
    """Measure decoding, the network, writing, the index and its search; returns constants by name.

    Raises DatasetError for a folder without photos, ImageError for a photo that cannot be opened, StorageError for a
    full disk, and what opening a model raises.
    """
    found: Measured = {}
    steps: list[Callable[[], Measured]] = [
        lambda: measure_decoding(config.measured_photos),
        lambda: measure_network(config, network),
        measure_writing,
        lambda: measure_products(network.dimension),
        lambda: measure_index(network.dimension),
    ]
    for number, step in enumerate(steps):
        progress(TASK, number, len(steps))
        found |= step()
    progress(TASK, len(steps), len(steps))
    return found


def _constant(name: str, value: float, what: str) -> tuple[str, Constant]:
    base = constants().get(name) or constants()[f"{name}.ResNet18"]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return name, Constant(value=value, unit=base.unit, title=base.title, source=what, date=date, machine=_machine())


def _machine() -> str:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"this machine: {os.cpu_count()} cores, {platform.machine()}{load}"


def _cpu_seconds_per_call(call: Callable[[], object]) -> float:
    """CPU seconds of a call, from calls of MIN_SECONDS; the first is not counted."""
    call()
    started, calls = time.process_time(), 0
    while (seconds := time.process_time() - started) < MIN_SECONDS:
        call()
        calls += 1
    return seconds / calls


# --- photos and network ----------------------------------------------------------------------------------------------


def measure_decoding(folder: Path | None) -> Measured:
    """MB of JPEG files that one core decodes per second, and the mean size of photos of a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = _generated_photos(Path(temporary)) if folder is None else _photos_of(folder)
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        seconds = _cpu_seconds_per_call(lambda: [open_pixels(path) for path in paths])
    kilobytes = 1000 * megabytes / len(paths)
    what = f"{len(paths)} {'generated' if folder is None else ''} photos of {kilobytes:.1f} KB".replace("  ", " ")
    found = dict([_constant("decoded_mb_per_s", megabytes / seconds, what)])
    return found if folder is None else found | dict([_constant("photo_kb", kilobytes, f"{len(paths)} of {folder}")])


def _photos_of(folder: Path) -> list[Path]:
    images = scan_images(folder)
    if not len(images):
        raise DatasetError(f"{folder} contains no photos. Use another folder for --measured_photos.")
    rows = np.unique(np.linspace(0, len(images) - 1, MAX_PHOTOS).astype(int))
    return [images.path(int(row)) for row in rows]


def _generated_photos(folder: Path) -> list[Path]:
    """JPEG files of smoothed noise, with about as many bytes per pixel as street photos."""
    from PIL import Image

    paths = []
    for number in range(GENERATED_PHOTOS):
        small = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        image = Image.fromarray(small).resize((GENERATED_SIDE, GENERATED_SIDE), Image.Resampling.BICUBIC)
        noise = np.random.default_rng([1, number]).normal(0, 6, (GENERATED_SIDE, GENERATED_SIDE, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
    return paths


def measure_network(config: PlanConfig, network: PlannedNetwork) -> Measured:
    """Photos per second in the network: on one core, and on the GPU if there is one."""
    side = config.image_size or network.side
    ready = optimize_for_inference(_build(config, network).eval())
    what = f"{network.name}, {side} pixels"
    device = torch.device("cpu")
    seconds = _cpu_seconds_per_call(_encoder(ready, CPU_BATCH, side, device))
    found = dict([_constant("cpu_photos_per_s", CPU_BATCH / seconds, f"{what}, batches of {CPU_BATCH}")])
    device = choose_device("auto")
    if device.type == "cuda":
        encode = _encoder(ready.to(device), GPU_BATCH, side, device)
        encode()
        torch.cuda.synchronize(device)
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < MIN_SECONDS:
            encode()
            torch.cuda.synchronize(device)
            calls += 1
        speed = calls * GPU_BATCH / (time.perf_counter() - started)
        gpu = f"{what}, fp16, batches of {GPU_BATCH}, {torch.cuda.get_device_name(device)}"
        found |= dict([_constant("gpu_photos_per_s", speed, gpu)])
    return found


def _build(config: PlanConfig, network: PlannedNetwork) -> nn.Module:
    """The network; with random weights if its architecture is known, as they do not change its speed."""
    model = MODELS.get(config.model or "")
    if config.model is None or model is not None:
        backbone = network.backbone if model is None else model.backbone
        trained_side = config.image_size or network.side
        size = None if backbone in BACKBONES else trained_side
        return GeoLocalizationNet(backbone, network.dimension, image_size=size)
    return open_model(config.model)


def _encoder(network: nn.Module, batch_size: int, side: int, device: torch.device) -> Callable[[], object]:
    batch = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def encode() -> object:
        with torch.inference_mode(), mixed_precision(device, torch.float16 if device.type == "cuda" else None):
            return network(batch)

    return encode


# --- storage and index -----------------------------------------------------------------------------------------------


def measure_writing() -> Measured:
    """MB per second that are written to the folder for temporary files, with fsync."""
    content = np.random.default_rng(0).bytes(WRITTEN_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for number in range(WRITTEN_FILES):
            write_atomically(Path(folder) / f"{number}.npy", lambda file: file.write(content))
        seconds = time.perf_counter() - started
    what = f"{WRITTEN_FILES} files of {WRITTEN_BYTES / 1e6:.0f} MB in {tempfile.gettempdir()}"
    return dict([_constant("write_mb_per_s", WRITTEN_FILES * WRITTEN_BYTES / 1e6 / seconds, what)])


def measure_products(dimension: int) -> Measured:
    """Billions of operations per second of one core in products of descriptors and centers of partitions."""
    rows, centers = torch.randn(ASSIGNED_ROWS, dimension), torch.randn(dimension, CENTERS)
    seconds = _cpu_seconds_per_call(lambda: rows @ centers)
    gflop = 2e-9 * ASSIGNED_ROWS * dimension * CENTERS
    what = f"products of {ASSIGNED_ROWS} x {dimension} and {dimension} x {CENTERS} numbers"
    return dict([_constant("assigned_gflop_per_s", gflop / seconds, what)])


def measure_index(dimension: int) -> Measured:
    """MB of float32 descriptors that one core adds to an index per second, and the CPU time of its search.

    The search is measured with a quarter and with all of the partitions: the difference is the time to compare codes.
    """
    num_rows = INDEX_ROWS
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder) / "index"
        spec = ModelSpec(model="synthetic", checksum="synthetic", dimension=dimension)
        with create_index(address, spec, IndexSettings(thumbnail_size=0, exact_rows=1)) as index:
            seconds = 0.0
            for first in range(0, num_rows, ROWS_PER_ADD):
                numbers = range(first, min(first + ROWS_PER_ADD, num_rows))
                descriptors = synthetic_descriptors(numbers, dimension)
                started = time.process_time()
                index.add([_photo(number) for number in numbers], descriptors)
                seconds += time.process_time() - started
        # Without the measurement of its recall, whose time does not grow with the photos.
        started = time.process_time()
        table = _build_search_index(address, dimension, num_rows)
        seconds += time.process_time() - started
        code_bytes = _folder_bytes(address / "photos.lance" / "_indices") / num_rows
        all_s, quarter_s = _search_seconds(table, dimension, num_rows)
    what = f"{num_rows:,} synthetic photos with {dimension} dimensions"
    differences_s = all_s - quarter_s  # to compare three quarters of the codes
    difference_s = float(np.median(differences_s))
    found = dict([_constant("indexed_mb_per_s", 4 * dimension * num_rows / 1e6 / seconds, what)])
    if difference_s > 2 * differences_s.std() / len(differences_s) ** 0.5:  # else it is noise
        scanned_gb = 0.75 * code_bytes * num_rows / 1e9
        found |= dict([_constant("scan_gb_per_s", scanned_gb / difference_s, what)])
    fixed_s = float(np.median(quarter_s)) - max(0.0, difference_s) / 3
    return found | dict([_constant("search_ms", 1000 * fixed_s, what)])


def _build_search_index(address: Path, dimension: int, num_rows: int) -> Any:
    """Build the search index that an index of many photos has, and return the table."""
    import lancedb
    from lancedb.index import IvfFlat, IvfRq

    table = lancedb.connect(address).open_table("photos")
    num_partitions = _num_partitions(num_rows)
    if dimension % CODES_NEED:
        config = IvfFlat(distance_type="l2", num_partitions=num_partitions)
    else:
        config = IvfRq(distance_type="l2", num_partitions=num_partitions, num_bits=int(CODE_BITS))
    table.create_index("descriptor", config=config, name="descriptor_idx", replace=True)
    return table


def _search_seconds(table: Any, dimension: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds (Q,) of searches of all partitions, and of a quarter of them, for the same queries."""
    table.prewarm_index("descriptor_idx")
    num_partitions = _num_partitions(num_rows)
    queries = synthetic_descriptors(range(0, num_rows, num_rows // (NUM_QUERIES + WARM_QUERIES)), dimension, seed=7)
    times = [[_timed_search(table, query, num_partitions // part) for part in (1, 4)] for query in queries]
    all_s, quarter_s = np.array(times[WARM_QUERIES:]).T
    return all_s, quarter_s


def _num_partitions(num_rows: int) -> int:
    return max(MIN_PARTITIONS, num_rows // ROWS_PER_PARTITION)


def _timed_search(table: Any, query: np.ndarray, num_probed: int) -> float:
    started = time.process_time()
    search = table.search(query, vector_column_name="descriptor").distance_type("l2").limit(K).refine_factor(2)
    search.minimum_nprobes(num_probed).maximum_nprobes(num_probed).select(["id", "descriptor", "_distance"]).to_arrow()
    return time.process_time() - started


def synthetic_descriptors(numbers: Sequence[int], dimension: int, seed: int = 3) -> np.ndarray:
    """(n, D) float32 unit descriptors of photos, ten of each place, with the spectrum of a trained network.

    Variances fall as (i + 3)^-1.3, as for a ResNet-18 on SF-XS.
    """
    variances = (np.arange(dimension) + 3.0) ** -1.3
    spread = np.sqrt(variances / variances.sum()).astype(np.float32)
    places = np.asarray(numbers) // PHOTOS_PER_PLACE
    rows = 0.62 * np.random.default_rng([seed, numbers[0]]).standard_normal((len(numbers), dimension), np.float32)
    for place in np.unique(places):
        rows[places == place] += np.random.default_rng([2, int(place)]).standard_normal(dimension, np.float32)
    rows *= spread
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _photo(number: int) -> NewPhoto:
    return NewPhoto(path=f"/photos/{number:09}.jpg", key=f"photo-{number}", latitude=37.7, longitude=-122.4)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
