"""Smaller descriptors: an affine map after a network, then L2 normalization again.

Four methods.  truncation: the first d dimensions.  pca: the d directions of largest variance (Jolliffe, "Principal
Component Analysis", 2002).  pca_whitening: the same directions, each divided by its standard deviation (Jégou and Chum,
ECCV 2012).  pca_uncentered: the d directions of largest mean square, without subtracting the mean.  Rows are in order
of variance, so the first n rows of a reduction to d are the reduction to n.

    y = x W' + b, then y / |y|        x (B, D) -> y (B, d);  W (d, D), b (d,)

truncation and pca_uncentered have b = 0.  A network that ends in a linear layer and L2 normalization, x = u / |u| with
u = A z + c, then needs no second layer: W x / |W x| = (W A z + W c) / |W A z + W c|.  See `fold_reduction`.

Legend: D dimensions of the network, d of the reduction, n descriptors.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.optimal_transport import Projected

METHODS = ("pca_whitening", "pca", "pca_uncentered", "truncation")
WHITENING_FLOOR = 1e-2  # of the largest variance, added to each: directions below it hold more noise than places


class Reduction(nn.Module):
    """Descriptors (B, D) -> unit descriptors (B, d) float32.

    weight: (d, D) float32; bias: (d,) float32; method: one of METHODS.  Raises ConfigError for other shapes.
    """

    def __init__(self, weight: Tensor, bias: Tensor, method: str) -> None:
        super().__init__()
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not 1 <= len(weight) <= weight.shape[1]:
            raise ConfigError(
                f"A reduction needs a weight (d, D) and a bias (d,) with 1 <= d <= D, got {list(weight.shape)} and "
                f"{list(bias.shape)}. Fit it again with `cosplace reduce`."
            )
        _check_method(method)
        self.method = method
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    @property
    def in_dim(self) -> int:
        """Dimensions before the reduction, D."""
        return self.weight.shape[1]

    @property
    def out_dim(self) -> int:
        """Dimensions after the reduction, d."""
        return self.weight.shape[0]

    def forward(self, descriptors: Tensor) -> Tensor:
        """Reduce descriptors (B, D) to unit descriptors (B, d)."""
        return functional.normalize(functional.linear(descriptors.float(), self.weight, self.bias), dim=1)

    def first(self, dims: int) -> "Reduction":
        """Keep only the first `dims` dimensions.  Raises ConfigError when there are fewer."""
        _check_dims(dims, self.out_dim)
        return Reduction(self.weight[:dims].clone(), self.bias[:dims].clone(), self.method)

    def extra_repr(self) -> str:
        """Sizes and method, for `print`."""
        return f"{self.in_dim} -> {self.out_dim}, method={self.method}"


class ReducedNetwork(nn.Module):
    """A network and a reduction of its descriptors: normalized images (B, 3, H, W) -> unit descriptors (B, d).

    Attributes: network, reduction, fc_output_dim (d).
    """

    def __init__(self, network: nn.Module, reduction: Reduction) -> None:
        super().__init__()
        network_dim = getattr(network, "fc_output_dim", reduction.in_dim)
        if network_dim != reduction.in_dim:
            raise CheckpointError(
                f"The reduction takes {reduction.in_dim} dimensions but the network has {network_dim}. Fit it again "
                f"with `cosplace reduce`."
            )
        self.network = network
        self.reduction = reduction

    @property
    def fc_output_dim(self) -> int:
        """Dimension of the reduced descriptors."""
        return self.reduction.out_dim

    def forward(self, images: Tensor) -> Tensor:
        """Compute reduced descriptors (B, d) float32 of ImageNet-normalized images (B, 3, H, W)."""
        return self.reduction(self.network(images))


def unreduced(network: nn.Module) -> nn.Module:
    """Network without its reduction; `network` itself if it has none."""
    return network.network if isinstance(network, ReducedNetwork) else network


def first_dimensions(network: nn.Module, dims: int) -> nn.Module:
    """Keep only the first `dims` dimensions of a reduced network; one with a folded reduction is changed itself.

    Raises ConfigError when there are fewer, or when the network has no reduction: its dimensions are in no order.
    """
    if not isinstance(network, ReducedNetwork):
        dimension = getattr(network, "fc_output_dim", None)
        if dimension == dims:
            return network
        if has_ordered_dimensions(network) and dimension is not None:
            return fold_reduction(network, truncation(dimension, dims))
        raise ConfigError(
            f"The model has no reduction, so {dims} dimensions must be fitted on photos first: "
            f"`cosplace reduce MODEL --on FOLDER --to FILE.safetensors --dims {dims}`."
        )
    if network.reduction.out_dim == dims:
        return network
    return ReducedNetwork(network.network, network.reduction.first(dims))


# --- into the last linear layer --------------------------------------------------------------------------------------


def last_linear(network: nn.Module) -> nn.Linear | None:
    """The linear layer before the last L2 normalization of a network; None if it does not end in these two."""
    if isinstance(network, GeoLocalizationNet) and network.design is None:
        layer = network.aggregation.get_submodule("3")
        return layer if isinstance(layer, nn.Linear) else None
    if isinstance(network, NativeNetwork) and isinstance(network.aggregator, Projected):
        return network.aggregator.linear
    return None


def can_fold(network: nn.Module, reduction: Reduction) -> bool:
    """Whether a reduction can be multiplied into the network's last linear layer: it must not subtract a mean."""
    return last_linear(network) is not None and not reduction.bias.any()


