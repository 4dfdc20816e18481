"""Start the last layer as a PCA whitening: an extension, not in the paper.

The features of a network with a random last layer are nearly collinear; whitened features tell images apart from the
first iteration.
"""

from typing import cast

import torch

from cosplace.config.sections import TrainConfig
from cosplace.config.values import loading_workers
from cosplace.errors import ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import whitening
from cosplace.photos.loading import choose_loader
from cosplace.training.batches import GroupImages, training_batches
from cosplace.training.data import TrainingData, augmentation_settings

WHITENING_IMAGES = 1024  # several times the feature dimension of ResNet18_Small; seconds on a CPU
WHITENING_FLOOR = 1e-3  # fraction of the largest variance; smaller variances are noise, which whitening would amplify
START_SEED = 1 << 32  # larger than any --seed, so that these images are drawn independently of the epochs


def check_whitening(model: GeoLocalizationNet) -> None:
    """Raise ConfigError if there are more descriptor dimensions than features, or for aggregations other than gem."""
    if model.aggregation_name != "gem":
        raise ConfigError(
            f"--whitened_start needs --aggregation gem, whose last layer it sets, not {model.aggregation_name}. "
            f"Omit it."
        )
    _, linear = _parts(model)
    if linear.out_features > linear.in_features:
        raise ConfigError(
            f"--whitened_start needs at least as many features as dimensions: --fc_output_dim is "
            f"{linear.out_features}, the backbone has {linear.in_features} features. Use a smaller --fc_output_dim."
        )


def _parts(model: GeoLocalizationNet) -> tuple[torch.nn.Sequential, torch.nn.Linear]:
    aggregation = cast(torch.nn.Sequential, model.aggregation)
    return aggregation, cast(torch.nn.Linear, aggregation[3])


@torch.no_grad()
def whiten_start(model: GeoLocalizationNet, data: TrainingData, config: TrainConfig, device: torch.device) -> None:
    """Set the last layer to a PCA whitening of the features of training images, and the statistics of batch norms.

    The network must pass `check_whitening`.
    """
    aggregation, linear = _parts(model)
    batch_size = config.training.batch_size
    items = GroupImages(
        data.groups[0], seed=config.running.seed + START_SEED, epoch=0, settings=augmentation_settings(config)
    )
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
    model.train()
    torch.manual_seed(config.running.seed)  # EfficientNet's stochastic depth draws from it
    features = []
    for batch in training_batches(
        items,
        batch_size=batch_size,
        first_iteration=0,
        num_iterations=-(-WHITENING_IMAGES // batch_size),
        num_workers=loading_workers(config.running.num_workers),
        loader=choose_loader(config.running.loader),
        augment_in_loader=device.type == "cpu",
    ):
        images = batch.images(items.settings, device).to(memory_format=torch.channels_last)
        features.append(aggregation[:3](model.features(images)[0]).double().cpu())
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    stacked = torch.cat(features)  # (n, F) float64
    weight = whitening(torch.cov(stacked.T), linear.out_features, WHITENING_FLOOR)
    linear.weight.copy_(weight)
    linear.bias.copy_(-weight @ stacked.mean(0))
