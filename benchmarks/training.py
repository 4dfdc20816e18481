"""A training step and its parts: GeM, CosFace with cross-entropy.  With one thread."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stage import Options, Side, Stage, Work

DIMENSION = 512
NUM_CLASSES = 1_000
NUM_STEPS = 3
STEP_SIDE, QUICK_STEP_SIDE = 512, 128  # pixels; with small photos, the optimizer takes most of the time
RATE, CLASSIFIER_RATE = 1e-5, 1e-2
FEATURES = (512, 16, 16)  # channels, height, width of the features of 512-pixel photos
GEM_ROUNDS, COSFACE_ROUNDS = 5, 3
COSFACE_BATCH = 32
MAX_ERROR = 1e-5  # relative to the largest value of an array
MAX_SUM_ERROR = 1e-4  # of a scalar: the gradient of GeM's p sums millions of values that nearly cancel
IMPORTS = ("torch", "torchvision", "benchmarks.plain_network", "cosplace.models.network", "cosplace.training.step")

Tensors = dict[str, np.ndarray]


def no_bf16() -> str | None:
    """Why bfloat16 cannot be measured; None if the processor supports it."""
    from cosplace.device import _cpu_has_bf16

    return None if _cpu_has_bf16() else "this processor does not support bfloat16"


def compare_tensors(plain: Tensors, ours: Tensors) -> str | None:
    """The first array that differs by more than rounding; None if all agree."""
    for name, expected in plain.items():
        error = float(np.abs(expected - ours[name]).max() / max(np.abs(expected).max(), 1e-30))
        maximum = MAX_ERROR if expected.size > 1 else MAX_SUM_ERROR
        if not error <= maximum:
            return f"{name} differs by {error:.2g} of the largest value, more than {maximum:g}"
    return None


# --- the training step -----------------------------------------------------------------------------------------------


def _make_step(folder: Path, size: int, options: Options) -> Path:
    import torch

    from cosplace.models.network import GeoLocalizationNet
    from cosplace.training.cosface import MarginCosineProduct

    generator = torch.Generator().manual_seed(0)
    side = QUICK_STEP_SIDE if options.quick else STEP_SIDE
    torch.save(
        {
            "network": GeoLocalizationNet("ResNet18", DIMENSION, generator=generator).state_dict(),
            "weight": MarginCosineProduct(DIMENSION, NUM_CLASSES, generator=generator).weight.detach(),
            "images": torch.randn(size, 3, side, side, generator=generator),
            "labels": torch.randint(NUM_CLASSES, (size,), generator=generator),
        },
        folder / "step.torch",
    )
    return folder / "step.torch"


def _prepare_plain_step(file: Path) -> Work:
    import torch
    from torch import nn

    from benchmarks.plain_network import PlainMargin, PlainNetwork

    stored = torch.load(file)
    network = PlainNetwork(DIMENSION)
    network.load_state_dict(stored["network"])
    margin, criterion = PlainMargin(stored["weight"]), nn.CrossEntropyLoss()
    optimizers = (
        torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=RATE),
        torch.optim.Adam(margin.parameters(), lr=CLASSIFIER_RATE),
    )
    images, labels = stored["images"], stored["labels"]
    criterion(margin(copy.deepcopy(network.train())(images), labels), labels).backward()

    def step() -> torch.Tensor:
        loss = criterion(margin(network(images), labels), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return lambda: [step().item() for _ in range(NUM_STEPS)]


def _prepare_step(autocast: str | None, file: Path) -> Work:
    import torch

    from cosplace.device import fused_adam, mixed_precision
    from cosplace.models.network import GeoLocalizationNet
    from cosplace.training.cosface import MarginCosineProduct
    from cosplace.training.step import TrainingStep

    stored, device = torch.load(file), torch.device("cpu")
    dtype = None if autocast is None else getattr(torch, autocast)
    network = GeoLocalizationNet("ResNet18", DIMENSION)
    network.load_state_dict(stored["network"])
    network = network.to(memory_format=torch.channels_last)
    classifier = MarginCosineProduct(DIMENSION, NUM_CLASSES)
    classifier.weight.data.copy_(stored["weight"])
    step = TrainingStep(
        forward=network,
        classifier=classifier,
        optimizers=(
            fused_adam([p for p in network.parameters() if p.requires_grad], RATE),
            fused_adam(classifier.parameters(), CLASSIFIER_RATE),
        ),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=device,
        dtype=dtype,
    )
    images, labels = stored["images"].to(memory_format=torch.channels_last), stored["labels"]
    with mixed_precision(device, dtype):
        warm_up_loss = classifier.loss(copy.deepcopy(network.train())(images), labels)
    warm_up_loss.backward()
    return lambda: [step(images, labels).item() for _ in range(NUM_STEPS)]


def _compare_losses(max_error: float, plain: list[float], ours: list[float]) -> str | None:
    error = max(abs(one - other) / abs(one) for one, other in zip(plain, ours, strict=True))
    return None if error <= max_error else f"losses {plain} and {ours} differ by {error:.2g}, more than {max_error:g}"


def _step_stage(name: str, title: str, autocast: str | None, *, max_error: float, **others: Any) -> Stage:
    return Stage(
        name=name,
        title=title,
        unit="photos",
        make_inputs=_make_step,
        plain=Side(prepare=_prepare_plain_step),
        ours=Side(prepare=partial(_prepare_step, autocast)),
        compare=partial(_compare_losses, max_error),
        full_size=4,
        quick_size=2,
        growth_sizes=(2, 4, 8),
        imports=IMPORTS,
        **others,
    )


# --- GeM -------------------------------------------------------------------------------------------------------------


def _make_features(folder: Path, size: int, _: Options) -> Path:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size, *FEATURES), np.float32)
    features = np.abs(features) / np.linalg.norm(features, axis=1, keepdims=True)  # after ReLU and L2
    np.savez(folder / "features.npz", features=features, gradients=rng.standard_normal((size, 512, 1, 1), np.float32))
    return folder / "features.npz"


def _prepare_gem(ours: bool, file: Path) -> Work:
    import torch

    from benchmarks.plain_network import PlainGeM
    from cosplace.models.layers import GeM

    stored = np.load(file)
    gem = GeM() if ours else PlainGeM()
    features, gradients = torch.from_numpy(stored["features"]), torch.from_numpy(stored["gradients"])
    if ours:
        features = features.to(memory_format=torch.channels_last)
    features.requires_grad_()

    def work(rounds: int = GEM_ROUNDS) -> Tensors:
        for _ in range(rounds):
            features.grad = gem.p.grad = None
            pooled = gem(features)
            pooled.backward(gradients)
        found: dict[str, Any] = {"pooled": pooled.detach(), "gradient": features.grad, "gradient of p": gem.p.grad}
        return {name: value.numpy() for name, value in found.items()}

    work(1)
    features.grad = None
    return work


# --- CosFace ---------------------------------------------------------------------------------------------------------


def _make_classes(folder: Path, size: int, _: Options) -> Path:
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((COSFACE_BATCH, DIMENSION), np.float32)
    np.savez(
        folder / "classes.npz",
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        weight=rng.standard_normal((size, DIMENSION), np.float32) / DIMENSION**0.5,
        labels=rng.integers(0, size, COSFACE_BATCH),
    )
    return folder / "classes.npz"


def _prepare_cosface(ours: bool, file: Path) -> Work:
    import torch
    from torch import nn

    from benchmarks.plain_network import PlainMargin
    from cosplace.training.cosface import MarginCosineProduct

    stored = np.load(file)
    descriptors, weight = torch.from_numpy(stored["descriptors"]).requires_grad_(), torch.from_numpy(stored["weight"])
    labels = torch.from_numpy(stored["labels"])
    if ours:
        classifier = MarginCosineProduct(DIMENSION, 1)
        classifier.weight, classifier.out_features = nn.Parameter(weight), len(weight)
        loss_of = classifier.loss
    else:
        classifier, criterion = PlainMargin(weight), nn.CrossEntropyLoss()

        def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return criterion(classifier(inputs, labels), labels)

    def work(rounds: int = COSFACE_ROUNDS) -> Tensors:
        for _ in range(rounds):
            descriptors.grad = classifier.weight.grad = None
            loss = loss_of(descriptors, labels)
            loss.backward()
        found: dict[str, Any] = {
            "loss": loss.detach(), "gradient": descriptors.grad, "gradient of W": classifier.weight.grad
        }  # fmt: skip
        return {name: value.numpy() for name, value in found.items()}

    work(1)
    descriptors.grad = classifier.weight.grad = None
    return work


def _part_stage(name: str, title: str, prepare: Callable[[bool, Path], Work], **others: Any) -> Stage:
    return Stage(
        name=name,
        title=title,
        plain=Side(prepare=partial(prepare, False)),
        ours=Side(prepare=partial(prepare, True)),
        compare=compare_tensors,
        imports=IMPORTS,
        **others,
    )


STAGES = (
    _step_stage(
        "train",
        "ResNet-18 training step, fp32",
        None,
        max_error=1e-3,
        targets={"cpu_ratio": 1.15},
        quick_targets={"cpu_ratio": 0.9},
    ),
    _step_stage(
        "train-bf16",
        "ResNet-18 training step, bf16 compared with fp32",
        "bfloat16",
        max_error=0.03,
        targets={"cpu_ratio": 2.0},
        quick_targets={"cpu_ratio": 1.1},
        unavailable=no_bf16,
    ),
    _part_stage(
        "gem",
        "GeM forward and backward",
        _prepare_gem,
        unit="photos",
        make_inputs=_make_features,
        full_size=32,
        quick_size=8,
        targets={"cpu_ratio": 2.2},
        growth_sizes=(80, 160, 320),  # larger than the caches and than the blocks that the allocator keeps
    ),
    _part_stage(
        "cosface",
        "CosFace and cross-entropy, forward and backward",
        _prepare_cosface,
        unit="classes",
        make_inputs=_make_classes,
        full_size=35_000,
        quick_size=5_000,
        targets={"cpu_ratio": 1.4, "memory_ratio": 1.0},
        growth_sizes=(35_000, 70_000, 140_000),  # larger than the caches
    ),
)
