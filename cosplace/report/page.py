"""The report of a run as one HTML file.

The file loads nothing else: styles, charts and photos are inside, and a content security policy forbids the rest.
The same input gives the same bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.progress import format_duration
from cosplace.report.colors import GROUP_COLORS, OTHER_COLOR, OUTCOME_COLORS, QUERY_COLOR
from cosplace.report.curves import (
    Epoch,
    distance_chart,
    loss_chart,
    read_epochs,
    recall_chart,
    recall_values,
    rows_in_chart,
    validation_chart,
)
from cosplace.report.data import (
    CORRECT_FIRST,
    CORRECT_LATER,
    NOT_FOUND,
    Report,
    expected_match,
    outcome_names,
    outcomes,
)
from cosplace.report.maps import fits_one_map, groups_map, on_one_plane, outcome_map
from cosplace.report.render import render
from cosplace.report.thumbnails import Thumbnail, make_thumbnail, placeholder_thumbnail
from cosplace.report.words import format_count, format_distance
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.storage import write_text

MAX_GROUPS_LISTED = 24


def write_report(path: Path, report: Report) -> None:
    """Write the page atomically.  Raises StorageError if the disk is full or not writable."""
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """Return the page as text.  Each section gets its values, or None without data for it."""
    return render(
        "report.html",
        title=report.title,
        summary=report.summary,
        key_figures=_key_figures(report),
        recalls=_recalls(report),
        training=_training(report),
        groups=_groups(report),
        queries=_queries(report),
        predictions=_predictions(report),
        settings=report.settings,
    )


# --- recalls ---------------------------------------------------------------------------------------------------------


def _key_figures(report: Report) -> list[tuple[str, str]]:
    """Return (value, meaning) of the most important numbers."""
    figures = []
    row = next((row for row in report.recall_rows if row.name == report.highlight), None)
    if row is not None:
        figures += [(f"{row.recalls[k]:.1f}%", f"Recall@{k}") for k in sorted(row.recalls)[:2]]
    if report.evaluation is not None:
        first = report.evaluation.distances_m[:, 0]
        known = first[np.isfinite(first)]
        if len(known):
            figures.append((format_distance(float(np.median(known))), "median distance to the first prediction"))
        figures.append((f"{report.evaluation.num_queries:,}", "queries"))
        figures.append((f"{report.evaluation.num_database:,}", "database images"))
    return figures


def _recalls(report: Report) -> Mapping[str, Any] | None:
    rows, evaluation = report.recall_rows, report.evaluation
    ks = recall_values(rows)
    if not ks:
        return None
    return {
        "ks": ks,
        "rows": rows,
        "highlight": report.highlight,
        "chart": recall_chart(rows, report.highlight),
        "num_drawn": len(rows_in_chart(rows, report.highlight)),
        "distance_chart": None if evaluation is None else distance_chart(evaluation),
        "evaluation": evaluation,
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
            text=f"group {number}: {_num_classes(classes)}, {format_count(images, 'photo')}",
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
    drawn = groups_map(groups, num_used, M=_setting(report, "M"), alpha=_setting(report, "alpha"), others=others)
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
    drawn = outcome_map(*on_one_plane(dataset.database_positions, dataset.query_positions), outcome)
    return {"map": drawn, "legend": legend, "name": dataset.name, "by_result": outcome is not None}


# --- queries and their predictions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A thumbnail with its caption."""

    kind: str  # query, correct, incorrect or expected
    thumbnail: Thumbnail
    caption: str
    description: str  # for screen readers and as a tooltip
    rank: int | None = None  # of a prediction, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRow:
    """A query and its predictions."""

    number: int
    name: str  # the path below the folder of the queries
    result: str
    tiles: list[Tile]


def choose_queries(outcome: np.ndarray, number: int) -> list[int]:
    """Choose queries to show: equally many of each outcome, spread evenly over the list of queries.

    outcome: (Q,) of CORRECT_FIRST, CORRECT_LATER, NOT_FOUND.  If one outcome is rare, the others get more queries.
    """
    members = [np.flatnonzero(outcome == kind) for kind in (CORRECT_FIRST, CORRECT_LATER, NOT_FOUND)]
    shares = [0, 0, 0]
    for _ in range(min(number, len(outcome))):
        not_full = [kind for kind in range(3) if shares[kind] < len(members[kind])]
        shares[min(not_full, key=lambda kind: shares[kind])] += 1
    chosen: list[int] = []
    for queries, share in zip(members, shares, strict=True):
        if share:
            # The middles of equal parts of the list: the same for each run, and not only the first photos of one area.
            chosen += queries[((np.arange(share) + 0.5) * len(queries) / share).astype(np.int64)].tolist()
    return chosen


