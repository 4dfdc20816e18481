"""Training on a GPU, part by part: loader, augmentation, step and the whole loop, in images per second.

The plain side follows the usual recipe: float photos from processes, a loop over the images that jitters and crops each
on the GPU, NCHW, powers and average pooling, a one-hot margin, Adam's defaults, and a loss that is read in each
iteration.  Both sides run in this process and take turns, on a warm device.  Their results are compared first.

Source of the schedule: Berton et al., CVPR 2022, section 4.1 (50 epochs of 10,000 iterations of 32 images).
"""

import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loading import PlainPhotos
from benchmarks.photos import augment_with_torchvision, write_photos
from benchmarks.plain_network import PlainMargin, PlainNetwork
from benchmarks.stage import BenchmarkError, Options, Row
from cosplace.config.sections import Grouping
from cosplace.device import choose_device, fused_adam, mixed_precision, tuned_convolutions
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.names import format_image_name
from cosplace.photos.scanning import scan_images
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import GroupImages, training_batches
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.cuda_graph import RecordedNetwork
from cosplace.training.groups import partition
from cosplace.training.step import TrainingStep, batches_on_device

PAPER_IMAGES = 50 * 10_000 * 32
BACKBONES = ("ResNet18", "ResNet50")
NUM_PHOTOS, PHOTOS_PER_CLASS = 4096, 8
DIMENSION, NUM_CLASSES = 512, 35_000  # a group of SF-XL has about 35,000 classes
GEMM_SIDE, GEMM_ROUNDS = 8192, 20
WARM_UP_ITERATIONS = 5
MAX_ERROR = 2e-4  # of augmented pixels in normalized units: GPUs round divisions and sums differently
MAX_LOSS_ERROR = 0.03
TARGET_IMAGES_PER_SECOND, TARGET_RATIO = 5_000.0, 8.0  # of the whole loop with ResNet-18

log = logging.getLogger("cosplace.benchmarks")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """What is measured.  The defaults are those of the paper."""

    device: str = "cuda"
    backbones: Sequence[str] = BACKBONES
    image_size: int = 512
    batch_size: int = 32
    num_workers: int = 8
    loader: str = "processes"
    dtype: torch.dtype | None = torch.float16  # of mixed precision; None: fp32
    compiled: bool = False
    cuda_graphs: bool = False
    num_classes: int = NUM_CLASSES
    num_photos: int = NUM_PHOTOS
    iterations: int = 60
    turns: int = 3
    photos: Path | None = None
    """Folder of photos to use instead of generated ones."""


def measure_gpu(options: GpuOptions) -> list[Row]:
    """Measure all parts.  Raises DeviceError without the device, BenchmarkError if the results of the sides differ."""
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder, tuned_convolutions(device):
        log.info("writing photos")
        items = _write_group(Path(folder) / "train", options)
        bench = _Bench(options=options, device=device, items=items, ceiling=_ceiling(device, options.dtype))
        log.info("comparing augmentations")
        _compare_augmentations(bench)
        rows = []
        for name in options.backbones:
            log.info("comparing losses of %s", name)
            _compare_losses(bench, name)
        for title, backbone, plain, ours in _parts(bench):
            log.info("measuring: %s", title)
            rows.append(_row(bench, title, backbone, plain, ours))
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    options: GpuOptions
    device: torch.device
    items: GroupImages
    ceiling: float  # FLOP/s of a large matrix product


