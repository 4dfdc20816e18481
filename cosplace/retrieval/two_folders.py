"""Photos of any two folders: neighbors where positions are unknown, and photos that are in both folders.

Without positions of the queries, nothing can be measured: the result is what the database has that is similar.
Legend: Q queries, R database images, K predictions per query.  Side effects: reads photos.
"""

import hashlib
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from cosplace.engines.engine import Engine
from cosplace.errors import DatasetError, ImageError
from cosplace.importing.dataset_layouts import RetrievalLists
from cosplace.photos.image_list import MISSING, ImageList
from cosplace.photos.names import is_at_name
from cosplace.photos.opening import read_file
from cosplace.photos.paths import printable
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import EvaluationSettings, extract_lists
from cosplace.retrieval.evaluation_checks import check_finite, readable_blocks, warn_of_equal_descriptors
from cosplace.retrieval.query_views import search
from cosplace.retrieval.shards import UnreadableImage, unreadable_text

NUM_NAMED = 3  # copies that an error names

log = logging.getLogger(__name__)


# --- copies ----------------------------------------------------------------------------------------------------------


def check_copies(
    database: ImageList, queries: ImageList, *, refuse: bool = True, progress: Progress = no_progress
) -> str:
    """Warn of photos that are queries and in the database too, and return what is wrong; "" if there are none.

    Photos are the same if their content is, or their '@' names, which have position, heading and panorama.
    refuse: raise DatasetError for copies with the same file name, because then a folder is in the wrong place, and for
    equal '@' names.  False for published datasets, whose photos are what they are.
    """
    copies = find_copies(database, queries, progress)
    same = sorted(set(_same_names(database, queries)) - {query for query, _ in copies})
    about_copies, about_names = _about_copies(database, queries, copies), _about_names(queries, same)
    if refuse and any(_file_name(queries, query) == _file_name(database, image) for query, image in copies):
        raise DatasetError(f"{about_copies} Remove such photos from one of the two folders.")
    if refuse and about_names:
        raise DatasetError(f"{about_names} Remove them from one of the two folders.")
    found = []
    for rows, text, what in (
        (copies, about_copies, "in the database too"),
        (same, about_names, "in the database too, going by '@' names"),
    ):
        if text:
            log.warning("%s", printable(text))
            found.append(f"{len(rows):,} of {len(queries):,} queries {'is' if len(rows) == 1 else 'are'} {what}")
    return "; ".join(found)


def with_copies(
    dataset: RetrievalDataset, *, refuse: bool = False, progress: Progress = no_progress
) -> RetrievalDataset:
    """A dataset that says how many of its queries are in the database too; see `check_copies`.

    By default, they are only reported: published datasets have copies.
    """
    return replace(dataset, copies=check_copies(dataset.database, dataset.queries, refuse=refuse, progress=progress))


def _about_copies(database: ImageList, queries: ImageList, copies: list[tuple[int, int]]) -> str:
    if not copies:
        return ""
    pairs = [f"{queries.name(query)} = {database.name(image)}" for query, image in copies[:NUM_NAMED]]
    more = f" and {len(copies) - NUM_NAMED:,} more" if len(copies) > NUM_NAMED else ""
    return (
        f"{len(copies):,} of {len(queries):,} queries in {printable(queries.folder)} "
        f"{'is' if len(copies) == 1 else 'are'} in the database too ({', '.join(pairs)}{more}), with the same content. "
        f"A query must not find its own copy."
    )


def _about_names(queries: ImageList, same: list[int]) -> str:
    if not same:
        return ""
    return (
        f"{len(same):,} of {len(queries):,} queries in {printable(queries.folder)} "
        f"{'has' if len(same) == 1 else 'have'} the '@' name of a database image, such as "
        f"{_file_name(queries, same[0])}, so they are the same photos, whatever their content is."
    )


def _same_names(database: ImageList, queries: ImageList) -> list[int]:
    """Queries whose file name is an '@' name and is that of a database image, ascending.

    None where all queries have such names: these are numbers of frames, as in Nordland.
    """
    names = {name for row in range(len(queries)) if is_at_name(name := _file_name(queries, row))}
    names.intersection_update(_file_name(database, row) for row in range(len(database)) if names)
    same = [row for row in range(len(queries)) if _file_name(queries, row) in names]
    return same if len(same) < len(queries) else []


