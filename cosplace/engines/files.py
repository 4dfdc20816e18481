"""Exported files of engines and what was measured of them, in the cache folder; without torch.

    <cache>/engines/<key>/model.onnx     the exported network
                          model.json     what it was made from and with, its SHA-256
                    records/<key>.json   a comparison with PyTorch, or the engine that `auto` chose

A key is the SHA-256 of everything that the content depends on, which the JSON repeats.  A file or record that is
damaged, or that was made with other versions, is one that does not exist.  Side effects: reads and writes these files.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosplace.engines.kinds import MAKERS, EngineKind, versions
from cosplace.errors import CheckpointError
from cosplace.storage import cache_folder, write_atomically, write_text

FORMAT_VERSION = 2  # of the exported files and the records
MODEL, ABOUT = "model.onnx", "model.json"
MAX_JSON_BYTES = 1_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """An exported file whose content is as it was written."""

    path: Path
    sha256: str
    dimension: int  # D
    values: str  # what it takes, see `config.export.INPUT_VALUES`


def file_key(
    checksum: str, kind: EngineKind, scales: Sequence[float] = (1.0,), calibration: str = ""
) -> dict[str, Any]:
    """What the exported file of a model depends on.

    checksum: of the model, see `models.weight_files.model_checksum`.  scales: of copies of photos; copies with other
    scales than 1 have pixels that are not whole numbers.  calibration: of calibrated engines,
    identifies the photos and their size.
    """
    return {
        "format": FORMAT_VERSION,
        "model": checksum,
        "numbers": kind.numbers if kind.is_int8 else "fp32",  # 16 bits are a choice of the program, not of the file
        "values": "uint8" if tuple(scales) == (1.0,) else "unit",
        "calibration": calibration if kind.is_calibrated else "",
        "made_with": versions(MAKERS),
    }


def find_file(key: Mapping[str, Any]) -> EngineFile | None:
    """The exported file with this key; None if there is none, or if it is damaged."""
    folder = _folder(key)
    return _read(folder, key) if folder.is_dir() else None


def find_file_by_sha256(sha256: str) -> EngineFile | None:
    """The exported file with this content; None if there is none, or if it is damaged."""
    for path in sorted(cache_folder("engines").glob(f"*/{ABOUT}")):
        record = _read_json(path)
        if record is not None and record.get("sha256") == sha256:
            return _read(path.parent, record.get("key", {}))
    return None


def _read(folder: Path, key: Mapping[str, Any]) -> EngineFile | None:
    record, path = _read_json(folder / ABOUT), folder / MODEL
    if record is None or record.get("key") != dict(key):
        return None
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != record["sha256"]:
            log.warning("%s is damaged and is not used.", path)
            return None
        return EngineFile(path=path, sha256=sha256, dimension=int(record["dimension"]), values=key["values"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def store_file(key: Mapping[str, Any], exported: Path, dimension: int) -> EngineFile:
    """Copy an exported file into the cache.  Raises StorageError."""
    folder = _folder(key)
    # The description is written last: a file whose description is missing or of another content does not exist.
    with exported.open("rb") as source:
        write_atomically(folder / MODEL, lambda file: shutil.copyfileobj(source, file, 1 << 20))
    with exported.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
    record = {"key": dict(key), "sha256": sha256, "dimension": dimension}
    write_text(folder / ABOUT, json.dumps(record, indent=2))
    found = find_file(key)
    if found is None:
        raise CheckpointError(f"{folder / MODEL} changed while it was written. Run the same command again.")
    return found


# --- records ---------------------------------------------------------------------------------------------------------


def read_record(key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record with this key; None if there is none, or if it is damaged."""
    record = _read_json(_record_path(key))
    values = None if record is None or record.get("key") != dict(key) else record.get("values")
    return values if isinstance(values, dict) else None


def write_record(key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Store a record under a key, both as JSON.  Raises StorageError."""
    write_text(_record_path(key), json.dumps({"key": dict(key), "values": dict(values)}, indent=2))


def _folder(key: Mapping[str, Any]) -> Path:
    return cache_folder("engines") / _digest(key)


def _record_path(key: Mapping[str, Any]) -> Path:
    return cache_folder("engines") / "records" / f"{_digest(key)}.json"


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
