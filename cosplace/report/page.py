"""The report of a run as one HTML file.

The file loads nothing else: styles, photos and scripts are inside, and a content security policy forbids all else.
Without JavaScript, all figures, the values of the charts, the maps and the first rows of the list of queries are there.
The same input gives the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cosplace.config.methods import MULTI_SIMILARITY
from cosplace.localization.local_features import has_opencv
from cosplace.progress import Progress, format_count, format_duration, no_progress
from cosplace.report.colors import GROUP_COLORS, OTHER_COLOR, OUTCOME_COLORS, QUERY_COLOR
from cosplace.report.curves import (
    Epoch,
    loss_chart,
    read_epochs,
    recall_chart,
    recall_values,
    rows_in_chart,
    validation_chart,
)
from cosplace.report.data import CORRECT_FIRST, CORRECT_LATER, NOT_FOUND, RecallRow, Report, outcome_names, outcomes
from cosplace.report.environment import environment_rows
from cosplace.report.feature_matches import feature_matches
from cosplace.report.maps import fits_one_map, groups_map, on_one_plane, outcome_map
from cosplace.report.measures_section import (
    condition_groups,
    distance_texts,
    interval_note,
    metric_rows,
    percent_texts,
    scores_section,
)
from cosplace.report.metric_charts import distance_chart, radius_chart
from cosplace.report.query_data import num_tiles, open_queries, page_data, page_photos
from cosplace.report.query_rows import query_row
from cosplace.report.render import render, script
from cosplace.report.words import as_json, format_distance, radius_text
from cosplace.retrieval.recall import RADIUS_M
from cosplace.storage import write_text

MAX_GROUPS_LISTED = 24
MAX_CHOICES = 100  # values of a condition that can be chosen in the list of queries


def write_report(path: Path, report: Report, progress: Progress = no_progress) -> None:
    """Write the page atomically.  Raises StorageError if the disk is full or not writable."""
    write_text(path, report_html(report, progress))


def report_html(report: Report, progress: Progress = no_progress) -> str:
    """Return the page as text.  Each section gets its values, or None without data for it."""
    return render(
        "report.html",
        title=report.title,
        summary=report.summary,
        key_figures=_key_figures(report),
        recalls=_recalls(report),
        scores=scores_section(report.measures),
        conditions=condition_groups(report.measures),
        training=_training(report),
        groups=_groups(report),
        queries=_queries(report),
        list=_list_of_queries(report, progress),
        settings=report.settings,
        environment=environment_rows(report.environment),
        script=script("report_map.js", "report.js"),
    )


# --- recalls ---------------------------------------------------------------------------------------------------------


def _key_figures(report: Report) -> list[tuple[str, str, str]]:
    """Return (value, interval, meaning) of the most important numbers."""
    figures = []
    row = next((row for row in _recall_rows(report) if row.name == report.highlight), None)
    if row is not None:
        for k in sorted(row.recalls)[:2]:
            interval = percent_texts(row.intervals[k])[1] if k in row.intervals else ""
            figures.append((f"{row.recalls[k]:.1f}%", interval, f"Recall@{k}"))
    if report.evaluation is not None and has_meters(report):
        meaning = "median distance to the first prediction"
        first = report.evaluation.distances_m[:, 0]
        if report.measures is not None and 50 in report.measures.error_m:
            figures.append((*distance_texts(report.measures.error_m[50]), meaning))
        elif np.isfinite(first).any():
            figures.append((format_distance(float(np.nanmedian(first))), "", meaning))
    if report.evaluation is not None:
        counts = (
            format_count(report.evaluation.num_queries, "query", "queries"),
            format_count(report.evaluation.num_database, "database image"),
        )
        figures += [(number, "", noun) for number, _, noun in (text.partition(" ") for text in counts)]
    return figures


def has_meters(report: Report) -> bool:
    """Whether distances are meters on the ground, not differences of the numbers of frames."""
    return report.dataset is None or not report.dataset.note


def _recall_rows(report: Report) -> list[RecallRow]:
    """The rows of the recall table; that of this run has the intervals of its measures."""
    measures = report.measures
    if measures is None:
        return list(report.recall_rows)
    return [
        replace(row, intervals=measures.recalls) if row.name == report.highlight and not row.intervals else row
        for row in report.recall_rows
    ]


def _recalls(report: Report) -> Mapping[str, Any] | None:
    rows, evaluation, measures = _recall_rows(report), report.evaluation, report.measures
    ks = recall_values(rows)
    if not ks:
        return None
    radius_m = RADIUS_M if evaluation is None else evaluation.positive_dist_threshold
    clusters = None if measures is None else measures.clusters
    return {
        "ks": ks,
        "rows": rows,
        "highlight": report.highlight,
        "chart": recall_chart(rows, report.highlight),
        "num_drawn": len(rows_in_chart(rows, report.highlight)),
        "radius_chart": None if measures is None else radius_chart(measures, radius_m),
        "distance_chart": distance_chart(evaluation, clusters)
        if evaluation is not None and has_meters(report)
        else None,
        "metrics": [] if measures is None else metric_rows(measures, radius_m),
        "interval_note": "" if measures is None else interval_note(measures),
        "evaluation": evaluation,
        "radius": "the given distance" if evaluation is None else radius_text(radius_m, are_meters=has_meters(report)),
        "num_without_prediction": 0 if evaluation is None else int((~np.isfinite(evaluation.distances_m[:, 0])).sum()),
    }


# --- training --------------------------------------------------------------------------------------------------------


def _training(report: Report) -> Mapping[str, Any] | None:
    loss, validation = loss_chart(report.metrics), validation_chart(report.metrics)
    if loss is None and validation is None:
        return None
    epochs = read_epochs(report.metrics)
    return {
        "facts": _training_facts(epochs),
        "loss_chart": loss,
        "validation_chart": validation,
        "several_groups": len({epoch.group for epoch in epochs if epoch.group is not None}) > 1,
    }


def _training_facts(epochs: list[Epoch]) -> list[str]:
    """Return sentences about the best epoch, the speed and the time."""
    facts = []
    validated = [epoch for epoch in epochs if epoch.recalls]
    if validated:
        k = min(validated[0].recalls)
        best = max(validated, key=lambda epoch: epoch.recalls.get(k, -1.0))
        facts.append(f"Best validation Recall@{k}: {best.recalls[k]:.1f}% after epoch {best.number + 1}.")
    speeds = [epoch.images_per_second for epoch in epochs if epoch.images_per_second is not None]
    if speeds:
        facts.append(f"Training speed: {np.median(speeds):,.0f} images per second (median over epochs).")
    seconds = [epoch.seconds for epoch in epochs if epoch.seconds is not None]
    if seconds:
        facts.append(f"Total time of all epochs: {format_duration(sum(seconds))}.")
    return facts


# --- maps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """One line of a map's legend."""

    color: str
    shape: str  # square, dot, disc, ring or cross, as on the map
    text: str


