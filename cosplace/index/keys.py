"""Which photos an index has, by their keys: 16 bytes a photo, and the store's word where two may be equal."""

from hashlib import blake2b

import numpy as np

from cosplace.index.store import Store

YOUNG = 100_000  # photos known one by one before they join the sorted ones


class Ledger:
    """Keys -> ids of one index, kept up to date by its writer."""

    def __init__(self, store: Store) -> None:
        self.store = store
        ids, prints = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for batch in store.scan(("id", "key")):
            ids.append(batch["id"].to_numpy())
            prints.append(np.array([_print(key) for key in batch["key"].to_pylist()], np.uint64))
        self._sort(np.concatenate(ids), np.concatenate(prints))
        self.young: dict[str, int] = {}
        self.last_id = int(self.ids.max(initial=-1))

    def _sort(self, ids: np.ndarray, prints: np.ndarray) -> None:
        order = np.argsort(prints, kind="stable")
        self.ids, self.prints = ids[order], prints[order]

    def find(self, keys: list[str]) -> np.ndarray:
        """(n,) int64: the id of the photo with each key, -1 where there is none."""
        if not keys:
            return np.empty(0, np.int64)
        prints = np.array([_print(key) for key in keys], np.uint64)
        first, last = (np.searchsorted(self.prints, prints, side=side) for side in ("left", "right"))
        found = np.array([self.young.get(key, -1) for key in keys], np.int64)
        maybe = {int(self.ids[at]) for a, b in zip(first.tolist(), last.tolist(), strict=True) for at in range(a, b)}
        if maybe:
            known = self.store.keys_of(np.array(sorted(maybe)))
            for number, key in enumerate(keys):
                found[number] = known.get(key, found[number])
        return found

    def add(self, keys: list[str], ids: np.ndarray) -> None:
        """Remember photos that were just stored."""
        self.young.update(zip(keys, ids.tolist(), strict=True))
        self.last_id = max(self.last_id, int(ids.max(initial=-1)))
        if len(self.young) > YOUNG:
            prints = np.array([_print(key) for key in self.young], np.uint64)
            young_ids = np.array(list(self.young.values()), np.int64)
            self._sort(np.concatenate([self.ids, young_ids]), np.concatenate([self.prints, prints]))
            self.young = {}

    def forget(self, ids: np.ndarray) -> None:
        """Photos that were just removed; their ids are not given again."""
        gone = np.isin(self.ids, ids)
        self.ids, self.prints = self.ids[~gone], self.prints[~gone]
        removed = set(ids.tolist())
        self.young = {key: photo_id for key, photo_id in self.young.items() if photo_id not in removed}


def _print(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
