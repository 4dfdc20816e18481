"""Fit a reduction of descriptors on photos."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from cosplace.config.defaults import MAX_FITTED_PHOTOS
from cosplace.config.evaluation import EvalConfig
from cosplace.config.sections import DATASET_VARIABLE
from cosplace.config.values import set_folder
from cosplace.device import choose_device
from cosplace.errors import ConfigError
from cosplace.models.inference import find_dimension
from cosplace.models.reduction import (
    ReducedNetwork,
    Reduction,
    first_dimensions,
    fit,
    has_ordered_dimensions,
    truncation,
    unreduced,
)
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.scanning import is_dataset_part, scan_images
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.evaluation import evaluation_settings
from cosplace.retrieval.extraction import ExtractionSettings, extract

log = logging.getLogger(__name__)

CHUNK_PHOTOS = 4096  # whose descriptors are in memory at once


def fit_reduction(
    network: nn.Module,
    images: ImageList,
    dims: int,
    settings: ExtractionSettings | None = None,
    *,
    method: str = "pca_whitening",
    max_photos: int = MAX_FITTED_PHOTOS,
    progress: Progress = no_progress,
) -> tuple[Reduction, int]:
    """Fit a reduction to `dims` dimensions on photos; returns it and the number of photos it was fitted on.

    Uses up to max_photos, evenly spaced over the list; photos that cannot be opened are skipped.
    Raises ConfigError for too many dimensions or too few photos, and what `extract` raises.
    """
    network, settings = unreduced(network), replace(settings or ExtractionSettings(), skip_unreadable=True)
    device = choose_device(str(settings.device))
    dimension = find_dimension(network.to(device).eval(), device)
    if not 1 <= dims <= dimension:
        raise ConfigError(f"The number of dimensions must be from 1 to {dimension} (the model's own), got {dims}.")
    if method == "truncation":
        return truncation(dimension, dims), 0
    sample = images if len(images) <= max_photos else images.subset(evenly_spaced(images, max_photos))
    if len(sample) <= dims:
        raise ConfigError(
            f"{len(sample)} photos in {images.folder} are too few to fit {dims} dimensions. Use more than {dims} "
            f"photos, better {10 * dims}, or fewer dimensions."
        )
    num_fitted = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal num_fitted
        for first in range(0, len(sample), CHUNK_PHOTOS):
            chunk = sample.subset(range(first, min(first + CHUNK_PHOTOS, len(sample))))
            chunk_progress = part_of(progress, "fitting the reduction", first, len(sample))
            extraction = extract(network, chunk, settings, progress=chunk_progress)
            num_fitted += int(extraction.readable.sum())
            yield extraction.descriptors[:][extraction.readable]

    reduction = fit(chunks(), dims, method)
    return reduction, num_fitted


# --- for `cosplace eval` ---------------------------------------------------------------------------------------------


def reduce_for_evaluation(
    model: nn.Module, config: EvalConfig, *, dry_run: bool = False, progress: Progress = no_progress
) -> nn.Module:
    """Reduce a model to --reduce_to dimensions: its first ones if it has a reduction, else fit one on photos.

    dry_run: nothing is fitted; a truncation, which takes the same time and memory, stands in for the reduction.
    Raises ConfigError for too many dimensions, too few photos, or photos of the test set.
    """
    options, device = config.weights, choose_device(config.running.device)
    dims = options.reduce_to
    if dims is None and options.reduce_on:
        raise ConfigError(f"--reduce_on {options.reduce_on} needs --reduce_to, the number of dimensions.")
    if dims is None or has_ordered_dimensions(model):
        if has_ordered_dimensions(model) and options.reduce_on:
            raise ConfigError(
                f"--reduce_on {options.reduce_on}: this model already has a reduction. Omit the flag, or use the "
                f"model without its reduction."
            )
        return model if dims is None else first_dimensions(model, dims)
    if dry_run or options.reduce_method == "truncation":
        return ReducedNetwork(model, truncation(find_dimension(model.to(device), device), dims))
    if options.descriptors_folder:
        raise ConfigError(
            f"--descriptors_folder {options.descriptors_folder} keeps the descriptors of one model, but a reduction "
            f"that is fitted again differs in its last bits. Write it with `cosplace reduce`, then use that file as "
            f"--model."
        )
    folder = _fitting_folder(config)
    settings = evaluation_settings(config, device).extraction
    images = scan_images(folder, follow_outside=config.folders.follow_outside)
    reduction, num_photos = fit_reduction(
        model, images, dims, settings, method=options.reduce_method, progress=progress
    )
    log.info("%s to %d dimensions, fitted on %d photos in %s", reduction.method, dims, num_photos, folder)
    return ReducedNetwork(model, reduction)


def _fitting_folder(config: EvalConfig) -> Path:
    """Folder of photos to fit a reduction on.  Raises ConfigError for photos of the test set."""
    test = set_folder(config.folders, "test")
    if config.weights.reduce_on:
        folder = Path(config.weights.reduce_on)
    else:
        dataset = config.folders.dataset_folder or os.environ.get(DATASET_VARIABLE)
        candidates = [Path(dataset) / "train", Path(dataset) / "val" / "database"] if dataset else []
        found = [candidate for candidate in candidates if is_dataset_part(candidate)]
        if not found:
            raise ConfigError(
                f"--reduce_to {config.weights.reduce_to} needs photos to fit on, other than those of the test set. "
                f"Use --reduce_on FOLDER, or a model written by `cosplace reduce`."
            )
        folder = found[0]
    if folder.resolve().is_relative_to(test.resolve()) or test.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--reduce_on {folder} has photos of the test set {test}, so recalls would be meaningless. Use other "
            f"photos."
        )
    return folder
