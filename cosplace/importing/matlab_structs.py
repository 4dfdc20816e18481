"""dbStruct files of Pittsburgh and Tokyo 24/7: MATLAB files with the names and UTM positions of database and queries.

SciPy reads them; it never runs anything that a file contains.  A file is limited before it is decompressed.
Side effects: reads files.
"""

import struct
import zlib
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.importing.layout_parts import first_rows
from cosplace.importing.records import Problem

MAX_BYTES = 1 << 28  # of the file
MAX_CONTENT_BYTES = 1 << 30  # decompressed; the largest of these datasets has 50 MB
HEADER_BYTES, TAG_BYTES, BLOCK_BYTES = 128, 8, 1 << 20
COMPRESSED = 15  # type of an element
VARIABLE = "dbStruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStruct:
    """The content of a dbStruct."""

    database: list[str]  # R paths
    queries: list[str]  # Q paths
    database_utm: np.ndarray  # (R, 2) float64, east and north in meters
    query_utm: np.ndarray  # (Q, 2)
    problems: tuple[Problem, ...] = ()


def read_struct(path: Path) -> DatabaseStruct:
    """Read a dbStruct, each photo once.  Raises DatasetError that names the file and what is wrong."""
    from scipy.io import loadmat

    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_BYTES:
            raise DatasetError(f"{path} has {num_bytes:,} bytes; the limit is {MAX_BYTES:,}.")
        with path.open("rb") as file:
            _check_content(file, path)
            file.seek(0)
            content = loadmat(file, variable_names=[VARIABLE])
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing. Unpack it next to the photos.") from error
    except DatasetError:
        raise
    except NotImplementedError as error:
        raise DatasetError(f"{path} is a MATLAB 7.3 file. Save it again with -v7.") from error
    except Exception as error:  # SciPy raises many kinds of errors on damaged files
        raise DatasetError(one_line(f"{path} cannot be read as a MATLAB file ({error}). Unpack it again.")) from error
    value = content.get(VARIABLE)
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.names is None:
        raise DatasetError(f"{path} has no struct {VARIABLE}. Use the files of the dataset.")
    record = value.reshape(())[()]
    database, queries = (_texts(record, field, path) for field in ("dbImageFns", "qImageFns"))
    database_utm = _positions(record, "utmDb", len(database), path)
    query_utm = _positions(record, "utmQ", len(queries), path)
    is_first, problems = first_rows(path, database, (database_utm[:, 0], database_utm[:, 1]))
    is_first_query, query_problems = first_rows(path, queries, (query_utm[:, 0], query_utm[:, 1]))
    return DatabaseStruct(
        database=list(compress(database, is_first)),
        queries=list(compress(queries, is_first_query)),
        database_utm=database_utm[is_first],
        query_utm=query_utm[is_first_query],
        problems=problems + query_problems,
    )


def _check_content(file: BinaryIO, path: Path) -> None:
    """Raise DatasetError if the compressed elements of a MATLAB 5 file are too large."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise DatasetError(f"{path} is not a MATLAB 5 file. Save it again with -v7.")
    order = "<" if header[126:128] == b"IM" else ">"
    total = 0
    while len(tag := file.read(TAG_BYTES)) == TAG_BYTES:
        kind, num_bytes = struct.unpack(f"{order}II", tag)
        if kind != COMPRESSED:
            file.seek(num_bytes, 1)
            continue
        stream, left = zlib.decompressobj(), num_bytes
        while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
            left -= len(block)
            while block and not stream.eof:
                total += len(stream.decompress(block, BLOCK_BYTES))
                block = stream.unconsumed_tail
                if total > MAX_CONTENT_BYTES:
                    raise DatasetError(f"{path} has more than {MAX_CONTENT_BYTES:,} bytes of content.")


def _field(record: Any, field: str, path: Path) -> np.ndarray:
    if field not in record.dtype.names:
        raise DatasetError(f"{path}: its {VARIABLE} has no field {field}. Use the files of the dataset.")
    return np.asarray(record[field])


def _texts(record: Any, field: str, path: Path) -> list[str]:
    """The texts of a cell array."""
    cells = _field(record, field, path).ravel()
    values = [cell.ravel()[0] if isinstance(cell, np.ndarray) and cell.size else cell for cell in cells]
    texts = [str(value) if isinstance(value, str) else "" for value in values]
    for row, text in enumerate(texts):
        if not text.strip():
            raise DatasetError(
                f"{path}: row {row + 1:,} of {field} is empty or not a path. Use the file of the dataset."
            )
        if text.startswith("/") or "\\" in text or ".." in text.split("/") or not text.isprintable():
            raise DatasetError(one_line(f"{path}: '{text}' is not a path inside the dataset."))
    return texts


def _positions(record: Any, field: str, count: int, path: Path) -> np.ndarray:
    """East and north (count, 2) of a matrix (2, count)."""
    values = _field(record, field, path)
    if values.shape != (2, count) or values.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: {field} has the shape {values.shape}, not (2, {count}).")
    return values.T.astype(np.float64)