def _predictions(report: Report) -> Mapping[str, Any] | None:
    dataset, evaluation = report.dataset, report.evaluation
    if dataset is None or evaluation is None or report.num_queries_shown < 1:
        return None
    hits = evaluation.hits
    outcome = outcomes(hits)
    chosen = choose_queries(outcome, report.num_queries_shown)
    if not chosen:
        return None
    num_shown = min(report.num_predictions_shown, hits.shape[1])
    by_outcome = []
    for kind, name in enumerate(outcome_names(hits.shape[1])):
        rows = [
            _query_row(dataset, evaluation, query, hits[query], num_shown) for query in chosen if outcome[query] == kind
        ]
        if rows:
            by_outcome.append((name.capitalize(), rows, int((outcome == kind).sum())))
    return {
        "num_chosen": len(chosen),
        "num_queries": len(outcome),
        "num_shown": num_shown,
        "num_predictions": hits.shape[1],
        "radius_m": evaluation.positive_dist_threshold,
        "by_outcome": by_outcome,
    }


def _query_row(
    dataset: RetrievalDataset, evaluation: Evaluation, query: int, hits: np.ndarray, num_shown: int
) -> QueryRow:
    """Prepare a query, its first predictions, and the expected match if no prediction is correct.  hits: (K,) bool."""
    name = dataset.queries.name(query)
    thumbnail = make_thumbnail(dataset.queries, query)
    tiles = [Tile(kind="query", thumbnail=thumbnail, caption="query", description=f"query {query}: {name}")]
    ranks = list(range(num_shown))
    if hits.any() and not hits[:num_shown].any():
        ranks.append(int(hits.argmax()))  # the first correct one has a later rank
    tiles += [
        _prediction_tile(dataset, evaluation, query, rank, bool(hits[rank]))
        for rank in ranks
        if evaluation.predictions[query, rank] >= 0
    ]
    if hits.any():
        result = f"first correct prediction at rank {int(hits.argmax()) + 1} of {len(hits)}"
    else:
        result = f"none of {len(hits)} predictions is correct"
        tiles.append(_expected_tile(dataset, evaluation, query))
    if (evaluation.predictions[query] < 0).all():
        result = "no predictions: the photo could not be opened"
    return QueryRow(number=query, name=name, result=result, tiles=tiles)


def _prediction_tile(dataset: RetrievalDataset, evaluation: Evaluation, query: int, rank: int, correct: bool) -> Tile:
    image = int(evaluation.predictions[query, rank])
    distance = format_distance(float(evaluation.distances_m[query, rank]))
    kind = "correct" if correct else "incorrect"
    return Tile(
        kind=kind,
        thumbnail=make_thumbnail(dataset.database, image),
        caption=distance,
        description=f"prediction {rank + 1}, {kind}, {distance} away: {dataset.database.name(image)}",
        rank=rank + 1,
    )


def _expected_tile(dataset: RetrievalDataset, evaluation: Evaluation, query: int) -> Tile:
    """Prepare the positive nearest to a query by position, then by heading, which it should have found."""
    expected = expected_match(dataset, evaluation, query)
    if expected is None:
        text = f"no database image within {evaluation.positive_dist_threshold:g} m"
        return Tile(kind="expected", thumbnail=placeholder_thumbnail("none"), caption=text, description=text)
    caption = f"expected match, {format_distance(expected.distance_m)}"
    if not math.isnan(expected.heading_difference_deg):
        caption += f", heading differs by {expected.heading_difference_deg:.0f}°"
    description = f"{caption}: {dataset.database.name(expected.image)}"
    thumbnail = make_thumbnail(dataset.database, expected.image)
    return Tile(kind="expected", thumbnail=thumbnail, caption=caption, description=description)
