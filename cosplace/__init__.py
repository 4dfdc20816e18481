"""CosPlace: recognize places from photos (Berton et al., CVPR 2022).

Layers, from the ground up; a module imports only from layers listed above its own:

    errors         exceptions whose message says what to do
    storage        files written atomically; cache folders
    progress       progress of long tasks; sizes and durations in words
    geo            positions on the ground: UTM, latitude and longitude, distances in meters
    device         devices and 16-bit precision
    compiled       functions compiled by numba
    config         every option once: default, unit, help
    photos         file names, lists, decoding, batches of photos
    models         networks, weights, released models, photos to descriptors
    retrieval      extraction, exact search, positives and recall, evaluation
    training       the paper: groups, CosFace, augmentation, one step, the loop
    index          a growing, searchable index of photos
    localization   matches -> coordinates with a calibrated confidence
    export         ONNX, torch.export, conversion of weight files
    report         HTML pages and charts
    server         REST API and the map
    demo           the whole system on a synthetic city
    cli            the command line
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cosplace.models.encoder import Encoder as Encoder
    from cosplace.models.encoder import load_model as load_model


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("Encoder", "load_model"):
        from cosplace.models import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module 'cosplace' has no attribute '{name}'")
