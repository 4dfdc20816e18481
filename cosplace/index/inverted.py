"""Search among millions: descriptors in lists by their nearest center, of which a query looks at a few.

    search/<number>/meta.json         what it covers, how many lists a search looks at, the recall measured with that
                    centers.npy       (L, D) float32, unit
                    starts.npy        (L + 1,) int64: where each list starts
                    ids.npy           (N,) int64, list after list, ascending within one
                    codes.npy         (N, D) int8 and
                    scales.npy        (N,) float32: rows in a byte a number, which a search reads
                    descriptors.npy   (N, D) float16, which put the best of them in order

After Sivic and Zisserman, "Video Google", ICCV 2003, and Jégou et al., PAMI 2011, section IV, with bytes instead of
product codes: at 20 GB a second they need not be smaller.  Codes and descriptors are memory-mapped.  How many lists
must be looked at is measured on photos of the index itself.  Everything here can be made again from the store.
Legend: N photos, L lists, D dimension, Q queries, K neighbours.  Side effects: reads and writes that folder.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosplace.index.scanning import products, quantize, query_error
from cosplace.storage import storage_errors, write_text

FORMAT_VERSION = 1
LISTS_PER_ROOT = 2  # lists for the square root of the number of photos
SAMPLE_PER_LIST = 32  # descriptors that a center is learned from
ROUNDS = 6  # of k-means
HELD_OUT = 1000  # photos whose neighbours are looked for, to measure recall
MEASURED_K = 20
WANTED_RECALL = 0.99  # of the first neighbour; the measurement itself is uncertain by some thousandths
LEAST_PROBED = 8
CODES_BLUR = 0.006  # ten times what codes take from a similarity: rows so near to the k-th get a second look
HALF_ERROR = 2.0**-11 + 2.0**-20  # length of what float16 takes from a unit vector, subnormals included
MOST_SECOND = 2000  # rows that get it, beside k
MAPPED = ("codes", "descriptors")
BLOCK = 8192

Progress = Callable[[int, int], None]  # (done, total)
Stretches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Gives all (ids (n,), descriptors (n, D)) of an index, as often as it is called, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListsMeta:
    """What a search structure covers, and how well it finds."""

    format: int = FORMAT_VERSION
    index: str  # the index it belongs to
    count: int  # N
    last_id: int  # photos with larger ids came later
    num_lists: int
    num_probed: int  # lists that a search looks at
    codes_error: float = 0.0  # largest length of what codes take from a row
    recall_at_1: float | None = None  # share of held-out photos whose exact first neighbour is found
    recall_at_20: float | None = None  # share of their 20 exact neighbours that are found
    num_measured: int = 0


class InvertedLists:
    """Descriptors in lists; searching changes nothing, so threads may share it."""

    def __init__(self, meta: ListsMeta, arrays: dict[str, np.ndarray]) -> None:
        self.meta = meta
        self.centers, self.starts, self.ids = arrays["centers"], arrays["starts"], arrays["ids"]
        self.codes, self.scales, self.descriptors = arrays["codes"], arrays["scales"], arrays["descriptors"]
        # Centers are ranked by compiled code, too: threads of a BLAS wait for each other on a busy machine.
        self.center_codes, self.center_scales = quantize(self.centers)

    def nearness(self, query: np.ndarray) -> np.ndarray:
        """(L,) float32: how near each center is to a query (D,)."""
        whole = np.array([0]), np.array([len(self.centers)])
        return products(query, self.center_codes, self.center_scales, *whole)

    def search(
        self, query: np.ndarray, k: int, *, searchable: np.ndarray | None = None, share: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar rows in the lists nearest to one query (D,) float32: rows (k,) and similarities (k,).

        searchable: (N,) bool, rows that may be found; share: the share of them, as fewer call for more lists.
        Returns fewer than k where the lists hold fewer.
        """
        nearness = self.nearness(query)
        # With a filter that lets few pass, the nearest of them lie in lists that are farther away.
        num_probed = min(len(nearness), int(np.ceil(self.meta.num_probed / max(share, 1e-9))))
        while True:
            probed = np.sort(np.argpartition(-nearness, num_probed - 1)[:num_probed])
            firsts, lasts = self.starts[probed], self.starts[probed + 1]
            similarities = self._by_codes(query, firsts, lasts, searchable)
            if num_probed == len(nearness) or np.count_nonzero(similarities > -np.inf) >= k:
                break
            num_probed = min(len(nearness), 2 * num_probed)
        return self._put_in_order(
            query, k, self._second_look(similarities, k, (firsts, lasts), blur=CODES_BLUR, most=MOST_SECOND)
        )

    def search_rows(self, query: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar of some rows (n,): rows (k,) and similarities (k,), fewer than k where n is."""
        similarities = self._by_codes(query, rows, rows + 1, None)
        return self._put_in_order(
            query, k, self._second_look(similarities, k, (rows, rows + 1), blur=CODES_BLUR, most=MOST_SECOND)
        )

    def possible(self, query: np.ndarray, k: int, searchable: np.ndarray | None) -> np.ndarray:
        """Rows (n,) among which the k most similar certainly are, by what the store keeps of them.

        Codes are off by at most the largest length of what they take from a row, float16 by its rounding.
        """
        length = float(np.linalg.norm(query))
        whole = self.starts[:1], self.starts[-1:]
        blur = 2 * length * self.meta.codes_error + 2 * query_error(query)
        rows = self._second_look(self._by_codes(query, *whole, searchable), k, whole, blur=blur, most=None)
        similarities = self._by_descriptors(query, rows)
        if len(rows) <= k:
            return rows
        least = np.partition(similarities, len(rows) - k)[len(rows) - k]
        return rows[similarities >= least - 2 * length * HALF_ERROR]

    def _by_codes(
        self, query: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, searchable: np.ndarray | None
    ) -> np.ndarray:
        """Similarities of the rows of some stretches, one after another; -inf for those that may not be found."""
        similarities = products(query, self.codes, self.scales, firsts, lasts)
        if searchable is not None:
            parts = zip(firsts.tolist(), lasts.tolist(), strict=True)
            similarities[~np.concatenate([searchable[first:last] for first, last in parts])] = -np.inf
        return similarities

    def _second_look(
        self,
        similarities: np.ndarray,
        k: int,
        stretches: tuple[np.ndarray, np.ndarray],
        *,
        blur: float,
        most: int | None,
    ) -> np.ndarray:
        """Rows (n,), ascending, whose similarity is within `blur` of the k-th best, or above; at most k + `most`.

        similarities: of the rows first … last - 1 of each stretch, one after another.
        """
        least = -np.inf
        if len(similarities) > k:
            least = np.partition(similarities, len(similarities) - k)[len(similarities) - k] - blur
        near = np.flatnonzero(similarities >= max(least, np.finfo(np.float32).min))
        if most is not None and len(near) > most + k:
            near = np.sort(near[np.argpartition(-similarities[near], most + k)[: most + k]])
        firsts, lasts = stretches
        ends = np.cumsum(lasts - firsts)
        stretch = np.searchsorted(ends, near, side="right")
        return near - ends[stretch] + lasts[stretch]

    def _by_descriptors(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        parts = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
        found = [np.einsum("nd,d->n", self.descriptors[part].astype(np.float32), query) for part in parts]
        return np.concatenate([np.empty(0, np.float32), *found])

    def _put_in_order(self, query: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar of some rows by their descriptors, and their similarities."""
        similarities = self._by_descriptors(query, rows)
        best = np.argsort(-similarities, kind="stable")[:k]
        return rows[best], similarities[best]


# --- making ----------------------------------------------------------------------------------------------------------


def build_lists(
    folder: Path, stretches: Stretches, *, index: str, count: int, dimension: int, progress: Progress | None = None
) -> InvertedLists:
    """Make the search structure of `count` photos below `folder`, in the place of older ones.

    Memory: the sample that centers are learned from (about 64 * sqrt(count) rows), not the photos.
    """
    num_lists = max(1, round(LISTS_PER_ROOT * count**0.5))
    done = _Counter(progress, 3 * count)
    centers = _learn_centers(_sample(stretches, count, min(count, SAMPLE_PER_LIST * num_lists), done), num_lists)
    labels, ids, at = np.empty(count, np.int32), np.empty(count, np.int64), 0
    for some, rows in stretches():
        labels[at : at + len(some)], ids[at : at + len(some)] = _nearest_center(rows, centers), some
        at += len(some)
        done.add(len(some))
    assert at == count, (at, count)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_lists))]).astype(np.int64)
    order = np.lexsort((ids, labels))
    places = np.empty(count, np.int64)  # where each photo, in the store's order, goes
    places[order] = np.arange(count)
    meta = ListsMeta(
        index=index, count=count, last_id=int(ids.max()), num_lists=num_lists, num_probed=min(LEAST_PROBED, num_lists)
    )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{os.getpid()}.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            np.save(beside / "centers.npy", centers)
            np.save(beside / "starts.npy", starts)
            np.save(beside / "ids.npy", ids[order])
            meta = replace(meta, codes_error=_write_rows(beside, stretches, places, dimension, done))
            meta = _measured(_opened(beside, meta), dimension)
            write_text(beside / "meta.json", json.dumps(asdict(meta), indent=2))
            return _put_in_place(folder, beside, meta)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _write_rows(folder: Path, stretches: Stretches, places: np.ndarray, dimension: int, done: "_Counter") -> float:
    """Write each row where its list has room for it, as float16 and in bytes; returns the largest error of these."""
    forms = {"descriptors": np.float16, "codes": np.int8}
    shape = (len(places), dimension)
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, dtype in forms.items()
    }
    scales, at, largest = np.empty(len(places), np.float32), 0, 0.0
    for some, rows in stretches():
        where = places[at : at + len(some)]
        files["descriptors"][where] = rows
        codes, some_scales = quantize(rows)
        files["codes"][where], scales[where] = codes, some_scales
        errors = np.linalg.norm(codes * some_scales[:, None] - rows.astype(np.float32), axis=1)
        largest = max(largest, float(errors.max()))
        at += len(some)
        done.add(len(some))
    for file in files.values():
        file.flush()
    np.save(folder / "scales.npy", scales)
    return largest


