"""A parity file: inputs of an exported file and the descriptors that PyTorch computes for them.

An integrator runs the file in another program, on another machine, or after another conversion, and compares.  It holds
arrays only (numpy's .npz), under the names `images`, `descriptors`, `tolerance` and `measure`.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.engines.comparison import synthetic_photos
from cosplace.engines.input_format import InputFormat
from cosplace.errors import CheckpointError, ExportError
from cosplace.export.runtime import open_exported
from cosplace.photos.normalization import normalize
from cosplace.photos.resizing import resize
from cosplace.storage import write_atomically

PARITY_SHAPE = 2, 240, 320  # B, H, W of its photos, for files that take photos of any size
MAX_BYTES = 1_000_000_000
LARGEST, COSINE = "largest difference", "1 - cosine similarity"


def parity_path(exported: Path) -> Path:
    """Parity file beside an exported file: model.parity.npz beside model.onnx."""
    return exported.with_name(f"{exported.stem}.parity.npz")


def write_parity(
    exported: Path, reference: nn.Module, inputs: InputFormat, *, smallest_side: int, precision: str, tolerance: float
) -> Path:
    """Write the parity file of an exported file.

    reference: the network in PyTorch, which takes normalized photos of the sizes that the file takes.
    """
    count, height, width = inputs.static_shape or PARITY_SHAPE
    height, width = max(height, smallest_side), max(width, smallest_side)
    photos = torch.stack([resize(photo, height, width) for photo in synthetic_photos(count, seed=1)])
    with torch.inference_mode():
        descriptors = reference(normalize(photos)).numpy()
    arrays = {
        "images": inputs.from_pixels(photos).numpy(),
        "descriptors": descriptors.astype(np.float32),
        "tolerance": np.float64(tolerance),
        "measure": np.str_(LARGEST if precision == "fp32" else COSINE),
    }
    path = parity_path(exported)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """An exported file compared with its parity file."""

    path: Path
    num_photos: int
    largest: float
    least_cosine: float
    measure: str
    tolerance: float

    @property
    def value(self) -> float:
        """The value that the tolerance limits."""
        return self.largest if self.measure == LARGEST else 1 - self.least_cosine

    def summary(self) -> str:
        """Format the comparison as one line."""
        return (
            f"{self.path}: {self.num_photos} photos, largest difference {self.largest:.1e}, least cosine similarity "
            f"{self.least_cosine:.6f}; {self.measure} {self.value:.1e} is within {self.tolerance:g}"
        )


def check_parity(exported: str | Path) -> ParityReport:
    """Run an exported file on the inputs of its parity file and compare the descriptors.

    Raises CheckpointError if one of the files is missing or damaged, ExportError if they differ by more than the
    tolerance.
    """
    exported = Path(exported)
    network = open_exported(exported)
    path = parity_path(exported)
    images, expected, tolerance, measure = _read(path)
    try:
        found = network.run(images).double().numpy()
    except Exception as error:  # each runtime raises types of its own for an input of another form
        raise CheckpointError(
            f"{path} does not fit {exported}: it is of another file. Export the model again."
        ) from error
    if found.shape != expected.shape:
        raise CheckpointError(f"{path} does not fit {exported}: {expected.shape} and {found.shape} descriptors.")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    report = ParityReport(
        path=exported,
        num_photos=len(found),
        largest=float(np.abs(found - expected).max()),
        least_cosine=float(((found * expected).sum(1) / lengths).min()),
        measure=measure,
        tolerance=tolerance,
    )
    if not report.value <= tolerance:
        raise ExportError(
            f"{exported} differs from {path}: {measure} is {report.value:.1e}, more than {tolerance:g}. Export the "
            f"model again, or use another version of the runtime."
        )
    return report


def _read(path: Path) -> tuple[Tensor, np.ndarray, float, str]:
    """Images, descriptors (B, D) float64, tolerance and measure of a parity file."""
    if not path.is_file():
        raise CheckpointError(f"There is no parity file {path}. Export the model again with --parity_file.")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is too large for a parity file. Export the model again with --parity_file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, descriptors = arrays["images"], arrays["descriptors"].astype(np.float64)
            tolerance, measure = float(arrays["tolerance"]), str(arrays["measure"])
        if descriptors.ndim != 2 or images.ndim != 4 or measure not in (LARGEST, COSINE):
            raise ValueError("other arrays")
        return torch.from_numpy(np.ascontiguousarray(images)), descriptors, tolerance, measure
    except Exception as error:  # damaged archives raise many types
        raise CheckpointError(
            f"{path} is damaged or not a parity file. Export the model again with --parity_file."
        ) from error
