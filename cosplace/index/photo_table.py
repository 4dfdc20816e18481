"""The table of photos: its columns, and their checksums.  Pure functions.  Legend: n photos, D dimension."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cosplace.index.checksums import (
    CHECKS,
    NUMBER_COLUMNS,
    descriptor_checks,
    numbers_checks,
    path_checks,
    rest_checks,
)
from cosplace.index.file_checksums import damaged

NARROW = ("id", *NUMBER_COLUMNS, "numbers_check", "path", "path_check")
ADDED_COLUMNS = {  # since format 1, with their values for the photos of such an index
    "accuracy_m": "cast('nan' as float)",
    "root": "cast(-1 as int)",
    **dict.fromkeys(CHECKS, "cast(0 as int unsigned)"),
}
WITH_DESCRIPTOR = ("id", "descriptor", "descriptor_check")
NO_ROOT = -1  # the stored path is the whole path
LENGTH_TOLERANCE = 0.05  # of the square of the length of a descriptor
BLOCK_ROWS = 512
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_800  # of a time: in the years 1 to 9999


def photo_schema(dimension: int, stored_dtype: str) -> Any:
    """The columns of a photo."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.int64()),
            ("latitude", pa.float64()),
            ("longitude", pa.float64()),
            ("heading", pa.float32()),
            ("time", pa.float64()),
            ("path", pa.string()),
            ("source", pa.string()),
            ("key", pa.string()),
            ("num_bytes", pa.int64()),
            ("modified_ns", pa.int64()),
            ("accuracy_m", pa.float32()),
            ("root", pa.int32()),
            *((name, pa.uint32()) for name in CHECKS),
            ("thumbnail", pa.binary()),
            ("descriptor", pa.list_(pa.float16() if stored_dtype == "float16" else pa.float32(), dimension)),
        ]
    )


def check_columns(address: str, schema: Any) -> None:
    """Raise DamagedIndexError for a table without a column of the first format, or with descriptors of another type."""
    import pyarrow as pa

    names = [name for name in photo_schema(1, "float32").names if name not in ADDED_COLUMNS]
    if missing := [name for name in names if name not in schema.names]:
        raise damaged(address, f"its photos have no column {missing[0]}")
    kind = schema.field("descriptor").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float16(), pa.float32()):
        raise damaged(address, f"its descriptors have the type {kind}")
    for field in photo_schema(kind.list_size, "float32"):
        found = schema.field(field.name).type if field.name in schema.names else field.type
        if field.name != "descriptor" and found != field.type:
            raise damaged(address, f"its column {field.name} has the type {found}")


def wrong_numbers(columns: Mapping[str, np.ndarray]) -> tuple[int, str] | None:
    """The first row whose numbers no photo has, and what is wrong; None if all are possible.

    columns: the NUMBER_COLUMNS (n,); nan where unknown.
    """
    latitudes, longitudes, accuracies_m = (columns[name] for name in ("latitude", "longitude", "accuracy_m"))
    wrong = {
        "latitude": (np.abs(latitudes) > 90) | (np.isnan(latitudes) & ~np.isnan(longitudes)),
        "longitude": (np.abs(longitudes) > 180) | (np.isnan(longitudes) & ~np.isnan(latitudes)),
        "heading": np.isinf(columns["heading"]),
        "time": (columns["time"] > MAX_SECONDS) | (columns["time"] < MIN_SECONDS),
        "accuracy_m": np.isinf(accuracies_m) | (accuracies_m < 0),
    }
    for name, is_wrong in wrong.items():
        if is_wrong.any():
            row = int(is_wrong.argmax())
            return row, f"the {name} {columns[name][row]:g}"
    return None


def are_descriptors(rows: np.ndarray) -> bool:
    """Whether rows (n, D) have length 1; not for nan."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS].astype(np.float32, copy=False)
        if not (np.abs(np.einsum("id,id->i", block, block) - 1) < LENGTH_TOLERANCE).all():
            return False
    return True


def check_values(address: str, table: Any) -> None:
    """Raise DamagedIndexError for a table, or batch, with a missing value: a writer stores all of them."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.null_count:
            raise damaged(address, f"a photo has no {name}")


def with_checks(rows: dict[str, Any]) -> dict[str, Any]:
    """Columns of photos, with their checksums.  rows: id (n,), path, descriptor (n, D) as stored, and the others."""
    ids = np.asarray(rows["id"], np.int64)
    return rows | {
        "numbers_check": numbers_checks(ids, {name: np.asarray(rows[name]) for name in NUMBER_COLUMNS}),
        "path_check": path_checks(ids, rows["path"]),
        "descriptor_check": descriptor_checks(ids, rows["descriptor"]),
        "rest_check": rest_checks(ids, rows),
    }


def photo_rows(schema: Any, rows: dict[str, Any]) -> Any:
    """Rows of the table, with their checksums.  rows: its columns (n,) without them; descriptor (n, D) as stored."""
    import pyarrow as pa

    dtype = schema.field("descriptor").type
    flat = pa.array(np.ascontiguousarray(rows["descriptor"]).reshape(-1), type=dtype.value_type)
    arrays = {**with_checks(rows), "descriptor": pa.FixedSizeListArray.from_arrays(flat, type=dtype)}
    return pa.table([pa.array(arrays[name], type=schema.field(name).type) for name in schema.names], schema=schema)


def matrix(descriptors: Any) -> np.ndarray:
    """A column of descriptors as (n, D)."""
    width = descriptors.type.list_size
    return descriptors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
