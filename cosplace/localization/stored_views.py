"""What a calibration has encoded, stored with the index until it ends, so that one that was stopped continues.

Photos are stored in the batches in which they were encoded, with a key: a digest of all that their descriptors depend
on.  So descriptors of another model, of other settings or of files that have changed are not used, and a calibration
that continues has the same result, to the byte, as one that was not stopped.
Side effects: reads the sizes and times of photos, reads and writes the index.
"""

import hashlib
import json
import time
from collections.abc import Sequence

import numpy as np

import cosplace
from cosplace.engines.encoder import Encoder
from cosplace.index.identity import SPEC
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.view_table import EncodedBatch, append_views, read_views, remove_views
from cosplace.photos.paths import path_from_text

STORE_EVERY_S = 30.0  # so a calibration that takes less time stores nothing


class StoredViews:
    """The batches that one calibration has encoded, of an index that is open for writing."""

    def __init__(self, index: PhotoIndex) -> None:
        self._index = index
        self._waiting: dict[str, EncodedBatch] = {}  # to be stored next, by their keys
        self._stored_at, self._is_first = time.monotonic(), True

    def keys(self, encoder: Encoder, change: str, batches: Sequence[Sequence[int]]) -> list[str]:
        """The key of each batch, given as rows of the index.  change: what is encoded in place of each photo."""
        columns = self._index.columns()
        settings = [
            cosplace.__version__, encoder.checksum, encoder.image_size, encoder.views.record(), encoder.device,
            encoder.engine.kind.name, encoder.engine_file, (self._index.read_record(SPEC) or {}).get("index"), change,
        ]  # fmt: skip
        keys = []
        for batch in batches:
            rows = np.array(batch)
            photos = list(zip(batch, columns.ids[rows].tolist(), map(_stamp, columns.paths(rows)), strict=True))
            keys.append(hashlib.sha256(json.dumps([settings, photos]).encode()).hexdigest())
        return keys

    def find(self, keys: Sequence[str]) -> dict[str, EncodedBatch]:
        """The batches with these keys that a calibration has stored before it was stopped."""
        dimension, count = self._index.spec.dimension, self._index.spec.views.num_descriptors
        found = read_views(self._index.store, set(keys), (dimension,) if count == 1 else (count, dimension))
        self._is_first &= not found
        return found

    def add(self, key: str, batch: EncodedBatch) -> None:
        """Store a batch; it may wait up to STORE_EVERY_S seconds for others."""
        self._waiting[key] = batch
        if time.monotonic() - self._stored_at >= STORE_EVERY_S and self._index.can_write:
            append_views(self._index.store, self._waiting, is_first=self._is_first)
            self._waiting, self._stored_at, self._is_first = {}, time.monotonic(), False

    def remove(self) -> None:
        """Remove all batches: the calibration has ended."""
        remove_views(self._index.store)


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and modification time of the file of a photo; None without a file, when its thumbnail is encoded."""
    try:
        status = path_from_text(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
