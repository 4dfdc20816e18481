"""Fit a reduction of descriptors on photos."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from cosplace.device import choose_device
from cosplace.errors import ConfigError
from cosplace.models.encoder import find_dimension
from cosplace.models.reduction import Reduction, fit, truncation, unreduced
from cosplace.photos.image_list import ImageList, image_list
from cosplace.retrieval.extraction import extract

FITTED_AT_ONCE = 4096  # descriptors in memory while a reduction is fitted


MAX_FITTED_PHOTOS = 20_000  # 40 photos for each of 512 dimensions; more change recalls by less than their noise


def fit_reduction(
    network: nn.Module,
    images: ImageList,
    dims: int,
    *,
    method: str = "pca_whitening",
    max_photos: int = MAX_FITTED_PHOTOS,
    **knobs: Any,
) -> tuple[Reduction, int]:
    """A reduction to `dims` dimensions fitted on photos, and how many it was fitted on.

    Takes up to max_photos, evenly spread over the list; photos that cannot be opened are left out.
    knobs: of `extract` (image_size, batch_size, num_workers, loader, device, autocast, progress).
    Raises ConfigError for too many dimensions or too few photos, and what `extract` raises.
    """
    network = unreduced(network)
    device = choose_device(str(knobs.get("device", "cpu")))
    dimension = find_dimension(network.to(device).eval(), device)
    if not 1 <= dims <= dimension:
        raise ConfigError(f"{dims} dimensions cannot be made of the model's {dimension}: choose from 1 to {dimension}.")
    if method == "truncation":
        return truncation(dimension, dims), 0
    chosen = _spread(images, max_photos)
    if len(chosen) <= dims:
        raise ConfigError(
            f"{len(chosen)} photos of {images.folder} are too few to fit {dims} dimensions: give more than {dims}, "
            f"better {10 * dims}, or fewer dimensions."
        )
    counts: list[int] = []
    pieces = _described_in_pieces(network, chosen, counts, dict(knobs))
    return fit(pieces, dims, method), sum(counts)


def _spread(images: ImageList, most: int) -> ImageList:
    if len(images) <= most:
        return images
    rows = np.unique(np.linspace(0, len(images) - 1, most).astype(np.int64)).tolist()
    return image_list(images.folder, [images.name(row) for row in rows])


def _described_in_pieces(
    network: nn.Module, images: ImageList, counts: list[int], knobs: dict[str, Any]
) -> Iterator[np.ndarray]:
    progress = knobs.pop("progress", None)
    for start in range(0, len(images), FITTED_AT_ONCE):
        rows = range(start, min(start + FITTED_AT_ONCE, len(images)))
        part = image_list(images.folder, [images.name(row) for row in rows])
        told = None
        if progress is not None:

            def told(done: int, _: int, start: int = start) -> None:
                progress(start + done, len(images))

        found = extract(network, part, skip_unreadable=True, progress=told, **knobs)
        counts.append(int(found.readable.sum()))
        yield found.descriptors[:][found.readable]
