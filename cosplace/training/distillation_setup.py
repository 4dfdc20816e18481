"""Prepare a distillation: photos, teacher and its descriptors, student.

The photos need no labels.  Unless there is a validation set, every 20th photo is held out to choose the best epoch.
Legend: I photos, T photos to train on, H photos that are held out.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from cosplace.config.distillation import DistillConfig
from cosplace.config.values import from_values, loading_workers, to_values
from cosplace.device import amp_type, choose_device, fused_adam
from cosplace.errors import CheckpointError, ConfigError, DatasetError, NoPositionsError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.training_card import MAX_MATCHES
from cosplace.photos.image_list import ImageList, file_sizes_digest, rows_also_in
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings
from cosplace.retrieval.extraction import Extraction, ExtractionSettings
from cosplace.retrieval.recall import RECALL_VALUES
from cosplace.retrieval.two_folders import with_copies
from cosplace.training.augmentation import Augmentation
from cosplace.training.checkpoint import RunState, checkpoint_file, read_checkpoint, restore
from cosplace.training.finetuning_data import FEWEST_QUERIES, find_split, num_with_positives, open_split
from cosplace.training.finetuning_setup import usual_size
from cosplace.training.groups import Group, Groups
from cosplace.training.recipe import choose_image_size
from cosplace.training.starting_network import open_network
from cosplace.training.teacher import Targets, Teacher, check_dimensions, fit_reduction_of_teacher, open_teacher

HELD_OUT_EVERY = 20  # photos, of which one is held out: 5%
FEWEST_PHOTOS = 4  # to train on, and to hold out
# Settings that may differ when a run resumes.  The teacher is compared by its checksum.
FREE_ON_RESUME = frozenset(
    {"photos", "teacher", "val_set_folder", "test_set_folder", "device", "num_workers", "loader", "save_dir",
     "checkpoint_minutes", "resume_train", "resume_model", "infer_batch_size", "follow_outside", "teacher_cache",
     "accept_license", "trust_remote_code"}
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationPhotos:
    """All photos of a distillation."""

    images: ImageList  # I photos, of which the readable ones are used
    val: RetrievalDataset | None
    test: RetrievalDataset | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationPreparation:
    """Everything a distillation needs, opened and checked; only the cache of the teacher is written yet."""

    config: DistillConfig
    photos: DistillationPhotos
    group: Group  # the T training photos, each of them a class
    train_rows: np.ndarray  # (T,) int64, rows of these photos
    held_rows: np.ndarray  # (H,) int64, rows of the photos that are held out; none with a validation set
    teacher: Teacher
    targets: Targets  # of all I photos
    teacher_val: Evaluation | None
    settings: EvaluationSettings
    state: RunState
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision

    @property
    def iterations_per_epoch(self) -> int:
        """Training steps in one epoch; by default one pass over the photos."""
        knobs = self.config.training
        return knobs.iterations_per_epoch or max(1, len(self.train_rows) // knobs.batch_size)

    @property
    def num_iterations(self) -> int:
        """Training steps of the whole run."""
        return self.config.training.epochs_num * self.iterations_per_epoch

    @property
    def image_size(self) -> int:
        """Side of the training images of the student, in pixels."""
        assert self.config.training.image_size is not None
        return self.config.training.image_size

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of the student's images."""
        knobs = self.config.augmenting
        return Augmentation(
            image_size=self.image_size, brightness=knobs.brightness, contrast=knobs.contrast,
            saturation=knobs.saturation, hue=knobs.hue, random_resized_crop=knobs.random_resized_crop,
        )  # fmt: skip

    def digest(self) -> str:
        """Checksums of what is learned from and of what chooses the best epoch: teacher, photos, rows of these."""
        rows = hashlib.sha256(self.train_rows.tobytes()).hexdigest()
        teacher, names, sizes = digests_of_inputs(self.teacher, self.photos)
        return " ".join([teacher, names, rows, sizes])

    def describe(self) -> list[str]:
        """What the run will do, in sentences."""
        knobs, student = self.config.training, self.state.model
        size = (
            "their own size" if self.teacher.settings.image_size is None else f"{self.teacher.settings.image_size} px"
        )
        lines = [
            f"teacher: {self.teacher.name}, {self.teacher.dimension} dimensions, photos at {size}, checksum "
            f"{self.teacher.checksum[:16]}; license: {self.teacher.licence}",
            f"student: {student.backbone_name}, {student.fc_output_dim} dimensions, images of {self.image_size} px",
            f"{len(self.train_rows):,} photos to learn from, {knobs.epochs_num} epochs of "
            f"{self.iterations_per_epoch:,} iterations with {knobs.batch_size} photos",
        ]
        if self.targets.reduction is not None:
            lines.append(
                f"the {self.teacher.dimension} dimensions of the teacher are mapped to {student.fc_output_dim} by a "
                f"PCA of its descriptors"
            )
        if self.photos.val is not None:
            val = self.photos.val
            return [*lines, f"the best epoch is chosen by R@1 on {val.name}: {len(val.queries):,} queries"]
        return [
            *lines,
            f"no validation set: the best epoch is chosen by the loss on {len(self.held_rows):,} photos that are held "
            f"out",
        ]


