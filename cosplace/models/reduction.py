"""Smaller descriptors from any network: an affine map behind it, fitted on photos, then unit length again.

Three methods.  truncation: the first d numbers.  pca: the d directions of largest variance (Jolliffe, "Principal
Component Analysis", 2002).  pca_whitening: the same, each divided by its standard deviation (Jégou and Chum, ECCV
2012).  Rows are ordered, so the first n of a reduction to d are the reduction to n.

    y = x W' + b, then y / |y|        x (B, D) -> y (B, d);  W (d, D), b (d,)

Legend: D dimensions of the network, d of the reduction, n photos.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.network import network_from_state_dict
from cosplace.models.weight_files import tensors_sha256

METHODS = ("pca_whitening", "pca", "truncation")
WHITENING_FLOOR = 1e-2  # of the largest variance, added to each: directions below it hold noise more than places
PREFIX = "reduction."  # of its tensors in a file, beside those of the network
BASE_MODEL = "base_model"  # in a card: the model behind which a reduction belongs, when its weights are not in the file


class Reduction(nn.Module):
    """Descriptors (B, D) -> unit descriptors (B, d) float32.

    weight: (d, D) float32; bias: (d,) float32; method: one of METHODS.  Raises ConfigError for other shapes.
    """

    def __init__(self, weight: Tensor, bias: Tensor, method: str) -> None:
        super().__init__()
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not 1 <= len(weight) <= weight.shape[1]:
            raise ConfigError(
                f"A reduction maps (D,) to (d,) with 1 <= d <= D, but its weight is {list(weight.shape)} and its bias "
                f"{list(bias.shape)}: fit it again with `cosplace reduce`."
            )
        if method not in METHODS:
            raise ConfigError(f"Unknown reduction '{method}': use {', '.join(METHODS)}.")
        self.method = method
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    @property
    def in_dim(self) -> int:
        """D."""
        return self.weight.shape[1]

    @property
    def out_dim(self) -> int:
        """The number of dimensions that are left, d."""
        return self.weight.shape[0]

    def forward(self, descriptors: Tensor) -> Tensor:
        """Reduce descriptors (B, D) to unit (B, d)."""
        return functional.normalize(functional.linear(descriptors.float(), self.weight, self.bias), dim=1)

    def first(self, dims: int) -> "Reduction":
        """The reduction to the first `dims` of its dimensions.  Raises ConfigError when it has fewer."""
        _check_dims(dims, self.out_dim)
        return Reduction(self.weight[:dims].clone(), self.bias[:dims].clone(), self.method)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"{self.in_dim} -> {self.out_dim}, method={self.method}"


class ReducedNetwork(nn.Module):
    """A network with a reduction behind it: photos (B, 3, H, W), normalised -> unit descriptors (B, d).

    Attributes: network, reduction, fc_output_dim (d).  The state dict is the network's, with `reduction.` beside.
    """

    def __init__(self, network: nn.Module, reduction: Reduction) -> None:
        super().__init__()
        found = getattr(network, "fc_output_dim", reduction.in_dim)
        if found != reduction.in_dim:
            raise CheckpointError(
                f"The reduction takes {reduction.in_dim} dimensions but the network gives {found}: fit it again with "
                f"`cosplace reduce`."
            )
        self.network = network
        self.reduction = reduction

    @property
    def fc_output_dim(self) -> int:
        """Dimension of the reduced descriptors."""
        return self.reduction.out_dim

    def forward(self, images: Tensor) -> Tensor:
        """Compute reduced descriptors (B, d) float32 of images (B, 3, H, W), normalised as ImageNet's are."""
        return self.reduction(self.network(images))


def unreduced(network: nn.Module) -> nn.Module:
    """The network before its reduction; itself where it has none."""
    return network.network if isinstance(network, ReducedNetwork) else network


def first_dimensions(network: nn.Module, dims: int) -> nn.Module:
    """A reduced network cut to the first `dims` of its dimensions.

    Raises ConfigError when there are fewer, or when the network was never reduced: cutting it would be a guess.
    """
    if not isinstance(network, ReducedNetwork):
        if getattr(network, "fc_output_dim", None) == dims:
            return network
        raise ConfigError(
            f"The model has no reduction, so {dims} dimensions have to be fitted on photos first: "
            f"`cosplace reduce MODEL --on FOLDER --to FILE.safetensors --dims {dims}`."
        )
    if network.reduction.out_dim == dims:
        return network
    return ReducedNetwork(network.network, network.reduction.first(dims))


def _check_dims(dims: int, dimension: int) -> None:
    if not 1 <= dims <= dimension:
        raise ConfigError(f"{dims} dimensions cannot be made of {dimension}: choose from 1 to {dimension}.")


# --- fitting ---------------------------------------------------------------------------------------------------------


