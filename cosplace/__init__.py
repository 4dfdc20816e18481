"""CosPlace: recognize places from photos (Berton et al., CVPR 2022).

Layers, from the ground up; a module imports only from layers listed above its own:

    errors         exceptions whose message says what to do
    storage        files written atomically; cache folders
    progress       progress of long tasks; sizes and durations in words
    memory         main memory that this process uses
    geo            positions on the ground: UTM, latitude and longitude, distances in meters
    ranks          which of several processes this one is
    ray_cluster    a Ray cluster: started here, or joined
    device         devices and types of numbers
    compiled       functions compiled by numba
    config         every option once: default, unit, help
    shapes         shapes of JSON values from files that anybody can have written
    photos         file names, lists, decoding, batches of photos
    importing      photos from anywhere become a dataset
    models         networks, weights, released models
    engines        programs that run a network, photos to descriptors
    retrieval      extraction, exact search, positives and recall, evaluation
    assessment     intervals, metrics, protocols and comparison of evaluations
    training       the paper: groups, CosFace, augmentation, one step, the loop
    index          a growing, searchable index of photos
    localization   matches -> coordinates with a calibrated confidence
    planning       what a number of photos needs: disk, memory, machines, hours, cost
    export         ONNX, torch.export, conversion of weight files
    report         HTML pages and charts
    server         REST API and the map
    demo           the whole system on a synthetic city
    cli            the command line

The names below are the public API, imported when they are first used.  Everything else may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosplace.engines.encoder import load_model
    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import Localizer
    from cosplace.models.network import GeoLocalizationNet
    from cosplace.photos.scanning import scan_images
    from cosplace.retrieval.evaluation import evaluate
    from cosplace.retrieval.recall import find_positives, recall_at
    from cosplace.retrieval.search import nearest
    from cosplace.training.cosface import MarginCosineProduct
    from cosplace.training.groups import partition
    from cosplace.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "GeoLocalizationNet",
    "Localizer",
    "MarginCosineProduct",
    "evaluate",
    "find_positives",
    "load_model",
    "nearest",
    "open_index",
    "partition",
    "recall_at",
    "scan_images",
    "train",
]

_MODULES = {
    "GeoLocalizationNet": "models.network",
    "Localizer": "localization.localizer",
    "MarginCosineProduct": "training.cosface",
    "evaluate": "retrieval.evaluation",
    "find_positives": "retrieval.recall",
    "load_model": "engines.encoder",
    "nearest": "retrieval.search",
    "open_index": "index.photo_index",
    "partition": "training.groups",
    "recall_at": "retrieval.recall",
    "scan_images": "photos.scanning",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'cosplace' has no attribute '{name}'")
    value = getattr(import_module(f"cosplace.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
