"""The data of a run: groups to train on, validation and test set, and the batches of an epoch."""

import hashlib
import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cosplace.config.methods import EIGENPLACES, MULTI_SIMILARITY
from cosplace.config.sections import DatasetFolders, Grouping, TrainConfig
from cosplace.config.values import loading_workers, set_folder
from cosplace.device import choose_device
from cosplace.errors import ConfigError
from cosplace.photos.image_list import ImageList
from cosplace.photos.loading import choose_loader
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation_checks import check_places as check_database
from cosplace.retrieval.two_folders import with_copies
from cosplace.training.advice import check_enough, data_warnings
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.eigenplaces import check_views, views_summary
from cosplace.training.enough_places import few_places, few_places_warning
from cosplace.training.group_cache import cached_partition, cached_views, cached_without
from cosplace.training.groups import Group, Groups, training_photos
from cosplace.training.held_out import log_held_out, num_held_out
from cosplace.training.place_batches import PlaceImages, PlaceLocations, spread_places
from cosplace.training.place_sources import PlaceSet, check_places, check_settings, locate, open_places, wide_places

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """The groups of one dataset to train on."""

    groups: Groups
    num_used: int
    locations: PlaceLocations | None = None  # of the classes, if they are places
    whole: Groups | None = None  # the groups before photos were held out; None if none were

    def groups_of_epoch(self, epoch: int) -> range:
        """Numbers of the groups that an epoch trains: one; with EigenPlaces, a lateral and a frontal one."""
        size = len(self.groups.views)
        first = epoch % (self.num_used // size) * size
        return range(first, first + size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The groups to train on, the validation set and the test set.

    The groups of further datasets are numbered after the `num_used` groups of the first one.
    """

    groups: Groups
    num_used: int
    val: RetrievalDataset
    test: RetrievalDataset
    locations: PlaceLocations | None = None
    whole: Groups | None = None  # as in TrainingSet
    further: tuple[TrainingSet, ...] = ()  # of --extra_datasets

    @property
    def sets(self) -> tuple[TrainingSet, ...]:
        """The datasets that are trained on."""
        first = TrainingSet(groups=self.groups, num_used=self.num_used, locations=self.locations, whole=self.whole)
        return first, *self.further

    @property
    def used(self) -> list[tuple[TrainingSet, int]]:
        """For each group that is trained on, its dataset and its number there."""
        return [(one, number) for one in self.sets for number in range(one.num_used)]

    def group(self, number: int) -> Group:
        """A group that is trained on."""
        one, own_number = self.used[number]
        return one.groups[own_number]

    def title(self, number: int) -> str:
        """How a group is called."""
        one, own_number = self.used[number]
        title = one.groups.title(own_number)
        return f"{one.groups.folder}, {title}" if self.further else title

    def counts(self) -> list[tuple[int, int]]:
        """Number of classes and of images of each group that is trained on."""
        return [count for one in self.sets for count in one.groups.counts()[: one.num_used]]

    def groups_of_epoch(self, epoch: int) -> list[int]:
        """Numbers of the groups that an epoch trains: those of each dataset."""
        numbers, first = [], 0
        for one in self.sets:
            numbers += [first + number for number in one.groups_of_epoch(epoch)]
            first += one.num_used
        return numbers

    def rank(self, epoch: int) -> int:
        """Number of the group of an epoch, among those of one kind."""
        return self.groups_of_epoch(epoch)[0] // len(self.groups.views)

    def digest(self) -> str:
        """Checksums of the classes and, if they are places, of their photos: equal for two runs on the same photos.

        Places may have no positions, so that classes of equal sizes do not differ.
        """
        parts, names = hashlib.sha256(), hashlib.sha256()
        for one in self.sets:
            parts.update(one.groups.cells.tobytes())
            parts.update(one.groups.group_starts.tobytes())
            parts.update(one.groups.class_starts.tobytes())
            if one.groups.zones is not None:
                parts.update(one.groups.zones.tobytes())
            if one.locations is not None:
                for name in one.groups.image_names():
                    names.update(name)
        return f"{parts.hexdigest()} {names.hexdigest()}" if self.locations is not None else parts.hexdigest()

    def val_digest(self) -> str:
        """Checksum of names and positions of the validation set: recalls are comparable if it is equal."""
        found, val = hashlib.sha256(), self.val
        for images, positions in ((val.database, val.database_positions), (val.queries, val.query_positions)):
            found.update(images.text(0, int(images.starts[-1])).tobytes())
            found.update(positions.tobytes())
        return found.hexdigest()


def open_training_data(config: TrainConfig, progress: Progress = no_progress) -> TrainingData:
    """Scan the three sets and form the groups.

    Raises DatasetError if anything is missing or too small, or if a database is a single image or place.
    """
    folders = {split: set_folder(config.folders, split) for split in ("train", "val", "test")}
    follow = config.folders.follow_outside
    first, *further = (_open_training_set(config, one, progress) for one in _training_folders(config.folders))
    val, test = (
        with_copies(
            open_retrieval_dataset(
                folders[split], config.folders.queries_folder, split=split, follow_outside=follow, progress=progress
            )
        )
        for split in ("val", "test")
    )
    for part in (val, test):
        check_database(part, config.testing.positive_dist_threshold)  # not after days of training
    return TrainingData(
        groups=first.groups, num_used=first.num_used, locations=first.locations, whole=first.whole,
        further=tuple(further), val=val, test=test,
    )  # fmt: skip


def _training_folders(folders: DatasetFolders) -> list[DatasetFolders]:
    """The folders of the dataset, and those of each of --extra_datasets."""
    extra = [replace(folders, dataset_folder=one, train_set_folder=None) for one in folders.extra_datasets]
    seen = {Path(set_folder(folders, "train")).resolve()}
    for one in extra:
        path = Path(set_folder(one, "train")).resolve()
        if path in seen:
            raise ConfigError(f"--extra_datasets: {path} is given twice. Give each dataset once.")
        seen.add(path)
    return [folders, *extra]


def _open_training_set(config: TrainConfig, folders: DatasetFolders, progress: Progress) -> TrainingSet:
    """Form the groups of one dataset.  Raises DatasetError if it has fewer photos or classes than training needs."""
    folder, grouping = set_folder(folders, "train"), config.grouping
    dataset, follow = folders.dataset_folder, folders.follow_outside
    if config.method.method == MULTI_SIMILARITY:
        check_settings(config)
        return _set_of_places(
            config, open_places(folder, grouping, dataset=dataset, follow_outside=follow, progress=progress)
        )
    images = training_photos(folder, grouping, dataset=dataset, follow_outside=follow, progress=progress)
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
        if warning := few_places_warning(groups, images, with_headings=grouping.alpha < 360):
            log.warning("%s", warning)
    num_used = grouping.groups_num * len(groups.views)
    kept = _without_held_out(groups, images, num_used, config.training.held_out_photos, grouping)
    return TrainingSet(groups=kept, num_used=num_used, whole=None if kept is groups else groups)


def _set_of_places(config: TrainConfig, places: PlaceSet) -> TrainingSet:
    """Warn of places that can hardly be trained on; by default, hold photos out only if all places have positions."""
    grouping, radius_m = config.grouping, config.testing.positive_dist_threshold
    log.info("%s", places.source)
    for warning in data_warnings(places.groups, grouping, places.images):
        log.warning("%s", warning)
    photos_per_place = config.method.photos_per_place
    if num_small := int((np.diff(places.groups.class_starts) < photos_per_place).sum()):
        log.info(
            "%s places have fewer than %d photos, which are repeated in a batch", f"{num_small:,}", photos_per_place
        )
    check_places(places.groups, grouping, config.training.batch_size // photos_per_place, photos_per_place)
    if warning := few_places(places.groups.folder, len(places.groups.cells), grouping.min_images_per_class):
        log.warning("%s", warning)
    if warning := wide_places(places, radius_m):
        log.warning("%s", warning)
    wanted, locations = config.training.held_out_photos, locate(places, radius_m)
    if wanted is None and not np.isfinite(locations.centers).all():
        wanted = 0  # photos without positions cannot calibrate an index
    groups, whole = _without_held_out(places.groups, places.images, 1, wanted, grouping), None
    if groups is not places.groups:
        locations, whole = locate(replace(places, groups=groups), radius_m), places.groups
    return TrainingSet(groups=groups, num_used=1, locations=locations, whole=whole)


def _without_held_out(
    groups: Groups, images: ImageList, num_used: int, wanted: int | None, grouping: Grouping
) -> Groups:
    """The groups without the photos that are held out; logs how many these are."""
    number = num_held_out(groups, num_used, grouping.min_images_per_class, wanted)
    if not number:
        return groups
    log_held_out(number, groups, num_used)
    return cached_without(groups, images, num_used, number, grouping.min_images_per_class)


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
    config: TrainConfig,
    data: TrainingData,
    device: torch.device,
    *,
    epoch: int,
    iteration: int = 0,
    own: range | None = None,
) -> Generator[Batch]:
    """Batches of an epoch from an iteration on, loaded ahead: one of each of its groups, in turn.

    own: the images of each batch that this process trains on, one of several; None for all.  Close the generator to
    end its workers.
    """
    items = [
        _group_images(config, *data.used[number], epoch=epoch, stream=stream)
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
        loader=choose_loader(config.running.loader),
        augment_in_loader=augment_on.type == "cpu",
        pin_memory=device.type == "cuda",
        own=own,
    )


def _group_images(config: TrainConfig, one: TrainingSet, number: int, *, epoch: int, stream: int) -> GroupImages:
    """The training items of a group in an epoch: random images of classes, or several photos of each place."""
    seed, settings = config.running.seed, augmentation_settings(config)
    if one.locations is None:
        return GroupImages(one.groups[number], seed=seed, epoch=epoch, settings=settings, stream=stream)
    photos_per_place = config.method.photos_per_place
    schedule = spread_places(
        one.locations,
        config.training.batch_size // photos_per_place,
        config.training.iterations_per_epoch,
        seed=seed,
        epoch=epoch,
        stream=stream,
    )
    return PlaceImages(
        one.groups[number],
        schedule,
        seed=seed,
        epoch=epoch,
        settings=settings,
        photos_per_place=photos_per_place,
        stream=stream,
    )
