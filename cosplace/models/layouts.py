"""Recognize the released weights of other projects by their keys and shapes, and build their networks.

Keys that projects use for the same tensor are translated to ours: `backbone.` and DINOv2's or torchvision's names, and
`aggregator.`.  Sizes (depth, dimensions, clusters) are read from the shapes, then all keys and shapes must agree.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cosplace.errors import CheckpointError
from cosplace.models.aggregations import LearnedTokens
from cosplace.models.architectures import BATCH_COUNTER, Shapes, first_difference, tensor_shapes
from cosplace.models.backbones import build_backbone, num_output_channels
from cosplace.models.boq import BagOfQueries
from cosplace.models.designs import DESIGN_KEY
from cosplace.models.imagenet import RESNET_CHILDREN
from cosplace.models.native import NativeNetwork, SizePolicy, transformer_name
from cosplace.models.optimal_transport import OptimalTransport, Projected
from cosplace.models.pooling_heads import ConvAP, MixVPR, NetVLAD
from cosplace.models.vision_transformer import TransformerSettings, VisionTransformer

TRAINED_BLOCKS = 4  # ImAge adds its tokens before the last four blocks
LAYER3_STRIDE = 16  # pixels per position after ResNet's layer3
# Prefixes of the backbone in released files.  Only SALAD's and MegaLoc's `model.` has DINOv2's names, MixVPR's has
# torchvision's, which are numbered here.
PREFIXES = re.compile(r"^backbone\.(model|dino|net)\.")
RESNET_KEY = re.compile(rf"^backbone\.({'|'.join(RESNET_CHILDREN)})\.")
UNUSED = ("backbone.mask_token",)  # for DINOv2's own training


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method whose released weights are known."""

    name: str
    marks: tuple[str, ...]  # keys that only its weights have
    signs: tuple[str, ...] = ()  # beginnings of keys: one of them shows that weights without a mark are incomplete
    aggregator: Callable[[Shapes, int], nn.Module]  # from the shapes below `aggregator.` and the features' channels
    final_norm: bool = True  # of the transformer


def network_from_release(state_dict: Mapping[str, Tensor]) -> NativeNetwork | None:
    """Build the network of released weights, in evaluation mode; None when they are of no method that is known here.

    state_dict: as `read_state_dict` returns it.  Its tensors become those of the network.  Raises CheckpointError, with
    the first difference, for weights that look like those of a known method but are not complete.
    """
    tensors = ours(state_dict)
    if DESIGN_KEY in tensors:
        return None
    method = find_method(tensors)
    if method is None:
        _refuse_incomplete(tensors, state_dict)
        return None
    shapes = tensor_shapes(tensors)
    try:
        with torch.device("meta"):
            network = _build(method, shapes)
    except (LookupError, ValueError) as error:  # a tensor that the sizes are read from is missing or has another form
        raise CheckpointError(_why_refused(method, _problem(str(error.args[0]), shapes, state_dict))) from error
    difference = first_difference(tensor_shapes(network.state_dict()), shapes)
    if difference:
        key, _, rest = difference.partition(" ")
        raise CheckpointError(_why_refused(method, f"{_released_key(key, state_dict)} {rest}"))
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith(BATCH_COUNTER)}
    values = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    network.load_state_dict(counters | values, assign=True)
    return network.eval()


def ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the keys of released weights to ours, without tensors that are not used."""
    renamed = {_our_key(key): value for key, value in state_dict.items()}
    return {key: value for key, value in renamed.items() if key not in UNUSED}


def _our_key(key: str) -> str:
    key = PREFIXES.sub("backbone.", key)
    resnet = RESNET_KEY.match(key)
    if resnet:
        return f"backbone.{RESNET_CHILDREN.index(resnet[1])}.{key[resnet.end() :]}"
    if key == "learnable_aggregation_tokens":  # of ImAge
        return "backbone.learned_tokens"
    if key.startswith("encoder."):  # of NetVLAD in PyTorch
        return f"backbone.{key.removeprefix('encoder.')}"
    return f"aggregator.{key.removeprefix('pool.')}" if key.startswith("pool.") else key


def find_method(tensors: Mapping[str, Tensor]) -> Method | None:
    """Method that weights with our keys are of; None for others."""
    return next((method for method in METHODS if all(mark in tensors for mark in method.marks)), None)


def _refuse_incomplete(tensors: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for weights that have parts of a known method, but not the keys that it is known by."""
    for method in METHODS:
        if method.signs and any(key.startswith(method.signs) for key in tensors):
            mark = next(mark for mark in method.marks if mark not in tensors)
            raise CheckpointError(_why_refused(method, f"{_released_key(mark, state_dict)} is missing"))


def _why_refused(method: Method, difference: str) -> str:
    return f"These weights look like {method.name} but {difference}. Download them again."


def _problem(name: str, shapes: Shapes, state_dict: Mapping[str, Tensor]) -> str:
    """What is wrong with a tensor that sizes are read from.  name: its key, without "aggregator." or with it."""
    name, inner = name.removeprefix("/"), "aggregator."
    if not name.startswith(("backbone.", inner)):
        name = f"{inner}{'agg.' if f'{inner}agg.dust_bin' in shapes and name != 'linear.weight' else ''}{name}"
    released = _released_key(name, state_dict)
    return f"{released} has the shape {list(shapes[name])}" if name in shapes else f"{released} is missing"