def prepare_distillation(
    config: DistillConfig, given: Mapping[str, Any] = MappingProxyType({}), progress: Progress = no_progress
) -> DistillationPreparation:
    """Open photos, teacher and student, and compute the descriptors of the teacher.

    given: the settings that the user gave; weights to start from must not contradict them.
    Raises CosPlaceError for anything the user can fix.
    """
    resumed = config.training.resume_train
    config = resumed_config(config, given) if resumed else config
    device = choose_device(config.running.device)
    dtype = amp_type(config.running.use_amp16, config.running.amp_dtype, device)
    photos = open_photos(config, progress)
    teacher = open_teacher(config, device, dtype)
    if not config.training.resume_model:  # known before the descriptors of the teacher are computed
        check_dimensions(config.model.fc_output_dim, teacher.dimension, config.training.cosine_weight)
    config = _with_sizes(config, photos, teacher, device)
    student, config = _open_student(config, given)
    check_dimensions(student.fc_output_dim, teacher.dimension, config.training.cosine_weight)
    settings = _evaluation_settings(config, device, dtype)
    if resumed:  # before hours of computing
        digest, names, sizes = digests_of_inputs(teacher, photos)
        _check_inputs(checkpoint_file(resumed), [digest, names, "", sizes])
    log.info("descriptors of the teacher %s: %s photos, in %s", teacher.name, f"{len(photos.images):,}", teacher.cache)
    described = teacher.describe(photos.images, part_of(progress, "descriptors of the teacher"))
    train_rows, held_rows = _split_rows(photos, described)
    teacher_val = None
    if photos.val is not None:
        teacher_val = teacher.evaluate(photos.val, settings, progress)
    reduction = None
    if config.training.cosine_weight:
        reduction = fit_reduction_of_teacher(described.descriptors, train_rows, student.fc_output_dim)
    teacher.network.cpu()  # the memory of the device is the student's
    prepared = DistillationPreparation(
        config=config,
        photos=photos,
        group=as_group(photos.images.subset(train_rows.tolist())),
        train_rows=train_rows,
        held_rows=held_rows,
        teacher=teacher,
        targets=Targets(
            descriptors=described.descriptors, reduction=None if reduction is None else reduction.to(device)
        ),
        teacher_val=teacher_val,
        settings=settings,
        state=_new_state(student, config, device, dtype),
        device=device,
        dtype=dtype,
    )
    if resumed:
        _restore(prepared, checkpoint_file(resumed))
    return prepared


def _with_sizes(
    config: DistillConfig, photos: DistillationPhotos, teacher: Teacher, device: torch.device
) -> DistillConfig:
    """The settings with the sizes that were chosen, so that a resumed run has the same."""
    size = config.training.image_size or choose_image_size(usual_size(photos.images), device)
    return replace(
        config,
        training=replace(config.training, image_size=size),
        teaching=replace(config.teaching, teacher_image_size=teacher.settings.image_size),
    )


