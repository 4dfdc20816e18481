"""Image pairs for structure from motion, in the format of hloc and COLMAP: two names on each line.

Pairs are of photos near each other, of photos one after another, or of photos with similar descriptors; each pair is
written once.  With queries, each pair has a query and a photo of the database; without, two photos of the database.
Legend: Q queries, R database photos, K matches.  Pure, except for `write_pairs`.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import UtmPositions, different_zones, earth_positions, optional_fields, utm_fields
from cosplace.photos.paths import printable
from cosplace.retrieval.search import nearest
from cosplace.retrieval.shards import Descriptors
from cosplace.storage import write_atomically

SEPARATORS = re.compile(r"\s|[\x00-\x1f\x7f\ud800-\udfff]")
MAX_GAP_S = 600.0  # between two photos of a sequence
Pairs = np.ndarray
"""(P, 2) int64: a query, or the first photo, and a photo of the database."""

log = logging.getLogger("cosplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewpoints:
    """Where the photos of a list were taken, and their headings."""

    positions: np.ndarray  # (R, 2) or (R, 3) float64, in meters as in RetrievalDataset; nan where unknown
    headings: np.ndarray  # (R,) degrees, nan where unknown


def viewpoints_of(*lists: ImageList) -> list[Viewpoints]:
    """The viewpoints of lists with '@' names or labels, all in one coordinate system.

    Raises DatasetError for a name without a position.
    """
    fields = [utm_fields(images) for images in lists]
    several = len(different_zones(*(utm.zones for utm in fields))) > 1 or len({one.map_center for one in lists}) > 1
    found = []
    for images, utm in zip(lists, fields, strict=True):
        known = np.flatnonzero(utm.known)
        positions = np.full((len(images), 3 if several else 2), np.nan)
        if several and len(known):
            own = UtmPositions(east_north=utm.east_north[known], zones=utm.zones[known])
            positions[known] = earth_positions(images.subset(known.tolist()), own)
        elif len(known):
            positions[known] = utm.east_north[known]
        headings = optional_fields(images, ("heading",))[0]
        found.append(Viewpoints(positions=positions, headings=headings))
    return found


def times_of(images: ImageList) -> np.ndarray:
    """When the photos of a list were taken, by their names or labels: (R,) seconds since 1970, nan where unknown."""
    names = (images.label(row).rpartition("/")[2] for row in range(len(images)))
    return np.array([metadata_from_name(name).time for name in names], np.float64)


def pairs_by_position(
    queries: Viewpoints | None, database: Viewpoints, radius_m: float, max_turn: float, num_matches: int
) -> Pairs:
    """The nearest photos of each photo within a radius whose headings differ by at most max_turn degrees.

    queries: None for pairs within the database.  num_matches: at most this number for each photo.
    Photos without a position have no pairs; unknown headings do not exclude any.
    """
    from scipy.spatial import KDTree

    within = queries is None
    first = database if queries is None else queries
    known, rows = np.flatnonzero(~np.isnan(database.positions[:, 0])), np.flatnonzero(~np.isnan(first.positions[:, 0]))
    if not len(known) or not len(rows):
        return _pairs([], [])
    tree = KDTree(database.positions[known])
    left, right = [], []
    for row in rows.tolist():
        near = known[tree.query_ball_point(first.positions[row], radius_m)]
        near = near[near != row] if within else near
        turns = np.abs((database.headings[near] - first.headings[row] + 180) % 360 - 180)
        near = near[~(turns > max_turn)]  # kept where unknown
        distances_m = np.linalg.norm(database.positions[near] - first.positions[row], axis=1)
        chosen = near[np.lexsort((near, distances_m))[:num_matches]]
        left += [row] * len(chosen)
        right += chosen.tolist()
    return _pairs(left, right)


def pairs_by_order(sequences: Sequence[Sequence[int]], num_next: int) -> Pairs:
    """Each photo with the next ones of its sequence.  sequences: photos in the order in which they were taken."""
    pairs = [
        (rows[place], other)
        for rows in sequences
        for place in range(len(rows))
        for other in rows[place + 1 : place + 1 + num_next]
    ]
    return _pairs(*zip(*pairs, strict=True)) if pairs else _pairs([], [])


def pairs_by_descriptor(
    queries: Descriptors | None, database: Descriptors, num_matches: int, device: str = "cpu"
) -> Pairs:
    """The photos with the most similar descriptors of each photo, num_matches or fewer."""
    within = queries is None
    count = min(num_matches + within, len(database))
    found, _ = nearest(database if queries is None else queries, database, count, device=device)
    left = np.repeat(np.arange(len(found)), count)
    right = found.ravel()
    if not within:
        return _pairs(left, right)
    keep = left != right  # itself
    rank = np.cumsum(keep.reshape(found.shape), axis=1).ravel()
    keep &= rank <= num_matches
    return _pairs(left[keep], right[keep])


def join_pairs(parts: Sequence[Pairs], *, within: bool) -> Pairs:
    """All pairs, each once, sorted.  within: the pairs a, b and b, a are the same."""
    pairs = np.concatenate(parts) if parts else _pairs([], [])
    return np.unique(np.sort(pairs, axis=1) if within else pairs, axis=0)


def _pairs(left: Sequence[int] | np.ndarray, right: Sequence[int] | np.ndarray) -> Pairs:
    return np.stack([np.asarray(left, np.int64), np.asarray(right, np.int64)], 1).reshape(-1, 2)


def sequences_of(images: ImageList, times: np.ndarray, max_gap_s: float) -> list[list[int]]:
    """Sequences of a list: the photos of each folder by time, or by name if times are unknown.

    A gap of more than max_gap_s starts a new sequence.
    """
    folders: dict[str, list[int]] = {}
    for row in range(len(images)):
        folders.setdefault(images.name(row).rpartition("/")[0], []).append(row)
    sequences = []
    for rows in folders.values():
        if np.isnan(times[rows]).any():
            sequences.append(rows)  # a list is sorted by name
            continue
        ordered = sorted(rows, key=lambda row: (times[row], row))
        ends = np.flatnonzero(np.diff(times[ordered]) > max_gap_s) + 1
        sequences += [part.tolist() for part in np.split(np.array(ordered), ends)]
    return sequences


# --- the file --------------------------------------------------------------------------------------------------------


def write_pairs(path: Path, pairs: Pairs, first: ImageList, second: ImageList, root: Path) -> int:
    """Write pairs as lines "name0 name1", with names relative to a folder; returns the number of lines.

    A name with a space or another separator would make the line ambiguous: its pairs are left out, with a warning.
    Raises DatasetError if no pair is left.
    """
    if not len(pairs):
        raise DatasetError("No pairs were found. Use a larger --radius_m, or other settings.")
    names = [_names(images, rows, root) for images, rows in ((first, pairs[:, 0]), (second, pairs[:, 1]))]
    wrong = {name for part in names for name in part.values() if SEPARATORS.search(name)}
    lines = [f"{names[0][a]} {names[1][b]}\n" for a, b in pairs.tolist() if not {names[0][a], names[1][b]} & wrong]
    if wrong:
        log.warning(
            "%s photos are left out, for example '%s': the format of pairs does not allow spaces in names. Export the "
            "photos with other names: `cosplace dataset export --format names`.",
            f"{len(wrong):,}", printable(min(wrong)),
        )  # fmt: skip
    if not lines:
        raise DatasetError("All names have spaces, which the format of pairs does not allow. Rename the photos.")
    write_atomically(path, lambda file: file.write("".join(lines).encode()))
    return len(lines)


def _names(images: ImageList, rows: np.ndarray, root: Path) -> dict[int, str]:
    folder = os.path.relpath(os.path.realpath(images.folder), os.path.realpath(root))
    prefix = "" if folder == "." else f"{Path(folder).as_posix()}/"
    return {row: prefix + images.name(row) for row in np.unique(rows).tolist()}


def common_folder(*lists: ImageList) -> Path:
    """The folder that all lists are in, which their names in a file of pairs are relative to."""
    return Path(os.path.commonpath([os.path.realpath(images.folder) for images in lists]))
