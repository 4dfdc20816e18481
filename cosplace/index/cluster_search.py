"""Build the approximate search index on a Ray cluster: one training, then each process codes some of the files.

The result is the same kind of index in the same table as the one that `cosplace.index.search_index` builds, and is read
by LanceDB on any machine.  Side effects: reads and writes the table of photos.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from cosplace.errors import PhotoIndexError
from cosplace.index.file_checksums import is_local
from cosplace.index.search_index import CODE_BITS, VECTOR_INDEX, record_built
from cosplace.index.store import PHOTOS, Store
from cosplace.memory import resident_bytes
from cosplace.ray_cluster import Cluster, wait_for

PACKAGES = ("ray", "lance_ray", "lance")  # that a cluster needs to build an index
MAX_SEGMENTS = 4  # parts of the index: each search looks into all of them
MAX_FRAGMENTS = 256  # small files of the table; more are joined
ROWS_PER_FILE = 1 << 20  # of joined files, as one process joins them

log = logging.getLogger(__name__)


def photos_address(address: str) -> str:
    """The address of the table of photos of an index, for processes with other working folders."""
    folder = str(Path(address).absolute()) if is_local(address) else address.rstrip("/")
    return f"{folder}/{PHOTOS}.lance"


def build_on_cluster(store: Store, num_partitions: int, cluster: Cluster) -> None:
    """Build the approximate search index of a store, replacing the one that is there."""
    lance_ray: Any = import_module("lance_ray")

    num_workers = cluster.workers_for(needs_gpu=False)
    kind: dict[str, Any] = {"index_type": "IVF_FLAT"}
    if store.search_codes == "int8":
        kind = {"index_type": "IVF_SQ"}
    elif store.dimension % 8 == 0:  # RaBitQ needs a multiple of 8
        kind = {"index_type": "IVF_RQ", "num_bits": CODE_BITS[store.search_codes]}
    with _explained(store, "build the search index"):
        wait_for(
            lambda: lance_ray.create_index(
                photos_address(store.address),
                column="descriptor",
                name=VECTOR_INDEX,
                metric="l2",
                num_partitions=num_partitions,
                num_workers=num_workers,
                num_segments=min(num_workers, MAX_SEGMENTS),
                **kind,
            )
        )
    store.catch_up()
    record_built(store)


def has_many_files(store: Store) -> bool:
    """Whether files of photos should be joined."""
    return store.num_small_fragments() > MAX_FRAGMENTS


def join_files(store: Store, cluster: Cluster) -> None:
    """Join small files of photos; each process joins one group of them at a time, batch by batch.

    The caller reads the newest version afterwards.
    """
    lance_ray: Any = import_module("lance_ray")

    with _explained(store, "join files of photos"):
        wait_for(
            lambda: lance_ray.compact_files(
                photos_address(store.address),
                compaction_options={"target_rows_per_fragment": ROWS_PER_FILE, "num_threads": 1},
                num_workers=cluster.workers_for(needs_gpu=False),
            )
        )


@contextmanager
def _explained(store: Store, task: str) -> Generator[None]:
    """Within: errors of lance-ray say what to do; memory of this process before and after is logged."""
    before = resident_bytes() / 1e6
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise PhotoIndexError(
            f"The Ray cluster could not {task} of {store.address} ({text}). All photos are stored; run the command "
            "again."
        ) from error
    log.info("%s: %s: memory of this process %.0f MB before, %.0f MB after", store.address, task, before,
             resident_bytes() / 1e6)  # fmt: skip
