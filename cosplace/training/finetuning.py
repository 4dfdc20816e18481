"""Fine-tune a model on the photos of one city, and find out whether that helped.

    the start is the best model
    if there are enough places:
        for each trial, with a seed of its own:
            train and validate (`finetuning_trial`)
        compare the best trained model with the start; keep it if it is better
    test the best model

Side effects: writes the folder of the run.
"""

import json
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cosplace.assessment.provenance import usual_image_size
from cosplace.config.values import to_values
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model, weights_path
from cosplace.models.training_card import training_entries
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate, log_misses
from cosplace.storage import write_text
from cosplace.training.best_model import BEST_MODEL, START, save_best_model, save_with_card
from cosplace.training.comparison import Comparison
from cosplace.training.enough_places import too_few_places
from cosplace.training.finetuning_setup import FinetuningPreparation
from cosplace.training.finetuning_start import IMAGENET
from cosplace.training.finetuning_state import TRAINED_MODEL, FinetuningState, new_state, restore_state
from cosplace.training.finetuning_trial import FinetuningRun, queries_text, train_trial
from cosplace.training.finetuning_validation import Judgment, compare_evaluations, compare_judgments, judge
from cosplace.training.metrics import MetricsWriter, read_metrics
from cosplace.training.run import CONFIG, lock_run
from cosplace.training.seen_photos import NO_PHOTOS, digest_training_photos, training_card_entries

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """What a finished fine-tuning returns; its files are in `folder`."""

    folder: Path
    prepared: FinetuningPreparation
    model: GeoLocalizationNet  # the one that is kept
    verdict: str  # what was found, in one or two sentences
    comparison: Comparison | None  # on the validation set; None if nothing was trained
    test_comparison: Comparison | None  # on the test set, which decides nothing; None if the start is kept
    best_epoch: int  # of all trials, counted from 0; START if the start is kept
    dataset: RetrievalDataset  # the test set; the validation set where there is no test set
    evaluation: Evaluation  # of `model` on `dataset`
    start_evaluation: Evaluation  # of the start on `dataset`
    metrics: list[dict[str, Any]]

    @property
    def is_better(self) -> bool:
        """Whether the trained model is kept."""
        return self.best_epoch != START

    @property
    def image_size(self) -> int | None:
        """Shorter side of the photos that suits `model`; None for photos of any size."""
        return image_size_of(self.prepared, is_trained=self.is_better)


def finetune(prepared: FinetuningPreparation, folder: Path, progress: Progress = no_progress) -> FinetuneResult:
    """Fine-tune in `folder`, or continue what was stopped there (`resume_train`).

    Raises CosPlaceError for anything the user can fix; the last checkpoint is then still there to resume from.
    """
    for line in prepared.describe():
        log.info(line)
    values = to_values(prepared.config) | {"recipe": asdict(prepared.recipe)}
    resumed = prepared.config.training.resume_train
    with lock_run(folder):
        write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")
        start_network = prepared.network()
        start = judge(
            start_network, prepared.photos.val, prepared.settings, part_of(progress, "validation of the start")
        )
        queries = queries_text(start)
        log.info("validation of the start: %s (%s)", start.evaluation.recalls_text(), queries)
        if not (resumed and (folder / BEST_MODEL).exists()):
            save_best_model(folder, start_network, _card(prepared, start, epoch=""))
        trained: Judgment | None = None
        comparison, best_epoch = None, START
        if prepared.is_worth_training:
            with _open_run(prepared, folder, start, progress) as run:
                while run.state.trial < prepared.recipe.num_seeds:
                    train_trial(run)
                    _next_trial(run)
            trained, comparison, best_epoch = _compare(run)
        kept = trained if trained is not None and best_epoch != START else start
        if resumed and kept is start:  # the best model may be of the trained ones
            save_best_model(folder, start_network, _card(prepared, start, epoch=""))
        dataset, evaluations, model = _test(prepared, folder, start, kept, progress)
        test_comparison = None
        if kept is not start and prepared.photos.test is not None:
            test_comparison = compare_evaluations(*evaluations, dataset)
            log.info("%s", test_comparison.text("test"))
        return FinetuneResult(
            folder=folder,
            prepared=prepared,
            model=model,
            verdict=_verdict(prepared, comparison, best_epoch),
            comparison=comparison,
            test_comparison=test_comparison,
            best_epoch=best_epoch,
            dataset=dataset,
            evaluation=evaluations[1],
            start_evaluation=evaluations[0],
            metrics=read_metrics(folder),
        )


@contextmanager
def _open_run(
    prepared: FinetuningPreparation, folder: Path, start: Judgment, progress: Progress
) -> Generator[FinetuningRun]:
    state, photos = _state_of_trial(prepared, 0), prepared.photos
    resumed = prepared.config.training.resume_train
    if resumed:
        restore_state(Path(resumed), state, prepared.config)
        log.info("resuming at trial %d, epoch %d, iteration %d", state.trial + 1, state.epoch + 1, state.iteration)
    recipe = prepared.recipe
    step = (state.trial * recipe.epochs_num + state.epoch) * recipe.iterations_per_epoch + state.iteration
    with MetricsWriter(folder, first_step=step) as metrics:
        run = FinetuningRun(
            prepared=prepared, folder=folder, state=state, start=start, metrics=metrics, progress=progress,
            digest=photos.digest(), sizes=photos.sizes(), checkpoint_time=time.monotonic(),
        )  # fmt: skip
        metrics.write_start({"num_queries": len(start.queries)}, start.evaluation.recalls)
        if not resumed:
            run.checkpoint()
        yield run


