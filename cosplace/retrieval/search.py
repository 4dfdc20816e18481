"""Exact k nearest descriptors: blocked matrix products and top-k in torch, on CPU or GPU.

Products rank the rows by the score |x|^2 - 2 q.x, which has a rounding error.  So some more candidates than k are kept,
and their distances are computed again from differences in float64.  A bound on the rounding error then proves that no
other row can be among the k nearest.  Where it proves nothing (many nearly equal rows), the query is searched again
with products in float64.  Legend: Q queries, R database rows, D dimension, K neighbors.  Pure.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cosplace.device import choose_device
from cosplace.errors import ConfigError, DatasetError
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.exact_distances import nearest_candidates
from cosplace.retrieval.shards import Descriptors, DescriptorShards

BLOCK_ROWS = 32_768
QUERY_ROWS = 1024  # with BLOCK_ROWS: 128 MB of scores
EXTRA_CANDIDATES = 32
LARGEST_NORM = 1e36  # squared; products of larger descriptors may overflow float32
STRIP = 32  # columns represented by their minimum, see _smallest


def nearest(
    queries: Descriptors,
    database: Descriptors | Sequence[np.ndarray],
    k: int,
    *,
    device: str | torch.device = "cpu",
    block_rows: int = BLOCK_ROWS,
    searchable: np.ndarray | None = None,
    progress: Progress = no_progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest database rows of each query by L2 distance: exact, deterministic, lower rows first on ties.

    queries: (Q, D), database: (R, D), float32 or float16, in memory, memory-mapped or in shards; read in blocks, never
    copied as a whole.  searchable: (R,) bool, rows that may be found; None means all.
    Returns predictions (Q, K) int64, best first, and their squared distances (Q, K) float32.
    progress: counts database rows.

    Raises DatasetError for fewer than k searchable rows, for shapes that do not match and for values that are not
    finite; ConfigError for k or block_rows below 1.
    """
    predictions, distances = nearest_in_float64(
        queries, database, k, device=device, block_rows=block_rows, searchable=searchable, progress=progress
    )
    return predictions, distances.astype(np.float32)


def nearest_in_float64(
    queries: Descriptors,
    database: Descriptors | Sequence[np.ndarray],
    k: int,
    *,
    device: str | torch.device = "cpu",
    block_rows: int = BLOCK_ROWS,
    searchable: np.ndarray | None = None,
    progress: Progress = no_progress,
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `nearest`, with squared distances (Q, K) float64, by which results of parts can be merged."""
    device = choose_device(str(device))
    if not isinstance(database, np.ndarray | DescriptorShards):
        database = DescriptorShards(database)
    _check_arguments(queries, database, k, block_rows, searchable)
    num_kept = min(k + EXTRA_CANDIDATES, len(database))
    with _full_precision(device):
        candidates, bounds = _find_candidates(
            queries, database, num_kept, device=device, block_rows=block_rows, searchable=searchable, progress=progress
        )
        predictions, distances = nearest_candidates(queries, database, candidates, k, searchable)
        unproven = np.flatnonzero(distances[:, -1] >= bounds)
        if len(unproven):
            repeated = queries[unproven]
            candidates, _ = _find_candidates(
                repeated,
                database,
                num_kept,
                device=device if device.type == "cuda" else torch.device("cpu"),  # MPS has no float64
                block_rows=max(1, block_rows // 4),  # masks and running counts need memory too
                searchable=searchable,
                dtype=torch.float64,
            )
            predictions[unproven], distances[unproven] = nearest_candidates(
                repeated, database, candidates, k, searchable
            )
    return predictions, distances


def _check_arguments(
    queries: Descriptors, database: Descriptors, k: int, block_rows: int, searchable: np.ndarray | None
) -> None:
    for rows, split in ((queries, "queries"), (database, "database")):
        if rows.ndim != 2 or 0 in rows.shape:
            raise DatasetError(f"Descriptors of the {split} must have shape (n, D) with n >= 1, got {rows.shape}.")
        if rows.dtype not in (np.float32, np.float16):
            raise DatasetError(f"Descriptors of the {split} must be float32 or float16, got {rows.dtype}.")
    if queries.shape[1] != database.shape[1]:
        raise DatasetError(
            f"The queries have {queries.shape[1]} dimensions but the database has {database.shape[1]}. Extract both "
            f"with the same model."
        )
    if k < 1 or block_rows < 1:
        raise ConfigError(f"k and block_rows must be at least 1, got {k} and {block_rows}.")
    if searchable is not None and searchable.shape != (len(database),):
        raise DatasetError(f"`searchable` must have shape ({len(database)},), got {searchable.shape}.")
    num_searchable = len(database) if searchable is None else int(np.count_nonzero(searchable))
    if k > num_searchable:
        raise DatasetError(f"Cannot find {k} neighbors among {num_searchable} rows. Search with a smaller k.")


@contextmanager
def _full_precision(device: torch.device) -> Generator[None]:
    """Switch off TF32, bfloat16 and autocast for the products: the bound on the rounding error assumes float32."""
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    newer = []
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller used the newer settings (torch >= 2.9): then the older one cannot be read
        older = None
        newer = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    torch.set_float32_matmul_precision("highest")  # sets both kinds
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, precision in newer:
            backend.fp32_precision = precision


# --- candidates ------------------------------------------------------------------------------------------------------


def _find_candidates(
    queries: Descriptors,
    database: Descriptors,
    num_kept: int,
    *,
    device: torch.device,
    block_rows: int,
    searchable: np.ndarray | None,
    dtype: torch.dtype = torch.float32,
    progress: Progress = no_progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return candidate rows (Q, num_kept) int64, and a lower bound (Q,) float64 on the distances of all other rows.

    In float64, rows whose scores differ by no more than the rounding error count as equal, and lower rows are kept.
    """
    blocks = [
        _to_device(queries[first : first + QUERY_ROWS], device, dtype, split="queries", first=first)
        for first in range(0, len(queries), QUERY_ROWS)
    ]
    kept = [(q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=device)) for q, _ in blocks]
    scores = torch.empty(min(QUERY_ROWS, len(queries)) * min(block_rows, len(database)), dtype=dtype, device=device)
    largest_norm = 0.0  # squared, of the database rows so far
    shape = min(block_rows, len(database)), database.shape[1]
    buffer = torch.empty(shape, dtype=dtype, device=device)  # new memory for each block would take more time
    for first in range(0, len(database), block_rows):
        block = database[first : first + block_rows]
        rows, norms = _to_device(block, device, dtype, split="database", first=first, buffer=buffer)
        largest_norm = max(largest_norm, float(norms.max()))
        if searchable is not None:
            norms[torch.from_numpy(~searchable[first : first + block_rows]).to(device)] = torch.inf
        for number, (q, q_norms) in enumerate(blocks):
            out = scores[: len(q) * len(rows)].view(len(q), len(rows))
            torch.addmm(norms, q, rows.T, alpha=-2, out=out)
            rounding_error = _rounding_error(q_norms, largest_norm, q.shape[1], dtype)
            slack = rounding_error[:, None] if dtype == torch.float64 else None
            values, columns = _smallest(out, num_kept, slack)
            values, columns = torch.cat([kept[number][0], values], 1), torch.cat([kept[number][1], columns + first], 1)
            if values.shape[1] > num_kept:
                values, positions = _smallest(values, num_kept, slack)
                columns = columns.gather(1, positions)
            kept[number] = values, columns
        progress("searching", min(first + block_rows, len(database)), len(database))
    bounds = [
        values.amax(1).double() + q_norms.double() - _rounding_error(q_norms, largest_norm, q.shape[1], dtype)
        for (values, _), (q, q_norms) in zip(kept, blocks, strict=True)
    ]
    no_other_rows = num_kept == len(database)
    bound = np.full(len(queries), np.inf) if no_other_rows else torch.cat(bounds).cpu().numpy()
    return torch.cat([columns for _, columns in kept]).cpu().numpy(), bound


