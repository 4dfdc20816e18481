"""What an engine is: photos in, unit descriptors out; and the engines that run an exported file, without torch.

Legend: B photos of one size, D descriptor dimension.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, cast

import numpy as np

from cosplace.engines.kinds import ONNX_RUNTIME, EngineKind
from cosplace.engines.views import averaged_views
from cosplace.errors import CheckpointError, ConfigError, DeviceError

INPUT, OUTPUT = "images", "descriptors"  # of an exported file
# In the errors of the programs when memory runs out; other errors have parts of words, such as "cpu_memory_desc.h".
NO_MEMORY = re.compile(r"alloc|out.?of.?memory|\bmemory\b", re.IGNORECASE)
Session = Callable[[np.ndarray], np.ndarray]
"""Runs a file: its input (B, 3, H, W) -> descriptors (B, D) float32."""


class Engine(Protocol):
    """Computes descriptors.  May be called from several threads."""

    kind: EngineKind
    file_sha256: str  # of the file that it runs; "" without a file

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def checksum(self) -> str:
        """Checksum of the model, see `models.weight_files.model_checksum`."""
        ...

    def describe(self, photos: np.ndarray) -> np.ndarray:
        """Unit descriptors (B, D) float32 of photos (B, 3, H, W) uint8."""
        ...


def is_engine(value: object) -> bool:
    """Whether a value is an engine."""
    return isinstance(getattr(value, "kind", None), EngineKind)


class FileEngine:
    """An engine that runs an exported file on the CPU.

    values: what the file takes, uint8 pixels or floats from 0 to 1 ("unit").  scales, flip: descriptors are averaged
    over copies of each photo with these scales, and over mirror images.
    """

    def __init__(
        self,
        session: Session,
        kind: EngineKind,
        *,
        checksum: str,
        dimension: int,
        file_sha256: str,
        values: str = "uint8",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self.kind, self.checksum, self.dimension, self.file_sha256 = kind, checksum, dimension, file_sha256
        self.session, self.values, self.scales, self.flip = session, values, tuple(scales), flip

    def describe(self, photos: np.ndarray) -> np.ndarray:
        """Unit descriptors (B, D) float32 of photos (B, 3, H, W): uint8, or floats in [0, 1].

        Floats are rounded to uint8 if the file takes pixels.
        Raises DeviceError when memory runs out, CheckpointError if the program fails for these photos.
        """
        images = _as_values(np.ascontiguousarray(photos), self.values)
        try:
            if self.scales == (1.0,) and not self.flip:
                found = self.session(images)
            else:
                found = averaged_views(self.session, images, self.scales, flip=self.flip)
            if found.shape != (len(photos), self.dimension):  # happened with OpenVINO 2026.4 and DINOv2
                raise ValueError(f"wrong shape of descriptors: {found.shape}")
            return found
        except Exception as error:  # each program raises types of its own
            count, _, height, width = photos.shape
            if NO_MEMORY.search(str(error)):
                raise DeviceError(
                    f"Not enough memory for a batch of {count} photos of {width} x {height} pixels.",
                    "use a smaller --infer_batch_size",
                    "use a smaller --max_batch",
                    "use a smaller --image_size",
                ) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"The engine {self.kind.name} cannot compute descriptors of photos of {width} x {height} pixels "
                f"({lines[0][:200]}). Use larger photos, or --engine torch."
            ) from error


def _as_values(photos: np.ndarray, values: str) -> np.ndarray:
    is_uint8 = photos.dtype == np.uint8
    if values == "uint8":
        return photos if is_uint8 else np.rint(255 * photos).astype(np.uint8)
    return photos.astype(np.float32) / np.float32(255) if is_uint8 else photos.astype(np.float32)


def open_session(kind: EngineKind, path: Path, num_threads: int | None = None) -> Session:
    """Open an ONNX file in the program of an engine.

    num_threads: that compute; None for as many as torch has, if it is loaded, else the program's default.
    Raises CheckpointError for a file that is damaged or that the program cannot run, ConfigError for a processor
    without the numbers of the engine.
    """
    kind.require()
    if num_threads is None:
        torch: Any = sys.modules.get("torch")
        num_threads = 0 if torch is None else torch.get_num_threads()
    open_file = _open_in_onnx_runtime if kind.program == ONNX_RUNTIME else _open_in_openvino
    try:
        return open_file(kind, path, num_threads)
    except ConfigError:
        raise
    except Exception as error:  # the parsers raise types of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{kind.program} cannot open {path} ({lines[0][:200]}). Remove the file, then try again, or use --engine "
            f"torch."
        ) from error


def _open_in_onnx_runtime(kind: EngineKind, path: Path, num_threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images})[0])


def _open_in_openvino(kind: EngineKind, path: Path, num_threads: int) -> Session:
    numbers = {"bf16": "bf16", "fp16": "f16"}.get(kind.numbers, "f32")  # for int8: of the layers with floats
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": numbers}
    if num_threads:
        options["INFERENCE_NUM_THREADS"] = num_threads
    model: Any = _openvino_core().compile_model(str(path), "CPU", options)
    used = model.get_property("INFERENCE_PRECISION_HINT").to_string()  # fp16 becomes bf16 or fp32 without a warning
    if kind.numbers == "fp16" and used != "f16":
        raise ConfigError(
            f"--engine {kind.name} needs a processor with 16-bit floats (fp16); here OpenVINO would compute with "
            f"{used.replace('f32', 'fp32')}. Use --engine openvino_bf16 or --engine openvino."
        )
    lock = Lock()  # a compiled model answers one call at a time

    def run(images: np.ndarray) -> np.ndarray:
        with lock:
            return np.array(model(images)[0])  # a copy: the next call overwrites the result

    return run


@cache
def _openvino_core() -> Any:
    """The one `Core` of OpenVINO in this process, which is never freed.

    A `Core` sets a stack for signal handlers in the thread that first compiles with it, and restores the former stack
    when it is freed.  If several are not freed in reverse order, the thread is left with a stack in memory that was
    freed, and the next Ctrl+C or SIGTERM ends the process with a segmentation fault.
    """
    # When imported, OpenVINO sends usage data over the network, unless its package openvino_telemetry is missing.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    openvino: Any = import_module("openvino")  # of an extra that the type checker may lack
    return openvino.Core()