def _write_group(folder: Path, options: GpuOptions) -> GroupImages:
    names = [
        format_image_name(
            utm_east=540_005 + 10 * (i // PHOTOS_PER_CLASS), utm_north=4_170_005, zone=10, letter="S", latitude=37.7,
            longitude=-122.4, pano_id=f"{i:06d}", heading=5,
        )
        for i in range(options.num_photos)
    ]  # fmt: skip
    write_photos(folder, options.num_photos, Options(photos=options.photos), names)
    groups = partition(scan_images(folder), Grouping(N=1, L=1, min_images_per_class=1))
    return GroupImages(groups[0], seed=0, epoch=0, settings=Augmentation(image_size=options.image_size))


def _ceiling(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of the device in a large matrix product: the upper limit for any network."""
    side = GEMM_SIDE if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
    a @ b
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(GEMM_ROUNDS):
        a @ b
    _synchronize(device)
    return GEMM_ROUNDS * 2 * side**3 / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- the sides -------------------------------------------------------------------------------------------------------


def _parts(bench: _Bench) -> Generator[tuple[str, str | None, Callable[[], Any], Callable[[], Any]]]:
    """(title, backbone, plain, ours).  Each side is an endless generator; each item is one iteration."""
    yield "loader", None, lambda: _plain_batches(bench), lambda: _our_batches(bench)
    yield "augmentation", None, lambda: _plain_augmentations(bench), lambda: _our_augmentations(bench)
    for name in bench.options.backbones:
        yield f"step {name}", name, lambda n=name: _plain_steps(bench, n), lambda n=name: _our_steps(bench, n)
        yield f"loop {name}", name, lambda n=name: _plain_loop(bench, n), lambda n=name: _our_loop(bench, n)


def _plain_batches(bench: _Bench) -> Generator[Any]:
    options = bench.options
    num_batches = options.turns * options.iterations + WARM_UP_ITERATIONS
    photos: Any = PlainPhotos(bench.items.group.folder, num_batches * options.batch_size)
    yield from DataLoader(
        photos, options.batch_size, num_workers=options.num_workers, pin_memory=bench.device.type == "cuda"
    )


def _our_batches(bench: _Bench) -> Generator[Any]:
    return training_batches(
        bench.items,
        batch_size=bench.options.batch_size,
        first_iteration=0,
        num_iterations=bench.options.turns * bench.options.iterations + WARM_UP_ITERATIONS,
        num_workers=bench.options.num_workers,
        augment_in_loader=False,
        loader=bench.options.loader,
        pin_memory=bench.device.type == "cuda",
    )


def _photos_and_draws(bench: _Bench) -> tuple[Tensor, Tensor]:
    """One batch of photos (B, 3, H, W) uint8 and its random draws."""
    with closing(_our_batches(bench)) as batches:
        batch = next(batches)
    return batch.stacks[0], batch.draws


def _plain_augmentations(bench: _Bench) -> Generator[Tensor]:
    photos, draws = _photos_and_draws(bench)
    floats, drawn = photos.to(bench.device).float().div_(255).contiguous(), draws.tolist()
    while True:
        yield _augment_each(floats, drawn, bench.options.image_size)


def _augment_each(floats: Tensor, drawn: Sequence[Sequence[float]], side: int) -> Tensor:
    return torch.stack([augment_with_torchvision(photo, one, side) for photo, one in zip(floats, drawn, strict=True)])


def _our_augmentations(bench: _Bench) -> Generator[Tensor]:
    with closing(_our_batches(bench)) as batches:
        batch = next(batches)
    yield from (images for _, images, _ in batches_on_device(cycle([batch]), bench.items.settings, bench.device))


def _first_weights(backbone: str, num_classes: int) -> tuple[PlainNetwork, Tensor]:
    """The initial network and class weights (C, D) of both sides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlainNetwork(DIMENSION, backbone), torch.randn(num_classes, DIMENSION) * 0.01


class _PlainStep:
    """The usual training step: one optimizer after the other, and the loss is read."""

    def __init__(self, bench: _Bench, backbone: str) -> None:
        self.device, self.dtype = bench.device, bench.options.dtype
        network, classes = _first_weights(backbone, bench.options.num_classes)
        self.network, self.margin = network.to(bench.device).train(), PlainMargin(classes).to(bench.device)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizers = torch.optim.Adam(trained, 1e-5), torch.optim.Adam(self.margin.parameters(), 1e-2)
        self.scaler = torch.amp.GradScaler(bench.device.type, enabled=self.dtype == torch.float16)

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch and return the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with mixed_precision(self.device, self.dtype):
            loss = nn.functional.cross_entropy(self.margin(self.network(images), labels), labels)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss.item()


def _our_step(bench: _Bench, backbone: str) -> TrainingStep:
    plain, classes = _first_weights(backbone, bench.options.num_classes)
    network = GeoLocalizationNet(backbone, DIMENSION)
    network.load_state_dict(plain.state_dict())
    classifier = MarginCosineProduct(DIMENSION, bench.options.num_classes)
    classifier.weight.data.copy_(classes)
    network = network.to(bench.device).to(memory_format=torch.channels_last).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if bench.options.compiled else network
    if bench.options.cuda_graphs:
        forward = RecordedNetwork(network, bench.options.dtype)
        forward.record(bench.options.batch_size, bench.options.image_size, bench.device)
    return TrainingStep(
        forward=forward,
        classifier=classifier.to(bench.device),
        optimizers=(fused_adam(trained, 1e-5), fused_adam(classifier.parameters(), 1e-2)),
        scaler=torch.amp.GradScaler(bench.device.type, enabled=bench.options.dtype == torch.float16),
        device=bench.device,
        dtype=bench.options.dtype,
    )


def _one_batch(bench: _Bench) -> tuple[Tensor, Tensor]:
    with closing(_our_batches(bench)) as batches:
        ready = batches_on_device([next(batches)], bench.items.settings, bench.device)
        _, images, labels = next(iter(ready))
    return images, labels


def _plain_steps(bench: _Bench, backbone: str) -> Generator[float]:
    step = _PlainStep(bench, backbone)
    images, labels = _one_batch(bench)
    images = images.contiguous()
    while True:
        yield step(images, labels)


def _our_steps(bench: _Bench, backbone: str) -> Generator[Tensor]:
    step = _our_step(bench, backbone)
    images, labels = _one_batch(bench)
    while True:
        yield step(images, labels)


def _plain_loop(bench: _Bench, backbone: str) -> Generator[float]:
    step = _PlainStep(bench, backbone)
    _, draws = _photos_and_draws(bench)
    drawn = draws.tolist()
    with closing(_plain_batches(bench)) as batches:
        for photos, labels in batches:
            images = _augment_each(photos.to(bench.device, non_blocking=True), drawn, bench.options.image_size)
            yield step(images, labels.to(bench.device, non_blocking=True))


def _our_loop(bench: _Bench, backbone: str) -> Generator[Tensor]:
    step = _our_step(bench, backbone)
    with closing(_our_batches(bench)) as batches:
        for _, images, labels in batches_on_device(batches, bench.items.settings, bench.device):
            yield step(images, labels)


# --- comparing -------------------------------------------------------------------------------------------------------


def _compare_augmentations(bench: _Bench) -> None:
    with closing(_plain_augmentations(bench)) as plain, closing(_our_augmentations(bench)) as ours:
        error = float((next(plain) - next(ours)).abs().max())
    if not error <= MAX_ERROR:
        raise BenchmarkError(f"augmentation: with equal draws, images differ by {error:.2g}, more than {MAX_ERROR:g}.")


def _compare_losses(bench: _Bench, backbone: str) -> None:
    """Compare the first losses in fp32: in fp16 the plain side overflows, and its gradient scaler skips those steps."""
    gc.collect()  # a loading process in which earlier graphs are collected would be ended by CUDA
    bench = replace(bench, options=replace(bench.options, dtype=None))
    with closing(_plain_steps(bench, backbone)) as plain, closing(_our_steps(bench, backbone)) as ours:
        losses = [(float(a), float(b)) for a, b in islice(zip(plain, ours, strict=True), 3)]
    if not all(abs(a - b) <= MAX_LOSS_ERROR * abs(a) for a, b in losses):
        raise BenchmarkError(f"step {backbone}: losses (plain, ours) differ by more than 3%: {losses}.")


# --- measuring -------------------------------------------------------------------------------------------------------


def _row(bench: _Bench, title: str, backbone: str | None, plain: Any, ours: Any) -> Row:
    gc.collect()  # as above
    options = bench.options
    with closing(plain()) as one, closing(ours()) as other:
        for side in (one, other):  # starts workers, chooses algorithms, compiles networks
            for _ in islice(side, WARM_UP_ITERATIONS):
                pass
        turns = [(_seconds(bench, one), _seconds(bench, other)) for _ in range(options.turns)]
    images = options.iterations * options.batch_size
    speeds = tuple(statistics.median(images / turn[side] for turn in turns) for side in (0, 1))
    ratio = statistics.median(a / b for a, b in turns)
    findings: dict[str, Any] = {"plain_images_per_second": speeds[0], "images_per_second": speeds[1]}
    target: Mapping[str, float] = {}
    if backbone is not None:
        flops = _flops_per_image(bench, backbone)
        findings["of_ceiling"] = speeds[1] * flops / bench.ceiling
        findings["ceiling_tflops"] = bench.ceiling / 1e12
        findings["paper_schedule_hours"] = PAPER_IMAGES / speeds[1] / 3600
    if title == "loop ResNet18":
        target = {"images_per_second": TARGET_IMAGES_PER_SECOND, "wall_ratio": TARGET_RATIO}
    return Row(
        stage=title, title=title, size=images, unit="images", turns=options.turns, equal=True, cpu_ratio=None,
        wall_ratio=ratio, memory_ratio=None, target=target,
        met=not target or (speeds[1] >= target["images_per_second"] and ratio >= target["wall_ratio"]),
        plain={"cpu_s": None, "wall_s": statistics.median(a for a, _ in turns), "memory_mib": None},
        ours={"cpu_s": None, "wall_s": statistics.median(b for _, b in turns), "memory_mib": None},
        findings=findings,
    )  # fmt: skip


def _seconds(bench: _Bench, side: Generator) -> float:
    _synchronize(bench.device)
    started = time.perf_counter()
    for _ in islice(side, bench.options.iterations):
        pass
    _synchronize(bench.device)
    return time.perf_counter() - started


def _flops_per_image(bench: _Bench, backbone: str) -> float:
    """FLOPs of a training step per image, counted by operator."""
    network = GeoLocalizationNet(backbone, DIMENSION).to(bench.device).train()
    side = bench.options.image_size
    images = torch.randn(2, 3, side, side, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / 2


def gpu_table(rows: Sequence[Row]) -> str:
    """Rows as aligned text."""
    head = f"{'':18}{'plain':>10}{'ours':>10}{'ratio':>8}{'of ceiling':>12}{'paper schedule':>16}"
    lines = ["images per second", head]
    for row in rows:
        found = row.findings
        share = f"{100 * found['of_ceiling']:.0f} %" if "of_ceiling" in found else ""
        hours = f"{found['paper_schedule_hours']:.1f} h" if "paper_schedule_hours" in found else ""
        speeds = f"{found['plain_images_per_second']:>10,.0f}{found['images_per_second']:>10,.0f}"
        met = "" if not row.target else "   met" if row.met else "   missed"
        lines.append(f"{row.stage:18}{speeds}{row.wall_ratio or 0:>8.1f}{share:>12}{hours:>16}{met}")
    return "\n".join(lines)