def _to_device(
    rows: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    *,
    split: str,
    first: int,
    buffer: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Move rows (n, D) to the device and compute their squared norms (n,).

    buffer: (n or more, D), used when the rows must be copied.  Raises DatasetError for values that are not finite.
    """
    if not rows.flags.writeable:  # torch only shares memory that is writable
        rows = rows.copy()
    source = torch.from_numpy(np.ascontiguousarray(rows))
    if buffer is None or (device, dtype) == (buffer.device, source.dtype):
        moved = source.to(device, dtype)
    else:
        moved = buffer[: len(rows)].copy_(source)
    norms = torch.linalg.vector_norm(moved, dim=1).square_()  # much faster than a product of each row with itself
    valid = norms < LARGEST_NORM  # false for NaN
    if not bool(valid.all()):
        bad = first + int((~valid).nonzero()[0])
        raise DatasetError(
            f"Descriptor {bad} of the {split} has values that are not finite or are too large to square. Extract the "
            f"descriptors again."
        )
    return moved, norms


def _rounding_error(q_norms: Tensor, largest_norm: float, dimension: int, dtype: torch.dtype) -> Tensor:
    """Bound the rounding error of a score, (q,) float64: that of sums of D products (Higham 2002, section 3.1)."""
    unit = torch.finfo(dtype).eps / 2
    gamma = (dimension + 8) * unit
    return gamma * (largest_norm + 2 * (q_norms.double() * largest_norm).sqrt() + q_norms.double())


def _smallest(scores: Tensor, count: int, slack: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the `count` smallest values of each row and their columns, in any order.

    slack: (q, 1); values that differ by less count as equal: then the lower columns are taken, in ascending order.
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
    # The smallest values are in the strips with the smallest minima, so top-k sorts only a small part of the row.
    strips = scores[:, :whole].unflatten(1, (-1, STRIP)).amin(2).topk(count, largest=False, sorted=False).indices
    columns = (strips[:, :, None] * STRIP + torch.arange(STRIP, device=scores.device)).flatten(1)
    tail = torch.arange(whole, width, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, tail], 1)
    values, positions = scores.gather(1, columns).topk(count, largest=False, sorted=False)
    return values, columns.gather(1, positions)
