"""Files of a run: names, the table of its queries, and reading results that may be damaged.

queries.parquet   one row per query: photo, position, first predictions, rank of the first correct one

Two runs can be compared query by query only if both have this table, with the same queries, database and radius.
Legend: Q queries, R database images, K predictions per query.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cosplace.assessment.intervals import clusters_of
from cosplace.assessment.records import SCHEMA_VERSION
from cosplace.errors import ConfigError, DatasetError, one_line
from cosplace.photos.image_list import BLOCK_BYTES, evenly_spaced, image_list
from cosplace.photos.parquet_files import open_parquet
from cosplace.photos.paths import path_from_text, path_text
from cosplace.photos.table_lists import find_part
from cosplace.shapes import fits, is_text
from cosplace.storage import write_atomically

if TYPE_CHECKING:  # these import torch, which reading a run does not need
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation

RESULTS, CONFIG, REPORT, QUERIES = "results.json", "config.json", "report.html", "queries.parquet"
UNMEASURED = ("answers.json", "neighbors.json")  # of a run whose queries have no labels
FORMAT = 1  # of queries.parquet
STORED = 20  # predictions per query whose paths and distances are stored
METADATA = b"cosplace"
CONDITION = "condition: "  # in front of the name of a column
AGAIN = "Evaluate the model again."
RUN_EXAMPLE = "Use the folder of a run, such as logs/default/<time>."
MAX_JSON_BYTES = 1 << 26
MAX_DIGITS = 10  # of the N of a recall
MAX_ABOVE = 2  # levels from a dataset down to its test set
NUM_LOOKED_FOR = 20  # queries, of which one must be there


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryList:
    """What must be the same in two runs whose queries are compared."""

    names: Sequence[str]  # (Q,) paths below the folder of the queries
    positions: np.ndarray  # (Q, 2) or (Q, 3) float64, meters
    num_database: int
    database_sha256: str  # of the names and positions of the database
    radius_m: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResults:
    """What one run found for each query."""

    queries: QueryList
    dataset: str  # its name
    folder: Path  # of the dataset
    database_folder: Path
    queries_folder: Path
    predictions: Sequence[Sequence[str]]  # (Q, up to STORED) database paths, best first; none for an unreadable query
    distances_m: Sequence[Sequence[float]]  # from the query to each of them
    descriptor_distances: Sequence[Sequence[float]]  # L2
    first_correct: np.ndarray  # (Q,) int64, rank of the first correct prediction from 1; 0 if none of K is correct
    num_predictions: int  # K, of which the ranks are known
    has_positive: np.ndarray  # (Q,) bool
    expected: Sequence[str]  # (Q,) the database image that should be found; "" for a query without positives
    clusters: np.ndarray  # (Q,) int64, queries that are drawn together
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> (Q,) values; "" if unknown
    are_meters: bool = True  # distances; else differences of numbers, such as those of frames

    def is_correct(self, n: int) -> np.ndarray:
        """Whether each query has a correct prediction among its first n, (Q,) bool; n is at most K."""
        assert n <= self.num_predictions
        return (self.first_correct >= 1) & (self.first_correct <= n)


# --- writing ---------------------------------------------------------------------------------------------------------


def query_list(dataset: "RetrievalDataset", radius_m: float) -> QueryList:
    """What an evaluation of a dataset must share with another one to be compared."""
    digest = hashlib.sha256()
    images, size = dataset.database, BLOCK_BYTES
    for first in range(0, len(images), size):
        last = min(first + size, len(images))
        digest.update(images.text(int(images.starts[first]), int(images.starts[last])).tobytes())
    digest.update(np.round(dataset.database_positions * 100).astype("<i8").tobytes())  # centimeters
    return QueryList(
        names=[dataset.queries.name(row) for row in range(len(dataset.queries))],
        positions=dataset.query_positions,
        num_database=len(dataset.database),
        database_sha256=digest.hexdigest(),
        radius_m=radius_m,
    )


def write_query_results(
    path: Path,
    evaluation: "Evaluation",
    dataset: "RetrievalDataset",
    *,
    clusters: np.ndarray | None = None,
    expected: np.ndarray | None = None,
    conditions: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Write one row per query, atomically.

    clusters: (Q,) queries that are drawn together; None for those of one place.  expected: (Q,) database images that
    should be found, -1 without a positive; None if unknown.  conditions: name -> (Q,) values, "" if unknown.
    Raises StorageError if the disk is full or not writable.
    """
    shared = query_list(dataset, evaluation.positive_dist_threshold)
    hits, stored = evaluation.hits, evaluation.predictions[:, :STORED]
    num_queries, num_predictions = hits.shape
    first_correct = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    is_stored = stored >= 0
    offsets = pa.array(np.append(0, np.cumsum(is_stored.sum(axis=1))), pa.int32())
    images, rows = np.unique(stored[is_stored], return_inverse=True)
    paths = [path_text(dataset.database.name(int(image))) for image in images]
    expected = np.full(num_queries, -1) if expected is None else expected
    metadata = {
        "format": FORMAT,
        "dataset": dataset.name,
        "folder": path_text(dataset.folder.resolve()),
        "database_folder": path_text(dataset.database.folder.resolve()),
        "queries_folder": path_text(dataset.queries.folder.resolve()),
        "num_database": shared.num_database,
        "database_sha256": shared.database_sha256,
        "radius_m": shared.radius_m,
        "num_predictions": num_predictions,
        "are_meters": not dataset.note,
    }

    def lists(values: np.ndarray, decimals: int) -> pa.Array:
        # Rounded so that they compress; no reader needs more digits.
        return pa.ListArray.from_arrays(offsets, pa.array(np.round(values[is_stored], decimals).astype(np.float32)))

    names = pa.DictionaryArray.from_arrays(pa.array(rows.reshape(-1), pa.int32()), pa.array(paths, pa.string()))
    table = pa.table(
        {
            "query": pa.array([path_text(name) for name in shared.names], pa.string()),
            "position": pa.array(list(shared.positions), pa.list_(pa.float64())),
            "predictions": pa.ListArray.from_arrays(offsets, names),
            "distances_m": lists(evaluation.distances_m[:, :STORED], 1),
            "descriptor_distances": lists(np.sqrt(np.maximum(evaluation.squared_distances[:, :STORED], 0)), 4),
            "first_correct": pa.array(first_correct, pa.int32()),
            "has_positive": pa.array(evaluation.positives.counts > 0),
            "expected": pa.array(
                ["" if image < 0 else path_text(dataset.database.name(int(image))) for image in expected], pa.string()
            ),
            "cluster": pa.array(clusters_of(dataset.query_positions) if clusters is None else clusters, pa.int32()),
            **{CONDITION + name: pa.array(list(values), pa.string()) for name, values in conditions.items()},
        }
    ).replace_schema_metadata({METADATA: json.dumps(metadata).encode()})
    write_atomically(path, lambda file: parquet.write_table(table, file, compression="zstd", compression_level=12))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> dict[str, Any]:
    """The content of results.json.  Raises ConfigError if the folder is not a finished run, or the file is damaged."""
    path = folder / RESULTS
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. {RUN_EXAMPLE}")
    if not path.is_file():
        _check_measured(folder)
        raise ConfigError(f"{folder} has no {RESULTS}: it is not the folder of a finished run.")
    results = read_json(path)
    check_version(results, path)
    recalls = results.get("recalls")
    if not isinstance(recalls, dict) or not all(len(n) < MAX_DIGITS and _is_percentage(recalls[n]) for n in recalls):
        raise ConfigError(f"{path} has no recalls. Evaluate the model again.")
    return results


