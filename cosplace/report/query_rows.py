"""Rows of the list of queries, as the page shows them without its script.  report.js builds the same rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cosplace.report.query_data import Queries
from cosplace.report.thumbnails import Thumbnail
from cosplace.report.words import format_distance, radius_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A photo with its caption."""

    kind: str  # query, correct, incorrect or expected
    key: str  # of its thumbnail, see `query_data.page_photos`; empty for a tile that is only a text
    thumbnail: Thumbnail | None
    caption: str
    detail: str  # second line of the caption
    description: str  # for screen readers and as a tooltip
    rank: int | None = None  # of a prediction, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRow:
    """A query and its predictions."""

    number: int
    name: str  # the path below the folder of the queries
    result: str
    conditions: str
    tiles: list[Tile]


def query_row(queries: Queries, photos: Mapping[str, Thumbnail], query: int) -> QueryRow:
    """Prepare a query, its first predictions and the expected match."""
    name = queries.dataset.queries.name(query)
    key = f"q{query}"
    tile = Tile(
        kind="query",
        key=key,
        thumbnail=photos.get(key),
        caption="query",
        detail="",
        description=f"query {query}: {name}",
    )
    tiles = [tile, *(_prediction_tile(queries, photos, query, rank) for rank in queries.ranks_shown(query))]
    values = [f"{condition}: {values[query]}" for condition, values in queries.conditions.items() if values[query]]
    return QueryRow(
        number=query,
        name=name,
        result=result_text(queries, query),
        conditions=", ".join(values),
        tiles=[*tiles, _expected_tile(queries, photos, query)],
    )


def result_text(queries: Queries, query: int) -> str:
    """The outcome of a query in words, and the confidence of its answer, if the run has one."""
    num_predictions, confidence = queries.hits.shape[1], queries.confidence
    if (queries.evaluation.predictions[query] < 0).all():
        return "no predictions: the photo could not be opened"
    end = "" if confidence is None else f"; confidence {confidence[query]:.3f}"
    if first := queries.first_correct(query):
        return f"first correct prediction at rank {first} of {num_predictions}{end}"
    return f"none of {num_predictions} predictions is correct{end}"


def _distance_text(queries: Queries, distance: float) -> str:
    return format_distance(distance, are_meters=not queries.dataset.note)


def _prediction_tile(queries: Queries, photos: Mapping[str, Thumbnail], query: int, rank: int) -> Tile:
    image = int(queries.evaluation.predictions[query, rank - 1])
    distance = _distance_text(queries, float(queries.evaluation.distances_m[query, rank - 1]))
    kind = "correct" if queries.hits[query, rank - 1] else "incorrect"
    similarity = f"similarity {queries.similarities[query, rank - 1]:.3f}"
    name = queries.dataset.database.name(image)
    description = f"prediction {rank}, {kind}, {distance} away, {similarity}: {name}"
    return Tile(
        kind=kind,
        key=f"d{image}",
        thumbnail=photos.get(f"d{image}"),
        caption=distance,
        detail=similarity,
        description=description,
        rank=rank,
    )


def _expected_tile(queries: Queries, photos: Mapping[str, Thumbnail], query: int) -> Tile:
    image = int(queries.expected.images[query])
    if image < 0:
        radius = queries.evaluation.positive_dist_threshold
        text = f"no database image within {radius_text(radius, are_meters=not queries.dataset.note)}"
        return Tile(kind="expected", key="", thumbnail=None, caption="none", detail=text, description=text)
    caption = f"expected match, {_distance_text(queries, float(queries.expected.distances_m[query]))}"
    turn = float(queries.expected.heading_differences_deg[query])
    detail = "" if math.isnan(turn) else f"heading differs by {turn:.0f}°"
    description = f"{', '.join(filter(None, (caption, detail)))}: {queries.dataset.database.name(image)}"
    return Tile(
        kind="expected",
        key=f"d{image}",
        thumbnail=photos.get(f"d{image}"),
        caption=caption,
        detail=detail,
        description=description,
    )