class Moments:
    """Mean and covariance of descriptors that come in pieces, in float64; no piece is kept.

    Pieces are merged as by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)  # (D,)
        self.scatter = np.zeros((0, 0))  # (D, D), sum of (x - mean)(x - mean)'

    def add(self, rows: np.ndarray) -> None:
        """Take descriptors (n, D)."""
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


def truncation(dimension: int, dims: int) -> Reduction:
    """Keep the first `dims` of `dimension` numbers.  Raises ConfigError when there are fewer."""
    _check_dims(dims, dimension)
    return Reduction(torch.eye(dims, dimension), torch.zeros(dims), "truncation")


def fit(descriptors: Iterable[np.ndarray], dims: int, method: str = "pca_whitening") -> Reduction:
    """Fit a reduction to `dims` dimensions on descriptors that come in pieces (n, D).

    Whitening divides direction i by sqrt(variance_i + WHITENING_FLOOR * largest variance).  The sign of a direction is
    such that its largest entry is positive: one set of descriptors, one reduction.
    Raises ConfigError when D or the number of photos is too small for `dims`, or nothing varies.
    """
    if method not in METHODS:
        raise ConfigError(f"Unknown reduction '{method}': use {', '.join(METHODS)}.")
    moments = Moments()
    for piece in descriptors:
        moments.add(piece)
        _check_dims(dims, piece.shape[1])  # at the first piece, not after an hour
        if method == "truncation":
            return truncation(piece.shape[1], dims)
    if moments.count <= dims:
        raise ConfigError(
            f"{moments.count} photos are too few to fit {dims} dimensions: give at least {dims + 1} photos "
            f"(better {10 * dims}), or fewer dimensions."
        )
    variances, directions = np.linalg.eigh(moments.covariance)  # ascending
    variances = np.maximum(variances[::-1][:dims], 0.0)
    rows = directions[:, ::-1][:, :dims].T  # (d, D)
    if not variances[0] > 0:
        raise ConfigError("All photos have the same descriptor, so there is nothing to fit on: give other photos.")
    largest = np.abs(rows).argmax(1)
    rows = rows * np.sign(rows[np.arange(dims), largest])[:, None]
    if method == "pca_whitening":
        rows = rows / np.sqrt(variances + WHITENING_FLOOR * variances[0])[:, None]
    # In float64 until here: the mean is taken off numbers that are much smaller than itself.
    return Reduction(torch.from_numpy(rows), torch.from_numpy(-rows @ moments.mean), method)


# --- files -----------------------------------------------------------------------------------------------------------


def tensors_to_keep(network: nn.Module, with_base: bool = True) -> dict[str, Tensor]:
    """The tensors of a file that holds a network and, where it has one, its reduction; on the CPU, contiguous.

    with_base False leaves the network's own out, for one whose code cannot be in a file.
    """
    found = dict(unreduced(network).state_dict()) if with_base else {}
    if isinstance(network, ReducedNetwork):
        found |= {PREFIX + key: value for key, value in network.reduction.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in found.items()}


def network_from_weights(
    state_dict: Mapping[str, Tensor], card: Mapping[str, str], open_base: Callable[[str], nn.Module]
) -> nn.Module:
    """The network that a file's tensors and its card describe, with its reduction where it has one.

    open_base: opens the model that a card names when the file holds a reduction alone (of a torch.hub model).
    Raises CheckpointError where tensors are none of ours or contradict the card.
    """
    if "tensors_sha256" in card and card["tensors_sha256"] != tensors_sha256(state_dict):
        raise CheckpointError("The tensors are not those that the card was written for: fetch or convert it again.")
    own = {key: value for key, value in state_dict.items() if not key.startswith(PREFIX)}
    reducing = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    if own or not reducing:
        network = network_from_state_dict(own)
        _check_card(card, "backbone", network.backbone_name)
    elif base := card.get(BASE_MODEL):
        network = open_base(base)
    else:
        raise CheckpointError("There is a reduction without its network, and no card that names it.")
    if reducing:
        if reducing.keys() != {"weight", "bias"} or card.get("reduction") not in METHODS:
            raise CheckpointError(
                f"The reduction is damaged (tensors {', '.join(sorted(reducing))}, method "
                f"{card.get('reduction')}): fit it again with `cosplace reduce`."
            )
        _check_card(card, "features_dim", reducing["weight"].shape[-1])
        try:
            network = ReducedNetwork(network, Reduction(reducing["weight"], reducing["bias"], card["reduction"]))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
    elif "reduction" in card:
        raise CheckpointError("The card tells of a reduction but there is none among the tensors: convert it again.")
    _check_card(card, "fc_output_dim", getattr(network, "fc_output_dim", None))
    return network.eval()


def _check_card(card: Mapping[str, str], key: str, found: object) -> None:
    if key in card and found is not None and card[key] != str(found):
        raise CheckpointError(
            f"The card says {key} {card[key]} but the tensors {found}: the file was changed; fetch or convert it again."
        )
