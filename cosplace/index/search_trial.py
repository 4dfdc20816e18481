"""Try a search index from elsewhere: `python -m cosplace.index.search_trial ADDRESS` ends with 0 if it can be used.

It reads all partitions, searches some photos of the index in all of them, and expects to find most of these photos.
`cosplace.index.search_index` runs this in a process of its own, which Lance may end.
"""

import os
import sys

import numpy as np

from cosplace.index.approximate import read_approximate_index
from cosplace.index.checked_files import table_bytes
from cosplace.index.search_index import find_nearest, has_vector_index, prewarm
from cosplace.index.store import Store
from cosplace.index.trials import watch_memory

NUM_TRIED = 16
NEIGHBORS = 10
SAME = 0.999  # of the similarity of a descriptor with itself; photos with equal descriptors may be found instead


def main(address: str) -> bool:
    """Whether the search index of a local index finds most of some of its photos."""
    watch_memory(table_bytes(address))
    store = Store(address)
    index = read_approximate_index(store)
    if index is None:  # nobody knows how to search it
        return not has_vector_index(store)
    prewarm(store)
    ids = store.columns().ids
    tried = ids[np.unique(np.linspace(0, len(ids) - 1, NUM_TRIED).astype(np.int64))]
    num_found = 0
    for query in store.descriptors_of(tried).astype(np.float32):
        _, found = find_nearest(store, query, NEIGHBORS, num_probed=index.num_partitions)
        num_found += bool((found.astype(np.float32) @ query >= SAME * (query @ query)).any())
    return num_found >= len(tried) / 2


if __name__ == "__main__":
    os._exit(0 if main(sys.argv[1]) else 1)  # threads of Lance may end a process that ends as usual
