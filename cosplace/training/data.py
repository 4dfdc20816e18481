"""The data of a run: groups to train on, validation and test set, and the batches of an epoch."""

import hashlib
import logging
from collections.abc import Generator
from dataclasses import dataclass

import torch

from cosplace.config.methods import EIGENPLACES
from cosplace.config.sections import TrainConfig
from cosplace.config.values import loading_workers, set_folder
from cosplace.device import choose_device
from cosplace.photos.loading import choose_loader
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.two_folders import check_copies
from cosplace.training.advice import check_enough, data_warnings
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.eigenplaces import check_views, views_summary
from cosplace.training.group_cache import cached_partition, cached_views
from cosplace.training.groups import Groups, training_photos

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The groups to train on, the validation set and the test set."""

    groups: Groups
    num_used: int
    val: RetrievalDataset
    test: RetrievalDataset

    def groups_of_epoch(self, epoch: int) -> range:
        """Numbers of the groups that an epoch trains: one; with EigenPlaces, a lateral and a frontal one."""
        size = len(self.groups.views)
        first = epoch % (self.num_used // size) * size
        return range(first, first + size)

    def rank(self, epoch: int) -> int:
        """Number of the group of an epoch, among those of one kind."""
        return self.groups_of_epoch(epoch).start // len(self.groups.views)

    def digest(self) -> str:
        """Checksum of the classes: equal for two runs that train on the same photos."""
        parts = hashlib.sha256(self.groups.cells.tobytes())
        parts.update(self.groups.group_starts.tobytes())
        parts.update(self.groups.class_starts.tobytes())
        if self.groups.zones is not None:
            parts.update(self.groups.zones.tobytes())
        return parts.hexdigest()


def open_training_data(config: TrainConfig, progress: Progress = no_progress) -> TrainingData:
    """Scan the three sets and form the groups.  Raises DatasetError if anything is missing or too small."""
    folders = {split: set_folder(config.folders, split) for split in ("train", "val", "test")}
    follow = config.folders.follow_outside
    dataset, grouping = config.folders.dataset_folder, config.grouping
    images = training_photos(folders["train"], grouping, dataset=dataset, follow_outside=follow, progress=progress)
    if config.method.method == EIGENPLACES:
        groups = cached_views(images, grouping, config.method)
        check_views(groups, grouping, config.method)
        for line in views_summary(groups):
            log.info("%s", line)
    else:
        groups = cached_partition(images, grouping)
    for warning in data_warnings(groups, grouping, images):
        log.warning("%s", warning)
    if config.method.method != EIGENPLACES:
        check_enough(groups, grouping, images)
    val, test = (
        open_retrieval_dataset(
            folders[split], config.folders.queries_folder, split=split, follow_outside=follow, progress=progress
        )
        for split in ("val", "test")
    )
    for opened in (val, test):
        check_copies(opened.database, opened.queries, progress=progress)
    return TrainingData(groups=groups, num_used=grouping.groups_num * len(groups.views), val=val, test=test)


def augmentation_settings(config: TrainConfig) -> Augmentation:
    """The augmentation that the settings describe."""
    knobs = config.augmenting
    return Augmentation(
        image_size=knobs.image_size,
        brightness=knobs.brightness,
        contrast=knobs.contrast,
        saturation=knobs.saturation,
        hue=knobs.hue,
        random_resized_crop=knobs.random_resized_crop,
    )


def epoch_batches(
    config: TrainConfig, data: TrainingData, device: torch.device, *, epoch: int, iteration: int = 0
) -> Generator[Batch]:
    """Batches of an epoch from an iteration on, loaded ahead: one of each of its groups, in turn.

    Close the generator to end its workers.
    """
    items = [
        GroupImages(
            data.groups[number],
            seed=config.running.seed,
            epoch=epoch,
            settings=augmentation_settings(config),
            stream=stream,
        )
        for stream, number in enumerate(data.groups_of_epoch(epoch))
    ]
    augmentation_device = config.augmenting.augmentation_device
    augment_on = device if augmentation_device == "auto" else choose_device(augmentation_device)
    return training_batches(
        *items,
        batch_size=config.training.batch_size,
        first_iteration=iteration,
        num_iterations=config.training.iterations_per_epoch,
        num_workers=loading_workers(config.running.num_workers),
        loader=choose_loader(config.running.loader, device),
        augment_in_loader=augment_on.type == "cpu",
        pin_memory=device.type == "cuda",
    )
