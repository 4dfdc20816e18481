"""Losses for photos of places: modules of descriptors (B, D) and places (B,) int64 -> loss ().

MultiSimilarity   compares the photos of a batch with each other (Wang et al., "Multi-Similarity Loss", CVPR 2019), with
                  the miner of that paper; near places are no negatives.  From pytorch_metric_learning.
PlaceCosFace      CosFace over all places at once, in which neighbors of the true place are no negatives

Legend: B photos of a batch, C places, D descriptor dimension.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.errors import ConfigError
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.place_batches import PlaceLocations
from cosplace.training.places import Places

# Weights of positives and negatives and the margins of the miner, as Ali-bey et al. chose them for place recognition
# ("GSV-Cities", Neurocomputing 2022).
ALPHA, BETA, BASE, EPSILON = 1.0, 50.0, 0.0, 0.1


def new_loss(name: str, dimension: int, places: Places, *, seed: int) -> nn.Module:
    """The loss with a name, "multi_similarity" or "cosface", for descriptors of a dimension."""
    if name == "multi_similarity":
        return MultiSimilarity(_neighbors_in(places), needed_by="Fine-tuning", instead=" Or use --loss cosface.")
    return PlaceCosFace(dimension, places, seed=seed)


def _neighbors_in(places: Places) -> Callable[[Tensor], Tensor]:
    neighbors = [torch.from_numpy(one) for one in places.neighbors]
    return lambda labels: torch.stack([torch.isin(labels, neighbors[label]) for label in labels.tolist()])


def near_places(locations: PlaceLocations) -> Callable[[Tensor], Tensor]:
    """For `MultiSimilarity`: the pairs of photos of a batch whose places are near."""
    return lambda labels: torch.from_numpy(locations.are_near(labels.numpy()))


class MultiSimilarity(nn.Module):
    """The multi-similarity loss of a batch with several photos of each place; near places are no negatives.

    are_near: from the places (B,) int64 of a batch, on the CPU, to the pairs of photos whose places are near, (B, B)
    bool.  Raises ConfigError without the package; needed_by and instead: what needs it, and what does not.
    """

    def __init__(self, are_near: Callable[[Tensor], Tensor], *, needed_by: str, instead: str = "") -> None:
        super().__init__()
        try:
            from pytorch_metric_learning.distances import CosineSimilarity
            from pytorch_metric_learning.losses import MultiSimilarityLoss
            from pytorch_metric_learning.miners import MultiSimilarityMiner
        except ImportError as error:
            raise ConfigError(
                f"{needed_by} needs pytorch-metric-learning: `pip install 'cosplace[finetune]'`.{instead}"
            ) from error
        self.formula = MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=BASE, distance=CosineSimilarity())
        self.miner = MultiSimilarityMiner(epsilon=EPSILON, distance=CosineSimilarity())
        self.are_near = are_near

    def loss(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss () in float32 or more, also of 16-bit descriptors and in mixed precision."""
        with torch.autocast(descriptors.device.type, enabled=False):
            return self(at_least_float32(descriptors), labels)

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss ()."""
        anchors, positives, others, negatives = self.miner(descriptors, labels)  # pairs of rows
        near = self.are_near(labels.cpu())
        kept = ~near.to(labels.device)[others, negatives]
        return self.formula(descriptors, labels, (anchors, positives, others[kept], negatives[kept]))


class PlaceCosFace(nn.Module):
    """CosFace (see `cosface`) with one classifier for all places; neighbors of the true place have no logit."""

    def __init__(self, dimension: int, places: Places, *, seed: int) -> None:
        super().__init__()
        self.product = MarginCosineProduct(dimension, len(places), generator=torch.Generator().manual_seed(seed))
        self.neighbors = [torch.from_numpy(one) for one in places.neighbors]

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss ()."""
        logits = self.product(descriptors, labels)  # (B, C)
        neighbors = [self.neighbors[label] for label in labels.tolist()]
        rows = torch.repeat_interleave(torch.tensor([len(one) for one in neighbors]))
        hidden = torch.zeros(logits.shape, dtype=torch.bool)
        hidden[rows, torch.cat(neighbors)] = True
        return F.cross_entropy(logits.masked_fill(hidden.to(logits.device), -torch.inf), labels)
