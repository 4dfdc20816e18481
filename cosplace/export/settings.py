"""Settings of an export, and the checks before it starts."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cosplace.config.export import FORMATS, MAX_DIFFERENCES, MAX_RECALL_LOSSES, ExportOptions
from cosplace.engines.input_format import InputFormat
from cosplace.errors import ConfigError, StorageError

NAME = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)  # of an input or output
EXTRA = ("onnx", "onnxscript", "onnxruntime")  # packages that ONNX needs in addition


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings(ExportOptions):
    """How to export and check a model.  Raises ConfigError for values that do not fit together."""

    def __post_init__(self) -> None:
        ExportOptions.__post_init__(self)
        if self.format == "torch_export" and self.precision == "int8":
            raise ConfigError("--precision int8 needs --format onnx. Use --format onnx, or --precision fp16.")
        if self.precision == "int8" and self.calibrate_on is None:
            raise ConfigError("--precision int8 needs photos to measure value ranges on. Add --calibrate_on FOLDER.")
        self._check_inputs()

    def _check_inputs(self) -> None:
        if self.with_preprocessing and self.input_values not in (None, "uint8"):
            raise ConfigError(
                f"--with_preprocessing takes uint8 pixels and contradicts --input_values {self.input_values}. Omit it."
            )
        if self.resize_inside and self.image_size is None:
            raise ConfigError("--resize_inside needs the size to resize to. Add --image_size, for example 512.")
        if self.static_shape and len(self.static_shape) != 3:
            raise ConfigError(
                f"--static_shape needs three numbers, batch, height and width, for example 1 480 640; got "
                f"{' '.join(map(str, self.static_shape))}."
            )
        if self.static_shape and self.check_dataset is not None:
            raise ConfigError(
                "--check_dataset has photos of several sizes, which a file with --static_shape cannot take. Omit one "
                "of them."
            )
        if self.format != "onnx":
            for name in ("opset", "input_name", "output_name"):
                if getattr(self, name) != getattr(ExportOptions(), name):
                    raise ConfigError(f"--{name} needs --format onnx.")
        for name in ("input_name", "output_name"):
            if not NAME.fullmatch(getattr(self, name)):
                raise ConfigError(f"--{name} must be letters, digits and _, got '{getattr(self, name)}'.")
        if self.input_name == self.output_name:
            raise ConfigError(f"--input_name and --output_name must differ, both are {self.input_name}.")

    @property
    def inputs(self) -> InputFormat:
        """What the file takes as input."""
        shape = self.static_shape
        return InputFormat(
            values=self.input_values or ("uint8" if self.with_preprocessing else "normalized"),
            layout=self.input_layout or ("NHWC" if self.with_preprocessing else "NCHW"),
            resize_to=self.image_size if self.resize_inside else None,
            static_shape=(shape[0], shape[1], shape[2]) if shape else None,
        )

    @property
    def difference_limit(self) -> float:
        """Largest difference from PyTorch that passes the check."""
        return MAX_DIFFERENCES[self.precision] if self.max_difference is None else self.max_difference

    @property
    def recall_limit(self) -> float:
        """Largest loss of recall that passes the check, in percentage points."""
        return MAX_RECALL_LOSSES[self.precision] if self.max_recall_loss is None else self.max_recall_loss


def format_of(path: Path) -> str:
    """Return the format that the suffix of a file stands for.  Raises ConfigError for other suffixes."""
    for name, suffix in FORMATS.items():
        if path.suffix.lower() == suffix:
            return name
    known = " or ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise ConfigError(f"{path} has an unknown suffix. Use {known}, or add --format.")


def check_extra(format: str) -> None:
    """Raise ConfigError when a format needs packages that are not installed."""
    missing = [name for name in EXTRA if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise ConfigError(f"--format onnx needs {' and '.join(missing)}. Install with: pip install 'cosplace[export]'.")


def check_target(path: Path, force: bool) -> None:
    """Raise ConfigError or StorageError when `path` cannot be written, before minutes of work."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Use the name of a file, for example {path / 'model.onnx'}.")
    if path.exists() and not force:
        raise ConfigError(f"{path} already exists. Choose another name, or replace it with --force.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"Cannot write {path}: {folder} is not a writable folder. Choose another folder.")