# --- photos ----------------------------------------------------------------------------------------------------------


def open_photos(config: DistillConfig, progress: Progress = no_progress) -> DistillationPhotos:
    """Open the photos, and the validation and test set if there are any.

    Raises DatasetError if there are no photos, or if a dataset has val/ or test/ but no train/.
    """
    root, follow = Path(config.photos), config.follow_outside
    train = find_split(root, "train")
    parts = [split for split in ("val", "test") if find_split(root, split) is not None]
    if train is None and parts:
        raise DatasetError(
            f"{root} has {parts[0]}/ but no train/: photos to evaluate on are not for training. Use the folder of "
            f"other photos, with --val_set_folder {root / parts[0]}."
        )
    images = scan_images(train or root, dataset=root, follow_outside=follow)
    val, test = (_open_set(config, split, images, progress) for split in ("val", "test"))
    if val is not None:
        num = num_with_positives(val)
        if num < FEWEST_QUERIES:
            log.warning(
                "%s: only %d queries have a database photo within 25 m, too few to choose an epoch. Photos are held "
                "out instead.", val.folder, num,
            )  # fmt: skip
            val = None
    elif train is not None:  # of a dataset, not of plain photos
        problem = "its val/ has no usable database/ and queries/" if "val" in parts else "it has no val/"
        log.warning(
            "%s: %s, so the best epoch is chosen by the loss on photos held out, and recalls are not compared during "
            "training. Use --val_set_folder, or `cosplace split`, for a validation set.", root, problem,
        )  # fmt: skip
    return DistillationPhotos(images=images, val=val, test=test)


def _open_set(config: DistillConfig, split: str, images: ImageList, progress: Progress) -> RetrievalDataset | None:
    """The validation or test set.  One in the dataset that has no positions is left out, with a warning."""
    own, follow = getattr(config, f"{split}_set_folder"), config.follow_outside
    if own:
        dataset = with_copies(
            open_retrieval_dataset(own, config.queries_folder, split=split, follow_outside=follow, progress=progress)
        )
    else:
        try:
            dataset = open_split(
                Path(config.photos), split, config.queries_folder, follow_outside=follow, progress=progress
            )
        except NoPositionsError as error:
            log.warning("%s is not used: %s", split, error)
            dataset = None
    if split == "test" and dataset is not None and not num_with_positives(dataset):
        log.warning("%s is not used: no query has a database photo within 25 m", dataset.folder)
        return None
    if dataset is not None and (num := len(rows_also_in(dataset.queries, images))):
        log.warning(
            "%d of %d queries of %s are also photos to learn from: their recalls are too high.",
            num, len(dataset.queries), dataset.name,
        )  # fmt: skip
    return dataset


