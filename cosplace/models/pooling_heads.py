"""MixVPR, Conv-AP and NetVLAD.

Ali-bey et al., "MixVPR: Feature Mixing for Visual Place Recognition", WACV 2023.  Ali-bey et al., "GSV-Cities: Toward
appropriate supervised visual place recognition", Neurocomputing 2022 (Conv-AP).  Arandjelović et al., "NetVLAD: CNN
architecture for weakly supervised place recognition", CVPR 2016, equation 4.

Legend: B batch, C channels, n = h w positions, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.models.resampling import resample

SHARPNESS = 100.0  # of NetVLAD's assignment before training: its scores are 100 times the cosine


class Mixer(nn.Module):
    """Mix the n positions of each channel: (B, C, n) -> (B, C, n)."""

    def __init__(self, num_positions: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.LayerNorm(num_positions), nn.Linear(num_positions, hidden), nn.ReLU(), nn.Linear(hidden, num_positions)
        )
        for layer in (self.mix[1], self.mix[3]):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Add what two layers over all positions compute."""
        return features + self.mix(features)


class MixVPR(nn.Module):
    """Features (B, C, h, w) -> unit descriptors (B, channels_out x rows) float32.  The token is not used.

    Its layers have one weight per position, so features of another grid are resampled to `grid` first.
    Attributes: out_dim, grid (rows, columns).  Keys: mix, channel_proj, row_proj.
    """

    def __init__(
        self,
        channels: int,
        *,
        grid: tuple[int, int] = (20, 20),
        channels_out: int = 1024,
        rows: int = 4,
        depth: int = 4,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.grid, num_positions = grid, grid[0] * grid[1]
        self.out_dim = channels_out * rows
        self.mix = nn.Sequential(*[Mixer(num_positions, hidden or num_positions) for _ in range(depth)])
        self.channel_proj = nn.Linear(channels, channels_out)
        self.row_proj = nn.Linear(num_positions, rows)

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w)."""
        if torch.compiler.is_compiling() or tuple(features.shape[-2:]) != self.grid:
            features = resample(features, *self.grid)
        mixed = self.mix(features.flatten(2))  # (B, C, n)
        projected = self.channel_proj(mixed.transpose(1, 2)).transpose(1, 2)  # (B, channels_out, n)
        return F.normalize(at_least_float32(self.row_proj(projected).flatten(1)), dim=1)


class ConvAP(nn.Module):
    """A 1 x 1 convolution and the means over a grid of cells: (B, C, h, w) -> (B, dim x rows x columns) float32.

    The token is not used.  Attributes: out_dim.  Keys: channel_pool.
    """

    def __init__(self, channels: int, *, dim: int = 512, cells: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.cells = cells
        self.out_dim = dim * cells[0] * cells[1]
        self.channel_pool = nn.Conv2d(channels, dim, 1)

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w)."""
        projected = at_least_float32(self.channel_pool(features))
        rows = _mean_weights(self.cells[0], projected.shape[-2]).to(projected)
        columns = _mean_weights(self.cells[1], projected.shape[-1]).to(projected)
        return F.normalize((rows @ projected @ columns.T).flatten(1), dim=1)


def _mean_weights(cells: int, size: int) -> Tensor:
    """Matrix (cells, size) of torch's adaptive average pooling; cell i has positions floor(i s/c) to ceil((i+1) s/c).

    A product, because adaptive pooling cannot be exported for maps of any size.
    """
    positions, numbers = torch.arange(size), torch.arange(cells)[:, None]
    inside = (positions * cells >= numbers * size - cells + 1) & (positions * cells < (numbers + 1) * size)
    # floor(i s/c) <= j is the same as i s - c < j c, for whole numbers.
    weights = inside.float()
    return weights / weights.sum(1, keepdim=True)


class NetVLAD(nn.Module):
    """Differences from K centroids, summed by soft assignment: (B, C, h, w) -> (B, K C) float32.

    The token is not used.  Attributes: out_dim.  Keys: conv, centroids.
    """

    def __init__(self, channels: int, *, num_clusters: int = 64) -> None:
        super().__init__()
        self.out_dim = num_clusters * channels
        self.conv = nn.Conv2d(channels, num_clusters, 1, bias=False)
        self.centroids = nn.Parameter(F.normalize(torch.randn(num_clusters, channels), dim=1))
        with torch.no_grad():
            self.conv.weight.copy_(SHARPNESS * self.centroids[:, :, None, None])

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w)."""
        features = F.normalize(at_least_float32(features), dim=1).to(self.conv.weight.dtype)
        shares = at_least_float32(self.conv(features).flatten(2)).softmax(1)  # (B, K, n)
        sums = shares @ at_least_float32(features.flatten(2)).transpose(1, 2)  # (B, K, C)
        differences = sums - shares.sum(2, keepdim=True) * at_least_float32(self.centroids)
        return F.normalize(F.normalize(differences, dim=2).flatten(1), dim=1)
