"""The CosPlace network: photos to unit descriptors.

A backbone without pooling and classifier -> L2 over channels -> GeM -> linear -> L2.  Source: Berton et al.,
"Rethinking Visual Geo-localization for Large-Scale Applications", CVPR 2022, section 3; GeM is equation 3 of
Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.  Keys of state dicts are
those of the released models: `backbone.<i>...`, `aggregation.1.p`, `aggregation.3.weight`, `aggregation.3.bias`.
"""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck

from cosplace.config import BACKBONES, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.weights import imagenet_file, read_state_dict

GEM_START = 3.0  # GeM's first power
GEM_EPS = 1e-6
UNIT_EPS = 1e-12  # shorter vectors are divided by this, as by F.normalize
LN_2 = math.log(2)
SMALL_WIDTHS = (32, 64, 128)  # channels of the three stages of ResNet18_Small
TRAINED_FROM_RESNET = 6  # layer3, counted in children: the four of the stem, layer1, layer2
TRAINED_FROM_VGG = 24  # the last block of convolutions
TRAINED_FROM_EFFICIENTNET = 5  # block 5
CLASSIFIERS = ("fc.", "classifier.")  # torchvision's layers after the backbone
COUNTER = "num_batches_tracked"  # absent from files older than PyTorch 0.4.1, and of no effect on results

RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # torchvision's names

Shapes = dict[str, tuple[int, ...]]


class L2Norm(nn.Module):
    """Scale vectors along dimension 1 to length 1, in float32: (B, D, ...) -> (B, D, ...)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each vector of `inputs`; zero vectors stay zero."""
        inputs = inputs.float()
        return _UnitLength.apply(inputs) if _learns(inputs) else F.normalize(inputs, p=2.0, dim=1)