def _groups(report: Report) -> Mapping[str, Any] | None:
    """Prepare the map of the training groups."""
    groups = report.groups
    if groups is None or not len(groups.cells):
        return None
    num_used = max(0, min(report.groups_used, len(groups)))
    num_unused = len(groups) - num_used
    others = None
    if report.dataset is not None and fits_one_map(groups, report.dataset):
        others = report.dataset.database_positions
    counts = groups.counts()
    legend = [
        LegendEntry(
            color=GROUP_COLORS[number % len(GROUP_COLORS)],
            shape="square",
            text=f"{groups.title(number)}: {_num_classes(classes)}, {format_count(images, 'photo')}",
        )
        for number, (classes, images) in enumerate(counts[: min(num_used, MAX_GROUPS_LISTED)])
    ]
    if num_used > MAX_GROUPS_LISTED:
        text = f"and {format_count(num_used - MAX_GROUPS_LISTED, 'more group')}"
        legend.append(LegendEntry(color=OTHER_COLOR, shape="square", text=text))
    if num_unused:
        unused = sum(classes for classes, _ in counts[num_used:])
        text = f"{format_count(num_unused, 'group')} not used: {_num_classes(unused)}"
        legend.append(LegendEntry(color=OTHER_COLOR, shape="square", text=text))
    if others is not None and report.dataset is not None:
        legend.append(LegendEntry(color=OTHER_COLOR, shape="dot", text=f"database of {report.dataset.name}"))
    # Places by id have no ranges of headings: what is drawn follows from the places.
    alpha = None if report.settings.get("method") == MULTI_SIMILARITY else _setting(report, "alpha")
    drawn = groups_map(groups, num_used, M=_setting(report, "M"), alpha=alpha, others=others)
    return {
        "map": drawn.whole,
        "detail": drawn.detail,
        "legend": legend,
        "num_images": sum(images for _, images in counts),
        "num_scanned": groups.num_scanned,
        "num_classes": len(groups.cells),
        "several_headings": len(np.unique(groups.cells[:, 2])) > 1,
        "repeat_after": len(GROUP_COLORS) if num_used > len(GROUP_COLORS) else None,
    }


