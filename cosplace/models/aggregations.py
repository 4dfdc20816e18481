"""Aggregations by name: features of a photo become one descriptor.

All have one interface: (features (B, C, h, w), token) -> unit descriptors (B, out_dim) float32.  The token is None,
the class token (B, C) of a transformer, or for `tokens` its learned tokens (B, T, C).

    gem       generalized mean and a linear layer, as in CosPlace          Berton et al., CVPR 2022
    salad     optimal transport into clusters; uses the class token        Izquierdo and Civera, CVPR 2024
    boq       learned queries attend to the features                       Ali-bey et al., CVPR 2024
    mixvpr    layers over all positions; one grid of features              Ali-bey et al., WACV 2023
    conv_ap   means over four cells                                        Ali-bey et al., Neurocomputing 2022
    netvlad   differences from centroids                                   Arandjelović et al., CVPR 2016
    tokens    tokens that the transformer itself learned to aggregate      ImAge, NeurIPS 2025
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.errors import ConfigError
from cosplace.models.boq import BagOfQueries
from cosplace.models.layers import GeM, L2Norm
from cosplace.models.optimal_transport import OptimalTransport, Projected
from cosplace.models.pooling_heads import ConvAP, MixVPR, NetVLAD

AGGREGATIONS = ("gem", "salad", "boq", "mixvpr", "conv_ap", "netvlad", "tokens")
NUM_TOKENS = 8  # of `tokens`
ROWS = 4  # rows of MixVPR, cells of Conv-AP


class Aggregation(Protocol):
    """What all aggregations are."""

    out_dim: int

    def __call__(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w) and a token into descriptors (B, out_dim)."""
        ...


class GeMHead(nn.Sequential):
    """The aggregation of CosPlace, with its keys 1.p, 3.weight and 3.bias: (B, C, h, w) -> (B, dim) float32."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(L2Norm(), GeM(), nn.Flatten(), nn.Linear(channels, dim), L2Norm())
        self.out_dim = dim

    def forward(self, input: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features; the token is not used."""
        return super().forward(input)


class LearnedTokens(nn.Module):
    """Learned tokens (B, T, C), one after another -> unit descriptors (B, T C) float32.  The features are not used."""

    def __init__(self, channels: int, num_tokens: int = NUM_TOKENS) -> None:
        super().__init__()
        self.out_dim = num_tokens * channels

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Concatenate the tokens.  Raises ConfigError without them."""
        if token is None or token.ndim != 3:
            raise ConfigError("The aggregation 'tokens' needs a transformer with learned tokens. Use another one.")
        return F.normalize(at_least_float32(token.flatten(1)), dim=1)


def build_aggregation(
    name: str, channels: int, dim: int | None = None, *, grid: tuple[int, int] | None = None
) -> nn.Module:
    """Build an aggregation with random weights from torch's global generator.

    name: one of AGGREGATIONS; channels: of the features, C; dim: of the descriptors, None for the method's own.  Salad,
    boq, netvlad and tokens get a linear layer at their end when `dim` is not their own dimension, as MegaLoc has.
    grid: rows and columns of the features, for mixvpr only; other grids are resampled to it.
    Raises ConfigError for an unknown name or a dimension that the method cannot have.
    """
    if dim is not None and dim < 1:
        raise ConfigError(f"The descriptor dimension must be at least 1, got {dim}. Use for example 512.")
    if name == "gem":
        return GeMHead(channels, dim or channels)
    if name in ("mixvpr", "conv_ap"):
        if dim is not None and dim % ROWS:
            raise ConfigError(f"The aggregation '{name}' needs a multiple of {ROWS} dimensions, got {dim}. Use 512.")
        if name == "mixvpr":
            return MixVPR(channels, grid=grid or (20, 20), channels_out=(dim or 4096) // ROWS, rows=ROWS)
        return ConvAP(channels, dim=(dim or 2048) // ROWS, cells=(2, ROWS // 2))
    if name not in AGGREGATIONS:
        raise ConfigError(f"Unknown aggregation '{name}'. Use {', '.join(AGGREGATIONS)}.")
    builders = {"salad": OptimalTransport, "boq": BagOfQueries, "netvlad": NetVLAD, "tokens": LearnedTokens}
    aggregation = builders[name](channels)
    return aggregation if dim in (None, aggregation.out_dim) else Projected(aggregation, dim)
