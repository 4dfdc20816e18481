"""Write the file that an engine runs: the network as ONNX, for photos of any number and size.

Side effects: reads photos to calibrate on, writes into the cache folder.
"""

import hashlib
import logging
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from cosplace.engines.deployable import DeployableNetwork, check_exportable
from cosplace.engines.files import EngineFile, file_key, find_file, store_file
from cosplace.engines.input_format import InputFormat
from cosplace.engines.int8_weights import round_weights
from cosplace.engines.kinds import EngineKind
from cosplace.engines.onnx_format import write_onnx
from cosplace.engines.quantization import quantize, select_photos
from cosplace.errors import ConfigError
from cosplace.models.inference import find_dimension
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress
from cosplace.storage import storage_errors

NUM_CALIBRATION_PHOTOS = 128
EXPORTERS = ("onnx", "onnxscript")  # packages

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPhotos:
    """Photos whose activations set the ranges of 8 bits."""

    images: ImageList
    rows: list[int]
    image_size: int | None  # pixels of the shorter side; None: the size of each photo

    @property
    def digest(self) -> str:
        """What identifies these photos: their names, numbers of bytes and size."""
        names = [f"{self.images.name(row)} {self.images.path(row).stat().st_size}" for row in self.rows]
        return hashlib.sha256("\n".join([str(self.image_size), *names]).encode("utf-8", "surrogateescape")).hexdigest()


def choose_calibration_photos(images: ImageList, image_size: int | None) -> CalibrationPhotos:
    """Photos of a list to calibrate on, evenly spaced.  Raises DatasetError if none can be opened."""
    return CalibrationPhotos(images=images, rows=select_photos(images, NUM_CALIBRATION_PHOTOS), image_size=image_size)


def export_file(
    network: nn.Module,
    checksum: str,
    kind: EngineKind,
    *,
    scales: tuple[float, ...] = (1.0,),
    calibration: CalibrationPhotos | None = None,
    progress: Progress = no_progress,
) -> EngineFile:
    """The file of a network for an engine, from the cache or written now.

    network: without averaging over views.  checksum: its own.  calibration: of calibrated engines.
    Raises ConfigError for a network that cannot be exported, or a package that is not installed; ExportError,
    StorageError.
    """
    key = file_key(checksum, kind, scales, "" if calibration is None else calibration.digest)
    if (found := find_file(key)) is not None:
        return found
    if missing := [package for package in EXPORTERS if find_spec(package) is None]:
        raise ConfigError(
            f"--engine {kind.name} needs {' and '.join(missing)} to export the model. Install with: pip install "
            f"'cosplace[export]'."
        )
    check_exportable(network)
    network = deepcopy(network).cpu().eval()
    inputs = InputFormat(values=key["values"])
    log.info("exporting the model for the engine %s, once", kind.name)
    with tempfile.TemporaryDirectory(prefix="cosplace-engine-") as folder, storage_errors(Path(folder)):
        path = Path(folder) / "fp32.onnx"
        write_onnx(DeployableNetwork(network, inputs=inputs, half=False), path)
        if kind.is_calibrated:
            assert calibration is not None
            quantized = Path(folder) / "int8.onnx"
            log.info("calibrating 8-bit numbers on %d photos", len(calibration.rows))
            quantize(
                path,
                quantized,
                calibration.images,
                calibration.rows,
                image_size=calibration.image_size,
                inputs=inputs,
                progress=progress,
            )
            path = quantized
        elif kind.is_int8:
            rounded = Path(folder) / "int8_weights.onnx"
            round_weights(path, rounded)
            path = rounded
        return store_file(key, path, find_dimension(network, next(network.parameters()).device))
