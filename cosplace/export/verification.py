"""An exported file against the network it was made from: descriptors, recall, time.

Legend: B photos, D descriptor dimension.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cosplace.export.settings import ExportError
from cosplace.models.inference import for_inference
from cosplace.models.reduction import ReducedNetwork
from cosplace.photos.normalization import normalize
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import evaluate
from cosplace.retrieval.recall import RECALL_VALUES

SIZES = ((1, 224, 224), (2, 227, 301), (3, 97, 131), (1, 480, 640), (2, 333, 251))
"""B, H, W that every file is checked at: usual ones and odd ones, wide and tall, one photo and several."""
NUM_PHOTOS = 16
TURNS = 9  # of each side when time is measured
PATIENCE_S = 5.0  # then two turns do

Progress = Callable[[str, int, int, str], None]  # (what, done, total, note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far descriptors of an exported file are from PyTorch's, for photos of one size."""

    size: tuple[int, int, int]  # B, H, W
    largest: float  # of any number of a descriptor
    least_cosine: float
    mean_cosine: float

    def of(self, precision: str) -> float:
        """What is limited: the largest difference in fp32, else 1 - the least cosine similarity."""
        return self.largest if precision == "fp32" else 1 - self.least_cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was seen of an exported file beside PyTorch."""

    precision: str
    photos: str  # which photos
    differences: tuple[Difference, ...]
    latency_size: tuple[int, int]  # H, W
    pytorch_ms: float  # one photo, median
    exported_ms: float
    num_threads: int
    dataset: str | None
    num_queries: int
    pytorch_recalls: dict[int, float] | None  # percent
    exported_recalls: dict[int, float] | None

    @property
    def worst(self) -> Difference:
        """The size at which the file is farthest from PyTorch."""
        return max(self.differences, key=lambda difference: difference.of(self.precision))

    @property
    def mean_cosine(self) -> float:
        """Mean cosine similarity to PyTorch, of all photos and sizes."""
        weights = [difference.size[0] for difference in self.differences]
        return float(np.average([difference.mean_cosine for difference in self.differences], weights=weights))

    @property
    def recall_loss(self) -> float | None:
        """Largest loss of recall, in percentage points; negative where the file is better."""
        if self.pytorch_recalls is None or self.exported_recalls is None:
            return None
        return max(self.pytorch_recalls[k] - self.exported_recalls[k] for k in self.pytorch_recalls)

    def require(self, difference_limit: float, recall_limit: float) -> None:
        """Raise ExportError when the file is farther from PyTorch than allowed."""
        worst = self.worst
        # Written so that NaN fails too.
        if not worst.of(self.precision) <= difference_limit:
            fp32 = self.precision == "fp32"
            what = "descriptors" if fp32 else "1 - cosine similarity of descriptors"
            cure = "try another version of torch" if fp32 else "use another --precision"
            _, height, width = worst.size
            raise ExportError(
                f"The check failed and no file was written: {what} of {self.precision} and PyTorch differ by "
                f"{worst.of(self.precision):.2g} at {width} x {height} pixels, more than {difference_limit:g}: "
                f"{cure}, or allow more with --max_difference."
            )
        loss = self.recall_loss
        if loss is not None and not loss <= max(recall_limit, 100 / self.num_queries + 1e-9):
            raise ExportError(
                f"The check failed and no file was written: recall on {self.dataset} falls by {loss:.1f} points, more "
                f"than {recall_limit:g}: use another --precision, or allow more with --max_recall_loss."
            )

    def lines(self) -> list[str]:
        """What was checked, for people."""
        rows = [f"checked against PyTorch on {self.photos}:"]
        for difference in self.differences:
            batch, height, width = difference.size
            rows.append(
                f"  {batch:2d} x {width} x {height} pixels: largest difference {difference.largest:.1e}, "
                f"least cosine similarity {difference.least_cosine:.6f}"
            )
        rows.append(
            f"  in all: largest difference {max(d.largest for d in self.differences):.1e}, cosine similarity at least "
            f"{min(d.least_cosine for d in self.differences):.6f}, {self.mean_cosine:.6f} in the mean"
        )
        height, width = self.latency_size
        rows.append(
            f"  one photo of {width} x {height} pixels: PyTorch {self.pytorch_ms:.1f} ms, the file "
            f"{self.exported_ms:.1f} ms ({self.num_threads} threads)"
        )
        for name, recalls in (("PyTorch", self.pytorch_recalls), ("the file", self.exported_recalls)):
            if recalls is not None:
                shown = ", ".join(f"R@{k}: {recall:.1f}" for k, recall in recalls.items())
                rows.append(f"  {self.dataset}, {name}: {shown}")
        return rows


# --- photos ----------------------------------------------------------------------------------------------------------


def made_photos(count: int, seed: int = 0) -> list[Tensor]:
    """Photos (3, 512, 512) uint8 for models without any: blurred color with detail of every scale."""
    generator = torch.Generator().manual_seed(seed)
    photos = []
    for _ in range(count):
        photo = torch.zeros(1, 3, 512, 512)
        for side in (4, 16, 64, 256):
            layer = torch.randn(1, 3, side, side, generator=generator)
            photo += functional.interpolate(layer, (512, 512), mode="bicubic") * (4 / side) ** 0.5
        photos.append((127 + 60 * photo[0]).clamp(0, 255).byte())
    return photos


def batches_of(photos: Sequence[Tensor], sizes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """For each (B, H, W) a batch (B, 3, H, W) uint8 of photos (3, h, w), which take turns."""
    batches, at = [], 0
    for batch, height, width in sizes:
        chosen = [photos[(at + place) % len(photos)] for place in range(batch)]
        at += batch
        batches.append(
            torch.stack(
                [resize(photo, [height, width], InterpolationMode.BILINEAR, antialias=True) for photo in chosen]
            )
        )
    return batches


# --- comparisons -----------------------------------------------------------------------------------------------------


def find_differences(network: nn.Module, exported: nn.Module, batches: Sequence[Tensor]) -> tuple[Difference, ...]:
    """Differences between two networks, one for each batch of photos (B, 3, H, W) uint8 of one size."""
    found = []
    for batch in batches:
        images = normalize(batch)
        with torch.inference_mode():
            expected, given = network(images).double(), exported(images).double()  # (B, D)
        if expected.shape != given.shape:
            raise ExportError(f"The file gives {tuple(given.shape)} where PyTorch gives {tuple(expected.shape)}.")
        cosines = functional.cosine_similarity(expected, given, dim=1)  # (B,)
        found.append(
            Difference(
                size=(batch.shape[0], batch.shape[2], batch.shape[3]),
                largest=float((expected - given).abs().max()),
                least_cosine=float(cosines.min()),
                mean_cosine=float(cosines.mean()),
            )
        )
    return tuple(found)


def compare_recalls(
    network: nn.Module, exported: nn.Module, dataset: RetrievalDataset, image_size: int | None, progress: Progress
) -> tuple[dict[int, float], dict[int, float]]:
    """Recalls of both by the protocol of `cosplace eval`.  Raises as `evaluate` does."""
    values = [k for k in RECALL_VALUES if k <= len(dataset.database)]
    recalls = []
    for name, model in (("PyTorch", network), ("the file", exported)):
        evaluation = evaluate(
            model,
            dataset,
            image_size=image_size,
            recall_values=values,
            progress=lambda done, total, name=name: progress(f"recall of {name}", done, total, ""),
        )
        recalls.append(evaluation.recalls)
    return recalls[0], recalls[1]


def measure_ms(network: nn.Module, exported: nn.Module, photo: Tensor, turns: int = TURNS) -> tuple[float, float]:
    """Milliseconds that each takes for one photo (3, H, W) uint8, the median of turns; PyTorch as `extract` runs it."""
    fast = for_inference(network.network) if isinstance(network, ReducedNetwork) else for_inference(network)
    images = normalize(photo[None])
    times: tuple[list[float], list[float]] = [], []
    begun = time.perf_counter()
    with torch.inference_mode():
        for turn in range(turns + 2):
            if turn >= 4 and time.perf_counter() - begun > PATIENCE_S:
                break
            for model, taken in zip((fast, exported), times, strict=True):
                started = time.perf_counter()
                model(images)
                if turn >= 2:  # the first ones allocate
                    taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[0]), statistics.median(times[1])
