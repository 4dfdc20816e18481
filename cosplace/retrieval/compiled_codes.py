"""Hamming distances of binary codes, compiled.

A distance is the number of bits that differ: XOR, then a count of ones, for 64 bits at a time.  LLVM translates the
count to one instruction where the processor has it.  Importing this module imports numba.
Legend: Q queries, R database rows, W words of 64 bits per code, n rows found.
"""

from typing import Any

import numpy as np

from cosplace.compiled import compiled_for, intrinsic, types


def _ones_of_word(typing_context: Any, word: Any) -> Any:
    """The number of ones among the bits of a word, by LLVM's ctpop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


count_ones: Any = intrinsic(_ones_of_word)


@compiled_for(
    "void(Array(uint64, 2, 'C', readonly=True), Array(uint64, 2, 'C', readonly=True), "
    "Array(boolean, 1, 'C', readonly=True), uint32[::1], int64[::1], int64[:, ::1], int64[:, ::1])"
)
def nearest_codes(  # noqa: PLR0917 - compiled functions take plain positional arguments
    queries: np.ndarray, database: np.ndarray, searchable: np.ndarray,
    distances: np.ndarray, counts: np.ndarray, rows_found: np.ndarray, distances_found: np.ndarray,
) -> None:  # fmt: skip
    """Find the n rows with the fewest different bits, ascending by row; of equal ones the lower rows.

    queries (Q, W), database (R, W), searchable (R,): at least n rows.  distances (R,) and counts (64 W + 1,) are memory
    to work in.  Writes rows_found and distances_found (Q, n).
    """
    num_found = rows_found.shape[1]
    for q in range(queries.shape[0]):
        counts[:] = 0
        for row in range(database.shape[0]):
            distance = np.uint64(0)
            for word in range(database.shape[1]):
                distance += count_ones(queries[q, word] ^ database[row, word])
            distances[row] = distance
            if searchable[row]:
                counts[np.int64(distance)] += 1
        # All rows below `limit` are found, and the first `num_equal` of those at it.
        limit, num_below = 0, 0
        while num_below + counts[limit] < num_found:
            num_below += counts[limit]
            limit += 1
        num_equal = num_found - num_below
        position = 0
        for row in range(database.shape[0]):
            distance = np.int64(distances[row])
            if distance > limit or not searchable[row]:
                continue
            if distance == limit:
                if num_equal == 0:
                    continue
                num_equal -= 1
            rows_found[q, position], distances_found[q, position] = row, distance
            position += 1
            if position == num_found:
                break