def _split_rows(photos: DistillationPhotos, described: Extraction) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the photos to train on, and of those that are held out: none with a validation set."""
    rows = np.flatnonzero(described.readable)
    for photo in described.unreadable:
        log.warning("left out: %s", photo.message)
    is_held = np.zeros(len(rows), bool)
    if photos.val is None:
        every = min(HELD_OUT_EVERY, max(1, len(rows) // FEWEST_PHOTOS))
        is_held[every // 2 :: every] = True
    if min((~is_held).sum(), is_held.sum() or FEWEST_PHOTOS) < FEWEST_PHOTOS:
        raise DatasetError(
            f"{photos.images.folder} has {len(rows)} photos that can be opened, too few to learn from. Add photos."
        )
    return rows[~is_held], rows[is_held]


def as_group(images: ImageList) -> Group:
    """Photos as a CosPlace group, of which each photo is a class of its own."""
    num_photos = len(images)
    groups = Groups(
        folder=images.folder,
        cells=np.zeros((num_photos, 3), np.int64),
        group_starts=np.array([0, num_photos]),
        class_starts=np.arange(num_photos + 1),
        image_starts=images.starts[:-1],
        names=images.names,
        num_scanned=num_photos,
        inside=images.inside,
    )
    return groups[0]


def _evaluation_settings(config: DistillConfig, device: torch.device, dtype: torch.dtype | None) -> EvaluationSettings:
    running = config.running
    return EvaluationSettings(
        extraction=ExtractionSettings(
            image_size=config.training.image_size,
            batch_size=config.infer_batch_size,
            num_workers=loading_workers(running.num_workers),
            loader=running.loader,
            device=device,
            autocast=dtype,
            skip_unreadable=True,
        ),
        num_predictions=max(MAX_MATCHES, *RECALL_VALUES),  # for the model card
    )


# --- the student -----------------------------------------------------------------------------------------------------


def _open_student(config: DistillConfig, given: Mapping[str, Any]) -> tuple[GeoLocalizationNet, DistillConfig]:
    """The student before training, and the settings with its architecture."""
    training = config.training
    student, knobs = open_network(
        config.model,
        given,
        resume_train=training.resume_train,
        resume_model=training.resume_model,
        seed=config.running.seed,
        image_size=training.image_size,
    )
    return student, replace(config, model=knobs)


def _new_state(
    student: GeoLocalizationNet, config: DistillConfig, device: torch.device, dtype: torch.dtype | None
) -> RunState:
    student = student.to(device).to(memory_format=torch.channels_last)
    return RunState(
        model=student,
        optimizer=fused_adam([one for one in student.parameters() if one.requires_grad], config.training.lr),
        classifiers=[],
        classifier_optimizers=[],
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda"),
    )


# --- resuming --------------------------------------------------------------------------------------------------------


def resumed_config(config: DistillConfig, given: Mapping[str, Any]) -> DistillConfig:
    """Settings of a run that was stopped, with those of `given` that may differ.

    Raises ConfigError for a setting in `given` that would change what is learned, CheckpointError for a folder without
    a checkpoint of a distillation.
    """
    file = checkpoint_file(str(config.training.resume_train))
    saved = read_checkpoint(file, mapped=True).get("config", {})
    if "teacher" not in saved:
        raise CheckpointError(f"{file} is not of a distillation. Use the folder of a run of `cosplace distill`.")
    asked = to_values(config)
    for name in given:
        if name not in FREE_ON_RESUME and saved.get(name) != asked[name]:
            raise ConfigError(
                f"--{name} {given[name]} contradicts {file}, which was trained with {saved.get(name)}. Omit the flag, "
                f"or start a new run."
            )
    return from_values(DistillConfig, {**saved, **given, "resume_train": config.training.resume_train})


def digests_of_inputs(teacher: Teacher, photos: DistillationPhotos) -> tuple[str, str, str]:
    """Checksums of the teacher; of the names of all photos that are learned from or choose an epoch; of their sizes."""
    names, val = hashlib.sha256(), photos.val
    lists = photos.images, *(() if val is None else (val.database, val.queries))
    for images in lists:
        names.update(images.text(0, int(images.starts[-1])).tobytes())
    return teacher.checksum, names.hexdigest(), file_sizes_digest(*lists)


def _check_inputs(file: Path, now: Sequence[str]) -> None:
    """Raise CheckpointError unless a checkpoint has these digests, see `DistillationPreparation.digest`; "": any."""
    saved = read_checkpoint(file, mapped=True)["data_digest"].split()  # earlier versions wrote no digest of sizes
    others = (
        "with another teacher", "on other photos", "on other photos",
        "on photos with the same names, but other contents",
    )  # fmt: skip
    for what, before, after in zip(others, saved, now, strict=False):
        if after and before != after:
            raise CheckpointError(f"{file} was trained {what}. Use the same, or start a new run.")


def _restore(prepared: DistillationPreparation, file: Path) -> None:
    _check_inputs(file, prepared.digest().split())
    restore(prepared.state, read_checkpoint(file), file)
