"""What is asked of an export, and what can be said against it before any work is done."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from cosplace.config.knobs import nearest_names
from cosplace.errors import ConfigError, CosPlaceError, StorageError

FORMATS: Mapping[str, str] = MappingProxyType({"onnx": ".onnx", "torch_export": ".pt2"})
"""Format -> suffix that stands for it."""
PRECISIONS = ("fp32", "fp16", "int8")
EXTRA = ("onnx", "onnxscript", "onnxruntime")  # what ONNX needs beside the package's own dependencies
LIMITS: Mapping[str, float] = MappingProxyType({"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05})
"""Largest difference to PyTorch that passes: in fp32 of a number of a descriptor, else 1 - cosine of descriptors."""
RECALL_LIMITS: Mapping[str, float] = MappingProxyType({"fp32": 0.1, "fp16": 1.0, "int8": 3.0})
"""Largest loss of recall that passes, in percentage points; the loss of a single query always does."""


class ExportError(CosPlaceError):
    """A model cannot be exported, or what came out differs too much from it; no file was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How a model is exported and checked.  Raises ConfigError for settings that cannot be.

    with_preprocessing: the file takes photos as they are, (B, H, W, 3) uint8, and normalises them itself; without,
    (B, 3, H, W) float32, normalised as ImageNet's are.
    image_size: pixels of the shorter side that photos will have, None for each photo's own; int8 is calibrated and
    all is checked at it, and the file tells it.
    calibrate_on: a folder of photos like those to come, for int8; calibration_photos: how many of them.
    check_dataset: a folder with database/ and queries/, on which recalls are compared; queries_folder: its queries.
    max_difference: see LIMITS; max_recall_loss: see RECALL_LIMITS; None takes those.
    """

    format: str = "onnx"
    precision: str = "fp32"
    with_preprocessing: bool = False
    image_size: int | None = None
    calibrate_on: str | Path | None = None
    calibration_photos: int = 128
    check_dataset: str | Path | None = None
    queries_folder: str | None = None
    max_difference: float | None = None
    max_recall_loss: float | None = None
    force: bool = False  # replace a file that is there

    def __post_init__(self) -> None:
        _check_choice("--format", self.format, tuple(FORMATS))
        _check_choice("--precision", self.precision, PRECISIONS)
        if self.format == "torch_export" and self.precision == "int8":
            raise ConfigError("--precision int8 is made for ONNX: use --format onnx, or --precision fp16.")
        if self.precision == "int8" and self.calibrate_on is None:
            raise ConfigError(
                "--precision int8 needs photos like those to come, to measure ranges on: add --calibrate_on FOLDER."
            )
        for name, least in (("image_size", 1), ("calibration_photos", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"--{name} {value} cannot be: give at least {least}.")
        for name in ("max_difference", "max_recall_loss"):
            # Written so that NaN fails too.
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ConfigError(f"--{name} {value} cannot be: give a number from 0 on.")

    @property
    def difference_limit(self) -> float:
        """Largest difference that passes the check."""
        return LIMITS[self.precision] if self.max_difference is None else self.max_difference

    @property
    def recall_limit(self) -> float:
        """Largest loss of recall that passes the check, in percentage points."""
        return RECALL_LIMITS[self.precision] if self.max_recall_loss is None else self.max_recall_loss


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        offered = nearest_names(value, choices) or choices
        raise ConfigError(f"Unknown {flag} '{value}': use {' or '.join(offered)}.")


def format_of(path: Path) -> str:
    """The format that a file's suffix stands for.  Raises ConfigError for other suffixes."""
    for name, suffix in FORMATS.items():
        if path.suffix.lower() == suffix:
            return name
    known = " or ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise ConfigError(f"{path} tells no format by its suffix: end it in {known}, or give --format.")


def check_extra(format: str) -> None:
    """Raise ConfigError when a format needs packages that are not installed."""
    missing = [name for name in EXTRA if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise ConfigError(f"--format onnx needs {' and '.join(missing)}: pip install 'cosplace[export]'.")


def check_target(path: Path, force: bool) -> None:
    """Raise ConfigError or StorageError now, and not after minutes of work, when `path` cannot be written."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a file, for example {path / 'model.onnx'}.")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already: choose another name, or replace it with --force.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"Cannot write {path} ({folder} is no folder that may be written): choose another folder.")
