"""The keys of the photos in an index, in 16 bytes per photo.

Keys are compared by a 64-bit hash; where two hashes are equal, the store is asked for the full keys.
"""

from hashlib import blake2b

import numpy as np

from cosplace.index.store import Store

MAX_RECENT = 100_000  # keys of added photos that are held as strings before they are sorted in


class KeyTable:
    """Photo ids by key, kept up to date by the writer of an index."""

    def __init__(self, store: Store) -> None:
        self.store = store
        ids, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for batch in store.scan(("id", "key")):
            ids.append(batch["id"].to_numpy())
            hashes.append(np.array([_hash(key) for key in batch["key"].to_pylist()], np.uint64))
        self._sort(np.concatenate(ids), np.concatenate(hashes))
        self.recent: dict[str, int] = {}
        self.last_id = int(self.ids.max(initial=-1))

    def _sort(self, ids: np.ndarray, hashes: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        self.ids, self.hashes = ids[order], hashes[order]

    def find(self, keys: list[str]) -> np.ndarray:
        """Id of the photo with each key, (n,) int64; -1 if there is none."""
        if not keys:
            return np.empty(0, np.int64)
        hashes = np.array([_hash(key) for key in keys], np.uint64)
        first, last = (np.searchsorted(self.hashes, hashes, side=side) for side in ("left", "right"))
        found = np.array([self.recent.get(key, -1) for key in keys], np.int64)
        candidates = {
            int(self.ids[row]) for a, b in zip(first.tolist(), last.tolist(), strict=True) for row in range(a, b)
        }
        if candidates:
            stored = self.store.keys_of(np.array(sorted(candidates)))
            for number, key in enumerate(keys):
                found[number] = stored.get(key, found[number])
        return found

    def add(self, keys: list[str], ids: np.ndarray) -> None:
        """Add the keys of photos that were just stored."""
        self.recent.update(zip(keys, ids.tolist(), strict=True))
        self.last_id = max(self.last_id, int(ids.max(initial=-1)))
        if len(self.recent) > MAX_RECENT:
            hashes = np.array([_hash(key) for key in self.recent], np.uint64)
            recent_ids = np.array(list(self.recent.values()), np.int64)
            self._sort(np.concatenate([self.ids, recent_ids]), np.concatenate([self.hashes, hashes]))
            self.recent = {}

    def remove(self, ids: np.ndarray) -> None:
        """Remove the keys of removed photos; their ids are never used again."""
        keep = ~np.isin(self.ids, ids)
        self.ids, self.hashes = self.ids[keep], self.hashes[keep]
        removed = set(ids.tolist())
        self.recent = {key: photo_id for key, photo_id in self.recent.items() if photo_id not in removed}


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
