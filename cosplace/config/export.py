"""Settings of export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cosplace.config.setting import Section, required, section, setting

FORMATS: Mapping[str, str] = MappingProxyType({"onnx": ".onnx", "torch_export": ".pt2"})
"""Format -> suffix of its files."""
PRECISIONS = ("fp32", "fp16", "int8")
MAX_DIFFERENCES: Mapping[str, float] = MappingProxyType({"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05})
"""Largest accepted difference from PyTorch: for fp32 of any value of a descriptor, else 1 - cosine similarity."""
MAX_RECALL_LOSSES: Mapping[str, float] = MappingProxyType({"fp32": 0.1, "fp16": 1.0, "int8": 3.0})
"""Largest accepted loss of recall, in percentage points; a loss of one query is always accepted."""


def _by_precision(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g} for {precision}" for precision, value in values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions(Section):
    """Export and check"""

    format: str = setting("onnx", "format of the file: ONNX, or a program of torch.export", choices=tuple(FORMATS))
    precision: str = setting(
        "fp32", "fp32, fp16 (half the size) or int8 (a quarter of the size, faster on CPUs; ONNX only)",
        choices=PRECISIONS,
    )  # fmt: skip
    with_preprocessing: bool = setting(
        False, "the exported model takes photos as uint8 pixels, (B, H, W, 3), and normalizes them itself; by default "
        "it takes normalized float32 photos, (B, 3, H, W)",
    )  # fmt: skip
    image_size: int | None = setting(
        None, "pixels of the shorter side of photos, for int8 calibration and for the check; stored in the file",
        at_least=1, default_text="the size of each photo",
    )  # fmt: skip
    calibrate_on: Path | None = setting(
        None, "int8: folder of typical photos, in any subfolders, to measure the range of values on", metavar="FOLDER"
    )
    calibration_photos: int = setting(128, "int8: number of photos to use from --calibrate_on", at_least=1)
    check_dataset: Path | None = setting(
        None, "check: folder with database/ and queries/; also compare the recalls of the exported model with those "
        "of `cosplace eval`", metavar="FOLDER",
    )  # fmt: skip
    queries_folder: str | None = setting(
        None, "check: name of the folder of queries next to database/", metavar="NAME",
        default_text="queries_v1, or queries if that does not exist",
    )  # fmt: skip
    max_difference: float | None = setting(
        None, "check: largest accepted difference from PyTorch: of any descriptor value for fp32, of 1 - cosine "
        "similarity for fp16 and int8", at_least=0, default_text=_by_precision(MAX_DIFFERENCES),
    )  # fmt: skip
    max_recall_loss: float | None = setting(
        None, "check: largest accepted loss of recall, in percentage points; a loss of one query is always accepted",
        at_least=0, default_text=_by_precision(MAX_RECALL_LOSSES),
    )  # fmt: skip
    force: bool = setting(False, "replace the file if it exists")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig(Section):
    """Settings of `cosplace export`."""

    model: str = required(
        "model to export: a weights file, or a name from `cosplace zoo list`", positional=True, metavar="MODEL"
    )
    to: Path = required("file to write, .onnx or .pt2; it is written only if the check passes", metavar="FILE")
    format: str | None = setting(
        None,
        "format of the file: ONNX, or a program of torch.export",
        choices=tuple(FORMATS),
        default_text="by the suffix of FILE",
    )
    options: ExportOptions = section(ExportOptions, hidden=("format",))
