"""The approximate search index inside the table of photos: build, read, search and drop it.

A search index that this machine did not build is tried first, see `cosplace.index.trials`.  Side effects: reads and
writes the address of a store.
"""

import logging
import shutil
from pathlib import Path

import numpy as np

from cosplace.index.checked_files import table_bytes
from cosplace.index.file_checksums import FILE_NAME, SEARCH_FOLDER, is_local
from cosplace.index.lance import translated_errors
from cosplace.index.manifests import VECTOR_INDEX
from cosplace.index.photo_table import WITH_DESCRIPTOR
from cosplace.index.store import PHOTOS, Store
from cosplace.index.trials import is_trusted, run_trial, trust

CODE_BITS = {"4bit": 4, "binary": 1}  # per dimension of RaBitQ's codes
MAX_UNINDEXED = 10_000  # photos that each search compares before the search index is brought up to date
TRIAL = "cosplace.index.search_trial"
TRUSTED = "search_indexes"
REFINE = {"4bit": 2, "binary": 10, "int8": 2}  # times k candidates are compared by their full descriptors

log = logging.getLogger(__name__)


def check_search_index(store: Store) -> bool:
    """Whether the search index can be used: its files are as they were written, here, or elsewhere and they work.

    Without checksums of its files nobody knows.
    """
    if store.lacks_file_checksums() or not store.files.is_search_intact(store.version):
        return False
    key = store.files.search_key(store.version)
    if key is None:  # on object storage nothing can be checked
        return not (is_local(store.address) and has_vector_index(store))
    if not is_trusted(TRUSTED, key):
        log.info("%s: trying its search index, which was not built on this machine", store.address)
        if problem := run_trial(TRIAL, store.address, table_bytes(store.address)):
            log.info("%s: its search index cannot be used: %s", store.address, problem)
            return False
        trust(TRUSTED, key)
    return True


def _trust_built(store: Store) -> None:
    """Remember that the search index, which has just been built, can be used."""
    if (key := store.files.search_key(store.version)) is not None:
        trust(TRUSTED, key)


def build_vector_index(store: Store, num_partitions: int) -> None:
    """Build the approximate search index over all photos, replacing the one that is there."""
    from lancedb.index import IvfFlat, IvfRq, IvfSq

    config: IvfFlat | IvfRq | IvfSq
    if store.search_codes == "int8":
        config = IvfSq(distance_type="l2", num_partitions=num_partitions)
    elif store.dimension % 8 == 0:
        bits = CODE_BITS[store.search_codes]
        config = IvfRq(distance_type="l2", num_partitions=num_partitions, num_bits=bits)
    else:  # RaBitQ needs a multiple of 8
        config = IvfFlat(distance_type="l2", num_partitions=num_partitions)
    with translated_errors(store.address):
        store.photos.create_index("descriptor", config=config, name=VECTOR_INDEX, replace=True)
    record_built(store)


def record_built(store: Store) -> None:
    """Record the checksums of the files of a search index that has just been built."""
    store.record_checksums()
    _trust_built(store)


def optimize(store: Store, *, forget_older_s: float, is_only_writer: bool = False) -> None:
    """`Store.optimize`; a search index that cannot be used is removed first, as this would read it."""
    if has_vector_index(store) and not check_search_index(store):
        drop_vector_index(store)
    store.optimize(forget_older_s=forget_older_s, is_only_writer=is_only_writer)
    _trust_built(store)


def drop_vector_index(store: Store) -> None:
    """Remove a damaged search index, and its files; readers that use them continue with the newest version."""
    with translated_errors(store.address):
        store.photos.drop_index(VECTOR_INDEX)
        if is_local(store.address):
            shutil.rmtree(Path(store.address) / f"{PHOTOS}.lance" / SEARCH_FOLDER, ignore_errors=True)
    store.record_checksums()


def drop_unchecked_search_index(store: Store) -> None:
    """Remove the search index if the checksums were deleted: the next commit would record its files as they are."""
    if store.lacks_file_checksums() and has_vector_index(store):
        log.warning(
            "%s: %s is missing, so the search index cannot be checked. It is built again when it is "
            "next needed.", store.address, FILE_NAME,
        )  # fmt: skip
        drop_vector_index(store)


def has_vector_index(store: Store) -> bool:
    """Whether there is an approximate search index."""
    with translated_errors(store.address):
        return any(index.name == VECTOR_INDEX for index in store.photos.list_indices())


def prewarm(store: Store) -> None:
    """Read the search index into memory, so that the first search is as fast as the others."""
    with translated_errors(store.address):
        store.photos.prewarm_index(VECTOR_INDEX)


def search_index_state(store: Store) -> tuple[int, int]:
    """Number of photos that the search index does not cover yet, and of the parts that updates have left in it."""
    with translated_errors(store.address):
        statistics = store.photos.index_stats(VECTOR_INDEX)
    return (0, 0) if statistics is None else (int(statistics.num_unindexed_rows), int(statistics.num_indices))


def find_nearest(
    store: Store, query: np.ndarray, k: int, *, num_probed: int, condition: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) and descriptors (n, D) as stored of the k nearest photos in the search index, at most k, nearest first.

    The best REFINE * k by the index are compared by their full descriptors.  This is done here and not by Lance, so
    that each of these descriptors is compared with its checksum: Lance would rank a damaged one last.  For the same
    reason, photos that are not in the search index are left to the caller.  num_probed: partitions to look into.
    condition: SQL that photos must meet; then more partitions are probed until k photos are found.  Raises
    DamagedIndexError.
    """
    num_candidates = k * REFINE[store.search_codes]
    with translated_errors(store.address):
        search = store.photos.search(query, vector_column_name="descriptor").distance_type("l2").limit(num_candidates)
        search = search.fast_search()  # not the photos outside the search index
        search = search.minimum_nprobes(num_probed).maximum_nprobes(0 if condition else num_probed)
        if condition:
            search = search.where(condition, prefilter=True)
        # Without _distance Lance warns.
        table = search.select([*store.present(WITH_DESCRIPTOR), "_distance"]).to_arrow()
    ids, descriptors = store.checked_descriptors(table)
    nearest = np.lexsort((ids, -(descriptors.astype(np.float32) @ query)))[:k]
    return ids[nearest], descriptors[nearest]
