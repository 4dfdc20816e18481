"""Results of a training, a fine-tuning or a distillation, written to the folder of its run.

They are the files of `cosplace.report.results`, for the evaluation of the trained model, and

distillation.json    what a distillation reached, see `DistillationResult.record`
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cosplace.assessment.conditions import find_conditions
from cosplace.assessment.measures import Measures
from cosplace.assessment.metrics import measure
from cosplace.assessment.protocols import matching_protocol, protocol_record
from cosplace.assessment.provenance import Provenance, RunInfo, describe_model, deviations, provenance
from cosplace.config.defaults import REPORT_MATCHES
from cosplace.config.methods import METHOD_NAMES
from cosplace.config.sections import TrainConfig
from cosplace.config.values import to_values
from cosplace.models.network import GeoLocalizationNet
from cosplace.progress import Progress, format_count, no_progress
from cosplace.report.data import RecallRow, Report
from cosplace.report.results import chance_row, evaluation_summary, write_results
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.storage import write_text
from cosplace.training.best_model import BEST_MODEL, START, epoch_text
from cosplace.training.comparison import Comparison
from cosplace.training.data import TrainingData
from cosplace.training.distillation_summary import DistillationResult
from cosplace.training.finetuning import FinetuneResult
from cosplace.training.loop import TrainResult
from cosplace.training.validation import best_epoch_summary, doubts_about, reused_photos, won_and_lost_text

DISTILLATION = "distillation.json"


def write_training_results(
    result: TrainResult,
    config: TrainConfig,
    *,
    baselines: Sequence[RecallRow] = (),
    title: str = "",
    run: RunInfo | None = None,
    progress: Progress = no_progress,
) -> Measures:
    """Write the results of a training run to its folder, and return the metrics of its test.

    run: what the command knows of it.
    """
    values = to_values(config)
    data, training = result.data, config.training
    origin = (
        None
        if run is None
        else _origin_of(result.folder, result.model, data.test, result.test, run, reused_photos(data))
    )
    name = f"trained {result.model.backbone_name}"
    conditions = find_conditions(data.test, result.test.positives)
    measures = measure(result.test, data.test, conditions=conditions)
    report = Report(
        title=title or f"{METHOD_NAMES[config.method.method]} trained on {data.groups.folder}",
        summary=[
            f"{result.model.backbone_name} with {result.model.fc_output_dim}-dimensional descriptors, trained for "
            f"{format_count(training.epochs_num, 'epoch')} of "
            f"{format_count(training.iterations_per_epoch, 'iteration')} with "
            f"{format_count(training.batch_size * len(data.groups_of_epoch(0)), 'image')} each, "
            f"{_trained_on(data)}.",
            f"Tested model: {epoch_text(result.best_epoch)}, the best on {data.val.name}.",
            *_validation_summary(result),
            evaluation_summary(result.test, data.test),
        ],
        recall_rows=[
            chance_row(result.test),
            *baselines,
            RecallRow(name=name, recalls=result.test.recalls, intervals=measures.recalls),
        ],
        highlight=name,
        measures=measures,
        conditions={name: column.tolist() for name, column in conditions.values.items()},
        metrics=result.metrics,
        groups=data.groups,
        groups_used=data.num_used,
        dataset=data.test,
        evaluation=result.test,
        settings=values,
        environment={} if origin is None else origin.summary(),
        num_queries_matched=config.testing.report_matches,
    )
    more = {"validation": result.validation} | ({} if origin is None else origin.record())
    write_results(result.folder, report, result.test, data.test, values, more=more, progress=progress)
    return measures


def _origin_of(  # noqa: PLR0917
    folder: Path,
    model: GeoLocalizationNet,
    dataset: RetrievalDataset,
    evaluation: Evaluation,
    run: RunInfo,
    reused: Sequence[str] = (),
) -> Provenance:
    """Where the evaluation of the best model of a run comes from.  reused: sentences of `reused_photos`."""
    radius_m = evaluation.positive_dist_threshold
    similar = matching_protocol(dataset, radius_m, None, evaluation.image_size)
    return provenance(
        evaluation,
        dataset,
        protocol=protocol_record(
            None, radius_m, similar=similar, deviations=[*deviations(evaluation, dataset), *reused]
        ),
        model=describe_model(folder / BEST_MODEL, model),
        run=run,
    )


def write_finetuning_results(result: FinetuneResult, *, progress: Progress = no_progress) -> None:
    """Write the results of a fine-tuning to its folder; without a test set, those on the validation set."""
    prepared, comparison = result.prepared, result.comparison
    config, recipe, data = prepared.config, prepared.recipe, prepared.data
    values = to_values(config) | {
        "image_size": recipe.image_size,
        "positive_dist_threshold": prepared.settings.positive_dist_threshold,
        "num_preds_to_save": 0,
        "save_only_wrong_preds": False,
    }
    start = RecallRow(name=f"start: {Path(config.model).name}", recalls=result.start_evaluation.recalls)
    conditions = find_conditions(result.dataset, result.evaluation.positives)
    measures = measure(result.evaluation, result.dataset, conditions=conditions)
    trained = RecallRow(name="fine-tuned", recalls=result.evaluation.recalls, intervals=measures.recalls)
    if not result.is_better:
        start = replace(start, intervals=measures.recalls)
    on = (
        "the test set"
        if prepared.photos.test
        else "the validation set, which also chose the model: there is no test set"
    )
    report = Report(
        title=f"Fine-tuning on {config.dataset}",
        summary=[
            result.verdict,
            *([] if result.test_comparison is None else [result.test_comparison.text("test")]),
            *prepared.describe(),
            f"Recalls are those on {on}.",
            evaluation_summary(result.evaluation, result.dataset),
        ],
        recall_rows=[chance_row(result.evaluation), start, *([trained] if result.is_better else [])],
        highlight=trained.name if result.is_better else start.name,
        measures=measures,
        conditions={name: column.tolist() for name, column in conditions.values.items()},
        metrics=result.metrics,
        groups=data.groups if len(prepared.places) else None,
        groups_used=1,
        dataset=result.dataset,
        evaluation=result.evaluation,
        settings=values,
        num_queries_matched=REPORT_MATCHES,
    )
    more = {
        "evaluated_on": result.dataset.name,
        "start_recalls": {str(k): value for k, value in result.start_evaluation.recalls.items()},
        "trained": comparison is not None,
        "kept": "trained" if result.is_better else "start",
        "verdict": result.verdict,
        "comparison": _comparison_values(comparison),
        "test_comparison": _comparison_values(result.test_comparison),
        "num_places": len(prepared.places),
        "recipe": asdict(recipe),
        "validation": best_epoch_summary(result.metrics, result.best_epoch),
    }
    write_results(result.folder, report, result.evaluation, result.dataset, values, more=more, progress=progress)


def write_distillation_results(
    result: DistillationResult, *, run: RunInfo | None = None, progress: Progress = no_progress
) -> None:
    """Write the results of a distillation to its folder: distillation.json, and what `_write_results` writes.

    run: what the command knows of it.

    Recalls are those on the test set, else on the validation set; without both there is only distillation.json.
    """
    kept, prepared = result.test or result.val, result.prepared
    record = result.record()
    if kept is not None:
        values = to_values(prepared.config) | {
            "positive_dist_threshold": prepared.settings.positive_dist_threshold,
            "num_preds_to_save": 0,
            "save_only_wrong_preds": False,
        }
        conditions = find_conditions(kept.dataset, kept.student.positives)
        measures = measure(kept.student, kept.dataset, conditions=conditions)
        student = RecallRow(name="student", recalls=kept.student.recalls, intervals=measures.recalls)
        teacher = RecallRow(name=f"teacher: {prepared.teacher.name}", recalls=kept.teacher.recalls)
        origin = None
        if run is not None:
            origin = _origin_of(result.folder, result.model, kept.dataset, kept.student, run)
        report = Report(
            title=f"Distillation on {prepared.config.photos}",
            summary=[
                *(f"{line[:1].upper()}{line[1:]}." for line in result.lines()[:-1]),
                result.lines()[-1],
                *(f"{line[:1].upper()}{line[1:]}." for line in prepared.describe()[1:]),
                evaluation_summary(kept.student, kept.dataset),
            ],
            recall_rows=[chance_row(kept.student), teacher, student],
            highlight=student.name,
            measures=measures,
            conditions={name: column.tolist() for name, column in conditions.values.items()},
            metrics=result.metrics if result.val is not None else [],
            dataset=kept.dataset,
            evaluation=kept.student,
            settings=values,
            environment={} if origin is None else origin.summary(),
            num_queries_matched=REPORT_MATCHES,
        )
        more: dict[str, Any] = {"evaluated_on": kept.dataset.name, "distillation": record}
        if result.val is not None:
            more["validation"] = best_epoch_summary(result.metrics, result.best_epoch)
        more |= {} if origin is None else origin.record()
        write_results(result.folder, report, kept.student, kept.dataset, values, more=more, progress=progress)
    write_text(result.folder / DISTILLATION, json.dumps(record, indent=2) + "\n")


def _comparison_values(comparison: Comparison | None) -> dict[str, Any] | None:
    return None if comparison is None else asdict(comparison) | {"difference": comparison.difference}


def _trained_on(data: TrainingData) -> str:
    """Which groups or places were trained on."""
    if data.locations is not None:
        text = f"on {format_count(len(data.groups.cells), 'place')}"
    else:
        text = f"on {data.num_used} of {format_count(len(data.groups), 'group')}"
    if not data.further:
        return text
    return f"{text}, and on {format_count(len(data.further), 'further dataset')}"


def _validation_summary(result: TrainResult) -> list[str]:
    """Sentences that compare the best model with the network before training."""
    if result.best_epoch == START:
        text = "No epoch was better than the start: this is the network before training."
        return [text, *reused_photos(result.data)]
    counts = won_and_lost_text(result.validation)
    return [*([f"On {result.data.val.name}, {counts}."] if counts else []), *doubts_about(result.data)]
