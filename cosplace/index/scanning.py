"""Products of one query with many stored rows, by compiled code: one byte a number, one thread, no lock.

A row is kept as whole numbers from -127 to 127 and a scale; a query as whole numbers of 12 bits.  Sums of their
products are exact, so only the rounding of rows (1/254 of their largest number) blurs a similarity, by about 0.0005.
Importing this module imports numba.
"""

import numpy as np

from cosplace.compiled import compiled_for

QUERY_LEVELS = 2047  # times 127, times 4096 dimensions: below 2**31


@compiled_for("void(int8[:, ::1], float32[::1], int64[::1], int64[::1], int16[::1], float32, float32[::1])")
def _scan(codes, scales, firsts, lasts, query, query_scale, out):  # noqa: ANN001, ANN202, PLR0917 - compiled, see above
    at = 0
    for part in range(len(firsts)):
        for row in range(firsts[part], lasts[part]):
            total = np.int32(0)
            for d in range(codes.shape[1]):
                total = np.int32(total + np.int32(codes[row, d]) * np.int32(query[d]))
            out[at] = np.float32(total) * scales[row] * query_scale
            at += 1


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) as codes (n, D) int8 and scales (n,) float32: row = codes * scale, about."""
    rows = rows.astype(np.float32)
    scales = np.abs(rows).max(axis=1) / 127
    return np.rint(rows / np.maximum(scales, 1e-30)[:, None]).astype(np.int8), scales


def products(
    query: np.ndarray, codes: np.ndarray, scales: np.ndarray, firsts: np.ndarray, lasts: np.ndarray
) -> np.ndarray:
    """Products of a query (D,) float32 with the rows of some stretches, first … last - 1 each, one after another."""
    scale = max(float(np.abs(query).max()), 1e-30) / QUERY_LEVELS
    out = np.empty(int((lasts - firsts).sum()), np.float32)
    _scan(codes, scales, firsts, lasts, np.rint(query / scale).astype(np.int16), np.float32(scale), out)
    return out


def query_error(query: np.ndarray) -> float:
    """By how much rounding a query (D,) may change its product with a unit vector."""
    return float(np.abs(query).max()) / QUERY_LEVELS / 2 * len(query) ** 0.5 + 1e-5  # and sums in float32