def fold_reduction(network: nn.Module, reduction: Reduction) -> nn.Module:
    """Multiply a reduction into the network's last linear layer, and return the network, which is changed.

    The descriptors are the same as reduced afterwards, up to rounding, with fewer parameters: `can_fold` must hold.
    """
    linear = last_linear(network)
    assert linear is not None and can_fold(network, reduction)
    weight = reduction.weight.cpu().double()
    folded = nn.Linear(linear.in_features, reduction.out_dim, bias=linear.bias is not None, device="meta")
    folded.weight = nn.Parameter((weight @ linear.weight.detach().cpu().double()).to(linear.weight))
    if linear.bias is not None:
        folded.bias = nn.Parameter((weight @ linear.bias.detach().cpu().double()).to(linear.bias))
    if isinstance(network, GeoLocalizationNet):
        setattr(network.aggregation, "3", folded)
        network.fc_output_dim = reduction.out_dim
    elif isinstance(network, NativeNetwork) and isinstance(network.aggregator, Projected):
        network.aggregator.linear = folded
    return mark_ordered(network)


def mark_ordered(network: nn.Module) -> nn.Module:
    """Mark a network whose dimensions are in order of importance, because a reduction is folded into it."""
    network.__dict__["has_ordered_dimensions"] = True
    return network


def has_ordered_dimensions(network: nn.Module) -> bool:
    """Whether the first dimensions of a network can be used alone: it has a reduction, maybe a folded one."""
    return isinstance(network, ReducedNetwork) or getattr(network, "has_ordered_dimensions", False) is True


def num_parameters(network: nn.Module) -> int:
    """Numbers that a network and its reduction store, without statistics of batch norms."""
    reductions = [part for part in network.modules() if isinstance(part, Reduction)]
    fixed = sum(value.numel() for part in reductions for value in part.buffers())
    return sum(value.numel() for value in network.parameters()) + fixed


def _check_dims(dims: int, available: int) -> None:
    if not 1 <= dims <= available:
        raise ConfigError(f"The number of dimensions must be from 1 to {available}, got {dims}.")


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ConfigError(f"Unknown reduction '{method}'. Use {', '.join(METHODS)}.")


# --- fitting ---------------------------------------------------------------------------------------------------------


class Moments:
    """Mean and covariance, in float64, of descriptors that arrive in pieces; no piece is kept.

    Pieces are merged with the formulas of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)  # (D,)
        self.scatter = np.zeros((0, 0))  # (D, D), sum of (x - mean)(x - mean)'

    def add(self, rows: np.ndarray) -> None:
        """Include descriptors (n, D)."""
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        rows -= mean
        if self.count == 0:
            self.mean, self.scatter = np.zeros_like(mean), np.zeros((len(mean), len(mean)))
        total = self.count + len(rows)
        step = mean - self.mean
        self.scatter += rows.T @ rows + np.outer(step, step) * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Covariance (D, D), divided by n - 1."""
        return self.scatter / max(1, self.count - 1)


def principal_components(covariance: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Variances (d,) and directions (d, D) of the `dims` directions of largest variance, largest first.

    covariance: (D, D) float64.  The signs of the directions are arbitrary.
    """
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    return variances.flip(0)[:dims].clamp(min=0), directions.flip(1)[:, :dims].T


def whitening(covariance: Tensor, dims: int, floor: float) -> Tensor:
    """PCA whitening matrix (d, D): direction i divided by sqrt(variance_i + floor * largest variance).

    covariance: (D, D) float64.  floor: keeps directions that hold only noise from becoming large.
    """
    variances, directions = principal_components(covariance, dims)
    return (variances + floor * variances[0]).rsqrt()[:, None] * directions


def truncation(dimension: int, dims: int) -> Reduction:
    """Reduction that keeps the first `dims` of `dimension` dimensions.  Raises ConfigError when there are fewer."""
    _check_dims(dims, dimension)
    return Reduction(torch.eye(dims, dimension), torch.zeros(dims), "truncation")


def fit(descriptors: Iterable[np.ndarray], dims: int, method: str = "pca_whitening") -> Reduction:
    """Fit a reduction to `dims` dimensions on descriptors that arrive in pieces (n, D).

    Each row of the weight has its sign chosen so that its largest entry is positive: the same descriptors always give
    the same reduction.  Raises ConfigError when D or the number of descriptors is too small for `dims`, or when all
    descriptors are equal.
    """
    _check_method(method)
    moments = Moments()
    for piece in descriptors:
        moments.add(piece)
        _check_dims(dims, piece.shape[1])  # after the first piece, not after an hour
        if method == "truncation":
            return truncation(piece.shape[1], dims)
    if moments.count <= dims:
        raise ConfigError(
            f"{moments.count} photos are too few to fit {dims} dimensions. Use at least {dims + 1} photos (better "
            f"{10 * dims}), or choose fewer dimensions."
        )
    covariance = torch.from_numpy(moments.covariance)
    mean = torch.from_numpy(moments.mean)
    if not covariance.diagonal().max() > 0:
        raise ConfigError("All photos have the same descriptor, so no reduction can be fitted. Use other photos.")
    if method == "pca_whitening":
        weight = whitening(covariance, dims, WHITENING_FLOOR)
    else:
        if method == "pca_uncentered":  # mean of x x'
            covariance = covariance * ((moments.count - 1) / moments.count) + mean.outer(mean)
        _, weight = principal_components(covariance, dims)
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))  # (d, 1)
    weight = weight * largest.sign()
    # In float64 until here: the mean is much larger than what remains after it is subtracted.
    return Reduction(weight, torch.zeros(dims) if method == "pca_uncentered" else -weight @ mean, method)
