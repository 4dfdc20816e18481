"""What the student of a distillation keeps of its teacher: recalls, size and speed.

The test set is evaluated here, once, after the student was chosen.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosplace.errors import CosPlaceError
from cosplace.models.inference import encode_batch, optimize_for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.reduction import num_parameters
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import resize_shorter_side
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.dry_run import synchronize
from cosplace.retrieval.evaluation import Evaluation, evaluate
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.training.best_model import BEST_MODEL, START, epoch_text
from cosplace.training.comparison import Comparison
from cosplace.training.distillation_setup import DistillationPreparation
from cosplace.training.finetuning_validation import compare_evaluations
from cosplace.training.metrics import read_metrics

TIMED_PHOTOS = 8  # in a batch
TIMED_BATCHES = 7  # of which the fastest counts: other programs make the others slower

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Student and teacher on one dataset."""

    dataset: RetrievalDataset
    student: Evaluation
    teacher: Evaluation
    comparison: Comparison  # the teacher is its start

    def text(self) -> str:
        """The result in one sentence."""
        one = self.comparison
        share = f", {100 * one.recall1 / one.start_recall1:.1f}% of it" if one.start_recall1 else ""
        return (
            f"R@1 on {one.num_queries} queries of {self.dataset.name}: teacher {one.start_recall1:.1f}, student "
            f"{one.recall1:.1f}{share}; difference {one.difference:+.1f} points ({one.interval_words} "
            f"{one.low:+.1f} to {one.high:+.1f}; {one.won} won, {one.lost} lost)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Size and speed of a model."""

    num_parameters: int
    dimension: int
    image_size: int | None
    milliseconds: float | None  # for one photo in a batch, without loading it; None if it could not be measured

    def record(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "num_parameters": self.num_parameters,
            "descriptor_dim": self.dimension,
            "image_size": self.image_size,
            "milliseconds_per_photo": self.milliseconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """What a finished distillation returns; its files are in `folder`."""

    folder: Path
    prepared: DistillationPreparation
    model: GeoLocalizationNet  # the best student
    best_epoch: int  # counted from 0; START for the student before training
    val: Kept | None
    test: Kept | None
    student_cost: Cost
    teacher_cost: Cost
    metrics: list[dict[str, Any]]

    @property
    def speed_ratio(self) -> float | None:
        """How many times faster the student is."""
        student, teacher = self.student_cost.milliseconds, self.teacher_cost.milliseconds
        return teacher / student if student and teacher else None

    def lines(self) -> list[str]:
        """What the student keeps, in sentences."""
        student, teacher, prepared = self.student_cost, self.teacher_cost, self.prepared
        found = [kept.text() for kept in (self.val, self.test) if kept is not None]
        if self.val is None:
            first, best = self.held_out_losses
            epoch = epoch_text(self.best_epoch)
            found.insert(0, f"loss on photos held out: {best:.4f} ({epoch}), {first:.4f} before training")
        size = (
            f"size: {student.num_parameters / 1e6:.1f} million parameters, the teacher "
            f"{teacher.num_parameters / 1e6:.1f}; {student.dimension} and {teacher.dimension} dimensions"
        )
        if self.speed_ratio is not None:
            size += (
                f"; {self.speed_ratio:.1f} times as fast on {prepared.device}: {student.milliseconds:.1f} and "
                f"{teacher.milliseconds:.1f} ms per photo"
            )
        found.append(size)
        if self.best_epoch == START:
            found.append(f"warning: {untrained_text(self.prepared)}")
        found.append(
            f"license of the teacher {prepared.teacher.name}: {prepared.teacher.licence}. Check whether it covers the "
            f"student, too."
        )
        return found

    @property
    def held_out_losses(self) -> tuple[float, float]:
        """The loss on the photos held out before training, and of the best student."""
        rows = [row["held_out_loss"] for row in self.metrics if "held_out_loss" in row]
        return rows[0], min(rows)

    def record(self) -> dict[str, Any]:
        """The section "distillation" of results.json."""
        prepared = self.prepared
        kept = {
            name: None
            if one is None
            else {
                "teacher_recalls": {str(k): value for k, value in one.teacher.recalls.items()},
                "student_recalls": {str(k): value for k, value in one.student.recalls.items()},
                "difference": one.comparison.difference,
                "interval": [one.comparison.low, one.comparison.high],
                "approximate": one.comparison.is_approximate,
                "won": one.comparison.won,
                "lost": one.comparison.lost,
            }
            for name, one in (("val", self.val), ("test", self.test))
        }
        losses = {} if self.val is not None else dict(zip(("start", "best"), self.held_out_losses, strict=True))
        return {
            **prepared.teacher.card_entries(),
            "best_epoch": max(self.best_epoch, -1) + 1,  # counted from 1; 0 is the start
            "held_out_loss": losses or None,
            **kept,
            "student": self.student_cost.record(),
            "teacher_network": self.teacher_cost.record(),
            "speed_ratio": self.speed_ratio,
            "device": str(prepared.device),
        }


def summarize(prepared: DistillationPreparation, folder: Path, progress: Progress = no_progress) -> DistillationResult:
    """Evaluate the best student beside its teacher, on the validation set and on the test set."""
    model = open_model(folder / BEST_MODEL).to(prepared.device).to(memory_format=torch.channels_last)
    assert isinstance(model, GeoLocalizationNet)
    best_epoch = prepared.state.best_epoch
    if best_epoch == START:
        log.warning("%s", untrained_text(prepared))
    prepared.teacher.network.to(prepared.device)
    val, test = (
        None if dataset is None else _compare(prepared, model, dataset, part_of(progress, what))
        for dataset, what in ((prepared.photos.val, "validation"), (prepared.photos.test, "test"))
    )
    images = prepared.photos.images
    student_cost, teacher_cost = (
        _cost(network, images, settings, prepared, part_of(progress, f"speed of the {who}"))
        for who, network, settings in (
            ("student", model, prepared.settings.extraction),
            ("teacher", prepared.teacher.network, prepared.teacher.settings),
        )
    )
    return DistillationResult(
        folder=folder,
        prepared=prepared,
        model=model,
        best_epoch=best_epoch,
        val=val,
        test=test,
        student_cost=student_cost,
        teacher_cost=teacher_cost,
        metrics=read_metrics(folder),
    )


def untrained_text(prepared: DistillationPreparation) -> str:
    """What it means that the best student is the one before training, and what to do."""
    val, start = prepared.photos.val, prepared.config.training.resume_model
    measure = "a smaller loss on the photos held out" if val is None else f"a higher R@1 on {val.name}"
    what = f"unchanged {start}" if start else "an untrained network: do not use it"
    return (
        f"no epoch has {measure} than the student before training, so best_model.pth is {what}. Train with another "
        f"--lr, or with more --epochs_num."
    )


def _compare(
    prepared: DistillationPreparation, model: nn.Module, dataset: RetrievalDataset, progress: Progress
) -> Kept:
    if dataset is prepared.photos.val and prepared.teacher_val is not None:
        teacher = prepared.teacher_val
    else:
        teacher = prepared.teacher.evaluate(dataset, prepared.settings, progress)
    student = evaluate(model, dataset, prepared.settings, progress=progress)
    return Kept(
        dataset=dataset,
        student=student,
        teacher=teacher,
        comparison=compare_evaluations(teacher, student, dataset),
    )


def _cost(
    network: nn.Module,
    images: ImageList,
    settings: ExtractionSettings,
    prepared: DistillationPreparation,
    progress: Progress,
) -> Cost:
    row = int(prepared.train_rows[0])
    try:
        milliseconds = milliseconds_per_photo(network, images, row, settings, device=prepared.device, progress=progress)
    except CosPlaceError as error:  # the photo is gone, or the memory is too small for the batch
        log.warning("The speed was not measured: %s", error)
        milliseconds = None
    parameters = num_parameters(network)
    student = prepared.state.model.fc_output_dim
    dimension = prepared.teacher.dimension if network is prepared.teacher.network else student
    return Cost(
        num_parameters=parameters, dimension=dimension, image_size=settings.image_size, milliseconds=milliseconds
    )


def milliseconds_per_photo(
    network: nn.Module,
    images: ImageList,
    row: int,
    settings: ExtractionSettings,
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> float:
    """Milliseconds of a network for one photo in a batch of copies of it, without loading: in the fastest batch."""
    photo = open_image(images.path(row))
    if settings.image_size is not None:
        photo = resize_shorter_side(photo, settings.image_size)
    batch, fast, seconds = photo[None].repeat(TIMED_PHOTOS, 1, 1, 1), optimize_for_inference(network.eval()), []
    with torch.inference_mode():
        for number in range(1 + TIMED_BATCHES):
            progress("batches", number, 1 + TIMED_BATCHES)  # a signal can stop it here
            started = time.perf_counter()
            encode_batch(fast, batch, device=device, autocast=settings.autocast)
            synchronize(device)
            seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds[1:]) / TIMED_PHOTOS