def _released_key(key: str, state_dict: Mapping[str, Tensor]) -> str:
    """The key of a tensor of ours in released weights, which need not have it, as the others of these are named."""
    if (found := next((other for other in state_dict if _our_key(other) == key), None)) is not None:
        return found
    part, _, rest = key.partition(".")
    if part != "backbone":
        return f"pool.{rest}" if any(other.startswith("pool.") for other in state_dict) else key
    if rest == "learned_tokens":
        return "learnable_aggregation_tokens"
    if any(other.startswith("encoder.") for other in state_dict):
        return f"encoder.{rest}"
    prefix = next((f"backbone.{match[1]}." for match in map(PREFIXES.match, state_dict) if match), "backbone.")
    number, _, after = rest.partition(".")
    if number.isdigit() and any(RESNET_KEY.match(PREFIXES.sub("backbone.", other)) for other in state_dict):
        rest = f"{RESNET_CHILDREN[int(number)]}.{after}"
    return prefix + rest


# --- networks from shapes --------------------------------------------------------------------------------------------


def _build(method: Method, shapes: Shapes) -> NativeNetwork:
    """Network on the current device.  Raises LookupError or ValueError for shapes that it cannot have."""
    backbone, name, channels, multiple = _build_backbone(method, shapes)
    prefix = "aggregator."
    inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    inner |= {f"/{key}": shape for key, shape in shapes.items() if key == "backbone.learned_tokens"}
    aggregator = method.aggregator(inner, channels)
    fixed = None
    if isinstance(aggregator, MixVPR):
        fixed = (LAYER3_STRIDE * aggregator.grid[0], LAYER3_STRIDE * aggregator.grid[1])
    inner_part = aggregator.agg if isinstance(aggregator, Projected) else aggregator
    needed = inner_part.num_clusters + 1 if isinstance(inner_part, OptimalTransport) else 1
    policy = SizePolicy(side_multiple=multiple, fixed_size=fixed, min_patches=needed)
    return NativeNetwork(backbone, aggregator, method=method.name, backbone_name=name, size_policy=policy)


def _build_backbone(method: Method, shapes: Shapes) -> tuple[nn.Module, str, int, int]:
    """Backbone, its name, its channels, and the number that sides must be multiples of."""
    if any(key.startswith("backbone.blocks.") for key in shapes) or "backbone.cls_token" in shapes:
        transformer = VisionTransformer(_transformer_settings(method, shapes))
        return transformer, transformer_name(transformer), transformer.out_channels, transformer.patch_size
    found = {key.removeprefix("backbone."): shape for key, shape in shapes.items() if key.startswith("backbone.")}
    numbers = {int(key.partition(".")[0]) for key in found if key.partition(".")[0].isdigit()}
    num_children = max(numbers, default=0) + 1
    name = _convolutional_name(found)
    whole = build_backbone(name)
    # VGG-16 is whole: its last layer has weights.
    backbone = nn.Sequential(*list(whole.children())[:num_children])
    shown = name if num_children == len(whole) else f"{name} to layer{num_children - RESNET_CHILDREN.index('layer1')}"
    return backbone, shown, num_output_channels(backbone), 1


def _convolutional_name(found: Shapes) -> str:
    """Backbone whose tensors are those found."""
    if found.keys() & {"0.bias", "2.bias"}:  # either may be missing
        return "VGG16"
    deepest = {key.split(".")[1] for key in found if key.startswith("6.")}  # blocks of layer3
    if not any(".conv3." in key for key in found):
        return "ResNet18"
    return {6: "ResNet50", 23: "ResNet101", 36: "ResNet152"}.get(len(deepest), "ResNet50")


def _transformer_settings(method: Method, shapes: Shapes) -> TransformerSettings:
    numbers = {key.split(".")[2] for key in shapes if key.startswith("backbone.blocks.")}
    if not numbers:
        raise KeyError("backbone.blocks.0.norm1.weight")
    registers, learned = shapes.get("backbone.register_tokens"), shapes.get("backbone.learned_tokens")
    if learned is not None and registers is None:  # ImAge was released with registers only
        raise KeyError("backbone.register_tokens")
    # Models with registers too resample positions as those without: the projects use DINOv2's code in that way.
    return TransformerSettings(
        dim=_shape(shapes, "backbone.cls_token", 3)[2],
        depth=len(numbers),
        patch_size=_shape(shapes, "backbone.patch_embed.proj.weight", 4)[3],
        grid=_side(_shape(shapes, "backbone.pos_embed", 3)[1] - 1, "backbone.pos_embed"),
        num_registers=0 if registers is None else registers[1],
        final_norm=method.final_norm,
        num_learned_tokens=0 if learned is None else learned[1],
        learned_tokens_block=max(0, len(numbers) - TRAINED_BLOCKS),
    )


def _shape(shapes: Shapes, key: str, num_axes: int) -> tuple[int, ...]:
    if len(shapes.get(key, ())) != num_axes:
        raise KeyError(key)
    return shapes[key]


