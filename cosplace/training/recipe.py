"""The settings of a fine-tuning, chosen from its training photos; none is chosen on a test set.

Measured on validation sets, see docs/lab.md: with a few hundred places, the multi-similarity loss learns more than
CosFace, and batch norms with the statistics of the start more than with those of small batches.
"""

from dataclasses import dataclass

import torch

from cosplace.config.finetuning import FinetuneConfig
from cosplace.progress import format_count
from cosplace.training.augmentation import Augmentation
from cosplace.training.enough_places import FEWEST_PLACES
from cosplace.training.finetuning_start import IMAGENET
from cosplace.training.places import Places

VISITS = 6  # of each place in a whole training
FEWEST_ITERATIONS = 100
EPOCHS = 6  # with a validation after each
PATIENCE = 3  # epochs without a better model after which training stops
PHOTOS_PER_PLACE = 4
BATCH_SIZE = 32
LEARNING_RATE, LEARNING_RATE_TRAINED = 3e-4, 1e-4  # from ImageNet weights; from a trained model
WARM_UP = 0.1  # of all iterations
AVERAGE_DECAY = 0.95  # of the weights; smaller for very short trainings
IMAGE_SIZE_CPU, IMAGE_SIZE_GPU = 224, 512  # at most
SIZE_STEP = 32
CHEAP_IMAGES = 2_000  # images of 224 pixels of one training, for which several seeds are cheap on a CPU
CHEAP_ON_GPU = 50  # how many more images a GPU trains on in the same time
SEVERAL_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a fine-tuning does."""

    loss: str  # multi_similarity or cosface
    image_size: int  # pixels of the square training images, and of the shorter side in validation
    places_per_batch: int
    photos_per_place: int
    epochs_num: int  # at most
    iterations_per_epoch: int
    patience: int
    lr: float
    warmup_iterations: int
    average_decay: float
    freeze: str  # early, late or none: layers that are not trained
    num_seeds: int
    jitter: float = 0.4  # brightness, contrast and saturation
    hue: float = 0.1
    crop: float = 0.5

    @property
    def batch_size(self) -> int:
        """Photos per iteration."""
        return self.places_per_batch * self.photos_per_place

    @property
    def num_iterations(self) -> int:
        """Iterations of one seed, at most."""
        return self.epochs_num * self.iterations_per_epoch

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(
            image_size=self.image_size, brightness=self.jitter, contrast=self.jitter, saturation=self.jitter,
            hue=self.hue, random_resized_crop=self.crop,
        )  # fmt: skip

    def describe(self) -> str:
        """The recipe in one line."""
        loss = {"multi_similarity": "multi-similarity loss", "cosface": "CosFace loss"}[self.loss]
        frozen = {"early": "early layers frozen", "late": "all but the last layers frozen", "none": "all layers"}
        return (
            f"{loss}, batches of {self.places_per_batch} places x {self.photos_per_place} photos of "
            f"{self.image_size} pixels, up to {format_count(self.epochs_num, 'epoch')} of "
            f"{format_count(self.iterations_per_epoch, 'iteration')}, learning rate {self.lr:g}, "
            f"{frozen[self.freeze]}, {format_count(self.num_seeds, 'seed')}"
        )


def choose_recipe(config: FinetuneConfig, places: Places, photo_size: int, device: torch.device) -> Recipe:
    """Choose the settings that the user did not give.  photo_size: pixels of the shorter side of most photos."""
    knobs = config.training
    photos_per_place = 1 if config.training.loss == "cosface" else min(PHOTOS_PER_PLACE, knobs.batch_size // 2)
    places_per_batch = max(2, min(knobs.batch_size // photos_per_place, len(places)))
    iterations = max(FEWEST_ITERATIONS, -(-VISITS * len(places) // places_per_batch))
    epochs = knobs.epochs_num or EPOCHS
    per_epoch = knobs.iterations_per_epoch or -(-iterations // epochs)
    size = knobs.image_size or choose_image_size(photo_size, device)
    few = len(places) < FEWEST_PLACES
    images = epochs * per_epoch * places_per_batch * photos_per_place * (size / IMAGE_SIZE_CPU) ** 2
    cheap = images <= CHEAP_IMAGES * (CHEAP_ON_GPU if device.type == "cuda" else 1)
    return Recipe(
        loss=knobs.loss,
        image_size=size,
        places_per_batch=places_per_batch,
        photos_per_place=photos_per_place,
        epochs_num=epochs,
        iterations_per_epoch=per_epoch,
        patience=PATIENCE,
        lr=knobs.lr or (LEARNING_RATE if config.model == IMAGENET else LEARNING_RATE_TRAINED),
        warmup_iterations=max(1, round(WARM_UP * epochs * per_epoch)),
        average_decay=min(AVERAGE_DECAY, 1 - 1 / max(2, per_epoch)),
        freeze="none" if config.start.train_all_layers else "late" if few else "early",
        num_seeds=knobs.num_seeds or (SEVERAL_SEEDS if cheap else 1),
    )


def choose_image_size(photo_size: int, device: torch.device) -> int:
    """The size of the photos, but at most what trains fast on this device; a multiple of SIZE_STEP."""
    most = IMAGE_SIZE_GPU if device.type == "cuda" else IMAGE_SIZE_CPU
    return max(SIZE_STEP, min(photo_size, most) // SIZE_STEP * SIZE_STEP)
