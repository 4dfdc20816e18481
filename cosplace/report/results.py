"""Results of a run, written to its folder.

results.json      recalls and the sizes of the dataset
queries.parquet   what was found for each query, see `cosplace.assessment.run_files`
report.html       recalls, charts, maps, queries with their predictions
preds/            predictions as images and as a table, see `prediction_images`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cosplace.assessment.audit import SAME, JudgedRecalls, VerdictFile, judged_recalls, judged_record
from cosplace.assessment.compression_loss import compression_text, loss_record, measure_loss
from cosplace.assessment.conditions import find_conditions
from cosplace.assessment.measures import Measures
from cosplace.assessment.metrics import measure
from cosplace.assessment.protocols import matching_protocol, protocol_record
from cosplace.assessment.provenance import Provenance, RunInfo, describe_model, provenance
from cosplace.assessment.records import intervals_record, metrics_record
from cosplace.assessment.run_files import QUERIES, write_query_results
from cosplace.config.defaults import REPORT_MATCHES
from cosplace.config.evaluation import EvalConfig
from cosplace.config.methods import METHOD_NAMES
from cosplace.config.sections import TrainConfig
from cosplace.config.values import to_values
from cosplace.models.network import GeoLocalizationNet
from cosplace.progress import Progress, format_count, no_progress
from cosplace.report.data import RecallRow, Report, expected_matches
from cosplace.report.page import write_report
from cosplace.report.prediction_images import save_predictions
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, about_left_out, about_single_image
from cosplace.storage import write_text
from cosplace.training.best_model import BEST_MODEL, START, epoch_text
from cosplace.training.comparison import Comparison
from cosplace.training.data import TrainingData
from cosplace.training.distillation_summary import DistillationResult
from cosplace.training.finetuning import FinetuneResult
from cosplace.training.loop import TrainResult
from cosplace.training.validation import best_epoch_summary, doubts_about, won_and_lost_text

RESULTS, REPORT, PREDICTIONS = "results.json", "report.html", "preds"
DISTILLATION = "distillation.json"


def write_evaluation_results(
    folder: Path,
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    config: EvalConfig,
    *,
    origin: Provenance | None = None,
    scores: Mapping[str, np.ndarray] = MappingProxyType({}),
    verdicts: VerdictFile | None = None,
    exact: Evaluation | None = None,
    stores: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Measures:
    """Write the results of `cosplace eval` to its folder, and return its metrics.

    origin: where the numbers come from.  scores: of the first predictions, by name, see `measure`.
    verdicts: of people on pairs of photos; recalls with them are added.
    exact: the same evaluation by exact search, if descriptors were compressed.
    stores: what is known of the stores that were evaluated, if they were.
    """
    conditions = find_conditions(dataset, evaluation.positives)
    measures = measure(evaluation, dataset, conditions=conditions, scores=scores)
    values = to_values(config)
    model = config.weights.resume_model or f"untrained {config.model.backbone}"
    # In the table, a path is shortened to its last part; hub:owner/repo:entry(args) and zoo names stay whole.
    name = model if model.startswith("hub:") else Path(model).name
    if config.weights.reduce_to:
        model = f"{model}, reduced to {config.weights.reduce_to} dimensions"
    judged = None if verdicts is None else judged_recalls(evaluation, dataset, verdicts, measures.clusters)
    report = Report(
        title=f"CosPlace on {dataset.name}",
        summary=[f"{model}, evaluated on {dataset.folder}.", evaluation_summary(evaluation), *_note(dataset)],
        recall_rows=[
            _chance_row(evaluation),
            *([] if exact is None else [RecallRow(name="exact search", recalls=exact.recalls, note="not compressed")]),
            RecallRow(name=name, recalls=evaluation.recalls, intervals=measures.recalls),
            *([] if judged is None else [_judged_row(judged)]),
        ],
        highlight=name,
        measures=measures,
        conditions={name: column.tolist() for name, column in conditions.values.items()},
        dataset=dataset,
        evaluation=evaluation,
        settings=values,
        environment={} if origin is None else origin.summary(),
        num_queries_matched=config.testing.report_matches,
    )
    more: dict[str, Any] = {} if judged is None else {"verdicts": judged_record(judged)}
    more |= {} if exact is None else {"compression": loss_record(measure_loss(exact, evaluation, measures.clusters))}
    more |= {} if stores is None else {"stores": stores}
    more |= {} if origin is None else origin.record()
    _write_results(folder, report, evaluation, dataset, values, more=more, progress=progress)
    return measures


def _judged_row(judged: JudgedRecalls) -> RecallRow:
    num_pairs = sum(judged.counts.values()) + judged.num_contradicted
    return RecallRow(
        name="with verdicts",
        recalls={n: one.value for n, one in judged.recalls.items()},
        intervals=judged.recalls,
        note=f"{judged.counts[SAME]:,} of {num_pairs:,} judged pairs show the same place",
    )


def _note(dataset: RetrievalDataset) -> list[str]:
    """What distances mean, if they are not meters on the ground."""
    return [f"{dataset.note[:1].upper()}{dataset.note[1:]}"] if dataset.note else []


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
    origin = None if run is None else _origin_of(result.folder, result.model, data.test, result.test, run)
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
            evaluation_summary(result.test),
        ],
        recall_rows=[
            _chance_row(result.test),
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
    _write_results(result.folder, report, result.test, data.test, values, more=more, progress=progress)
    return measures


def _origin_of(
    folder: Path, model: GeoLocalizationNet, dataset: RetrievalDataset, evaluation: Evaluation, run: RunInfo
) -> Provenance:
    """Where the evaluation of the best model of a run comes from."""
    radius_m = evaluation.positive_dist_threshold
    similar = matching_protocol(dataset, radius_m, None, evaluation.image_size)
    return provenance(
        evaluation,
        dataset,
        protocol=protocol_record(None, radius_m, similar=similar),
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
            evaluation_summary(result.evaluation),
        ],
        recall_rows=[_chance_row(result.evaluation), start, *([trained] if result.is_better else [])],
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
    _write_results(result.folder, report, result.evaluation, result.dataset, values, more=more, progress=progress)


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
                evaluation_summary(kept.student),
            ],
            recall_rows=[_chance_row(kept.student), teacher, student],
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
        _write_results(result.folder, report, kept.student, kept.dataset, values, more=more, progress=progress)
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
        return ["No epoch was better than the start: this is the network before training."]
    counts = won_and_lost_text(result.validation)
    return [f"On {result.data.val.name}, {counts}.", *doubts_about(result.data)] if counts else []


def evaluation_summary(evaluation: Evaluation) -> str:
    """Describe the sizes of the dataset, and the photos that count against the model."""
    size = f"resized to {evaluation.image_size} pixels" if evaluation.image_size else "at their original size"
    sentences = [
        f"{format_count(evaluation.num_queries, 'query', 'queries')}, "
        f"{format_count(evaluation.num_database, 'database image')}, {size}; "
        f"correct = within {evaluation.positive_dist_threshold:g} m."
    ]
    if views := _views_text(evaluation):
        sentences.append(views)
    if compression := evaluation.compression:
        sentences.append(f"Search by {compression_text(compression.method, compression.shortlist)}.")
    if missing := evaluation.num_queries_without_positives:
        verbs = "has no positive and counts as a miss" if missing == 1 else "have no positive and count as misses"
        sentences.append(f"{format_count(missing, 'query', 'queries')} {verbs}.")
    if evaluation.num_database == 1:
        sentences.append(about_single_image(evaluation.name))
    if evaluation.recall_values_left_out:
        sentences.append(about_left_out(evaluation.recall_values_left_out, evaluation.num_searchable))
    if evaluation.num_unreadable:
        sentences.append(f"{format_count(evaluation.num_unreadable, 'photo')} could not be opened.")
    return " ".join(sentences)


def _views_text(evaluation: Evaluation) -> str:
    """How queries were resized or cropped, and what was averaged, if it differs from the usual."""
    views, parts = evaluation.views, []
    if views.get("query_policy") not in (None, "short_side" if evaluation.image_size else "native"):
        size = f" at {views['query_size']} pixels" if views["query_size"] else ""
        parts.append(f"Queries: {views['query_policy']}{size}.")
    averaged = [f"scales {', '.join(f'{one:g}' for one in views.get('scales', ()))}"]
    averaged = averaged if views.get("scales", [1.0]) != [1.0] else []
    averaged += ["mirror images"] if views.get("flip") else []
    return " ".join([*parts, *([f"Descriptors are averaged over {' and '.join(averaged)}."] if averaged else [])])


def _chance_row(evaluation: Evaluation) -> RecallRow:
    return RecallRow(name="chance", recalls=evaluation.chance, note="random predictions")


def _write_results(
    folder: Path,
    report: Report,
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    values: Mapping[str, Any],
    *,
    more: Mapping[str, Any] = MappingProxyType({}),
    progress: Progress = no_progress,
) -> None:
    measures = report.measures
    measured = {}
    if measures is not None:
        measured = {"intervals": intervals_record(measures), "metrics": metrics_record(measures, dataset.note)}
    results = {
        "recalls": {str(k): value for k, value in evaluation.recalls.items()},
        "num_database": evaluation.num_database,
        "num_queries": evaluation.num_queries,
        "num_queries_without_positives": evaluation.num_queries_without_positives,
        "positive_dist_threshold_m": values["positive_dist_threshold"],
        "image_size": evaluation.image_size,
        **evaluation.views,
        **measured,
        **more,
    }
    write_query_results(
        folder / QUERIES,
        evaluation,
        dataset,
        clusters=None if report.measures is None else report.measures.clusters,
        expected=expected_matches(dataset, evaluation).images,
        conditions=report.conditions,
    )
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    if values["num_preds_to_save"]:
        save_predictions(
            folder / PREDICTIONS, dataset, evaluation, values["num_preds_to_save"], values["save_only_wrong_preds"]
        )
    write_report(folder / REPORT, report, progress)