def _state_of_trial(prepared: FinetuningPreparation, trial: int) -> FinetuningState:
    return new_state(
        prepared.network(),
        prepared.recipe,
        prepared.places,
        device=prepared.device,
        dtype=prepared.dtype,
        seed=prepared.config.running.seed + trial,
    )


def _next_trial(run: FinetuningRun) -> None:
    """Begin the next trial from the start, with another seed."""
    state = run.state
    if state.trial + 1 < run.prepared.recipe.num_seeds:
        run.state = _state_of_trial(run.prepared, state.trial + 1)
        for name in ("best_score", "best_trial", "best_epoch"):
            setattr(run.state, name, getattr(state, name))
    run.state.trial = state.trial + 1
    run.checkpoint()


# --- the end ---------------------------------------------------------------------------------------------------------


def _compare(run: FinetuningRun) -> tuple[Judgment, Comparison, int]:
    """Compare the best trained model with the start, and save it as the best model if it is better."""
    prepared, state = run.prepared, run.state
    trained = open_model(run.folder / TRAINED_MODEL).to(prepared.device).to(memory_format=torch.channels_last)
    assert isinstance(trained, GeoLocalizationNet)
    judgment = judge(
        trained, prepared.photos.val, prepared.settings, part_of(run.progress, "comparison with the start")
    )
    comparison = compare_judgments(run.start, judgment, prepared.photos.val)
    log.info("%s", comparison.text())
    epoch = state.best_epoch - state.best_trial * prepared.recipe.epochs_num
    seed = prepared.config.running.seed + state.best_trial
    card = _card(prepared, judgment, epoch=f"epoch {epoch + 1}, seed {seed}")
    save_with_card(run.folder / TRAINED_MODEL, trained, card)
    fewer = int(run.start.queries.sum()) - int(judgment.queries.sum())  # correct queries
    if not comparison.is_better or fewer > 0:
        return judgment, comparison, START
    save_best_model(run.folder, trained, card)
    return judgment, comparison, state.best_epoch


def _card(prepared: FinetuningPreparation, judgment: Judgment, *, epoch: str) -> dict[str, str]:
    """Entries for the card of a model.  epoch: of a trained model; "" for the start."""
    recalls = {str(k): round(recall, 2) for k, recall in judgment.evaluation.recalls.items()}
    card = {
        "method": "cosplace",
        "source": f"cosplace finetune, {epoch or 'the start'}",
        "recalls": json.dumps({"val": recalls}),
    }
    if size := image_size_of(prepared, is_trained=bool(epoch)):
        card["image_size"] = str(size)
    model = prepared.config.model
    if epoch:
        photos = digest_training_photos(prepared.data, None if model == IMAGENET else model)
        card |= training_card_entries(photos, judgment.evaluation, prepared.photos.val)
    elif model == IMAGENET:  # it has seen no street photos
        card |= training_card_entries(NO_PHOTOS, judgment.evaluation, prepared.photos.val)
    else:
        card |= training_entries(weights_path(model))
    return card


def image_size_of(prepared: FinetuningPreparation, *, is_trained: bool) -> int | None:
    """Shorter side of the photos that suits the trained model, or the start; None for photos of any size.

    A start that is not changed keeps its own; the last layer of ImageNet weights was fitted at the size of the recipe.
    """
    model = prepared.config.model
    return prepared.recipe.image_size if is_trained or model == IMAGENET else usual_image_size(model)


def _test(
    prepared: FinetuningPreparation, folder: Path, start: Judgment, kept: Judgment, progress: Progress
) -> tuple[RetrievalDataset, tuple[Evaluation, Evaluation], GeoLocalizationNet]:
    """Evaluate the start and the model that is kept on the test set, which has decided nothing.

    Returns the test set, the two evaluations and the model; without a test set, those of the validation set.
    """
    network = prepared.network()
    model = network
    if kept is not start:
        opened = open_model(folder / TRAINED_MODEL)
        assert isinstance(opened, GeoLocalizationNet)
        model = opened.to(prepared.device).to(memory_format=torch.channels_last)
    test = prepared.photos.test
    if test is None:
        return prepared.photos.val, (start.evaluation, kept.evaluation), model
    of_start = evaluate(network, test, prepared.settings, progress=part_of(progress, "test of the start"))
    log.info("%s: start %s", test.name, of_start.recalls_text())
    log_misses(of_start)
    if kept is start:
        return test, (of_start, of_start), model
    of_model = evaluate(model, test, prepared.settings, progress=part_of(progress, "test"))
    log.info("%s: fine-tuned %s", test.name, of_model.recalls_text())
    return test, (of_start, of_model), model


def _verdict(prepared: FinetuningPreparation, comparison: Comparison | None, best_epoch: int) -> str:
    if comparison is None:
        places = len(prepared.places)
        problem = prepared.photos.too_few or too_few_places(places)
        start = "Training would not help: " if prepared.photos.too_few else ""
        force = " To train anyway, use --force." if places > 1 else ""
        return f"{start}{problem}, so the start is kept.{force}"
    files = f"best_model.pth is the start, {TRAINED_MODEL} the trained model. " if best_epoch == START else ""
    return f"{comparison.verdict(is_kept=best_epoch != START)} {files}{comparison.text()}"
