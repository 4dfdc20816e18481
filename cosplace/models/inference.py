"""Descriptors of a batch of photos, and copies of networks that compute them faster.

Legend: B batch, D descriptor dimension.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from cosplace.device import mixed_precision
from cosplace.errors import ConfigError, DeviceError
from cosplace.memory import is_out_of_memory
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.resnet import BasicBlock, Bottleneck
from cosplace.photos.normalization import normalize

PROBE_SIZE = 224  # pixels, both sides of the image that is used to find the dimension of an unknown network
MAGNITUDE_BITS = 0x7FFF  # all bits of a 16-bit number except its sign


def find_dimension(network: nn.Module, device: torch.device) -> int:
    """Descriptor dimension of a network: its `fc_output_dim`, else that of the descriptor of a gray image."""
    known = getattr(network, "fc_output_dim", None)
    if isinstance(known, int):
        return known
    gray = torch.full((1, 3, PROBE_SIZE, PROBE_SIZE), 127, dtype=torch.uint8)
    with torch.inference_mode():
        return encode_batch(network, gray, device=device).shape[1]


def encode_batch(
    model: nn.Module, photos: Tensor, *, device: torch.device, autocast: torch.dtype | None = None
) -> Tensor:
    """Compute descriptors (B, D) float32 of photos (B, 3, H, W) uint8 of one size.

    model: on `device` and in evaluation mode.  autocast: 16-bit type of mixed precision, None for fp32.
    Raises DeviceError when memory runs out, ConfigError when the model does not return descriptors.
    """
    # Convolutions on CPU are a fifth faster with channels last, and 16-bit ones on CUDA accept no other layout.
    layout = torch.channels_last if device.type == "cpu" or autocast is not None else torch.contiguous_format
    try:
        normalized = normalize(photos.to(device, non_blocking=True).contiguous(memory_format=layout))
        with mixed_precision(device, autocast):
            descriptors = model(normalized)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"Not enough memory on {device} for a batch of {len(photos)} photos of {photos.shape[3]} x "
                f"{photos.shape[2]} pixels.",
                "use a smaller --infer_batch_size",
                "use a smaller --max_batch",
                "use a smaller --image_size",
                "resize photos with --resize_test_imgs",
                "use another --device",
            ) from error
        raise
    if not isinstance(descriptors, Tensor) or descriptors.ndim != 2 or len(descriptors) != len(photos):
        kind = tuple(descriptors.shape) if isinstance(descriptors, Tensor) else type(descriptors).__name__
        raise ConfigError(f"The model returns {kind} for {len(photos)} photos. It must return (B, D), one row each.")
    return descriptors.float()


# --- faster copies ---------------------------------------------------------------------------------------------------


def optimize_for_inference(network: nn.Module) -> nn.Module:
    """Copy a network into one that extracts faster: the same descriptors, within 1e-6, in evaluation mode.

    Batch norms are folded into the convolutions before them, weights are stored channels last, and a max pooling after
    a ReLU relies on inputs that are never negative.  The copy shares no memory with `network`, which is unchanged, and
    cannot be trained.  A module that neither is nor contains a GeoLocalizationNet or NativeNetwork is returned itself.
    """
    if not any(isinstance(module, GeoLocalizationNet | NativeNetwork) for module in network.modules()):
        return network
    originals = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    copied = deepcopy(network, dict(originals))  # modules only: most tensors are replaced
    for parent, convolution, norm in _convolutions_with_norms(copied):
        _fold(parent.get_submodule(convolution), parent.get_submodule(norm))
        setattr(parent, norm, nn.Identity())
    for parent, pool in _pools_after_relu(copied):
        setattr(parent, pool, _PoolAfterReLU(kernel_size=3, stride=2, padding=1))
    _copy_tensors(copied, originals)
    return copied.eval()


def _copy_tensors(network: nn.Module, originals: Mapping[int, Tensor]) -> None:
    """Replace those tensors of a network that are among some, by id, by copies that need no gradient."""
    copies: dict[int, Tensor] = {}
    for module in network.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, tensor in [*parameters, *buffers]:
            if id(tensor) in originals and id(tensor) not in copies:
                layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
                copy = tensor.detach().clone(memory_format=layout)
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            if id(tensor) in copies:
                setattr(module, name, copies[id(tensor)])


def _convolutions_with_norms(network: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, name of a convolution, name of the batch norm directly after it)."""
    found = []
    for parent in network.modules():
        if _is_sequence(parent):
            names = list(pairwise(name for name, _ in parent.named_children()))
        elif isinstance(parent, BasicBlock | Bottleneck):
            names = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][: 2 + isinstance(parent, Bottleneck)]
        else:
            continue
        children = dict(parent.named_children())
        found += [
            (parent, convolution, norm)
            for convolution, norm in names
            # Exactly these types: kinds of them compute more, such as a norm with an activation.
            if type(children[convolution]) is nn.Conv2d and type(children[norm]) is nn.BatchNorm2d
        ]
    return found


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module computes its children one after another, and nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Include in `convolution` what `norm` computes after it in evaluation mode; rounded once."""
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight = convolution.weight
    # On the CPU, because not every device has float64.
    mean, variance, gain, shift = (
        values.detach().cpu().double() for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = gain / (variance + norm.eps).sqrt()  # (C,)
    bias = 0 if convolution.bias is None else convolution.bias.detach().cpu().double()
    folded = weight.detach().cpu().double() * scale.view(-1, 1, 1, 1)
    folded = folded.to(weight).contiguous(memory_format=torch.channels_last)
    convolution.weight = nn.Parameter(folded, requires_grad=False)
    convolution.bias = nn.Parameter((shift + (bias - mean) * scale).to(weight), requires_grad=False)


# --- max pooling in bfloat16 -----------------------------------------------------------------------------------------


def _pools_after_relu(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """(parent, name) of each max pooling that _PoolAfterReLU can replace."""
    return [
        (parent, name)
        for parent in network.modules()
        if _is_sequence(parent)
        for (_, before), (name, pool) in pairwise(parent.named_children())
        if type(before) is nn.ReLU
        and type(pool) is nn.MaxPool2d
        and (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (3, 2, 1, 1, False)
    ]


class _PoolAfterReLU(nn.MaxPool2d):
    """Max pooling of 3 x 3 with stride 2 and padding 1, the same as torch's, for inputs without negative numbers.

    Such bfloat16 numbers have the same order as their bits read as integers: on a CPU this takes a fifth of the time.
    A NaN in the input loses its sign.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, ceil(H / 2), ceil(W / 2))."""
        height, width = input.shape[2:]
        by_bits = input.dtype == torch.bfloat16 and input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not by_bits or height % 2 or width % 2 or input.requires_grad:
            return super().forward(input)
        bits = input.permute(0, 2, 3, 1).view(torch.int16)
        bits.bitwise_and_(MAGNITUDE_BITS)  # a NaN may have a sign, and must be the largest
        return _max_of_three(_max_of_three(bits, 1), 2).view(torch.bfloat16).permute(0, 3, 1, 2)


def _max_of_three(numbers: Tensor, dim: int) -> Tensor:
    """Maximum of each number at an even position and its two neighbors, along a dimension of even length."""
    half = numbers.shape[dim] // 2
    even, odd = numbers.unflatten(dim, (half, 2)).unbind(dim + 1)
    largest = torch.maximum(even, odd)
    later = largest.narrow(dim, 1, half - 1)
    torch.maximum(later, odd.narrow(dim, 0, half - 1), out=later)
    return largest
