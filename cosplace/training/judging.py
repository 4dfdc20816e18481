"""The network that `cosplace eval` judges: any model, with as many dimensions as are asked for.

A reduction is never fitted on photos of the test set.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from cosplace.config.knobs import DATASET_VARIABLE
from cosplace.config.sections import EvalConfig
from cosplace.config.values import loading_workers, set_folder
from cosplace.device import amp_type, choose_device
from cosplace.errors import ConfigError
from cosplace.models.encoder import find_dimension
from cosplace.models.reduction import ReducedNetwork, first_dimensions, truncation
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.reduction_fitting import fit_reduction
from cosplace.training.setup import new_network, open_model

log = logging.getLogger(__name__)


def network_to_evaluate(config: EvalConfig, *, backbone: str | None, fc_output_dim: int | None) -> nn.Module:
    """The network that `cosplace eval` judges, before --reduce_to.

    backbone, fc_output_dim: as the user gave them, None where not: weights know their own.
    """
    weights = config.weights
    if weights.resume_model:
        return open_model(
            weights.resume_model,
            backbone=backbone,
            fc_output_dim=fc_output_dim,
            trust_remote_code=weights.trust_remote_code,
        )
    log.warning("No --model: the last layer is random, so the recalls are those of an untrained network.")
    return new_network(
        backbone=config.model.backbone,
        fc_output_dim=config.model.fc_output_dim,
        train_all_layers=True,
        imagenet_weights=config.model.imagenet_weights,
        seed=config.running.seed,
    )


def reduce_to_evaluate(
    model: nn.Module, config: EvalConfig, progress: Callable[[int, int], None] | None = None
) -> nn.Module:
    """The model with as many dimensions as --reduce_to asks for: its first ones, or fitted on photos now.

    progress None: nothing is fitted; a truncation stands in, which costs the same in a forecast.
    Raises ConfigError when there are too few dimensions or photos, or the photos are those of the test.
    """
    dims, device = config.weights.reduce_to, choose_device(config.running.device)
    if dims is None and config.weights.reduce_on:
        raise ConfigError(f"--reduce_on {config.weights.reduce_on}: say also to how many dimensions, with --reduce_to.")
    if dims is None or isinstance(model, ReducedNetwork):
        if isinstance(model, ReducedNetwork) and config.weights.reduce_on:
            raise ConfigError(
                f"--reduce_on {config.weights.reduce_on}: this model has its reduction already; leave the flag out, or "
                f"give the model without."
            )
        return model if dims is None else first_dimensions(model, dims)
    if progress is None or config.weights.reduce_method == "truncation":
        return ReducedNetwork(model, truncation(find_dimension(model.to(device), device), dims))
    if config.weights.descriptors_folder:
        raise ConfigError(
            f"--descriptors_folder {config.weights.descriptors_folder} is for one model, and a reduction fitted anew "
            f"is never the same to the last bit: write it with `cosplace reduce` first, and give that file as --model."
        )
    folder = _folder_to_fit_on(config)
    testing = config.testing
    reduction, count = fit_reduction(
        model,
        scan_images(folder),
        dims,
        method=config.weights.reduce_method,
        image_size=config.test_size.image_size if testing.resize_test_imgs else None,
        batch_size=testing.infer_batch_size,
        num_workers=loading_workers(config.running.num_workers),
        loader=config.running.loader,
        device=device,
        autocast=amp_type(config.running.use_amp16, config.running.amp_dtype, device),
        progress=progress,
    )
    log.info("%s to %d dimensions, fitted on %d photos of %s", reduction.method, dims, count, folder)
    return ReducedNetwork(model, reduction)


def _folder_to_fit_on(config: EvalConfig) -> Path:
    """Photos that are not those of the test."""
    test = set_folder(config.folders, "test")
    if config.weights.reduce_on:
        folder = Path(config.weights.reduce_on)
    else:
        whole = config.folders.dataset_folder or os.environ.get(DATASET_VARIABLE)
        candidates = [Path(whole) / "train", Path(whole) / "val" / "database"] if whole else []
        found = [candidate for candidate in candidates if candidate.is_dir()]
        if not found:
            raise ConfigError(
                f"--reduce_to {config.weights.reduce_to} is fitted on photos that are not those of the test: give "
                f"--reduce_on FOLDER, or a model that `cosplace reduce` wrote."
            )
        folder = found[0]
    if folder.resolve().is_relative_to(test.resolve()) or test.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--reduce_on {folder} holds photos of the test set {test}: its recalls would mean nothing; give other "
            f"photos."
        )
    return folder
