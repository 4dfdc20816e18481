"""The model that a fine-tuning starts from.

Start `imagenet`: ImageNet weights and a last layer that is a PCA whitening of the features of the training photos
(Jégou and Chum, ECCV 2012).  How much it whitens is chosen on the validation set: with few photos, directions of small
variance hold only noise.  Other models keep their last layer.  Legend: n photos, F features, D dimensions.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.names import BACKBONES
from cosplace.errors import ConfigError
from cosplace.models.backbones import build_backbone, num_output_channels
from cosplace.models.hub import is_hub
from cosplace.models.imagenet import imagenet_backbone
from cosplace.models.network import GeoLocalizationNet, new_network
from cosplace.models.reduction import whitening
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.progress import Progress, part_of
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.extraction import extract
from cosplace.training.finetuning_data import FinetuningPhotos
from cosplace.training.finetuning_validation import judge_descriptors
from cosplace.training.starting_network import open_trainable_model

IMAGENET = "imagenet"
WHITENING_PHOTOS = 1024
FLOORS = (1e-3, 1e-2, 1e-1, 1.0)  # of `whitening`: 1e-3 whitens most; 1.0 hardly changes the features
MEDIUM_FLOOR = 1e-1  # where there are too few validation photos to choose one
DIMENSIONS = 512  # of the descriptors of a start from ImageNet weights, where the backbone has as many features

log = logging.getLogger(__name__)


def name_imagenet_file(config: FinetuneConfig) -> FinetuneConfig:
    """The same settings, with a torchvision state dict given as --model as the weights of the start `imagenet`."""
    if config.model == IMAGENET or is_hub(config.model) or not Path(config.model).is_file():
        return config
    backbone = imagenet_backbone(config.model)
    if backbone is None:
        return config
    if config.start.imagenet_weights is not None:
        raise ConfigError(
            f"--imagenet_weights contradicts --model {config.model}, which already has weights. Omit the flag."
        )
    start = replace(config.start, imagenet_weights=config.model, backbone=config.start.backbone or backbone)
    return replace(config, model=IMAGENET, start=start)


def open_start(
    model: str, *, backbone: str | None, fc_output_dim: int | None, imagenet_weights: str | None, seed: int
) -> GeoLocalizationNet:
    """Open the start: "imagenet", a name from the zoo, or a weights file.

    The last layer of "imagenet" is random until `whiten_head`.  Raises ConfigError for a model that cannot be trained.
    """
    if model == IMAGENET:
        name = backbone or "ResNet18"
        if name not in BACKBONES:
            raise ConfigError(
                f"--model imagenet starts from a backbone of the paper, not from {name}. Train a model with `cosplace "
                f"train --backbone {name}`, then use its best_model.pth as --model."
            )
        features = num_output_channels(build_backbone(name))
        dimension = fc_output_dim or min(DIMENSIONS, features)
        if dimension > features:
            raise ConfigError(f"--fc_output_dim {dimension} is more than the {features} features of {name}.")
        if imagenet_weights == "none":
            raise ConfigError("--model imagenet needs weights: --imagenet_weights v1, v2 or the path of a state dict.")
        return new_network(
            backbone=name,
            fc_output_dim=dimension,
            train_all_layers=False,
            imagenet_weights=imagenet_weights,
            seed=seed,
        ).eval()
    return open_trainable_model(model, backbone=backbone, fc_output_dim=fc_output_dim)


class _Features(nn.Module):
    """The features of a network before its last layer: (B, 3, H, W) -> (B, F)."""

    def __init__(self, network: GeoLocalizationNet) -> None:
        super().__init__()
        self.backbone = network.backbone  # of the paper, see `open_start`
        self.pooling = cast(nn.Sequential, network.aggregation)[:3]

    def forward(self, images: Tensor) -> Tensor:
        return self.pooling(self.backbone(images))


@torch.no_grad()
def whiten_head(
    network: GeoLocalizationNet, photos: FinetuningPhotos, settings: EvaluationSettings, progress: Progress
) -> None:
    """Make the last layer a PCA whitening of the features of training photos, the best one on the validation set."""
    linear = cast(nn.Linear, cast(nn.Sequential, network.aggregation)[3])
    features = _Features(network)

    def features_of(images: ImageList, task: str) -> np.ndarray:
        found = extract(features, images, settings.extraction, progress=part_of(progress, task))
        return np.asarray(found.descriptors)[found.readable]

    sample = photos.images.subset(evenly_spaced(photos.images, WHITENING_PHOTOS))
    of_training = torch.from_numpy(features_of(sample, "features of training photos")).double()  # (n, F)
    if len(of_training) < 2:
        raise ConfigError(f"{photos.images.folder} has too few photos for a PCA whitening: {len(of_training)}.")
    of_val = [
        torch.from_numpy(
            np.asarray(
                extract(
                    features, images, settings.extraction, progress=part_of(progress, "features of validation photos")
                ).descriptors
            )
        ).double()
        for images in (photos.val.database, photos.val.queries)
    ]
    covariance, mean = torch.cov(of_training.T), of_training.mean(0)
    best_score, best_floor = -1.0, FLOORS[0]
    for floor in (MEDIUM_FLOOR,) if photos.too_few else FLOORS:
        weight = whitening(covariance, linear.out_features, floor)
        database, queries = (F.normalize((one - mean) @ weight.T, dim=1).float().numpy() for one in of_val)
        score = judge_descriptors(database, queries, photos.val, settings).score
        if score > best_score:
            best_score, best_floor = score, floor
            linear.weight.copy_(weight)
            linear.bias.copy_(-weight @ mean)
    log.info("last layer: PCA whitening of %d training photos, floor %g", len(of_training), best_floor)
