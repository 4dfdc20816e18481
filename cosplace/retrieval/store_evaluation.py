"""Evaluation of two stores of descriptors, those of a database and those of its queries, without the dataset.

Legend: R database images, Q queries, K predictions, D dimension.  Side effects: reads the stores.
"""

import json
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import cosplace
from cosplace.errors import DatasetError
from cosplace.importing.dataset_layouts import RetrievalLists
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import has_names
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.compression import Compression
from cosplace.retrieval.dataset import RetrievalDataset, with_known_positions
from cosplace.retrieval.descriptor_store import DescriptorStore, open_store
from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings, evaluate_predictions, possible_recalls
from cosplace.retrieval.evaluation_checks import CHECKED_ROWS, check_places, warn_of_equal_descriptors
from cosplace.retrieval.rank_group import RankGroup
from cosplace.retrieval.shards import UnreadableImage
from cosplace.retrieval.store_search import search_store
from cosplace.retrieval.stored_codes import is_code
from cosplace.retrieval.stored_photos import rows_in

log = logging.getLogger("cosplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Two stores of the same model."""

    database: DescriptorStore
    queries: DescriptorStore

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same in all ranks."""
        return {"database_store": self.database.meta.digest, "queries_store": self.queries.meta.digest}

    def record(self) -> dict[str, Any]:
        """The entry of results.json."""
        return {name: _store_record(store) for name, store in (("database", self.database), ("queries", self.queries))}


def _store_record(store: DescriptorStore) -> dict[str, Any]:
    meta = store.meta
    return {
        "store": store.address,
        "dtype": meta.extraction.dtype,
        "bytes_per_photo": meta.row_bytes,
        "dimension": meta.dimension,
        "image_size": meta.extraction.image_size,
        "views": meta.extraction.views,
        "model_checksum": meta.extraction.model,
    }


def open_stores(database: str | Path, queries: str | Path) -> Stores:
    """Open the stores of a database and of its queries.

    Raises DatasetError for stores that are incomplete, or of different models; and for queries that are codes.
    """
    stores = Stores(database=open_store(database), queries=open_store(queries))
    first, second = stores.database.meta, stores.queries.meta
    if is_code(second.extraction.dtype):
        raise DatasetError(
            f"{queries} has {second.extraction.dtype} codes of its own, which do not fit those of the database. "
            f"Extract the queries with --dtype float32."
        )
    for name, one, other in (
        ("model", first.extraction.model, second.extraction.model),
        ("dimension", first.dimension, second.dimension),
        ("views", first.extraction.views, second.extraction.views),
    ):
        if one != other:
            raise DatasetError(
                f"The stores are of different extractions: {name} is {one or 'none'} in {database}, {other or 'none'} "
                f"in {queries}. Extract both with the same --model and options."
            )
    if first.extraction.image_size != second.extraction.image_size:
        log.warning(
            "image_size is %s in the database and %s in the queries.",
            first.extraction.image_size, second.extraction.image_size,
        )  # fmt: skip
    return stores


# --- photos with positions -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """The photos of two stores whose positions are known, and their rows in the stores."""

    dataset: RetrievalDataset
    database_rows: np.ndarray  # (R,) int64, ascending
    query_rows: np.ndarray  # (Q,) int64, ascending


def stored_dataset(stores: Stores) -> StoredDataset:
    """The photos of two stores as a dataset.  Raises DatasetError if no position of one is known."""
    (database, database_rows), (queries, query_rows) = (_labeled(store) for store in (stores.database, stores.queries))
    name = f"{_name(stores.database)}+{_name(stores.queries)}"
    lists = RetrievalLists(name=name, folder=database.folder, database=database, queries=queries)
    dataset = with_known_positions(lists)
    _check_copies(dataset)
    return StoredDataset(
        dataset=dataset,
        database_rows=database_rows[rows_in(dataset.database, database)],
        query_rows=query_rows[rows_in(dataset.queries, queries)],
    )


def _labeled(store: DescriptorStore) -> tuple[ImageList, np.ndarray]:
    images, rows = store.photos.labeled()
    if images.labels is None and not has_names(images):
        raise DatasetError(f"{store.address} has no positions of its photos, so nothing can be measured.")
    return images, rows


def _check_copies(dataset: RetrievalDataset) -> None:
    """Raise DatasetError if a query is a photo of the database, too: it would find itself.

    Only paths are compared, as the photos need not be on this machine.
    """
    database, prefix = dataset.database, f"{dataset.database.folder}/"
    for row in range(len(dataset.queries)):
        path = f"{dataset.queries.folder}/{dataset.queries.name(row)}"
        if path.startswith(prefix) and _has(database, os.fsencode(path.removeprefix(prefix))):
            raise DatasetError(
                f"The query {path} is in the database too, and would find itself. Extract the queries and the database "
                f"from different folders."
            )


def _has(images: ImageList, name: bytes) -> bool:
    """Whether a sorted list has a photo."""
    number = bisect_left(range(len(images)), name, key=lambda row: os.fsencode(images.name(row)))
    return number < len(images) and os.fsencode(images.name(number)) == name


def _name(store: DescriptorStore) -> str:
    return store.address.rstrip("/").rpartition("/")[2]


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate_stores(
    stores: Stores,
    settings: EvaluationSettings,
    *,
    group: RankGroup,
    memory_bytes: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Evaluation, RetrievalDataset] | None:
    """Evaluate two stores; None in ranks other than the first.

    settings: of its extraction, only the device counts.  memory_bytes: of each rank.
    Raises DatasetError, ConfigError for ranks with different settings or too little memory, DeviceError.
    """
    started = time.perf_counter()
    group.check_equal(
        {
            "version": cosplace.__version__,
            **stores.identity,
            "recall_values": settings.recall_values,
            "positive_dist_threshold": settings.positive_dist_threshold,
            "num_predictions": settings.num_predictions,
            "memory": memory_bytes,
        }
    )
    database = stores.database
    image_size = database.meta.extraction.image_size
    dtype = database.meta.extraction.dtype
    settings = replace(
        settings,
        extraction=replace(settings.extraction, image_size=image_size),
        compression=Compression(method=dtype, shortlist=0) if is_code(dtype) else None,
    )
    # Only the first rank reads the lists of photos, which are large; the others get what they need of them.
    stored, recall_values, plan = None, (), b""
    if group.ranks.is_first:
        stored = stored_dataset(stores)
        searchable = np.zeros(len(database), bool)
        searchable[stored.database_rows] = True
        searchable &= database.readable
        warn_of_equal_descriptors(_blocks(database, searchable))
        asked = stored.query_rows[stores.queries.readable[stored.query_rows]]
        recall_values, k = possible_recalls(stored.dataset, settings, int(searchable.sum()))
        check_places(stored.dataset, settings.positive_dist_threshold)
        plan = json.dumps({"k": k, "queries": asked.tolist()}).encode() + b"\n" + np.packbits(searchable).tobytes()
    text, _, bits = group.broadcast(plan).partition(b"\n")
    values = json.loads(text)
    asked, k = np.array(values["queries"], np.int64), values["k"]
    searchable = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(database)).astype(bool)
    queries = stores.queries.read(range(len(stores.queries)))[asked].astype(np.float32)
    found = search_store(
        queries,
        database,
        k,
        searchable=searchable,
        group=group,
        memory_bytes=memory_bytes,
        device=str(settings.extraction.device),
        progress=progress,
    )
    if found is None or stored is None:
        return None
    rows, squared = found.rows, found.squared_distances
    predictions = np.full((len(stored.query_rows), k), -1, np.int64)
    squared_distances = np.full(predictions.shape, np.inf, np.float32)
    is_asked = np.isin(stored.query_rows, asked)
    predictions[is_asked] = np.searchsorted(stored.database_rows, rows)
    squared_distances[is_asked] = squared.astype(np.float32)
    evaluation = evaluate_predictions(
        predictions,
        squared_distances,
        stored.dataset,
        settings,
        recall_values=recall_values,
        unreadable_database=_unreadable(database, stored.database_rows),
        unreadable_queries=_unreadable(stores.queries, stored.query_rows),
        dimension=database.meta.dimension,
    )
    return replace(evaluation, seconds=time.perf_counter() - started), stored.dataset


def _blocks(store: DescriptorStore, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows of a store, in blocks.  kept: (I,) bool."""
    for first in range(0, len(store), CHECKED_ROWS):
        rows = range(first, min(first + CHECKED_ROWS, len(store)))
        if kept[rows.start : rows.stop].any():
            yield store.read(rows)[kept[rows.start : rows.stop]]


def _unreadable(store: DescriptorStore, rows: np.ndarray) -> tuple[UnreadableImage, ...]:
    """Photos that could not be opened, by their row in the dataset; those without a position do not count."""
    kept = {int(row): number for number, row in enumerate(rows)} if store.unreadable else {}
    return tuple(replace(entry, index=kept[entry.index]) for entry in store.unreadable if entry.index in kept)