def _num_classes(count: int) -> str:
    return format_count(count, "class", "classes")


def _setting(report: Report, name: str) -> float | None:
    """Return a positive number among the settings."""
    value = report.settings.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _queries(report: Report) -> Mapping[str, Any] | None:
    """Prepare the map of query locations by result."""
    dataset, evaluation = report.dataset, report.evaluation
    if dataset is None:
        return None
    text = f"database: {format_count(len(dataset.database_positions), 'image')}"
    legend = [LegendEntry(color=OTHER_COLOR, shape="dot", text=text)]
    outcome = None
    if evaluation is None:
        text = f"queries: {len(dataset.query_positions):,}"
        legend.append(LegendEntry(color=QUERY_COLOR, shape="disc", text=text))
    else:
        hits = evaluation.hits
        outcome = outcomes(hits)
        shapes, names = ("disc", "ring", "cross"), outcome_names(hits.shape[1])
        counts = np.bincount(outcome, minlength=3).tolist()
        legend += [
            LegendEntry(color=OUTCOME_COLORS[kind], shape=shapes[kind], text=f"{names[kind]}: {counts[kind]:,}")
            for kind in (CORRECT_FIRST, CORRECT_LATER, NOT_FOUND)
            if kind != CORRECT_LATER or hits.shape[1] > 1
        ]
    positions = on_one_plane(dataset.database_positions, dataset.query_positions)
    drawn = outcome_map(*positions, outcome, are_meters=has_meters(report))
    return {"map": drawn, "legend": legend, "name": dataset.name, "by_result": outcome is not None}


# --- the list of queries ---------------------------------------------------------------------------------------------


def _list_of_queries(report: Report, progress: Progress) -> Mapping[str, Any] | None:
    """Prepare the first rows of the list of queries, and the data of all queries for the page's script."""
    dataset, evaluation = report.dataset, report.evaluation
    if dataset is None or evaluation is None or report.num_queries_shown < 1 or not len(evaluation.predictions):
        return None
    scores = None if report.measures is None else report.measures.scores_of_queries
    queries = open_queries(
        dataset,
        evaluation,
        report.num_predictions_shown,
        report.conditions,
        expected=report.expected,
        scores=scores,
    )
    photos, num_left_out = page_photos(queries)
    first = queries.order[: report.num_queries_shown].tolist()
    rows = [query_row(queries, photos, query) for query in first]
    in_rows = {tile.key for row in rows for tile in row.tiles}
    others = {key: photo for key, photo in photos.items() if key not in in_rows}
    matches, wants_matches = None, report.num_queries_matched > 0
    if wants_matches and has_opencv():
        matches = feature_matches(queries, photos.keys(), report.num_queries_matched, progress)
    return {
        "rows": rows,
        "num_rows": len(rows),
        "num_queries": len(queries.order),
        "num_errors": int((queries.outcome != CORRECT_FIRST).sum()),
        "by_confidence": queries.confidence is not None,
        "num_shown": queries.num_shown,
        "num_predictions": queries.hits.shape[1],
        "num_left_out": num_left_out,
        "num_matched": 0 if matches is None else len(matches["of"]),
        "num_unmatched": 0 if matches is None else matches["leftOut"],
        "lacks_opencv": wants_matches and matches is None,
        "num_photos": len(photos),
        "radius": radius_text(evaluation.positive_dist_threshold, are_meters=not queries.dataset.note),
        "unit": "m" if has_meters(report) else "units",
        "outcomes": [(kind, name) for kind, name in enumerate(outcome_names(queries.hits.shape[1])) if name],
        "conditions": {
            name: different
            for name, values in report.conditions.items()
            if 1 < len(different := sorted(set(values))) <= MAX_CHOICES
        },
        "num_tiles": num_tiles(queries),
        "data": Markup(
            as_json({**page_data(queries, others), "pageSize": report.num_queries_shown, "matches": matches})
        ),
    }
