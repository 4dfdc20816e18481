"""SALAD: features assigned to clusters by optimal transport, and MegaLoc, which projects the result.

Izquierdo and Civera, "Optimal Transport Aggregation for Visual Place Recognition", CVPR 2024; Berton and Masone,
"MegaLoc: One Retrieval to Place Them All", CVPRW 2025.  Written from the formulas.

Legend: B batch, C channels, n patches, M clusters, L dimensions of a cluster, T of the token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.errors import InputSizeError
from cosplace.models.layers import L2Norm

HIDDEN = 512  # channels between the two layers of each head
DROPOUT = 0.3
SINKHORN_ITERATIONS = 3


class OptimalTransport(nn.Module):
    """SALAD: features (B, C, h, w) and the token (B, C) -> unit descriptors (B, T + L M) float32.

    Each cluster receives a share of the features, and features that belong to no cluster go into a dustbin.  A cluster
    is the sum of its shares; the descriptor is the token's own features, then the clusters, each of length 1.
    Without a token, the mean of the features stands in for it.  Needs more than M patches, which InputSizeError says.

    Attributes: out_dim.  Keys: token_features, cluster_features, score, dust_bin.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_clusters: int = 64,
        cluster_dim: int = 128,
        token_dim: int = 256,
        hidden: int = HIDDEN,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.out_dim = token_dim + num_clusters * cluster_dim

        def head(out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, hidden, 1), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(hidden, out, 1)
            )

        self.token_features = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, token_dim))
        self.cluster_features = head(cluster_dim)
        self.score = head(num_clusters)
        self.dust_bin = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w) and the token (B, C)."""
        if not torch.compiler.is_compiling():
            check_patches(features, self.num_clusters)
        token = features.mean((2, 3)) if token is None else token
        scores = at_least_float32(self.score(features).flatten(2))  # (B, M, n)
        shares = transport(scores, at_least_float32(self.dust_bin))  # (B, M, n)
        values = at_least_float32(self.cluster_features(features).flatten(2))  # (B, L, n)
        clusters = F.normalize(values @ shares.transpose(1, 2), dim=1)  # (B, L, M)
        own = F.normalize(at_least_float32(self.token_features(token)), dim=1)  # (B, T)
        return F.normalize(torch.cat([own, clusters.flatten(1)], dim=1), dim=1)


def check_patches(features: Tensor, num_clusters: int) -> None:
    """Raise InputSizeError unless features (B, C, h, w) have more patches than there are clusters."""
    height, width = features.shape[-2:]
    if height * width <= num_clusters:
        raise InputSizeError(
            f"A photo has {width} x {height} = {width * height} patches, but the model needs more than {num_clusters}: "
            f"it assigns them to {num_clusters} clusters. With patches of 14 pixels, photos need sides of at least "
            f"126 pixels.",
            "use a larger --image_size",
            "use larger photos",
        )


def transport(scores: Tensor, dust_bin: Tensor, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Share (B, M, n) of each feature in each cluster, from scores (B, M, n) and the dustbin's score.

    Sinkhorn in log space (Cuturi, NIPS 2013).  Each feature is distributed completely (columns sum to 1), each cluster
    receives a total of 1 and the dustbin the remaining n - M.  The marginals of the paper are these divided by n + M,
    which cancels in the result.
    """
    batch, num_clusters, _ = scores.shape
    plan = torch.cat([scores, dust_bin.expand(batch, 1, scores.shape[2])], dim=1)  # (B, M + 1, n)
    num_patches = torch.ones_like(scores[0, 0]).sum()  # counted, so that exported networks accept any size
    rows = torch.cat([scores.new_zeros(num_clusters), (num_patches - num_clusters).log()[None]])[:, None]
    by_column = torch.zeros_like(plan[:, :1])  # (B, 1, n)
    by_row = torch.zeros_like(plan[:, :, :1])  # (B, M + 1, 1)
    for _ in range(iterations):
        by_row = rows - (plan + by_column).logsumexp(2, keepdim=True)
        by_column = -(plan + by_row).logsumexp(1, keepdim=True)
    return (plan + by_row + by_column)[:, :num_clusters].exp()


class Projected(nn.Module):
    """An aggregation, a linear layer and L2 normalization: features (B, C, h, w), token -> (B, dim) float32.

    With OptimalTransport of 64 clusters of 256 dimensions and dim 8448, this is MegaLoc.  Keys: agg, linear.
    Attributes: out_dim.
    """

    def __init__(self, aggregation: nn.Module, dim: int) -> None:
        super().__init__()
        self.agg = aggregation
        self.linear = nn.Linear(int(aggregation.out_dim), dim)  # ty: ignore[invalid-argument-type]
        self.norm = L2Norm()

    @property
    def out_dim(self) -> int:
        """Dimension of the descriptors."""
        return self.linear.out_features

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate, project and normalize."""
        return self.norm(self.linear(self.agg(features, token).to(self.linear.weight.dtype)))
