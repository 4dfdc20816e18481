"""Codes in place of descriptors in a store: int8 or binary (see `compression`).

What codes need, the scale of int8 and the center of binary codes, must be the same for all shards, and must be known
before the first one.  So it comes from a sample of the photos, and is kept in meta.json.
Legend: n rows, D dimension, W values of a stored row.  Pure.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cosplace.errors import DatasetError
from cosplace.retrieval.compression import (
    BINARY,
    INT8,
    MAX_DIMENSION,
    METHODS,
    BinaryCodes,
    ByteCodes,
    Codes,
    binary_codes,
    byte_codes,
    centered_and_rotated,
)
from cosplace.retrieval.shards import StoreMeta

NUM_SAMPLED = 512  # photos that codes are fitted on, evenly spaced over the list


def is_code(dtype: str) -> bool:
    """Whether a stored type is that of codes."""
    return dtype in METHODS


def fit_codes(dtype: str, sample: np.ndarray) -> Mapping[str, Any] | None:
    """What codes of a stored type need, from descriptors (n, D) of a sample; None for float32 and float16."""
    if dtype == INT8:
        if sample.shape[1] > MAX_DIMENSION:
            raise DatasetError(f"int8 needs {MAX_DIMENSION:,} dimensions or less, got {sample.shape[1]:,}. Use binary.")
        return {"scale": float(np.abs(sample).max())}
    if dtype == BINARY:
        return {"center": sample.mean(axis=0, dtype=np.float64).astype(np.float32).tolist()}
    return None


def stored_rows(descriptors: np.ndarray, meta: StoreMeta) -> np.ndarray:
    """Rows (n, W) to store for descriptors (n, D) float32, or float16 for a store of these."""
    if meta.extraction.dtype == INT8:
        return byte_codes(descriptors, _scale(meta))
    if meta.extraction.dtype == BINARY:
        return binary_codes(centered_and_rotated(descriptors, _center(meta)))
    return descriptors.astype(meta.array_type, copy=False)


def codes_of(rows: np.ndarray, searchable: np.ndarray, meta: StoreMeta) -> Codes:
    """Stored codes (n, W), ready to be searched.  searchable: (n,) bool."""
    if meta.extraction.dtype == INT8:
        return ByteCodes(scale=_scale(meta), codes=rows, searchable=searchable)
    return BinaryCodes(center=_center(meta), codes=rows, searchable=searchable)


def _scale(meta: StoreMeta) -> float:
    assert meta.codes is not None
    return float(meta.codes["scale"])


def _center(meta: StoreMeta) -> np.ndarray:
    assert meta.codes is not None
    return np.array(meta.codes["center"], np.float32)
