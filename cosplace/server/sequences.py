"""Sequences of indexed photos: the photos of one folder in time order, to walk along them and to draw their lines.

Photos of one time and place, such as the views of a panorama, are one stop.  Stops follow each other if they are at
most 30 s and 100 m apart.  Times that are shared by photos of several places, such as months, give no sequence.
Pure: arrays in, arrays out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cosplace.geo import Box, great_circle_distances_m, in_box
from cosplace.index.records import Columns

MAX_GAP_S = 30.0
MAX_STEP_M = 100.0
STOP_M = 10.0  # photos of one time that are farther apart are not one stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Stops in order, and which of them follow each other: about 50 bytes per photo with a time."""

    ids: np.ndarray  # (n,) int64, the photos, by stop
    headings: np.ndarray  # (n,) float32 degrees, nan where unknown
    starts: np.ndarray  # (S + 1,) int64: the photos of stop s are starts[s] to starts[s + 1]
    is_linked: np.ndarray  # (S,) bool: stop s + 1 follows stop s
    latitudes: np.ndarray  # (S,) float64 degrees, of the first photo of each stop
    longitudes: np.ndarray  # (S,) float64 degrees
    by_id: np.ndarray  # (n,) int64: places in `ids`, by ascending id


def find_sequences(columns: Columns) -> Sequences:
    """Find the sequences of an index."""
    known = np.isfinite(columns.latitudes) & np.isfinite(columns.longitudes) & np.isfinite(columns.times)
    rows = np.flatnonzero(known)
    folders = _folders(columns, rows)
    times = columns.times[rows]
    order = np.lexsort((columns.ids[rows], times, folders))
    rows, folders, times = rows[order], folders[order], times[order]
    latitudes, longitudes = columns.latitudes[rows], columns.longitudes[rows]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (np.diff(folders) != 0) | (np.diff(times) != 0)
    starts = np.flatnonzero(is_first)
    stop_of = np.cumsum(is_first) - 1
    away_m = great_circle_distances_m(latitudes, longitudes, latitudes[starts][stop_of], longitudes[starts][stop_of])
    is_stop = np.maximum.reduceat(away_m, starts) <= STOP_M if len(starts) else np.zeros(0, bool)
    is_linked = np.zeros(len(starts), bool)
    here, there = starts[:-1], starts[1:]
    steps_m = great_circle_distances_m(latitudes[here], longitudes[here], latitudes[there], longitudes[there])
    is_linked[:-1] = (
        is_stop[:-1]
        & is_stop[1:]
        & (folders[here] == folders[there])
        & (times[there] - times[here] <= MAX_GAP_S)
        & (steps_m <= MAX_STEP_M)
    )
    ids = columns.ids[rows]
    return Sequences(
        ids=ids,
        headings=columns.headings[rows],
        starts=np.append(starts, len(rows)),
        is_linked=is_linked,
        latitudes=latitudes[starts],
        longitudes=longitudes[starts],
        by_id=np.argsort(ids, kind="stable"),
    )


def neighbors_of(sequences: Sequences, photo_id: int) -> tuple[int | None, int | None]:
    """Return the previous and the next photo of a sequence, with the most similar heading; None without one."""
    row = _row_of(sequences, photo_id)
    if row is None:
        return None, None
    stop = _stop_of(sequences, row)
    heading = float(sequences.headings[row])
    has_previous = stop > 0 and sequences.is_linked[stop - 1]
    return (
        _nearest_view(sequences, stop - 1, heading) if has_previous else None,
        _nearest_view(sequences, stop + 1, heading) if sequences.is_linked[stop] else None,
    )


def photos_of_sequence(sequences: Sequences, photo_id: int) -> np.ndarray:
    """Return the ids (n,) int64 of all photos of the sequence that a photo is in, in their order; none without one."""
    row = _row_of(sequences, photo_id)
    if row is None:
        return np.zeros(0, np.int64)
    stop, is_linked = _stop_of(sequences, row), sequences.is_linked
    ends = np.flatnonzero(~is_linked)  # the last stop of each sequence
    number = int(np.searchsorted(ends, stop))
    first, last = (int(ends[number - 1]) + 1 if number else 0), int(ends[number])
    return (
        sequences.ids[sequences.starts[first] : sequences.starts[last + 1]] if last > first else np.zeros(0, np.int64)
    )


def lines_in_box(sequences: Sequences, box: Box | None, limit: int) -> dict[str, Any]:
    """Return {"total", "lines"}: the lines of the sequences in a box, each [longitude, latitude, longitude, ...].

    total: stops of all sequences, anywhere.  limit: about how many stops are returned; if there are more, only every
    second, third and so on of each sequence is, and its ends.
    """
    is_linked = sequences.is_linked
    total = int(is_linked.sum() + (is_linked & ~np.append(False, is_linked[:-1])).sum())
    inside = np.ones(len(is_linked), bool) if box is None else in_box(sequences.latitudes, sequences.longitudes, box)
    links = np.flatnonzero(is_linked[:-1] & inside[:-1] & inside[1:]) if len(is_linked) else np.zeros(0, np.int64)
    if not len(links):
        return {"total": total, "lines": []}
    step = max(1, -(-len(links) // limit))
    lines = []
    for run in np.split(links, np.flatnonzero(np.diff(links) > 1) + 1):
        stops = np.append(run[::step], run[-1] + 1)
        positions = np.stack([sequences.longitudes[stops], sequences.latitudes[stops]], 1)
        lines.append(positions.round(6).ravel().tolist())
    return {"total": total, "lines": lines}


def _row_of(sequences: Sequences, photo_id: int) -> int | None:
    """The place of a photo in `ids`, None if it has no time or no position."""
    place = int(np.searchsorted(sequences.ids, photo_id, sorter=sequences.by_id))
    if place == len(sequences.ids) or sequences.ids[sequences.by_id[place]] != photo_id:
        return None
    return int(sequences.by_id[place])


def _stop_of(sequences: Sequences, row: int) -> int:
    return int(np.searchsorted(sequences.starts, row, side="right")) - 1


def _nearest_view(sequences: Sequences, stop: int, heading: float) -> int:
    rows = slice(sequences.starts[stop], sequences.starts[stop + 1])
    turns = np.abs((sequences.headings[rows] - heading + 180) % 360 - 180)
    return int(sequences.ids[rows][int(np.argmin(np.where(np.isnan(turns), 180.0, turns)))])


def _folders(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """A number for the folder of each photo (n,) int64."""
    options = pc.ReplaceSubstringOptions(r"[^/]*$", "")
    parents = pc.call_function("replace_substring_regex", [columns.texts.take(rows)], options)
    codes = parents.combine_chunks() if hasattr(parents, "combine_chunks") else parents
    indices = np.asarray(codes.dictionary_encode().indices, np.int64)
    return indices * (1 + len(columns.folders)) + columns.roots[rows]
