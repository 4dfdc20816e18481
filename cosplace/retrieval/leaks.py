"""Photos that occur several times, and what the splits of a dataset should not share.

Legend: I photos of one part, A photos of all parts.
"""

from collections.abc import Sequence

import numpy as np

from cosplace.geo import distances_m
from cosplace.photos.duplicates import find_near_duplicates
from cosplace.photos.names import is_at_name
from cosplace.retrieval.folder_report import Part, common_points
from cosplace.retrieval.recall import RADIUS_M

PAIR = "{} ~ {}"  # names of two photos
SAME = "same bytes as"


def add_trained_on_queries(parts: Sequence[Part]) -> None:
    """Add queries that are training photos too, by '@' names or content, which `cosplace train` refuses."""
    for train in filter(_is_train, parts):
        for queries in parts:
            if not queries.is_queries:
                continue
            twins = _twins(queries, train)
            examples = (PAIR.format(queries.images.name(row), train.images.name(twins[row])) for row in sorted(twins))
            queries.report.add(f"leak: also a photo of {train.name}", examples, is_error=True, count=len(twins))


def _is_train(part: Part) -> bool:
    return part.name.partition("/")[0] == "train"


def _twins(queries: Part, train: Part) -> dict[int, int]:
    """A photo of train for each query that is the same photo."""
    rows = {name: row for row in range(len(queries.images)) if is_at_name(name := _file_name(queries, row))}
    twins: dict[int, int] = {}
    for other in range(len(train.images) if rows else 0):
        name = _file_name(train, other)
        if name in rows:
            twins[rows[name]] = other
    if queries.contents is not None and train.contents is not None:
        checksums, others = queries.contents.checksums, train.contents.checksums
        other_of = {others[other]: other for other in np.flatnonzero(np.isin(others, checksums)).tolist()}
        for row, checksum in enumerate(checksums):
            if checksum and checksum in other_of:
                twins.setdefault(row, other_of[checksum])
    return twins


def add_duplicates(parts: Sequence[Part]) -> None:
    """Add photos that are equal or nearly equal to an earlier one, in their part or in another one.

    Parts whose photos were not opened are left out.
    """
    parts = [part for part in parts if part.contents is not None]
    if not parts:
        return
    part_of = np.repeat(np.arange(len(parts)), [len(part.images) for part in parts])  # (A,)
    row_of = np.concatenate([np.arange(len(part.images)) for part in parts])  # (A,)
    contents = [part.contents for part in parts if part.contents is not None]
    checksums = np.concatenate([one.checksums for one in contents])
    same = _equal_pairs(checksums)
    near = find_near_duplicates(np.concatenate([one.thumbnails for one in contents]))
    near = near[checksums[near[:, 0]] != checksums[near[:, 1]]]
    for pairs, what in ((same, SAME), (near, "near-duplicate of")):
        for number, other in _part_pairs(part_of, pairs):
            chosen = pairs[(part_of[pairs[:, 0]] == other) & (part_of[pairs[:, 1]] == number)]
            _add_pairs(parts[number], parts[other], row_of[chosen], what)


def _equal_pairs(values: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of rows with equal values that are not empty: each row with the row before it that is equal."""
    order = np.argsort(values, kind="stable")
    order = order[values[order] != b""]
    same = values[order[1:]] == values[order[:-1]]
    return np.stack([order[:-1][same], order[1:][same]], 1)


def _part_pairs(part_of: np.ndarray, pairs: np.ndarray) -> list[tuple[int, int]]:
    """(Part, earlier part or the same one) of the pairs, sorted."""
    numbers = np.unique(np.stack([part_of[pairs[:, 1]], part_of[pairs[:, 0]]], 1), axis=0) if len(pairs) else ()
    return [(int(number), int(other)) for number, other in numbers]


def _add_pairs(part: Part, other: Part, pairs: np.ndarray, what: str) -> None:
    """Add duplicates.  pairs: (P, 2) of a row in `other` and a row in `part`."""
    meters = _distances(other, part, pairs)
    far = meters > RADIUS_M  # false where a position is unknown
    if part is other:
        _add_examples(part, other, pairs[~far], f"{what} another photo of this folder")
        _add_examples(
            part, other, pairs[far], f"{what} a photo more than {RADIUS_M:g} m away: one of the positions is wrong"
        )
    else:
        if part.is_queries and _is_train(other) and what == SAME:
            return  # errors already
        if part.is_queries and other.is_database:  # those with the same name are errors already
            pairs = pairs[[not _same_file_name(part, other, row, twin) for twin, row in pairs.tolist()]]
        _add_examples(part, other, pairs, f"leak: {what} a photo of {other.name}")


def _same_file_name(part: Part, other: Part, row: int, twin: int) -> bool:
    return _file_name(part, row) == _file_name(other, twin)


def _file_name(part: Part, row: int) -> str:
    return part.images.name(row).rpartition("/")[2]


def _add_examples(part: Part, other: Part, pairs: np.ndarray, kind: str) -> None:
    _, first = np.unique(pairs[:, 1], return_index=True)
    examples = (PAIR.format(part.images.name(row), other.images.name(twin)) for twin, row in pairs[first].tolist())
    part.report.add(kind, examples, is_error=False, count=len(first))


def _distances(one: Part, other: Part, pairs: np.ndarray) -> np.ndarray:
    """Meters between pairs (P, 2) of photos, nan where unknown."""
    a, b = common_points(one, other)
    return distances_m(a[pairs[:, 0]], b[pairs[:, 1]])


def add_position_leaks(parts: Sequence[Part]) -> None:
    """Add the training photos that are within the radius of positives of a query."""
    from scipy.spatial import KDTree

    for train in parts:
        if not _is_train(train):
            continue
        for queries in parts:
            if not queries.is_queries:
                continue
            train_points, query_points = common_points(train, queries)
            known, rows = (np.flatnonzero(~np.isnan(points[:, 0])) for points in (train_points, query_points))
            if not len(known) or not len(rows):
                continue
            tree = KDTree(query_points[rows])
            meters, _ = tree.query(train_points[known], distance_upper_bound=RADIUS_M * (1 + 1e-9))
            near = np.zeros(len(train.images), bool)
            near[known] = meters <= RADIUS_M
            kind = f"leak: within {RADIUS_M:g} m of a photo of {queries.name}"
            train.report.add_rows(kind, train.images, near, is_error=False)
