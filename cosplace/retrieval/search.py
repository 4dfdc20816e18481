"""The k nearest descriptors, exactly: blocked matrix products and top-k in torch, on CPU or GPU.

The product ranks rows by |x|^2 - 2 q.x, which rounding blurs.  So a few more candidates than k are kept, their
distances are computed again from differences in float64, and a bound on the rounding proves that no other row could
belong to the k nearest.  Queries for which it proves nothing (crowds of nearly equal rows) are searched again with
products in float64.  Legend: Q queries, R database rows, D dimension, K neighbours.  Pure.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cosplace.device import choose_device
from cosplace.errors import ConfigError, DatasetError
from cosplace.retrieval.shards import Descriptors, DescriptorShards

BLOCK_ROWS = 32_768
QUERY_ROWS = 1024  # with BLOCK_ROWS, scores of 128 MB
EXACT_BYTES = 64_000_000  # of differences at once, when candidates are measured again
EXTRA_CANDIDATES = 32
LARGEST_NORM = 1e36  # squared; products of larger descriptors may overflow float32
STRIP = 32  # columns whose minimum stands for them, see _smallest

Progress = Callable[[int, int], None]  # (done, total)


def nearest(
    queries: Descriptors,
    database: Descriptors | Sequence[np.ndarray],
    k: int,
    *,
    device: str | torch.device = "cpu",
    block_rows: int = BLOCK_ROWS,
    searchable: np.ndarray | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest database rows of each query on L2 distance: exact, deterministic, ties by lower row.

    queries: (Q, D), database: (R, D), float32 or float16, in memory, memory-mapped or in shards; read block by block,
    never copied as a whole.  searchable: (R,) bool, rows that may be found; None means all.
    Returns predictions (Q, K) int64, best first, and their squared distances (Q, K) float32.
    progress: called with (database rows done, R).

    Raises DatasetError for a database of fewer than k searchable rows, for shapes that do not fit and for values that
    are not finite; ConfigError for k or block_rows below 1.
    """
    device = choose_device(str(device))
    if not isinstance(database, np.ndarray | DescriptorShards):
        database = DescriptorShards(database)
    _check(queries, database, k, block_rows, searchable)
    num_kept = min(k + EXTRA_CANDIDATES, len(database))
    with _full_precision(device):
        candidates, certain_below = _candidates(
            queries, database, num_kept, device=device, block_rows=block_rows, searchable=searchable, progress=progress
        )
        predictions, distances = _measured(queries, database, candidates, k, searchable)
        unsure = np.flatnonzero(distances[:, -1] >= certain_below)
        if len(unsure):
            hard = queries[unsure]
            candidates, _ = _candidates(
                hard,
                database,
                num_kept,
                device=device if device.type == "cuda" else torch.device("cpu"),  # MPS has no float64
                block_rows=max(1, block_rows // 4),  # masks and running counts take their share
                searchable=searchable,
                dtype=torch.float64,
            )
            predictions[unsure], distances[unsure] = _measured(hard, database, candidates, k, searchable)
    return predictions, distances.astype(np.float32)


def _check(queries: Descriptors, database: Descriptors, k: int, block_rows: int, searchable: np.ndarray | None) -> None:
    for rows, whose in ((queries, "queries"), (database, "database")):
        if rows.ndim != 2 or 0 in rows.shape:
            raise DatasetError(f"Descriptors of the {whose} have the shape {rows.shape}: give (n, D), at least one.")
        if rows.dtype not in (np.float32, np.float16):
            raise DatasetError(f"Descriptors of the {whose} are {rows.dtype}: give float32 or float16.")
    if queries.shape[1] != database.shape[1]:
        raise DatasetError(
            f"Queries have {queries.shape[1]} dimensions but the database has {database.shape[1]}: extract both with "
            f"the same model."
        )
    if k < 1 or block_rows < 1:
        raise ConfigError(f"k is {k} and block_rows is {block_rows}: both must be at least 1.")
    if searchable is not None and searchable.shape != (len(database),):
        raise DatasetError(f"`searchable` has the shape {searchable.shape}: give one bool for each of {len(database)}.")
    num_searchable = len(database) if searchable is None else int(np.count_nonzero(searchable))
    if k > num_searchable:
        raise DatasetError(f"There are no {k} neighbours among {num_searchable} rows: search with a smaller k.")


@contextmanager
def _full_precision(device: torch.device) -> Generator[None]:
    """Keep TF32, bfloat16 and autocast of the caller out of the products: the rounding bound counts on float32."""
    places = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    newer = []
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller used torch's newer settings (from 2.9 on): the older one cannot be read then
        older = None
        newer = [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]
    torch.set_float32_matmul_precision("highest")  # sets both kinds
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for place, before in newer:
            place.fp32_precision = before


# --- candidates ------------------------------------------------------------------------------------------------------


def _candidates(
    queries: Descriptors,
    database: Descriptors,
    num_kept: int,
    *,
    device: torch.device,
    block_rows: int,
    searchable: np.ndarray | None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, num_kept) int64 that hold the nearest ones, and (Q,) float64 a bound: all others are as far or farther.

    In float64, rows whose scores differ by no more than rounding count as equal, and lower rows are kept.
    """
    parts = [queries[at : at + QUERY_ROWS] for at in range(0, len(queries), QUERY_ROWS)]
    blocks = [_on_device(part, device, dtype, whose="queries", first=at * QUERY_ROWS) for at, part in enumerate(parts)]
    kept = [(q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=device)) for q, _ in blocks]
    scores = torch.empty(min(QUERY_ROWS, len(queries)) * min(block_rows, len(database)), dtype=dtype, device=device)
    largest = 0.0  # squared norm in the database
    shape = min(block_rows, len(database)), database.shape[1]
    room = torch.empty(shape, dtype=dtype, device=device)  # fresh memory for each block would cost more
    for first in range(0, len(database), block_rows):
        block = database[first : first + block_rows]
        rows, norms = _on_device(block, device, dtype, whose="database", first=first, room=room)
        largest = max(largest, float(norms.max()))
        if searchable is not None:
            norms[torch.from_numpy(~searchable[first : first + block_rows]).to(device)] = torch.inf
        for number, (q, q_norms) in enumerate(blocks):
            out = scores[: len(q) * len(rows)].view(len(q), len(rows))
            torch.addmm(norms, q, rows.T, alpha=-2, out=out)
            slack = None if dtype == torch.float32 else _rounding(q_norms, largest, q.shape[1], dtype)[:, None]
            values, columns = _smallest(out, num_kept, slack)
            values, columns = torch.cat([kept[number][0], values], 1), torch.cat([kept[number][1], columns + first], 1)
            if values.shape[1] > num_kept:
                values, places = _smallest(values, num_kept, slack)
                columns = columns.gather(1, places)
            kept[number] = values, columns
        if progress is not None:
            progress(min(first + block_rows, len(database)), len(database))
    bounds = [
        values.amax(1).double() + q_norms.double() - _rounding(q_norms, largest, q.shape[1], dtype)
        for (values, _), (q, q_norms) in zip(kept, blocks, strict=True)
    ]
    everything = num_kept == len(database)
    bound = np.full(len(queries), np.inf) if everything else torch.cat(bounds).cpu().numpy()
    return torch.cat([columns for _, columns in kept]).cpu().numpy(), bound


def _on_device(
    rows: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    *,
    whose: str,
    first: int,
    room: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows (n, D) and their squared norms (n,) on the device, in `room` (n or more, D) where they must be copied.

    Raises DatasetError for values that are not finite.
    """
    if not rows.flags.writeable:  # torch shares only memory that it might write
        rows = rows.copy()
    given = torch.from_numpy(np.ascontiguousarray(rows))
    if room is None or (device, dtype) == (room.device, given.dtype):
        found = given.to(device, dtype)
    else:
        found = room[: len(rows)].copy_(given)
    norms = torch.linalg.vector_norm(found, dim=1).square_()  # far faster than a product of each row with itself
    fine = norms < LARGEST_NORM  # not so for NaN
    if not bool(fine.all()):
        bad = first + int((~fine).nonzero()[0])
        raise DatasetError(
            f"Descriptor {bad} of the {whose} has values that are not finite or too large to square: extract the "
            f"descriptors again."
        )
    return found, norms


def _rounding(q_norms: Tensor, largest: float, dimension: int, dtype: torch.dtype) -> Tensor:
    """Largest rounding error of a score, (q,) float64: of sums of D products (Higham 2002, section 3.1)."""
    unit = torch.finfo(dtype).eps / 2
    gamma = (dimension + 8) * unit
    return gamma * (largest + 2 * (q_norms.double() * largest).sqrt() + q_norms.double())


def _smallest(scores: Tensor, count: int, slack: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the `count` smallest values of each row and their columns, in no order.

    slack: (q, 1); values within it count as equal and the lower columns are taken, which come out ascending.
    """
    width = scores.shape[1]
    if width <= count:
        return scores, torch.arange(width, device=scores.device).expand(scores.shape)
    if slack is not None:
        last = scores.topk(count, largest=False).values.amax(1, keepdim=True)
        below = scores < last - slack
        equal = (scores <= last + slack) & ~below
        keep = below | (equal & (equal.cumsum(1) <= count - below.sum(1, keepdim=True)))
        columns = keep.nonzero()[:, 1].view(len(scores), count)
        return scores.gather(1, columns), columns
    whole = width // STRIP * STRIP
    if whole // STRIP <= 4 * count:
        return scores.topk(count, largest=False, sorted=False)
    # The smallest values lie in the strips with the smallest minima: top-k then sorts a small part of the row.
    strips = scores[:, :whole].unflatten(1, (-1, STRIP)).amin(2).topk(count, largest=False, sorted=False).indices
    columns = (strips[:, :, None] * STRIP + torch.arange(STRIP, device=scores.device)).flatten(1)
    tail = torch.arange(whole, width, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, tail], 1)
    values, places = scores.gather(1, columns).topk(count, largest=False, sorted=False)
    return values, columns.gather(1, places)


# --- exact distances -------------------------------------------------------------------------------------------------


def _measured(
    queries: Descriptors, database: Descriptors, candidates: np.ndarray, k: int, searchable: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest candidates of each query (Q, K) int64 and their squared distances (Q, K) float64."""
    candidates = np.sort(candidates, axis=1)  # so that a stable sort by distance leaves ties by row
    distances = np.empty(candidates.shape)
    step = max(1, EXACT_BYTES // (8 * candidates.shape[1] * queries.shape[1]))
    for at in range(0, len(candidates), step):
        some = candidates[at : at + step]
        rows = database[some.ravel()].reshape(*some.shape, -1)
        differences = rows.astype(np.float64) - queries[at : at + step][:, None].astype(np.float64)
        distances[at : at + step] = np.einsum("qkd,qkd->qk", differences, differences)
    if searchable is not None:
        distances[~searchable[candidates]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)
