"""Open an engine whose exported file is in the cache and was compared with PyTorch on this machine; without torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cosplace.engines.engine import FileEngine, open_session
from cosplace.engines.files import (
    EngineFile,
    file_key,
    find_file,
    find_file_by_sha256,
    read_record,
)
from cosplace.engines.kinds import MIN_COSINES, EngineKind, find_kind
from cosplace.engines.machine import describe_machine
from cosplace.errors import ConfigError

AUTO = "auto"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUse:
    """A model, and the photos that an engine describes with it."""

    checksum: str  # of the model, see `models.weight_files.model_checksum`
    image_size: int | None = None  # pixels of the shorter side; None: the size of each photo
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def comparison_key(self, kind: EngineKind, file_sha256: str) -> dict[str, Any]:
        """What a comparison of an engine with PyTorch depends on.  file_sha256: of the file that it runs, or ""."""
        return self._key("comparison") | {"engine": kind.name, "file": file_sha256}

    def choice_key(self, device: str) -> dict[str, Any]:
        """What the fastest engine depends on.  device: as the user asked for it."""
        return self._key("choice") | {"device": device}

    def _key(self, record: str) -> dict[str, Any]:
        return {
            "record": record,
            "model": self.checksum,
            "image_size": self.image_size,
            "scales": list(self.scales),
            "flip": self.flip,
            "machine": describe_machine(),
        }


def open_cached_engine(
    name: str,
    checksum: str,
    *,
    image_size: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    file_sha256: str = "",
    device: str = "auto",
    num_threads: int | None = None,
) -> FileEngine | None:
    """Open an engine without its model.  Needs neither torch nor the network; the program of the engine is imported.

    name: of an engine, or auto for the one that was chosen before.  checksum: of the model.  image_size, scales, flip:
    of the photos.  file_sha256: of the file that the engine must run, for int8; "" for any.  device: as in
    `load_model`; engines that run a file compute on the CPU.
    Returns None where the model is needed: for an engine of PyTorch, for a file that is missing or damaged, and without
    a comparison with PyTorch on this machine with these versions.
    Raises ConfigError for an engine that is not installed.
    """
    use = EngineUse(checksum=checksum, image_size=image_size, scales=tuple(scales), flip=flip)
    choice = remembered_engine(use, device) if name == AUTO else None
    if name == AUTO and choice is None:
        return None
    kind = find_kind(name if choice is None else choice["engine"])
    if not kind.needs_file or device not in ("auto", "cpu"):
        return None
    kind.require()
    if file_sha256:
        file = find_file_by_sha256(file_sha256)
    else:  # a calibrated file is identified by its content
        file = None if kind.is_calibrated else find_file(file_key(checksum, kind, use.scales))
    if file is None or not is_accurate(use, kind, file.sha256):
        return None
    if choice is not None:
        log.info("%s (remembered)", choice_text(choice))
    return open_file_engine(kind, file, use, num_threads)


def open_file_engine(kind: EngineKind, file: EngineFile, use: EngineUse, num_threads: int | None = None) -> FileEngine:
    """Open an engine that runs a file.  Raises CheckpointError, ConfigError; see `open_session`."""
    return FileEngine(
        open_session(kind, file.path, num_threads),
        kind,
        checksum=use.checksum,
        dimension=file.dimension,
        file_sha256=file.sha256,
        values=file.values,
        scales=use.scales,
        flip=use.flip,
    )


def remembered_engine(use: EngineUse, device: str) -> dict[str, Any] | None:
    """The choice of `auto`: engine, speedup and cosine; None before it, or after versions have changed."""
    choice = read_record(use.choice_key(device))
    try:
        if choice is None or not find_kind(str(choice["engine"])).is_installed:
            return None
        return {
            "engine": str(choice["engine"]),
            "speedup": float(choice["speedup"]),
            "cosine": float(choice["cosine"]),
        }
    except (KeyError, TypeError, ValueError, ConfigError):  # of another version
        return None


def choice_text(choice: Mapping[str, Any]) -> str:
    """What `auto` chose, in words."""
    name = choice["engine"]
    if name == "torch":
        return "engine: torch, the fastest here"
    return f"engine: {name}, {choice['speedup']:.1f} times PyTorch, lowest cosine similarity {choice['cosine']:.7f}"


def is_accurate(use: EngineUse, kind: EngineKind, file_sha256: str) -> bool:
    """Whether an engine was compared with PyTorch and its descriptors are close enough."""
    record = read_record(use.comparison_key(kind, file_sha256))
    cosine = None if record is None else record.get("cosine")
    return isinstance(cosine, float | int) and is_close_enough(cosine, kind)


def is_close_enough(cosine: float, kind: EngineKind) -> bool:
    """Whether the lowest cosine similarity of an engine to PyTorch is accepted; nan is not."""
    return cosine >= MIN_COSINES[kind.numbers]
