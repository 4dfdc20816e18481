"""A model in a file: the tensors of a network and of its reduction, and the model card that describes them.

The card is text by name, stored in `.safetensors` files only (see `weight_files`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from cosplace import __version__
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import ReducedNetwork, unreduced
from cosplace.models.weight_files import tensors_sha256

MODEL_FORMAT = "cosplace model 1"
REDUCTION_PREFIX = "reduction."  # of the reduction's tensors; those of the network have their usual keys
FOLDED_REDUCTION = "folded_reduction"  # key in the card: what was multiplied into the last linear layer
BASE_MODEL = "base_model"  # key in the card: name of the network, when the file holds its reduction only


def model_tensors(network: nn.Module, with_base: bool = True) -> dict[str, Tensor]:
    """Tensors of a network and of its reduction, if it has one; on the CPU, contiguous.

    with_base: False leaves out the network's own tensors, for networks whose code cannot be in the file.
    """
    tensors = dict(unreduced(network).state_dict()) if with_base else {}
    if isinstance(network, ReducedNetwork):
        tensors |= {REDUCTION_PREFIX + key: value for key, value in network.reduction.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def model_card(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The part of a model card that follows from the model itself; opening the file checks it against the tensors.

    tensors: those of the file, as `model_tensors` returns them.
    """
    base = unreduced(network)
    card = {
        "format": MODEL_FORMAT,
        "fc_output_dim": str(getattr(network, "fc_output_dim", "")),
        "cosplace_version": __version__,
        "tensors_sha256": tensors_sha256(tensors),
    }
    if isinstance(base, GeoLocalizationNet | NativeNetwork):
        card["backbone"] = base.backbone_name
        if isinstance(base, GeoLocalizationNet) and base.design is not None:
            card["aggregation"] = base.aggregation_name
    if isinstance(network, ReducedNetwork):
        card |= {"reduction": network.reduction.method, "features_dim": str(network.reduction.in_dim)}
    return card
