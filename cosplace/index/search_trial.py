"""Try a search index from elsewhere: `python -m cosplace.index.search_trial ADDRESS` ends with 0 if it can be used.

It reads all partitions, and searches some photos of the index in all of them.  More photos are searched in as many
partitions as usual: most have to be found, because a photo is in the partition whose center is nearest to it.
`cosplace.index.search_index` runs this in a process of its own, which Lance may end.
"""

import os
import sys

import numpy as np

from cosplace.index.approximate import read_approximate_index
from cosplace.index.checked_files import table_bytes
from cosplace.index.search_index import find_nearest, has_vector_index, prewarm, search_index_state
from cosplace.index.store import Store
from cosplace.index.trials import watch_memory

NUM_TRIED_IN_ALL, NUM_TRIED = 16, 64  # photos
NEIGHBORS = 10
SAME = 0.999  # of the similarity of a descriptor with itself; photos with equal descriptors may be found instead
LEAST_FOUND = 0.75  # of the photos that the search index covers, which vary by chance


def main(address: str) -> bool:
    """Whether the search index of a local index finds its photos."""
    watch_memory(table_bytes(address))
    store = Store(address)
    index = read_approximate_index(store)
    if index is None:  # nobody knows how to search it
        return not has_vector_index(store)
    prewarm(store)
    ids = store.columns().ids
    _num_found(store, ids, NUM_TRIED_IN_ALL, index.num_partitions)  # a damaged partition may end this process
    num_uncovered, _ = search_index_state(store)
    share_covered = 1 - num_uncovered / max(1, len(ids))
    return _num_found(store, ids, NUM_TRIED, index.num_probed) >= LEAST_FOUND * share_covered * min(NUM_TRIED, len(ids))


def _num_found(store: Store, ids: np.ndarray, num_tried: int, num_probed: int) -> int:
    """How many of some photos are found by their own descriptors, or others with the same."""
    tried = ids[np.unique(np.linspace(0, len(ids) - 1, num_tried).astype(np.int64))]
    num_found = 0
    for query in store.descriptors_of(tried).astype(np.float32):
        _, found = find_nearest(store, query, NEIGHBORS, num_probed=num_probed)
        num_found += bool((found.astype(np.float32) @ query >= SAME * (query @ query)).any())
    return num_found


if __name__ == "__main__":
    os._exit(0 if main(sys.argv[1]) else 1)  # threads of Lance may end a process that ends as usual
