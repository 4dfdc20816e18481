"""Prepare a fine-tuning: photos, start, places, recipe."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.values import loading_workers
from cosplace.device import amp_type, choose_device
from cosplace.errors import DatasetError, ImageError
from cosplace.models.designs import DESIGN_KEY
from cosplace.models.network import GeoLocalizationNet, network_from_state_dict
from cosplace.models.training_card import MAX_MATCHES
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import require_folder
from cosplace.progress import Progress, format_count, no_progress
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.recall import RECALL_VALUES
from cosplace.training.data import TrainingData
from cosplace.training.enough_places import FEWEST_PLACES
from cosplace.training.finetuning_data import FinetuningPhotos, open_finetuning_photos
from cosplace.training.finetuning_start import IMAGENET, name_imagenet_file, open_start, whiten_head
from cosplace.training.finetuning_state import check_photos, read_state
from cosplace.training.finetuning_validation import ENOUGH_QUERIES, MOST_PHOTOS
from cosplace.training.groups import Groups
from cosplace.training.heading_check import headings_fit
from cosplace.training.places import Places, Viewpoints, as_groups, form_places
from cosplace.training.recipe import Recipe, choose_image_size, choose_recipe
from cosplace.training.validation import check_not_trained_on

SIZE_SAMPLE = 50  # photos that are opened to find the usual size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningPreparation:
    """Everything a fine-tuning needs, opened and checked; nothing is written yet."""

    config: FinetuneConfig
    photos: FinetuningPhotos
    places: Places
    groups: Groups  # the places as one group
    recipe: Recipe
    start: dict[str, Tensor]  # weights
    backbone: str
    fc_output_dim: int
    settings: EvaluationSettings
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision

    def network(self) -> GeoLocalizationNet:
        """A new network with the weights of the start."""
        if DESIGN_KEY in self.start:  # not a network of the paper
            network = network_from_state_dict(self.start).requires_grad_(True)
        else:
            network = GeoLocalizationNet(self.backbone, self.fc_output_dim, train_all_layers=True)
            network.load_state_dict(self.start)
        return network.to(self.device).to(memory_format=torch.channels_last).eval()

    @property
    def data(self) -> TrainingData:
        """The photos as `cosplace train` knows them, for the model card."""
        photos = self.photos
        return TrainingData(groups=self.groups, num_used=1, val=photos.val, test=photos.test or photos.val)

    @property
    def is_worth_training(self) -> bool:
        """Whether there are enough places and queries, or the user wants to train on few."""
        is_enough = len(self.places) >= FEWEST_PLACES and not self.photos.too_few
        return is_enough or (self.config.training.force and len(self.places) > 1)

    def describe(self) -> list[str]:
        """What was chosen, in sentences."""
        places, photos = self.places, self.photos
        num_queries, num_database = len(photos.val.queries), len(photos.val.database)
        lines = [
            f"{format_count(len(photos.images), 'training photo')}, {len(places.rows):,} of them in "
            f"{format_count(len(places), 'place')} of {places.radius_m:g} m radius; validation: "
            f"{format_count(num_queries, 'query', 'queries')}, {format_count(num_database, 'database photo')}",
        ]
        if not self.is_worth_training:
            return lines
        if num_queries < ENOUGH_QUERIES and num_queries + num_database <= MOST_PHOTOS:
            lines.append(
                f"recalls are those of the {format_count(num_queries, 'validation query', 'validation queries')}; as "
                f"these are few, models are compared on all {num_queries + num_database:,} validation photos: each is "
                f"a query for the others"
            )
        return [*lines, self.recipe.describe()]


def prepare_finetuning(config: FinetuneConfig, progress: Progress = no_progress) -> FinetuningPreparation:
    """Open photos and start, and choose the recipe.  Raises CosPlaceError for anything the user can fix."""
    config = name_imagenet_file(config)
    resumed = Path(config.training.resume_train) if config.training.resume_train else None
    if resumed is not None:  # known before the photos are read
        read_state(resumed, config)
    require_folder(config.dataset)  # before a download of the start
    running, knobs = config.running, config.start
    device = choose_device(running.device)
    dtype = amp_type(running.use_amp16, running.amp_dtype, device)
    network = open_start(
        config.model,
        backbone=knobs.backbone,
        fc_output_dim=knobs.fc_output_dim,
        imagenet_weights=knobs.imagenet_weights,
        seed=running.seed,
    )
    photos = open_finetuning_photos(
        config.dataset,
        config.queries_folder,
        follow_outside=config.follow_outside,
        seed=running.seed,
        start="" if config.model == IMAGENET else config.model,
        progress=progress,
    )
    if resumed is not None:
        check_photos(resumed, config, photos.digest(), photos.sizes())
    photo_size = usual_size(photos.images)
    settings = _evaluation_settings(config, photo_size, device, dtype)
    if config.model == IMAGENET:
        whiten_head(network, photos, settings, progress)
    viewpoints = _viewpoints(photos, network, settings, progress)
    places = form_places(viewpoints)
    prepared = FinetuningPreparation(
        config=config,
        photos=photos,
        places=places,
        groups=as_groups(places, photos.images, viewpoints),
        recipe=choose_recipe(config, places, photo_size, device),
        start={key: value.detach().cpu().clone() for key, value in network.state_dict().items()},
        backbone=network.backbone_name,
        fc_output_dim=network.fc_output_dim,
        settings=settings,
        device=device,
        dtype=dtype,
    )
    check_not_trained_on(prepared.data, progress)
    return prepared


def _viewpoints(
    photos: FinetuningPhotos, network: GeoLocalizationNet, settings: EvaluationSettings, progress: Progress
) -> Viewpoints:
    """Where the photos were taken and where they look, as far as that is known and true."""
    headings = photos.headings
    if headings is not None and not headings_fit(
        network, photos.images, photos.points, headings, settings=settings.extraction, progress=progress
    ):
        log.warning(
            "%s: the headings do not fit the photos: of photos at one spot, those with equal headings are not more "
            "similar than others. Headings are not used.",
            photos.images.folder,
        )
        headings = None
    return Viewpoints(points=photos.points, headings=headings)


def usual_size(images: ImageList) -> int:
    """Pixels of the shorter side of most photos.  Raises DatasetError if none of a sample can be opened."""
    sides, problem = [], ""
    for row in evenly_spaced(images, SIZE_SAMPLE):
        try:
            sides.append(min(open_image(images.path(row)).shape[1:]))
        except ImageError as error:
            problem = str(error)
    if not sides:
        raise DatasetError(f"{images.folder}: none of {SIZE_SAMPLE} photos can be opened. {problem}")
    return int(np.median(sides))


def _evaluation_settings(
    config: FinetuneConfig, photo_size: int, device: torch.device, dtype: torch.dtype | None
) -> EvaluationSettings:
    running = config.running
    return EvaluationSettings(
        extraction=ExtractionSettings(
            image_size=config.training.image_size or choose_image_size(photo_size, device),
            batch_size=config.infer_batch_size,
            num_workers=loading_workers(running.num_workers),
            loader=running.loader,
            device=device,
            autocast=dtype,
            skip_unreadable=True,
        ),
        num_predictions=max(MAX_MATCHES, *RECALL_VALUES),  # for the model card
    )