class _Counter:
    """Counts what is done and tells."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _sample(stretches: Stretches, count: int, size: int, done: _Counter) -> Tensor:
    """(size, D) float32: photos drawn evenly, the same at each call."""
    drawn = np.sort(np.random.default_rng([count, 1]).choice(count, size, replace=False))
    parts, at = [], 0
    for _, rows in stretches():
        first, last = np.searchsorted(drawn, [at, at + len(rows)])
        parts.append(rows[drawn[first:last] - at].astype(np.float32))
        at += len(rows)
        done.add(len(rows))
    return torch.from_numpy(np.concatenate(parts))


def _learn_centers(sample: Tensor, num_lists: int) -> np.ndarray:
    """(L, D) float32 unit centers, by k-means on the sphere; a center that nothing is near moves to a random row."""
    generator = torch.Generator().manual_seed(0)
    centers = sample[torch.randperm(len(sample), generator=generator)[:num_lists]].clone()
    for _ in range(ROUNDS):
        labels = torch.cat([(block @ centers.T).argmax(1) for block in sample.split(BLOCK)])
        sums = torch.zeros_like(centers).index_add_(0, labels, sample)
        empty = torch.bincount(labels, minlength=num_lists) == 0
        sums[empty] = sample[torch.randint(len(sample), (int(empty.sum()),), generator=generator)]
        centers = torch.nn.functional.normalize(sums)
    return centers.numpy()


def _nearest_center(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return (torch.from_numpy(rows.astype(np.float32)) @ torch.from_numpy(centers).T).argmax(1).numpy()


def _measured(lists: InvertedLists, dimension: int) -> ListsMeta:
    """With how many lists to look at for WANTED_RECALL, and the recall that this gives.

    Queries are photos of the index, each without itself; what is exact is found by comparing with all of them.
    """
    count = lists.meta.count
    k = min(MEASURED_K, count - 1)
    if k < 1:
        return replace(lists.meta, recall_at_1=1.0, recall_at_20=1.0)
    held_out = np.sort(np.random.default_rng([count, 2]).choice(count, min(HELD_OUT, count), replace=False))
    queries = lists.descriptors[held_out].astype(np.float32)
    found = np.stack([_nearest_rows(lists, query, k + 1) for query in queries])
    others = np.argsort(found == held_out[:, None], axis=1, kind="stable")[:, :k]  # the photo itself goes last
    neighbours = np.take_along_axis(found, others, 1)
    # A neighbour is found when its list is among those looked at: its rank among the centers says when.
    list_of = np.searchsorted(lists.starts, neighbours, side="right") - 1
    nearness = np.stack([lists.nearness(query) for query in queries])
    rank = (nearness[:, None, :] > np.take_along_axis(nearness, list_of, 1)[:, :, None]).sum(2)
    first = np.sort(rank[:, 0])
    enough = int(first[int(np.ceil(WANTED_RECALL * len(first))) - 1]) + 1
    num_probed = min(lists.meta.num_lists, max(LEAST_PROBED, enough))
    return replace(
        lists.meta,
        num_probed=num_probed,
        recall_at_1=float((rank[:, 0] < num_probed).mean()),
        recall_at_20=float((rank < num_probed).mean()),
        num_measured=len(held_out),
    )


def _nearest_rows(lists: InvertedLists, query: np.ndarray, k: int) -> np.ndarray:
    rows, _ = lists._put_in_order(query, k, lists.possible(query, k, None))
    return rows


# --- files -----------------------------------------------------------------------------------------------------------


def open_lists(folder: Path, index: str) -> InvertedLists | None:
    """The newest search structure below `folder` that belongs to the index; None when there is none."""
    for number in reversed(_numbers(folder)):
        try:
            meta = ListsMeta(**json.loads((folder / str(number) / "meta.json").read_bytes()))
            if meta.format == FORMAT_VERSION and meta.index == index:
                return _opened(folder / str(number), meta)
        except (OSError, ValueError, TypeError):  # damaged, or just now replaced by a newer one
            continue
    return None


def _numbers(folder: Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.glob("[0-9]*") if entry.name.isdigit())


def _opened(folder: Path, meta: ListsMeta) -> InvertedLists:
    # Mapped as private copies: compiled code takes only memory that it might write, the files stay as they are.
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="c" if name in MAPPED else None, allow_pickle=False)
        for name in ("centers", "starts", "ids", "scales", *MAPPED)
    }
    shape = (meta.count, arrays["centers"].shape[1])
    if any(arrays[name].shape != shape for name in MAPPED) or len(arrays["ids"]) != meta.count:
        raise ValueError("the files do not fit together")
    return InvertedLists(meta, arrays)


def _put_in_place(folder: Path, beside: Path, meta: ListsMeta) -> InvertedLists:
    older = _numbers(folder)
    target = folder / str(older[-1] + 1 if older else 1)
    beside.rename(target)
    for number in older:  # whoever reads them has them mapped: they vanish when the last reader closes them
        shutil.rmtree(folder / str(number), ignore_errors=True)
    return _opened(target, meta)