def find_copies(
    database: ImageList, queries: ImageList, progress: Progress = no_progress, *, most_read: int = 0
) -> list[tuple[int, int]]:
    """Queries with the same content as a database image: (query, database image), ascending, one for each query.

    Only files whose sizes are in both lists are read; if more of the database than `most_read` (0: no limit), evenly
    spaced ones.
    """
    query_sizes = _file_sizes(queries)
    database_sizes = _file_sizes(database)
    in_both = np.intersect1d(query_sizes, database_sizes)
    in_both = in_both[in_both > 0]
    query_rows = np.flatnonzero(np.isin(query_sizes, in_both)).tolist()
    database_rows = np.flatnonzero(np.isin(database_sizes, in_both)).tolist()
    if 0 < most_read < len(database_rows):
        database_rows = database_rows[:: -(-len(database_rows) // most_read)]
    num_files = len(query_rows) + len(database_rows)
    image_of: dict[bytes, int] = {}
    for done, row in enumerate(database_rows, 1):
        image_of.setdefault(_checksum(database, row), row)
        progress("looking for copies", done, num_files)
    found = []
    for done, row in enumerate(query_rows, len(database_rows) + 1):
        checksum = _checksum(queries, row)
        if checksum and checksum in image_of:
            found.append((row, image_of[checksum]))
        progress("looking for copies", done, num_files)
    return found


def _file_name(images: ImageList, row: int) -> str:
    return images.name(row).rpartition("/")[2]


def _file_sizes(images: ImageList) -> np.ndarray:
    """Bytes of each file, (I,) int64; MISSING for one that cannot be read."""
    sizes = np.full(len(images), MISSING, np.int64)
    folder = os.fspath(images.folder)
    for row in range(len(images)):
        try:
            sizes[row] = os.stat(f"{folder}/{images.name(row)}").st_size  # noqa: PTH116 - much faster than pathlib
        except OSError:
            continue  # reported when the photo is opened
    return sizes


def _checksum(images: ImageList, row: int) -> bytes:
    """SHA-256 of a file; empty for one that cannot be read."""
    try:
        return hashlib.sha256(read_file(images.path(row))).digest()
    except ImageError:
        return b""


# --- neighbors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbors:
    """The most similar database images of queries whose positions are unknown."""

    name: str  # of the two folders
    folder: Path
    database: ImageList
    queries: ImageList
    predictions: np.ndarray  # (Q, K) int64, best first; -1 for queries that could not be opened
    squared_distances: np.ndarray  # (Q, K) float32, of descriptors; inf without a prediction
    unreadable_database: tuple[UnreadableImage, ...]
    unreadable_queries: tuple[UnreadableImage, ...]
    seconds: float

    @property
    def descriptor_distances(self) -> np.ndarray:
        """L2 distances of descriptors, (Q, K) float64."""
        return np.sqrt(np.maximum(self.squared_distances.astype(np.float64), 0))


def find_neighbors(
    model: nn.Module | Engine,
    lists: RetrievalLists,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
) -> Neighbors:
    """Search the queries of two lists in the database, and log which photos could not be opened.

    Raises what `extract` raises, and DatasetError for descriptors that are not finite.
    """
    started = time.perf_counter()
    database, queries = extract_lists(model, lists.database, lists.queries, settings, progress=progress)
    crops = queries if isinstance(queries, tuple) else (queries,)
    check_finite(database, lists.database, "database")
    warn_of_equal_descriptors(readable_blocks(database))
    for crop in crops:
        check_finite(crop, lists.queries, "queries")
    num_searchable = int(database.readable.sum())
    k = min(max(settings.num_predictions or 1, *settings.recall_values), num_searchable)
    predictions, squared_distances = search(
        database, queries, k, policy=settings.query_policy, device=str(settings.extraction.device)
    )
    if unreadable := [*database.unreadable, *crops[0].unreadable]:
        log.warning("%s", unreadable_text(unreadable, "queries have no neighbors, database images are never found"))
    return Neighbors(
        name=lists.name,
        folder=lists.folder,
        database=lists.database,
        queries=lists.queries,
        predictions=predictions,
        squared_distances=squared_distances,
        unreadable_database=database.unreadable,
        unreadable_queries=crops[0].unreadable,
        seconds=time.perf_counter() - started,
    )
