"""Compare an exported file with the network it was made from: descriptors, recall, latency.

Legend: B photos, D descriptor dimension.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.errors import ExportError
from cosplace.models.inference import optimize_for_inference
from cosplace.photos.normalization import normalize
from cosplace.photos.resizing import resize
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import EvaluationSettings, evaluate
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.recall import RECALL_VALUES

SIZES = ((1, 224, 224), (2, 227, 301), (3, 97, 131), (1, 480, 640), (2, 333, 251))
"""(B, H, W) that every file is checked with: usual and unusual sizes, wide and tall, one photo and several."""
NUM_PHOTOS = 16
NUM_TIMED_RUNS = 9  # of each network
NUM_WARMUP_RUNS = 2
MAX_TIMING_S = 5.0  # after this time, two timed runs are enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much descriptors of an exported file differ from PyTorch's, for photos of one size."""

    size: tuple[int, int, int]  # B, H, W
    largest: float  # of any value of a descriptor
    least_cosine: float
    mean_cosine: float

    def limited_value(self, precision: str) -> float:
        """The value that --max_difference limits: for fp32 the largest difference, else 1 - least cosine similarity."""
        return self.largest if precision == "fp32" else 1 - self.least_cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An exported file compared with PyTorch."""

    precision: str
    photos: str  # which photos were compared
    differences: tuple[Difference, ...]
    latency_size: tuple[int, int]  # H, W
    pytorch_ms: float  # median latency of one photo
    exported_ms: float
    num_threads: int
    dataset: str | None  # the dataset of the recalls
    num_queries: int
    pytorch_recalls: dict[int, float] | None  # percent
    exported_recalls: dict[int, float] | None

    @property
    def worst(self) -> Difference:
        """The difference for the size at which it is largest."""
        return max(self.differences, key=lambda difference: difference.limited_value(self.precision))

    @property
    def mean_cosine(self) -> float:
        """Mean cosine similarity to PyTorch over all photos."""
        num_photos = [difference.size[0] for difference in self.differences]
        return float(np.average([difference.mean_cosine for difference in self.differences], weights=num_photos))

    @property
    def recall_loss(self) -> float | None:
        """Largest loss of recall in percentage points, negative if the file is better; None if it was not measured."""
        if self.pytorch_recalls is None or self.exported_recalls is None:
            return None
        return max(self.pytorch_recalls[k] - self.exported_recalls[k] for k in self.pytorch_recalls)

    def check_limits(self, difference_limit: float, recall_limit: float) -> None:
        """Raise ExportError if the file differs more from PyTorch than the limits allow."""
        worst = self.worst
        # Written with `not` so that NaN fails too.
        if not worst.limited_value(self.precision) <= difference_limit:
            fp32 = self.precision == "fp32"
            name = "descriptors" if fp32 else "1 - cosine similarity of descriptors"
            advice = "Use another version of torch" if fp32 else "Use another --precision"
            _, height, width = worst.size
            raise ExportError(
                f"The check failed and no file was written: {name} of {self.precision} and PyTorch differ by "
                f"{worst.limited_value(self.precision):.2g} at {width} x {height} pixels, more than "
                f"{difference_limit:g}. {advice}, or allow more with --max_difference."
            )
        loss = self.recall_loss
        if loss is not None and not loss <= max(recall_limit, 100 / self.num_queries + 1e-9):
            raise ExportError(
                f"The check failed and no file was written: recall on {self.dataset} falls by {loss:.1f} points, more "
                f"than {recall_limit:g}. Use another --precision, or allow more with --max_recall_loss."
            )

    def summary_lines(self) -> list[str]:
        """Format the results as lines of text."""
        lines = [f"compared with PyTorch on {self.photos}:"]
        for difference in self.differences:
            batch, height, width = difference.size
            lines.append(
                f"  {batch:2d} x {width} x {height} pixels: largest difference {difference.largest:.1e}, "
                f"least cosine similarity {difference.least_cosine:.6f}"
            )
        lines.append(
            f"  overall: largest difference {max(d.largest for d in self.differences):.1e}, least cosine similarity "
            f"{min(d.least_cosine for d in self.differences):.6f}, mean {self.mean_cosine:.6f}"
        )
        height, width = self.latency_size
        lines.append(
            f"  one photo of {width} x {height} pixels: PyTorch {self.pytorch_ms:.1f} ms, the file "
            f"{self.exported_ms:.1f} ms ({self.num_threads} threads)"
        )
        for name, recalls in (("PyTorch", self.pytorch_recalls), ("the file", self.exported_recalls)):
            if recalls is not None:
                shown = ", ".join(f"R@{k}: {recall:.1f}" for k, recall in recalls.items())
                lines.append(f"  {self.dataset}, {name}: {shown}")
        return lines


# --- photos ----------------------------------------------------------------------------------------------------------


def resized_batches(photos: Sequence[Tensor], sizes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """A batch (B, 3, H, W) uint8 for each size (B, H, W), filled with photos (3, h, w) in turn."""
    batches, num_used = [], 0
    for batch, height, width in sizes:
        chosen = [photos[(num_used + number) % len(photos)] for number in range(batch)]
        num_used += batch
        resized = [resize(photo, height, width) for photo in chosen]
        batches.append(torch.stack(resized))
    return batches


# --- comparisons -----------------------------------------------------------------------------------------------------


def find_differences(network: nn.Module, exported: nn.Module, batches: Sequence[Tensor]) -> tuple[Difference, ...]:
    """Differences between the descriptors of two networks, one per batch of photos (B, 3, H, W) uint8."""
    differences = []
    for batch in batches:
        images = normalize(batch)
        with torch.inference_mode():
            expected, found = network(images).double(), exported(images).double()  # (B, D)
        if expected.shape != found.shape:
            raise ExportError(
                f"The file returns descriptors of shape {tuple(found.shape)}, PyTorch {tuple(expected.shape)}. Use "
                f"another version of torch."
            )
        cosines = functional.cosine_similarity(expected, found, dim=1)  # (B,)
        differences.append(
            Difference(
                size=(batch.shape[0], batch.shape[2], batch.shape[3]),
                largest=float((expected - found).abs().max()),
                least_cosine=float(cosines.min()),
                mean_cosine=float(cosines.mean()),
            )
        )
    return tuple(differences)


def merge_by_size(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """Merge the differences of batches whose photos have the same height and width."""
    by_size: dict[tuple[int, int], list[Difference]] = {}
    for difference in differences:
        by_size.setdefault(difference.size[1:], []).append(difference)
    merged = []
    for (height, width), group in by_size.items():
        num_photos = sum(difference.size[0] for difference in group)
        merged.append(
            Difference(
                size=(num_photos, height, width),
                largest=max(difference.largest for difference in group),
                least_cosine=min(difference.least_cosine for difference in group),
                mean_cosine=sum(difference.size[0] * difference.mean_cosine for difference in group) / num_photos,
            )
        )
    return tuple(merged)


def compare_recalls(
    network: nn.Module,
    exported: nn.Module,
    dataset: RetrievalDataset,
    image_size: int | None,
    progress: Progress = no_progress,
) -> tuple[dict[int, float], dict[int, float]]:
    """Recalls of both networks, measured as `cosplace eval` does.  Raises what `evaluate` raises."""
    settings = EvaluationSettings(
        extraction=ExtractionSettings(image_size=image_size),
        recall_values=[k for k in RECALL_VALUES if k <= len(dataset.database)],
    )
    recalls = [
        evaluate(model, dataset, settings, progress=part_of(progress, f"recall of {name}")).recalls
        for name, model in (("PyTorch", network), ("the file", exported))
    ]
    return recalls[0], recalls[1]


def measure_latency_ms(
    network: nn.Module, exported: nn.Module, photo: Tensor, num_runs: int = NUM_TIMED_RUNS
) -> tuple[float, float]:
    """Median milliseconds of both networks for one photo (3, H, W) uint8; PyTorch runs as in `extract`."""
    fast = optimize_for_inference(network)
    images = normalize(photo[None])
    times: tuple[list[float], list[float]] = [], []
    first_started = time.perf_counter()
    with torch.inference_mode():
        for run in range(NUM_WARMUP_RUNS + num_runs):
            if run >= NUM_WARMUP_RUNS + 2 and time.perf_counter() - first_started > MAX_TIMING_S:
                break
            for model, model_times in zip((fast, exported), times, strict=True):
                started = time.perf_counter()
                model(images)
                if run >= NUM_WARMUP_RUNS:  # the first runs allocate memory
                    model_times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[0]), statistics.median(times[1])