def _check_measured(folder: Path) -> None:
    """Raise ConfigError for a run whose queries have no labels."""
    if any((folder / name).is_file() for name in UNMEASURED):
        raise ConfigError(
            f"The queries of {folder} have no labels, so nothing was measured: there is nothing to audit or compare. "
            f"Use a run with recalls."
        )


def check_version(results: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a results.json of a later version, whose keys may mean something else.

    The first runs have no version.
    """
    version = results.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has the schema_version {one_line(str(version))[:20]}, but this cosplace reads only "
            f"{SCHEMA_VERSION}. Update cosplace, or evaluate the model again."
        )


def _is_percentage(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 100


def read_json(path: Path, advice: str = AGAIN) -> dict[str, Any]:
    """An object from a JSON file.  Raises ConfigError for a file that is too large or damaged.

    advice: what to do about a damaged file.
    """
    if path.exists() and not path.is_file():  # a pipe may never end
        raise ConfigError(f"{path} is not a file. {advice}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MB: it is not a file of a run.")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: it is not JSON ({str(error).splitlines()[0]}). {advice}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it is not a JSON object. {advice}")
    return content


def model_name(results: Mapping[str, Any], folder: Path) -> str:
    """Short name of the model of a run: a name from the zoo, or the file name of its weights."""
    model = results.get("model")
    model = model if isinstance(model, Mapping) else {}
    name, backbone = model.get("name"), model.get("backbone")
    if not isinstance(name, str):
        return f"untrained {backbone}" if isinstance(backbone, str) else folder.name
    if name.startswith("hub:"):
        return name
    path = Path(name)
    # All best models have the same file name; what tells them apart is the folder of their run.
    return "/".join(path.parts[-3:-1]) if path.name == "best_model.pth" and len(path.parts) > 1 else path.name


def variant_text(results: Mapping[str, Any]) -> str:
    """What a run changed, as in `reduced to 64, binary codes alone, five_crops, 256 pixels`; "" for a usual one.

    Runs of one model are told apart by it.
    """
    parts = []
    model = results.get("model")
    if isinstance(model, Mapping) and isinstance(dimension := model.get("reduced_to"), int):
        parts.append(f"reduced to {dimension}")
    compression = results.get("compression")
    if isinstance(compression, Mapping) and isinstance(method := compression.get("method"), str):
        parts.append(f"{method} codes{' alone' if compression.get('shortlist') == 0 else ''}")
    policy, size, image_size = (results.get(name) for name in ("query_policy", "query_size", "image_size"))
    is_usual = policy == ("short_side" if image_size else "native") and size == image_size
    if isinstance(policy, str) and not is_usual:
        parts.append(f"{policy} {size}" if isinstance(size, int) and size != image_size else policy)
    scales = results.get("scales")
    if isinstance(scales, list) and scales != [1.0]:
        parts.append(f"scales {' '.join(map(str, scales))}")
    if results.get("flip") is True:
        parts.append("flip")
    if isinstance(dtype := results.get("descriptors_dtype"), str):
        parts.append(f"descriptors of {dtype}")
    if isinstance(image_size, int):
        parts.append(f"{image_size} pixels")
    return one_line(", ".join(parts))


def read_query_results(folder: Path) -> QueryResults:
    """The table of the queries of a run.  Raises ConfigError if the run has none, or it is damaged."""
    path = folder / QUERIES
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. {RUN_EXAMPLE}")
    if not path.is_file():
        _check_measured(folder)
        raise ConfigError(f"{folder} has no {QUERIES}, the answers to its queries. {AGAIN}")
    try:
        return _query_results(path)
    except (
        pa.ArrowException,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        RecursionError,
        OverflowError,
        DatasetError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is damaged: {reason.rstrip('.')}. Evaluate the model again.") from error


def _query_results(path: Path) -> QueryResults:
    with open_parquet(path) as file:
        about = json.loads((file.schema_arrow.metadata or {})[METADATA])
        if about["format"] != FORMAT:
            raise ValueError(f"it has the format {about['format']}, this version reads {FORMAT}")
        table = file.read()

    if not fits(about, dict.fromkeys(("folder", "database_folder", "queries_folder"), is_text)):
        raise ValueError("it names folders that cannot exist")

    def texts(name: str) -> list[str]:
        return [str(path_from_text(text)) if text else "" for text in _values(table, name, str)]

    def numbers(name: str) -> np.ndarray:
        return np.array(_values(table, name, int), np.int64)

    num_database, num_predictions = int(about["num_database"]), int(about["num_predictions"])
    first_correct, clusters = numbers("first_correct"), numbers("cluster")
    if not ((first_correct >= 0) & (first_correct <= num_predictions)).all() or (clusters < 0).any():
        raise ValueError("it has ranks or clusters outside their limits")
    if len(clusters) and int(clusters.max()) >= len(clusters):
        raise ValueError("it has more clusters than queries")
    positions = np.array(table["position"].to_pylist(), np.float64).reshape(len(table), -1)
    conditions = [name for name in table.column_names if name.startswith(CONDITION)]
    predictions = [[str(path_from_text(text)) for text in row] for row in _values(table, "predictions", list)]
    lengths = list(map(len, predictions))
    return QueryResults(
        queries=QueryList(
            names=texts("query"),
            positions=positions,
            num_database=num_database,
            database_sha256=str(about["database_sha256"]),
            radius_m=float(about["radius_m"]),
        ),
        dataset=str(about["dataset"]),
        folder=path_from_text(about["folder"]),
        database_folder=path_from_text(about["database_folder"]),
        queries_folder=path_from_text(about["queries_folder"]),
        predictions=predictions,
        distances_m=_distances(table, "distances_m", lengths),
        descriptor_distances=_distances(table, "descriptor_distances", lengths),
        first_correct=first_correct,
        num_predictions=num_predictions,
        has_positive=np.array(_values(table, "has_positive", bool), bool),
        expected=texts("expected"),
        clusters=clusters,
        conditions={name.removeprefix(CONDITION): _values(table, name, str) for name in conditions},
        are_meters=about.get("are_meters", True) is not False,
    )


def _values(table: pa.Table, name: str, kind: type) -> list[Any]:
    values = table[name].to_pylist()
    if not all(isinstance(value, kind) for value in values):
        raise ValueError(f"the column {name} has other values than expected")
    return values


def _distances(table: pa.Table, name: str, lengths: Sequence[int]) -> list[list[float]]:
    """A list of distances for each query.  Raises ValueError for other lengths, and for numbers that are none."""
    rows = _values(table, name, list)
    if list(map(len, rows)) != list(lengths) or not all(
        isinstance(value, float) and value >= 0 for row in rows for value in row
    ):
        raise ValueError(f"the column {name} has other values than expected")
    return rows


# --- photos ----------------------------------------------------------------------------------------------------------


def folder_now(run: QueryResults, part: Path, moved_to: Path | None) -> Path:
    """The folder of the database or of the queries of a run, where it is now.

    part: `database_folder` or `queries_folder` of the run.  moved_to: the dataset or its test set, if it has moved.
    """
    if moved_to is None:
        return part
    if part.is_relative_to(run.folder) and part != run.folder:
        # As in `eval`, moved_to may be a folder above the test set: DATASET instead of DATASET/images/test.
        parts, below = run.folder.parts, part.relative_to(run.folder)
        places = [moved_to.joinpath(*parts[len(parts) - depth :], below) for depth in range(MAX_ABOVE + 1)]
        return next(filter(Path.is_dir, places), places[0])
    if run.folder.is_relative_to(part) and part != run.folder and (table := find_part(moved_to)) is not None:
        return table.folder  # the folder of the run was a part of a table
    by_name = moved_to / part.name  # where database and queries were any two folders
    if by_name.is_dir():
        return by_name
    return moved_to if part == run.folder else part


def check_dataset(run: QueryResults, run_folder: Path, moved_to: Path | None) -> None:
    """Raise ConfigError if the photos of a run are not where they are looked for: none of some queries is there.

    run_folder: for the message.  moved_to: the dataset, if it has moved.
    """
    folder = folder_now(run, run.queries_folder, moved_to)
    queries = image_list(folder, run.queries.names)
    if not any(queries.path(row).is_file() for row in evenly_spaced(queries, NUM_LOOKED_FOR)):
        dataset = moved_to or (run.folder if folder.is_relative_to(run.folder) else folder)
        raise ConfigError(
            f"The dataset of {run_folder} is not at {dataset}. Use --dataset FOLDER, the folder that it has moved to."
        )


def is_running(folder: Path, lock: str) -> bool:
    """Whether another process holds the lock of a run; False where the system cannot tell."""
    with suppress(ImportError, FileNotFoundError, PermissionError):
        import fcntl

        descriptor = os.open(folder / lock, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
        finally:
            os.close(descriptor)
    return False
