"""The zoo: released models by name, others through torch.hub, all of them ready to describe photos.

>>> network = open_network("cosplace_resnet50_512")  # also a path, or "hub:owner/repo:entry(args)"
"""

from cosplace.zoo.hub import HubNetwork, is_hub, open_hub, parse_hub
from cosplace.zoo.opening import model_file, open_network, released_network
from cosplace.zoo.records import (
    HUB_MODELS,
    MODELS,
    NEVER_RELEASED,
    HubModel,
    ZooModel,
    find_model,
    released,
    released_url,
)
from cosplace.zoo.verifying import CachedFile, begun, verify

__all__ = [
    "HUB_MODELS",
    "MODELS",
    "NEVER_RELEASED",
    "CachedFile",
    "HubModel",
    "HubNetwork",
    "ZooModel",
    "begun",
    "find_model",
    "is_hub",
    "model_file",
    "open_hub",
    "open_network",
    "parse_hub",
    "released",
    "released_network",
    "released_url",
    "verify",
]
