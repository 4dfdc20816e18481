"""Answers for queries whose positions are unknown: CSV and JSON files, and lines for the terminal.

answers.csv, answers.json      coordinates of the most similar database image of each query
neighbors.csv, neighbors.json  the most similar database images, if these have no positions either

Nothing is measured.  Legend: Q queries, R database images, K predictions per query.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cosplace.assessment.conditions import latitudes_longitudes
from cosplace.assessment.provenance import unreadable_record
from cosplace.photos.names import utm_fields
from cosplace.photos.paths import csv_line, path_text, printable
from cosplace.report.words import shorten
from cosplace.retrieval.two_folders import Neighbors
from cosplace.storage import write_atomically, write_text

ANSWERS, NEIGHBORS = "answers", "neighbors"
ANSWER_HEADER = (
    "query", "photo", "latitude", "longitude", "utm_east", "utm_north", "utm_zone", "descriptor_distance",
)  # fmt: skip
NEIGHBOR_HEADER = ("query", "rank", "photo", "descriptor_distance")
LINES_SHOWN = 20
MAX_NAME = 60  # characters of a name in the terminal


def write_answers(
    folder: Path, neighbors: Neighbors, *, has_positions: bool, about: Mapping[str, Any]
) -> tuple[Path, list[str]]:
    """Write the CSV and JSON files; returns the path of the CSV and lines for the terminal.

    has_positions: whether the database has positions.  about: further entries of the JSON file.
    Raises StorageError if the disk is full or not writable.
    """
    name = ANSWERS if has_positions else NEIGHBORS
    coordinates = _coordinates(neighbors) if has_positions else None
    write_atomically(folder / f"{name}.csv", lambda file: _write_csv(file, neighbors, coordinates))
    content = {
        "measured": False,
        "dataset": neighbors.name,
        "num_database": len(neighbors.database),
        "num_queries": len(neighbors.queries),
        "unreadable": {
            "database": unreadable_record(neighbors.unreadable_database),
            "queries": unreadable_record(neighbors.unreadable_queries),
        },
        **about,
        name: [_record(neighbors, coordinates, query) for query in range(len(neighbors.queries))],
    }
    write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return folder / f"{name}.csv", _lines(neighbors, coordinates)


def _coordinates(neighbors: Neighbors) -> list[dict[str, Any]]:
    """Coordinates of the first prediction of each query; empty for a query without one."""
    rows = np.flatnonzero(neighbors.predictions[:, 0] >= 0)
    images, places = np.unique(neighbors.predictions[rows, 0], return_inverse=True)
    photos = neighbors.database.subset(images.tolist())
    utm, degrees = utm_fields(photos), latitudes_longitudes(photos)
    found: list[dict[str, Any]] = [{} for _ in range(len(neighbors.queries))]
    for query, place in zip(rows.tolist(), places.reshape(-1).tolist(), strict=True):
        is_utm = photos.map_center is None  # else east and north are those of a local map
        found[query] = {
            "latitude": _known(degrees[0, place], 7),
            "longitude": _known(degrees[1, place], 7),
            "utm_east": _known(utm.east_north[place, 0], 2) if is_utm else None,
            "utm_north": _known(utm.east_north[place, 1], 2) if is_utm else None,
            "utm_zone": int(utm.zones[place]) or None,  # negative south of the equator
        }
    return found


def _known(value: float, decimals: int) -> float | None:
    return round(float(value), decimals) if np.isfinite(value) else None


def _write_csv(file: BinaryIO, neighbors: Neighbors, coordinates: list[dict[str, Any]] | None) -> None:
    header = NEIGHBOR_HEADER if coordinates is None else ANSWER_HEADER
    file.write(csv_line(header).encode())
    distances = neighbors.descriptor_distances
    for query, images in enumerate(neighbors.predictions.tolist()):
        name = path_text(neighbors.queries.folder / neighbors.queries.name(query))
        for rank, image in enumerate(images if coordinates is None else images[:1]):
            if image < 0:
                continue
            photo = path_text(neighbors.database.folder / neighbors.database.name(image))
            middle = () if coordinates is None else coordinates[query].values()
            start = (name, rank + 1, photo) if coordinates is None else (name, photo)
            file.write(csv_line((*start, *middle, f"{distances[query, rank]:.4f}")).encode())


def _record(neighbors: Neighbors, coordinates: list[dict[str, Any]] | None, query: int) -> dict[str, Any]:
    """One query with its neighbors; paths below the two folders."""
    distances = neighbors.descriptor_distances[query]
    return {
        "query": path_text(neighbors.queries.name(query)),
        **({} if coordinates is None else coordinates[query]),
        "neighbors": [
            {"photo": path_text(neighbors.database.name(image)), "descriptor_distance": round(float(distance), 4)}
            for image, distance in zip(neighbors.predictions[query].tolist(), distances, strict=True)
            if image >= 0
        ],
    }


def _lines(neighbors: Neighbors, coordinates: list[dict[str, Any]] | None) -> list[str]:
    reasons = {one.index: one.message for one in neighbors.unreadable_queries}
    lines = []
    for query, image in enumerate(neighbors.predictions[:LINES_SHOWN, 0].tolist()):
        name = shorten(printable(neighbors.queries.name(query)), MAX_NAME)
        if image < 0:
            lines.append(f"{name}: cannot be opened. {printable(reasons.get(query, ''))}".rstrip())
            continue
        photo = shorten(printable(neighbors.database.name(image)), MAX_NAME)
        distance = neighbors.descriptor_distances[query, 0]
        lines.append(f"{name}: {_place(coordinates[query]) if coordinates else ''}{photo}, distance {distance:.3f}")
    more = len(neighbors.queries) - LINES_SHOWN
    return [*lines, *([f"… and {more:,} more"] if more > 0 else [])]


def _place(coordinates: Mapping[str, Any]) -> str:
    if coordinates["latitude"] is not None:
        return f"{coordinates['latitude']:.6f}, {coordinates['longitude']:.6f}, "
    return f"{coordinates['utm_east']} east, {coordinates['utm_north']} north, "
