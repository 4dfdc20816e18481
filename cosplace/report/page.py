"""The sections of the report, one after another, in one file.

The file asks for nothing outside itself: styles, curves and photos are inside, and a content security policy forbids
the rest.  The same input gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosplace import __version__
from cosplace.report.contents import (
    FOUND_FIRST,
    FOUND_LATER,
    MISSED,
    RIGHT_SIGN,
    WRONG_SIGN,
    RecallRow,
    Report,
    escape,
    format_distance,
    nearest_positive,
    outcomes,
)
from cosplace.report.curves import (
    MAX_ROWS,
    distance_chart,
    loss_chart,
    read_epochs,
    recall_chart,
    recall_values,
    rows_in_chart,
    validation_chart,
)
from cosplace.report.maps import groups_map, lie_near, outcome_map
from cosplace.report.style import GROUP_COLORS, NEUTRAL_COLOR, OTHER_COLOR, QUERY_COLORS, STYLE
from cosplace.report.thumbnails import choose_queries, placeholder_tile, thumbnail
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.storage import write_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MAX_GROUPS_LISTED = 24
HEADINGS = {
    FOUND_FIRST: "The first prediction is right",
    FOUND_LATER: "A later prediction is right",
    MISSED: "No prediction is right",
}


def write_report(path: Path, report: Report) -> None:
    """Write the page in one step.  Raises StorageError when the disk is full or refuses."""
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """Return the page as text."""
    sections = [
        _header(report),
        _recalls(report),
        _training(report),
        _maps(report),
        _predictions(report),
        _settings(report),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>Written by cosplace {escape(__version__)}.  This page is one file: it loads nothing else and can be "
        "sent as it is.</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(name: str, heading: str, *parts: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(heading)}</h2>\n' + "\n".join(parts) + "\n</section>"


def _figure(picture: str | None, caption: str) -> str:
    """Return a drawing with its caption, which is HTML; nothing without a drawing."""
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>" if picture else ""


# --- what was run, and how well it did -------------------------------------------------------------------------------


def _header(report: Report) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in report.summary)
    tiles = "".join(
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'
        for value, meaning in _key_figures(report)
    )
    return f"<header>\n<h1>{escape(report.title)}</h1>\n{lines}" + (
        f'\n<div class="tiles">{tiles}</div>\n</header>' if tiles else "\n</header>"
    )


def _key_figures(report: Report) -> list[tuple[str, str]]:
    figures = []
    ours = next((row for row in report.recall_rows if row.name == report.highlight), None)
    if ours is not None:
        figures += [(f"{ours.recalls[k]:.1f} %", f"Recall@{k}") for k in sorted(ours.recalls)[:2]]
    if report.evaluation is not None:
        first = report.evaluation.distances_m[:, 0]
        known = first[np.isfinite(first)]
        if len(known):
            figures.append((format_distance(float(np.median(known))), "median distance of the first prediction"))
        figures.append((f"{report.evaluation.num_queries:,}", "queries"))
        figures.append((f"{report.evaluation.num_database:,}", "database photos"))
    return figures


def _recalls(report: Report) -> str:
    rows, evaluation = report.recall_rows, report.evaluation
    ks = recall_values(rows)
    if not ks:
        return ""
    radius = "the given distance" if evaluation is None else f"{evaluation.positive_dist_threshold:g} m"
    caption = "Recall@N over N (logarithmic axis)."
    if len(rows) > MAX_ROWS:
        caption += f"  {len(rows_in_chart(rows, report.highlight))} of {len(rows)} rows are drawn; the table has all."
    drawings = _figure(recall_chart(rows, report.highlight), caption)
    if evaluation is not None:
        note = "How far the first prediction lies from its query: the share of queries within each distance."
        missing = int((~np.isfinite(evaluation.distances_m[:, 0])).sum())
        if missing:
            note += f"  {missing} of {evaluation.num_queries} queries have no prediction and count as further away."
        drawings += _figure(distance_chart(evaluation), note)
    without = ""
    if evaluation is not None and evaluation.num_queries_without_positives:
        without = (
            f"  {evaluation.num_queries_without_positives} of {evaluation.num_queries} queries have no database photo "
            "that near; they count as not found."
        )
    return _section(
        "recalls",
        "Recalls",
        f'<p class="soft">Recall@N is the share of queries, in percent, that have a photo taken within {radius} '
        f"among their first N predictions.{without}</p>",
        _recall_table(rows, ks, report.highlight),
        f'<div class="pair" style="margin-top:18px">{drawings}</div>',
    )


def _recall_table(rows: Sequence[RecallRow], ks: Sequence[int], highlight: str | None) -> str:
    head = "".join(f'<th scope="col">R@{k}</th>' for k in ks)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{row.recalls[k]:.1f}</td>" if k in row.recalls else "<td>–</td>" for k in ks)
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        ours = ' class="ours"' if row.name == highlight else ""
        lines.append(f'<tr{ours}><th scope="row">{escape(row.name)} {note}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# --- how it learned --------------------------------------------------------------------------------------------------


def _training(report: Report) -> str:
    epochs = read_epochs(report.metrics)
    loss, validation = loss_chart(report.metrics), validation_chart(report.metrics)
    if loss is None and validation is None:
        return ""
    strip = ""
    if len({epoch.group for epoch in epochs if epoch.group is not None}) > 1:
        strip = (
            "  The strip shows the group of each epoch, in its colour on the map.  Each group has its own classifier, "
            "so the loss may jump where groups change."
        )
    sentences = []
    judged = [epoch for epoch in epochs if epoch.recalls]
    if judged:
        k = min(judged[0].recalls)
        best = max(judged, key=lambda epoch: epoch.recalls.get(k, -1.0))
        sentences.append(f"Best validation Recall@{k}: {best.recalls[k]:.1f} % after epoch {best.number + 1}.")
    speeds = [epoch.images_per_second for epoch in epochs if epoch.images_per_second is not None]
    if speeds:
        sentences.append(f"Speed of training: {np.median(speeds):,.0f} images per second (median of the epochs).")
    seconds = [epoch.seconds for epoch in epochs if epoch.seconds is not None]
    if seconds:
        sentences.append(f"Time of all epochs together: {_duration(sum(seconds))}.")
    charts = _figure(loss, f"Loss of training; the thick line is a mean of neighbours.{strip}")
    charts += _figure(validation, "Recalls on the validation set after each epoch.")
    return _section(
        "training",
        "Training",
        f'<p class="soft">{escape("  ".join(sentences))}</p>' if sentences else "",
        f'<div class="pair">{charts}</div>',
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


# --- where ------------------------------------------------------------------------------------------------------------


def _maps(report: Report) -> str:
    figures = [_groups_figure(report), _outcome_figure(report)]
    figures = [figure for figure in figures if figure]
    if not figures:
        return ""
    return _section("maps", "Places", *figures)


def _sign(color: str, shape: str) -> str:
    """Draw a small sign for a legend, shaped as on the map."""
    shapes = {
        "square": f'<rect x="1" y="1" width="12" height="12" fill="{color}"/>',
        "disc": f'<circle cx="7" cy="7" r="5" fill="{color}"/>',
        "dot": f'<rect x="4.5" y="4.5" width="5" height="5" fill="{color}"/>',
        "ring": f'<circle cx="7" cy="7" r="4.5" fill="none" stroke="{color}" stroke-width="3"/>',
        "cross": f'<path d="M2 2l10 10m0 -10l-10 10" stroke="{color}" stroke-width="3"/>',
    }
    return f'<svg viewBox="0 0 14 14" aria-hidden="true">{shapes[shape]}</svg>'


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """(colour, shape, text) of each entry."""
    items = "".join(f"<li>{_sign(color, shape)}{escape(text)}</li>" for color, shape, text in entries)
    return f'<ul class="legend">{items}</ul>'


def _place(picture: str, entries: Sequence[tuple[str, str, str]], caption: str, detail: str = "") -> str:
    """Put a map beside its legend, caption and perhaps a detail, which is HTML."""
    words = f"<div>{_legend(entries)}<figcaption>{escape(caption)}</figcaption>{detail}</div>"
    return f'<figure class="place">{picture}{words}</figure>'


def _groups_figure(report: Report) -> str:
    groups = report.groups
    if groups is None or not len(groups.cells):
        return ""
    num_used = max(0, min(report.groups_used, len(groups)))
    others = None
    if report.dataset is not None and lie_near(groups, report.dataset.database_positions):
        others = report.dataset.database_positions
    counts = groups.counts()
    entries = [
        (GROUP_COLORS[number % len(GROUP_COLORS)], "square", f"group {number}: {classes:,} classes, {images:,} photos")
        for number, (classes, images) in enumerate(counts[: min(num_used, MAX_GROUPS_LISTED)])
    ]
    if num_used > MAX_GROUPS_LISTED:
        entries.append((OTHER_COLOR, "square", f"and {num_used - MAX_GROUPS_LISTED} more groups"))
    if num_used < len(groups):
        classes = sum(count for count, _ in counts[num_used:])
        spare = len(groups) - num_used
        which = "1 group" if spare == 1 else f"{spare} groups"
        entries.append((OTHER_COLOR, "square", f"{which} not used: {classes:,} classes"))
    if others is not None and report.dataset is not None:
        entries.append((OTHER_COLOR, "dot", f"database of {report.dataset.name}"))
    caption = (
        f"The photos of training: {sum(images for _, images in counts):,} of {groups.num_scanned:,} lie in "
        f"{len(groups.cells):,} classes.  A cell has the colour of its class's group."
    )
    if len(np.unique(groups.cells[:, 2])) > 1:
        caption += (
            "  Of classes that look different ways from one cell, a large cell shows each as a sector that points "
            "where its photos look; a small cell shows one."
        )
    if num_used > len(GROUP_COLORS):
        caption += f"  Colours repeat after {len(GROUP_COLORS)} groups."
    drawing = groups_map(groups, num_used, M=_number(report, "M"), alpha=_number(report, "alpha"), others=others)
    detail = f"{drawing.detail}<figcaption>Where classes are densest.</figcaption>" if drawing.detail else ""
    return _place(drawing.whole, entries, caption, detail)


def _number(report: Report, knob: str) -> float | None:
    value = report.settings.get(knob)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _outcome_figure(report: Report) -> str:
    dataset, evaluation = report.dataset, report.evaluation
    if dataset is None:
        return ""
    outcome = None if evaluation is None else outcomes(evaluation.hits)
    entries = [(OTHER_COLOR, "dot", f"database: {len(dataset.database_positions):,} photos")]
    if outcome is None or evaluation is None:
        entries.append((NEUTRAL_COLOR, "disc", f"queries: {len(dataset.query_positions):,}"))
    else:
        counts = np.bincount(outcome, minlength=3)
        texts = ("first prediction right", f"right among {evaluation.predictions.shape[1]}", "not found")
        entries += [
            (color, shape, f"{text}: {count:,}")
            for color, shape, text, count in zip(QUERY_COLORS, ("disc", "ring", "cross"), texts, counts, strict=True)
        ]
    caption = f"{dataset.name}: where the queries were taken" + (", and what became of them." if evaluation else ".")
    picture = outcome_map(dataset.database_positions, dataset.query_positions, outcome)
    return _place(picture, entries, caption)


# --- queries and their predictions -----------------------------------------------------------------------------------


def _predictions(report: Report) -> str:
    dataset, evaluation = report.dataset, report.evaluation
    if dataset is None or evaluation is None or report.num_queries_shown < 1:
        return ""
    hits = evaluation.hits
    outcome = outcomes(hits)
    chosen = choose_queries(outcome, report.num_queries_shown)
    if not chosen:
        return ""
    num_shown = min(report.num_predictions_shown, hits.shape[1])
    radius = evaluation.positive_dist_threshold
    counts = np.bincount(outcome, minlength=3)
    parts = [
        f'<p class="soft">{len(chosen)} of {len(outcome):,} queries, each with its first {num_shown} of '
        f"{hits.shape[1]} predictions.  Queries found at once, found later and missed are shown in equal parts where "
        "there are enough, evenly spread over the list: their mix says nothing about the recalls.</p>",
        f'<p class="soft"><span class="sign yes">{RIGHT_SIGN}</span> solid frame: within {radius:g} m of the query.  '
        f'<span class="sign no">{WRONG_SIGN}</span> dashed frame: further away.</p>',
    ]
    for kind, heading in HEADINGS.items():
        members = [query for query in chosen if outcome[query] == kind]
        if members:
            parts.append(f"<h3>{heading}</h3>")
            parts.append(f'<p class="soft">{len(members)} shown of {counts[kind]:,}</p>')
            parts += [_query(dataset, evaluation, query, hits[query], num_shown) for query in members]
    return _section("predictions", "Queries and their predictions", *parts)


def _query(dataset: RetrievalDataset, evaluation: Evaluation, query: int, hits: np.ndarray, num_shown: int) -> str:
    """One query, its predictions, and the photo that it should have found where none was right."""
    name = dataset.queries.name(query)
    tiles = [_tile(dataset.queries.path(query), "asked", "query", f"query {query}: {name}")]
    ranks = list(range(num_shown))
    if hits.any() and not hits[:num_shown].any():
        ranks.append(int(hits.argmax()))  # the first right one, which stands further down
    tiles += [_prediction(dataset, evaluation, query, rank, bool(hits[rank])) for rank in ranks]
    if not hits.any():
        tiles.append(_answer(dataset, evaluation, query))
    first = int(hits.argmax()) + 1
    verdict = (
        f"first right prediction: number {first} of {len(hits)}" if hits.any() else f"none of {len(hits)} is right"
    )
    if (evaluation.predictions[query] < 0).all():
        verdict = "nothing was predicted: the photo could not be opened"
    return (
        f'<div class="query"><p><b>Query {query}</b>, {verdict}<br><code class="soft">{escape(name)}</code></p>'
        f'<div class="row" style="--tiles:{num_shown + 2}">{"".join(tiles)}</div></div>'
    )


def _prediction(dataset: RetrievalDataset, evaluation: Evaluation, query: int, rank: int, right: bool) -> str:
    """Show one prediction; nothing where there is none."""
    image = int(evaluation.predictions[query, rank])
    if image < 0:
        return ""
    distance = format_distance(float(evaluation.distances_m[query, rank]))
    sign, word = (RIGHT_SIGN, "right") if right else (WRONG_SIGN, "wrong")
    about = f"prediction {rank + 1}, {word}, {distance} away: {dataset.database.name(image)}"
    return _tile(dataset.database.path(image), word, f"{rank + 1}. <b>{sign} {escape(distance)}</b>", about)


def _answer(dataset: RetrievalDataset, evaluation: Evaluation, query: int) -> str:
    """Show the photo of the database that lies nearest to a query that was missed."""
    nearest = nearest_positive(dataset, evaluation, query)
    if nearest is None:
        text = f"no photo within {evaluation.positive_dist_threshold:g} m"
        return _tile(None, "answer", escape(text), text)
    image, distance_m = nearest
    caption = f"sought: nearest photo, {format_distance(distance_m)}"
    return _tile(dataset.database.path(image), "answer", escape(caption), f"{caption}: {dataset.database.name(image)}")


def _tile(path: Path | None, kind: str, caption: str, about: str) -> str:
    """Return a thumbnail with its caption, which is HTML; `about` is plain text."""
    source, width, height = thumbnail(path) if path is not None else placeholder_tile("none")
    text = escape(about)
    return (
        f'<figure class="tile {kind}"><img src="{source}" width="{width}" height="{height}" alt="{text}" '
        f'title="{text}"><figcaption>{caption}</figcaption></figure>'
    )


def _settings(report: Report) -> str:
    if not report.settings:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td class="text"><code>{escape(value)}</code></td></tr>'
        for name, value in report.settings.items()
    )
    table = f"<table><tbody>{rows}</tbody></table>"
    summary = f"<summary>Settings ({len(report.settings)})</summary>"
    return f'<section id="settings"><details>{summary}{table}</details></section>'