def _side(area: int, key: str) -> int:
    side = math.isqrt(max(0, area))
    if side * side != area:
        raise KeyError(key)
    return side


def _salad(shapes: Shapes, channels: int) -> OptimalTransport:
    hidden, token = _shape(shapes, "token_features.0.weight", 2)[0], _shape(shapes, "token_features.2.weight", 2)[0]
    return OptimalTransport(
        channels,
        num_clusters=_shape(shapes, "score.3.weight", 4)[0],
        cluster_dim=_shape(shapes, "cluster_features.3.weight", 4)[0],
        token_dim=token,
        hidden=hidden,
    )


def _megaloc(shapes: Shapes, channels: int) -> Projected:
    inner = {key.removeprefix("agg."): shape for key, shape in shapes.items() if key.startswith("agg.")}
    dim = _shape(shapes, "linear.weight", 2)[0]
    return Projected(_salad(inner, channels), dim)


def _boq(shapes: Shapes, channels: int) -> BagOfQueries:
    _, num_queries, dim = _shape(shapes, "boqs.0.queries", 3)
    blocks = {key.split(".")[1] for key in shapes if key.startswith("boqs.")}
    rows = _shape(shapes, "fc.weight", 2)[0]
    return BagOfQueries(channels, dim=dim, num_queries=num_queries, num_blocks=len(blocks), rows=rows)


def _image(shapes: Shapes, channels: int) -> LearnedTokens:
    return LearnedTokens(channels, _shape(shapes, "/backbone.learned_tokens", 3)[1])


def _mixvpr(shapes: Shapes, channels: int) -> MixVPR:
    side = _side(_shape(shapes, "row_proj.weight", 2)[1], "row_proj.weight")
    return MixVPR(
        channels,
        grid=(side, side),
        channels_out=_shape(shapes, "channel_proj.weight", 2)[0],
        rows=_shape(shapes, "row_proj.weight", 2)[0],
        depth=len({key.split(".")[1] for key in shapes if key.startswith("mix.")}),
        hidden=_shape(shapes, "mix.0.mix.1.weight", 2)[0],
    )


def _conv_ap(shapes: Shapes, channels: int) -> ConvAP:
    return ConvAP(channels, dim=_shape(shapes, "channel_pool.weight", 4)[0])


def _netvlad(shapes: Shapes, channels: int) -> NetVLAD:
    return NetVLAD(channels, num_clusters=_shape(shapes, "centroids", 2)[0])


METHODS = (
    Method(
        name="MegaLoc",
        marks=("backbone.cls_token", "aggregator.agg.dust_bin"),
        signs=("aggregator.agg.",),
        aggregator=_megaloc,
    ),
    Method(
        name="SALAD",
        marks=("backbone.cls_token", "aggregator.dust_bin"),
        signs=("aggregator.dust_bin", "aggregator.score.", "aggregator.cluster_features."),
        aggregator=_salad,
    ),
    Method(
        name="BoQ",
        marks=("aggregator.boqs.0.queries",),
        signs=("aggregator.boqs.",),
        aggregator=_boq,
        final_norm=False,
    ),
    Method(
        name="ImAge",
        marks=("backbone.cls_token", "backbone.learned_tokens"),
        signs=("backbone.learned_tokens",),
        aggregator=_image,
    ),
    Method(
        name="MixVPR",
        marks=("aggregator.mix.0.mix.0.weight", "aggregator.row_proj.weight"),
        signs=("aggregator.mix.",),
        aggregator=_mixvpr,
    ),
    Method(
        name="Conv-AP",
        marks=("aggregator.channel_pool.weight",),
        signs=("aggregator.channel_pool.",),
        aggregator=_conv_ap,
    ),
    Method(
        name="NetVLAD",
        marks=("aggregator.centroids", "aggregator.conv.weight"),
        signs=("aggregator.centroids", "aggregator.conv.weight"),
        aggregator=_netvlad,
    ),
)
"""Methods by the keys of their weights, the more special ones first."""


# --- other weights ---------------------------------------------------------------------------------------------------

_FOREIGN = (
    (r"^(blocks|patch_embed|cls_token|storage_tokens)\b", "a vision transformer without an aggregation, as of DINOv2"),
    (r"^(conv1|layer1)\b", "torchvision's ResNet, whose file belongs to --imagenet_weights"),
    (r"^features\.", "torchvision's VGG or EfficientNet, whose file belongs to --imagenet_weights"),
    (r"^(visual|text_model|vision_model|transformer)\.", "CLIP"),
    (r"adapter", "SelaVPR or another network with adapters"),
    (r"^(backbone\..*|)(encoder|decoder)\.layers?\.", "a transformer with decoder, such as EDTformer"),
    (r"^backbone\.|^aggregat", "a network for place recognition of another project"),
)


def describe_weights(state_dict: Mapping[str, Tensor]) -> str:
    """What weights that cannot be opened look like; "" if they look like nothing known."""
    for pattern, description in _FOREIGN:
        if any(re.search(pattern, key) for key in state_dict):
            return description
    return ""
