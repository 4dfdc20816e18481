"""Results of an evaluation, written to the folder of its run.

results.json      recalls and the sizes of the dataset
queries.parquet   what was found for each query, see `cosplace.assessment.run_files`
report.html       recalls, charts, maps, queries with their predictions; not with --no_report
preds/            predictions as images and as a table, see `prediction_images`
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cosplace.assessment.audit import JudgedRecalls, VerdictFile, judged_recalls, judged_record, judged_text
from cosplace.assessment.compression_loss import compression_text, loss_record, measure_loss
from cosplace.assessment.conditions import find_conditions
from cosplace.assessment.measures import Measures
from cosplace.assessment.metrics import measure
from cosplace.assessment.provenance import Provenance
from cosplace.assessment.records import intervals_record, metrics_record
from cosplace.assessment.run_files import QUERIES, write_query_results
from cosplace.config.defaults import ALL_MATCHES
from cosplace.config.evaluation import EvalConfig
from cosplace.config.values import to_values
from cosplace.progress import Progress, format_count, no_progress
from cosplace.report.data import RecallRow, Report, expected_matches
from cosplace.report.page import write_report
from cosplace.report.prediction_images import save_predictions
from cosplace.report.words import radius_text
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, about_left_out, about_missing_positives
from cosplace.storage import write_text

RESULTS, REPORT, PREDICTIONS = "results.json", "report.html", "preds"


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
    all_matches = {"report_matches": "all"} if config.testing.report_matches == ALL_MATCHES else {}
    model = config.weights.resume_model or f"untrained {config.model.backbone}"
    # In the table, a path is shortened to its last part; hub:owner/repo:entry(args) and zoo names stay whole.
    name = model if model.startswith("hub:") else Path(model).name
    if config.weights.reduce_to:
        model = f"{model}, reduced to {config.weights.reduce_to} dimensions"
    judged = None if verdicts is None else judged_recalls(evaluation, dataset, verdicts, measures.clusters)
    report = Report(
        title=f"CosPlace on {dataset.name}",
        summary=[
            f"{model}, evaluated on {dataset.folder}.",
            evaluation_summary(evaluation, dataset),
            *([] if origin is None else [f"Protocol: {origin.protocol_text()}. Evaluated on {origin.finished[:10]}."]),
            *_notes(dataset),
        ],
        recall_rows=[
            chance_row(evaluation),
            *([] if exact is None else [RecallRow(name="exact search", recalls=exact.recalls, note="not compressed")]),
            RecallRow(name=name, recalls=evaluation.recalls, intervals=measures.recalls),
            *([] if judged is None else [_judged_row(judged)]),
        ],
        highlight=name,
        measures=measures,
        conditions={name: column.tolist() for name, column in conditions.values.items()},
        dataset=dataset,
        evaluation=evaluation,
        settings=values | all_matches,
        environment={} if origin is None else origin.summary(),
        num_queries_matched=config.testing.report_matches,
    )
    more: dict[str, Any] = {} if judged is None else {"verdicts": judged_record(judged)}
    more |= {} if exact is None else {"compression": loss_record(measure_loss(exact, evaluation, measures.clusters))}
    more |= {} if stores is None else {"stores": stores}
    more |= {} if origin is None else origin.record()
    write_results(folder, report, evaluation, dataset, values, more=more, progress=progress)
    return measures


def _judged_row(judged: JudgedRecalls) -> RecallRow:
    return RecallRow(
        name="with verdicts",
        recalls={n: one.value for n, one in judged.recalls.items()},
        intervals=judged.recalls,
        note=judged_text(judged),
    )


def _notes(dataset: RetrievalDataset) -> list[str]:
    """What distances mean, if they are not meters on the ground."""
    return [f"{dataset.note[:1].upper()}{dataset.note[1:]}"] if dataset.note else []


def evaluation_summary(evaluation: Evaluation, dataset: RetrievalDataset) -> str:
    """Describe the sizes of the dataset, and the photos that count against the model."""
    size = f"resized to {evaluation.image_size} pixels" if evaluation.image_size else "at their original size"
    sentences = [
        f"{format_count(evaluation.num_queries, 'query', 'queries')}, "
        f"{format_count(evaluation.num_database, 'database image')}, {size}; "
        f"correct = within {radius_text(evaluation.positive_dist_threshold, are_meters=not dataset.note)}."
    ]
    if views := _views_text(evaluation):
        sentences.append(views)
    if compression := evaluation.compression:
        sentences.append(f"Search by {compression_text(compression.method, compression.shortlist)}.")
    if missing := evaluation.num_queries_without_positives:
        sentences.append(f"{about_missing_positives(missing)}.")
    if evaluation.recall_values_left_out:
        sentences.append(about_left_out(evaluation.recall_values_left_out, evaluation.num_searchable))
    if evaluation.num_unreadable:
        sentences.append(f"{format_count(evaluation.num_unreadable, 'photo')} could not be opened.")
    for number, one, several in (
        (dataset.num_unknown_queries, "query", "queries"),
        (dataset.num_unknown_database, "database image", "database images"),
    ):
        if number:
            verb, what = ("is", "its position is") if number == 1 else ("are", "their positions are")
            sentences.append(f"{format_count(number, one, several)} {verb} left out: {what} unknown.")
    if dataset.copies:
        sentences.append(f"{dataset.copies}.")
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


def chance_row(evaluation: Evaluation) -> RecallRow:
    """The row of random predictions."""
    return RecallRow(name="chance", recalls=evaluation.chance, note="random predictions")


def write_results(
    folder: Path,
    report: Report,
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    values: Mapping[str, Any],
    *,
    more: Mapping[str, Any] = MappingProxyType({}),
    progress: Progress = no_progress,
) -> None:
    """Write all files of a run.  values: its settings, `no_report` too; more: further entries of results.json."""
    measures, expected = report.measures, expected_matches(dataset, evaluation)
    measured = {}
    if measures is not None:
        measured = {"intervals": intervals_record(measures), "metrics": metrics_record(measures)}
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
        clusters=None if measures is None else measures.clusters,
        expected=expected.images,
        conditions=report.conditions,
    )
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    if values["num_preds_to_save"]:
        save_predictions(
            folder / PREDICTIONS, dataset, evaluation, values["num_preds_to_save"], values["save_only_wrong_preds"]
        )
    if not values.get("no_report"):
        write_report(folder / REPORT, replace(report, expected=expected), progress)
