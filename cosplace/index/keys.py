"""The keys of the photos in an index: each photo is indexed once.  16 bytes of memory per photo.

A key has the checksum of a photo's bytes, its position and its heading (see `photo_key`).  The same photo may have a
slightly different position in a table, in EXIF and in its name, so positions are compared with a tolerance.  Contents
are compared by a 64-bit hash; where two hashes are equal, the store is asked for the full keys.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from cosplace.geo import ecef_from_lla
from cosplace.index.store import Store
from cosplace.photos.metadata import SAME_HEADING_DEG, SAME_POSITION_M

MAX_RECENT = 100_000  # keys of added photos that are held as strings before they are sorted in
UNKNOWN = (float("nan"),) * 3


def content_of(key: str) -> str:
    """The checksum of the bytes in a key; all of a key without a position, such as those of earlier versions."""
    return key.partition(",")[0]


class _Places:
    """Positions and headings in n keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        latitudes, longitudes, self.headings = np.array([_place_of(key) for key in keys], np.float64).reshape(-1, 3).T
        self.points = ecef_from_lla(latitudes, longitudes) if len(keys) else np.empty((0, 3))
        self.is_unknown = np.isnan(self.points[:, 0])

    def nearest(self, numbers: Sequence[int], wanted: "_Places", number: int) -> int:
        """Which of some numbers is the same place as a wanted one, and nearest to it; -1 for none.

        A heading that is unknown in the wanted place does not matter.  One that is unknown here does: a heading that
        has become known must get into the index.
        """
        rows = np.asarray(numbers, np.int64)
        if wanted.is_unknown[number]:
            meters = np.where(self.is_unknown[rows], 0.0, np.inf)
        else:
            meters = np.linalg.norm(self.points[rows] - wanted.points[number], axis=1)
        heading = wanted.headings[number]
        if not np.isnan(heading):
            turns = np.abs((self.headings[rows] - heading + 180) % 360 - 180)
            meters = np.where(turns <= SAME_HEADING_DEG, meters, np.inf)
        meters = np.where(meters <= SAME_POSITION_M, meters, np.inf)  # also for nan
        best = int(np.argmin(meters)) if len(rows) else 0
        return int(rows[best]) if len(rows) and np.isfinite(meters[best]) else -1


def _place_of(key: str) -> tuple[float, ...]:
    """Latitude, longitude and heading in a key; nan for a key without them."""
    try:
        place = tuple(map(float, key.split(",")[1:]))
    except ValueError:
        return UNKNOWN
    return place if len(place) == len(UNKNOWN) else UNKNOWN


def first_of_each(keys: Sequence[str]) -> list[int]:
    """For each key, the number of the first key of the same photo: its own, or a smaller one."""
    places = _Places(keys)
    groups: dict[str, list[int]] = {}
    firsts = []
    for number, key in enumerate(keys):
        group = groups.setdefault(content_of(key), [])
        found = places.nearest(group, places, number) if group else -1
        if found < 0:
            group.append(number)
        firsts.append(number if found < 0 else found)
    return firsts


class KeyTable:
    """Photo ids by key, kept up to date by the writer of an index."""

    def __init__(self, store: Store) -> None:
        self.store = store
        ids, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for batch in store.scan(("id", "key")):
            ids.append(batch["id"].to_numpy())
            hashes.append(_hashes(batch["key"].to_pylist()))
        self._sort(np.concatenate(ids), np.concatenate(hashes))
        self.recent: dict[str, list[tuple[str, int]]] = {}  # keys and ids, by content
        self.num_recent = 0
        self.last_id = int(self.ids.max(initial=-1))

    def _sort(self, ids: np.ndarray, hashes: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        self.ids, self.hashes = ids[order], hashes[order]

    def find(self, keys: Sequence[str], former_keys: Sequence[str] = ()) -> np.ndarray:
        """Id of the photo with each key, (n,) int64; -1 if there is none.

        former_keys: of the same photos, as earlier versions wrote them; "" for none.
        """
        found = self._find(keys)
        if any(former_keys):
            found = np.where(found < 0, self._find(former_keys), found)
        return found

    def have_content(self, keys: Sequence[str]) -> np.ndarray:
        """Whether a photo has the content of each key, wherever and in whatever direction it was taken, (n,) bool."""
        contents = {content_of(key) for key, _ in self._with_content(keys)}
        return np.array([content_of(key) in contents for key in keys], bool)

    def _with_content(self, keys: Sequence[str]) -> list[tuple[str, int]]:
        """Keys and ids of the photos that have the content of one of some keys."""
        hashes = _hashes(keys)
        first, last = (np.searchsorted(self.hashes, hashes, side=side) for side in ("left", "right"))
        candidates = {
            int(self.ids[row]) for a, b in zip(first.tolist(), last.tolist(), strict=True) for row in range(a, b)
        }
        pairs = self.store.keys_of(np.array(sorted(candidates))) if candidates else []
        return pairs + [
            pair for content in dict.fromkeys(map(content_of, keys)) for pair in self.recent.get(content, ())
        ]

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        if not len(keys):
            return np.empty(0, np.int64)
        pairs = self._with_content(keys)
        groups: dict[str, list[int]] = {}
        for number, (key, _) in enumerate(pairs):
            groups.setdefault(content_of(key), []).append(number)
        stored, wanted = _Places([key for key, _ in pairs]), _Places(keys)
        rows = [stored.nearest(groups.get(content_of(key), ()), wanted, number) for number, key in enumerate(keys)]
        return np.array([pairs[row][1] if row >= 0 else -1 for row in rows], np.int64)

    def add(self, keys: Sequence[str], ids: np.ndarray) -> None:
        """Add the keys of photos that were just stored."""
        for key, photo_id in zip(keys, ids.tolist(), strict=True):
            self.recent.setdefault(content_of(key), []).append((key, photo_id))
        self.num_recent += len(keys)
        self.last_id = max(self.last_id, int(ids.max(initial=-1)))
        if self.num_recent > MAX_RECENT:
            recent = [pair for pairs in self.recent.values() for pair in pairs]
            ids = np.array([photo_id for _, photo_id in recent], np.int64)
            hashes = _hashes([key for key, _ in recent])
            self._sort(np.concatenate([self.ids, ids]), np.concatenate([self.hashes, hashes]))
            self.recent, self.num_recent = {}, 0

    def remove(self, ids: np.ndarray) -> None:
        """Remove the keys of removed photos; their ids are never used again."""
        keep = ~np.isin(self.ids, ids)
        self.ids, self.hashes = self.ids[keep], self.hashes[keep]
        removed = set(ids.tolist())
        kept = {content: [pair for pair in pairs if pair[1] not in removed] for content, pairs in self.recent.items()}
        self.recent = {content: pairs for content, pairs in kept.items() if pairs}
        self.num_recent = sum(map(len, self.recent.values()))


def _hashes(keys: Sequence[str]) -> np.ndarray:
    """64-bit hashes (n,) uint64 of the contents of keys."""
    contents = (content_of(key).encode("utf-8", "surrogateescape") for key in keys)
    return np.array([int.from_bytes(blake2b(one, digest_size=8).digest(), "little") for one in contents], np.uint64)