class GeM(nn.Module):
    """Generalised mean over height and width with a learned power `p`: (B, D, H, W) -> (B, D, 1, 1)."""

    def __init__(self, p: float = GEM_START, eps: float = GEM_EPS) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool `inputs` in float32; the result has the precision of the parameters, for the layers that follow."""
        inputs, p = inputs.float(), self.p.float()
        if _learns(inputs, p):
            return _PowerMean.apply(inputs, p, self.eps).to(self.p.dtype)
        # exp(p log x) is x ** p with half the work; a mean over dimensions, unlike pooling with the input's size as
        # kernel, can be exported for photos of any size.
        powers = (inputs.clamp(min=self.eps).log() * p).exp()  # (B, D, H, W)
        means = powers.mean(dim=(-2, -1), keepdim=True)  # (B, D, 1, 1)
        return (means.log() / p).exp().to(self.p.dtype)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"p={self.p.detach().tolist()}, eps={self.eps}"


class GeoLocalizationNet(nn.Module):
    """ImageNet-normalised photos (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    >>> GeoLocalizationNet("ResNet18", 512)(torch.rand(2, 3, 224, 224)).shape
    torch.Size([2, 512])

    backbone: a name in BACKBONES, in any spelling.  By default the early layers are frozen (before ResNet's layer3,
    VGG's last block, EfficientNet's block 5), while their batch-norm statistics still follow training.
    imagenet_weights: "v1" or "v2" fetch torchvision's; a path is a local torchvision state dict; None or "none" draws
    all weights from `generator` (torch's own when None).  ResNet18_Small, half of ResNet-18's width and without its
    last stage, has no ImageNet weights, so all of its layers train.

    Attributes: backbone_name (canonical), features_dim (channels that GeM pools), fc_output_dim.
    Raises ConfigError for an unknown backbone, a dimension below 1 or weights that do not exist, CheckpointError for a
    file of another architecture, DownloadError when weights cannot be fetched.
    """

    def __init__(
        self,
        backbone: str,
        fc_output_dim: int,
        train_all_layers: bool = False,
        imagenet_weights: str | Path | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fc_output_dim < 1:
            raise ConfigError(f"--fc_output_dim {fc_output_dim} is too small: use 1 or more, for example 512.")
        self.backbone_name = canonical_backbone(backbone)
        self.fc_output_dim = fc_output_dim
        self.backbone = _empty_backbone(self.backbone_name).to_empty(device="cpu")
        self.features_dim = _features_dim(self.backbone)
        self.aggregation = nn.Sequential(
            L2Norm(), GeM(), nn.Flatten(), nn.Linear(self.features_dim, fc_output_dim), L2Norm()
        )
        _initialize(self, generator)
        if imagenet_weights is not None and str(imagenet_weights).lower() != "none":
            _load_imagenet(self.backbone, self.backbone_name, imagenet_weights)
        if not train_all_layers:
            for layer in _frozen_layers(self.backbone, self.backbone_name):
                layer.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) float32 of images (B, 3, H, W), normalised as ImageNet's are."""
        return self.aggregation(self.backbone(images))


# --- gradients by formula: a fraction of autograd's work and memory --------------------------------------------------


def _learns(*tensors: Tensor) -> bool:
    """Whether gradients of any of `tensors` are recorded, eagerly: compilers and exporters take plain formulas."""
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


class _UnitLength(Function):
    """y = x / max(|x|, UNIT_EPS) along dimension 1; dx = (dy - y <y, dy>) / |x|."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1, ...)
        units = inputs / lengths.clamp(min=UNIT_EPS)
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        products = units * slopes
        along = products.sum(1, keepdim=True)  # (B, 1, ...)
        along.masked_fill_(lengths < UNIT_EPS, 0.0)  # there the divisor is constant
        torch.mul(units, along, out=products)
        return torch.sub(slopes, products, out=products).div_(lengths.clamp(min=UNIT_EPS))


class _PowerMean(Function):
    """y = (mean of max(x, eps) ** p over height and width) ** (1 / p), with gradients of x and p.

    With M the mean: dy/dx = y / (M H W) x ** (p - 1) where x >= eps, else 0, and dy/dp = y / p (mean(x ** p ln x) / M -
    ln(M) / p).  One tensor of the input's size is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, p: Tensor, eps: float) -> Tensor:
        # Logarithms to base 2, as exp2 takes a third of exp's time on CPU.
        logs = inputs.clamp(min=eps).log2_()  # (B, D, H, W)
        powers = (logs * p).exp2_()  # (B, D, H, W)
        means = powers.mean((-2, -1), keepdim=True)  # (B, D, 1, 1)
        log_means = means.log2()
        pooled = (log_means / p).exp2_()
        mean_logs = logs.mul_(powers).mean((-2, -1), keepdim=True) / means
        by_power = (mean_logs - log_means / p) * (pooled * (LN_2 / p))  # (B, D, 1, 1)
        # The largest number below eps: clamp passes gradients where x >= eps, and threshold keeps what is greater.
        below = torch.nextafter(torch.tensor(eps, dtype=inputs.dtype), torch.zeros((), dtype=inputs.dtype)).item()
        slopes = powers.div_(F.threshold(inputs, below, math.inf))  # (B, D, H, W), x ** (p - 1) or 0
        by_input = pooled / (means * (inputs.size(-2) * inputs.size(-1)))  # (B, D, 1, 1)
        ctx.save_for_backward(slopes, by_input, by_power)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        slopes, by_input, by_power = ctx.saved_tensors
        return slopes * (by_input * gradients), (by_power * gradients).sum().view(1), None


# --- inference -------------------------------------------------------------------------------------------------------


def for_inference(network: nn.Module) -> nn.Module:
    """A copy of a network that extracts faster: same descriptors, within 1e-6, in evaluation mode.

    Batch norms are folded into the convolutions before them, weights are stored channels last, and pooling behind a
    ReLU counts on what that leaves.  The copy shares nothing with `network`, which stays as it is, and cannot be
    trained.  A module that neither is a GeoLocalizationNet nor holds one is returned itself.
    """
    if not any(isinstance(module, GeoLocalizationNet) for module in network.modules()):
        return network
    copied = deepcopy(network).requires_grad_(False)
    for parent, convolution, norm in _convolutions_with_norms(copied):
        _fold(parent.get_submodule(convolution), parent.get_submodule(norm))
        setattr(parent, norm, nn.Identity())
    for parent, pool in _pools_after_relu(copied):
        setattr(parent, pool, _PoolAfterReLU(kernel_size=3, stride=2, padding=1))
    return copied.eval().to(memory_format=torch.channels_last)


def _convolutions_with_norms(network: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, name of a convolution, name of the batch norm that follows it directly), as torchvision builds them."""
    found = []
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            names = list(pairwise(name for name, _ in parent.named_children()))
        elif isinstance(parent, BasicBlock | Bottleneck):
            names = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][: 2 + isinstance(parent, Bottleneck)]
        else:
            continue
        children = dict(parent.named_children())
        found += [
            (parent, convolution, norm)
            for convolution, norm in names
            if isinstance(children[convolution], nn.Conv2d) and isinstance(children[norm], nn.BatchNorm2d)
        ]
    return found


def _pools_after_relu(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """(parent, name of a pooling) where _PoolAfterReLU does the same."""
    return [
        (parent, name)
        for parent in network.modules()
        if isinstance(parent, nn.Sequential)
        for (_, before), (name, pool) in pairwise(parent.named_children())
        if isinstance(before, nn.ReLU)
        and isinstance(pool, nn.MaxPool2d)
        and (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (3, 2, 1, 1, False)
    ]


MAGNITUDE = 0x7FFF  # all bits of 16 but the sign


class _PoolAfterReLU(nn.MaxPool2d):
    """The largest of 3 x 3 numbers at every second place, the same as torch's; none may be below 0.

    bfloat16 from 0 on is ordered as its bits read as an integer are: on a CPU such maxima take a fifth of the time.
    A NaN of the input loses its sign.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, ceil(H / 2), ceil(W / 2))."""
        height, width = input.shape[2:]
        by_bits = input.dtype == torch.bfloat16 and input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not by_bits or height % 2 or width % 2 or input.requires_grad:
            return super().forward(input)
        bits = input.permute(0, 2, 3, 1).view(torch.int16)
        bits.bitwise_and_(MAGNITUDE)  # NaN may have a sign, and must be the largest
        return _of_threes(_of_threes(bits, 1), 2).view(torch.bfloat16).permute(0, 3, 1, 2)


def _of_threes(numbers: Tensor, dim: int) -> Tensor:
    """The largest of each even place and its two neighbours along a dimension of even length: half as long."""
    half = numbers.shape[dim] // 2
    even, odd = numbers.unflatten(dim, (half, 2)).unbind(dim + 1)
    largest = torch.maximum(even, odd)
    later = largest.narrow(dim, 1, half - 1)
    torch.maximum(later, odd.narrow(dim, 0, half - 1), out=later)
    return largest


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Let `convolution` do what `norm` does after it in evaluation mode; rounded once."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight = convolution.weight
    # On the CPU, since not every device has float64.
    mean, variance, gain, shift = (
        values.detach().cpu().double() for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = gain / (variance + norm.eps).sqrt()  # (C,)
    before = 0 if convolution.bias is None else convolution.bias.detach().cpu().double()
    folded = weight.detach().cpu().double() * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(folded.to(weight), requires_grad=False)
    convolution.bias = nn.Parameter((shift + (before - mean) * scale).to(weight), requires_grad=False)


# --- backbones -------------------------------------------------------------------------------------------------------


def _empty_backbone(backbone: str) -> nn.Sequential:
    """Build a backbone on the meta device: no time and memory for classifiers that are cut, or weights to be replaced.

    Its children are numbered as in the released models.
    """
    with torch.device("meta"):
        if backbone == "ResNet18_Small":
            return _small_resnet()
        model = get_model(backbone.lower(), weights=None)
    if backbone == "VGG16":
        # The last ReLU and the last pooling are left out.
        return nn.Sequential(*list(model.get_submodule("features").children())[:-2])
    return nn.Sequential(*list(model.children())[:-2])


def _small_resnet() -> nn.Sequential:
    """ResNet-18 up to layer3 with half the channels: stride 16, 0.7 instead of 11.2 million parameters."""
    stem = [
        nn.Conv2d(3, SMALL_WIDTHS[0], kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(SMALL_WIDTHS[0]),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    ]
    stages, previous = [], SMALL_WIDTHS[0]
    for width in SMALL_WIDTHS:
        first = BasicBlock(previous, width)
        if width != previous:
            shortcut = nn.Sequential(
                nn.Conv2d(previous, width, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(width)
            )
            first = BasicBlock(previous, width, stride=2, downsample=shortcut)
        stages.append(nn.Sequential(first, BasicBlock(width, width)))
        previous = width
    return nn.Sequential(*stem, *stages)


def _features_dim(backbone: nn.Module) -> int:
    """Channels of the last convolution; shortcuts of ResNets stand only in first blocks, so none comes last."""
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def _frozen_layers(backbone: nn.Sequential, name: str) -> list[nn.Module]:
    if name == "ResNet18_Small":
        return []
    if name == "VGG16":
        return list(backbone.children())[:TRAINED_FROM_VGG]
    if name.startswith("EfficientNet"):
        return list(backbone[0].children())[:TRAINED_FROM_EFFICIENTNET]
    return list(backbone.children())[:TRAINED_FROM_RESNET]


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw weights as torchvision's ResNet, VGG and EfficientNet do (He et al., ICCV 2015, fan out)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


# --- ImageNet weights ------------------------------------------------------------------------------------------------


def _load_imagenet(backbone: nn.Sequential, name: str, weights: str | Path) -> None:
    """Fill a backbone from torchvision's weights: a version, or the path of a state dict."""
    if re.fullmatch(r"v\d+", str(weights), re.IGNORECASE):
        path = imagenet_file(name, str(weights).lower())
    else:
        path = Path(weights)
    given = read_state_dict(path)
    if any(key.startswith("aggregation.") for key in given):
        raise CheckpointError(f"{path} is a whole CosPlace model, not ImageNet weights: give it as --resume_model.")
    given = {key: value for key, value in given.items() if not key.startswith(CLASSIFIERS)}
    expected = {_torchvision_key(name, key): shape for key, shape in _plan(name).shapes.items()}
    own = {_own_key(key, "features.0.0.weight" in given): value.float() for key, value in given.items()}
    difference = _first_difference(expected, _shapes(given))
    if difference:
        likely = _likeliest(_shapes(own))
        known = likely is not None and likely.name != name
        hint = f"it looks like {likely.name}" if known else "give a torchvision state dict"
        raise CheckpointError(f"{path} does not fit {name}: {difference}; {hint}.")
    backbone.load_state_dict(backbone.state_dict() | own)


def _own_key(key: str, efficientnet: bool) -> str:
    """Translate a key of torchvision: `layer3.0.conv1.weight` is `6.0.conv1.weight` of a ResNet backbone."""
    first, _, rest = key.partition(".")
    if first == "features":
        return f"0.{rest}" if efficientnet else rest
    return f"{RESNET_CHILDREN.index(first)}.{rest}" if first in RESNET_CHILDREN else key


def _torchvision_key(name: str, key: str) -> str:
    """Translate a key of a backbone back, the inverse of `_own_key`."""
    first, _, rest = key.partition(".")
    if name == "VGG16":
        return f"features.{key}"
    return f"features.{rest}" if name.startswith("EfficientNet") else f"{RESNET_CHILDREN[int(first)]}.{rest}"


# --- architectures from state dicts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a backbone's state dict looks like."""

    name: str
    shapes: Shapes  # without counters
    features_dim: int


@lru_cache(maxsize=len(BACKBONES))
def _plan(name: str) -> _Plan:
    backbone = _empty_backbone(name)
    return _Plan(name=name, shapes=_shapes(backbone.state_dict()), features_dim=_features_dim(backbone))


def infer_architecture(state_dict: Mapping[str, Tensor]) -> tuple[str, int]:
    """Tell the canonical backbone and the descriptor dimension of a CosPlace state dict from keys and shapes alone.

    Raises CheckpointError, with the first difference to the likeliest architecture, when it is none.
    """
    given = _shapes(state_dict)
    head = given.get("aggregation.3.weight", ())
    backbone = {key.removeprefix("backbone."): shape for key, shape in given.items() if key.startswith("backbone.")}
    plan = _likeliest(backbone)
    if plan is None or len(head) != 2:
        raise CheckpointError(
            "These are not the weights of a CosPlace model (backbone.<i>..., aggregation.1.p and aggregation.3.weight "
            "with their known shapes): give best_model.pth of a run or a released model."
        )
    expected = {f"backbone.{key}": shape for key, shape in plan.shapes.items()} | {
        "aggregation.1.p": (1,),
        "aggregation.3.weight": (head[0], plan.features_dim),
        "aggregation.3.bias": (head[0],),
    }
    difference = _first_difference(expected, given)
    if difference:
        raise CheckpointError(
            f"These weights look like a CosPlace {plan.name} but {difference}: give best_model.pth of a run."
        )
    return plan.name, head[0]


def network_from_state_dict(state_dict: Mapping[str, Tensor], train_all_layers: bool = False) -> GeoLocalizationNet:
    """Build the network that a CosPlace state dict belongs to, filled with it; raises as `infer_architecture` does."""
    backbone, dim = infer_architecture(state_dict)
    network = GeoLocalizationNet(backbone, dim, train_all_layers)
    # Files without counters are complete too, so what is missing keeps its start.
    network.load_state_dict(network.state_dict() | dict(state_dict))
    return network


def _shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items() if not key.endswith(COUNTER)}


def _likeliest(given: Shapes) -> _Plan | None:
    """Find the backbone that shares most tensors with `given`; None when no one shares any beyond chance."""
    best, most = None, 0
    efficientnet = any(key.startswith("0.0.") for key in given)
    for name in BACKBONES:
        if name.startswith("EfficientNet") != efficientnet:  # each plan costs a fraction of a second
            continue
        plan = _plan(name)
        if plan.shapes == given:
            return plan
        # What is missing and what is too much count alike, or the deepest network would always win.
        shared = len(plan.shapes.items() & given.items())
        score = shared / max(len(plan.shapes), len(given))
        if score > most:
            best, most = plan, score
    return best


def _first_difference(expected: Shapes, given: Shapes) -> str | None:
    """Say where `given` first departs from `expected`; None when it does not."""
    for key, shape in expected.items():
        if key not in given:
            return f"{key} is missing"
        if given[key] != shape:
            return f"{key} has shape {list(given[key])} instead of {list(shape)}"
    unexpected = next((key for key in given if key not in expected), None)
    return None if unexpected is None else f"{unexpected} is unexpected"
