"""Settings of export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cosplace.config.setting import Section, required, section, setting
from cosplace.errors import ConfigError

FORMATS: Mapping[str, str] = MappingProxyType({"onnx": ".onnx", "torch_export": ".pt2"})
"""Format -> suffix of its files."""
PRECISIONS = ("fp32", "fp16", "int8")
INPUT_VALUES = ("normalized", "unit", "uint8")
"""float32 normalized with ImageNet's mean and standard deviation, float32 from 0 to 1, uint8 pixels."""
LAYOUTS = ("NCHW", "NHWC")
OLDEST_OPSET = 18  # the first that torch's exporter writes
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
    input_values: str | None = setting(
        None, "values of the input: normalized float32; unit, float32 from 0 to 1; or uint8 pixels. The file "
        "normalizes unit and uint8 values itself, so that other programs cannot forget it", choices=INPUT_VALUES,
        default_text="normalized, or uint8 with --with_preprocessing",
    )  # fmt: skip
    input_layout: str | None = setting(
        None, "axes of the input: (B, 3, H, W) or (B, H, W, 3)", choices=LAYOUTS,
        default_text="NCHW, or NHWC with --with_preprocessing",
    )  # fmt: skip
    resize_inside: bool = setting(
        False, "the file resizes photos of any size to --image_size pixels along the shorter side, bilinear with "
        "antialias; by default, photos must be resized before",
    )  # fmt: skip
    static_shape: tuple[int, ...] = setting(
        (), "fix the shape of the input, for runtimes that need it or are faster with it: batch, height and width",
        at_least=1, metavar="N", default_text="any batch, height and width",
    )  # fmt: skip
    opset: int | None = setting(
        None, "ONNX: version of its operators, for runtimes that do not support the newest", parse=int,
        at_least=OLDEST_OPSET, metavar="VERSION", default_text="20, or 18 with torch 2.6",
    )  # fmt: skip
    input_name: str = setting(
        "images", "ONNX: what the photos are called in the file, as the program that runs it expects", metavar="NAME"
    )
    output_name: str = setting(
        "descriptors",
        "ONNX: what the vectors are called in the file, as the program that runs it expects",
        metavar="NAME",
    )
    parity_file: bool = setting(
        False, "also write NAME.parity.npz next to the file: an input and the descriptors that PyTorch computes for "
        "it, to test other programs; `cosplace export FILE --check` compares them again",
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
        "model to export: a weights file, or a name from `cosplace zoo list`; with --check, an exported file",
        positional=True, metavar="MODEL",
    )  # fmt: skip
    to: Path | None = setting(
        None, "file to write, .onnx or .pt2; it is written only if the check passes", metavar="FILE",
        default_text="required, except with --check",
    )  # fmt: skip
    check: bool = setting(
        False,
        "export nothing: run the exported file MODEL on the input of its parity file, and compare the descriptors",
    )
    format: str | None = setting(
        None,
        "format of the file: ONNX, or a program of torch.export",
        choices=tuple(FORMATS),
        default_text="by the suffix of FILE",
    )
    options: ExportOptions = section(ExportOptions, hidden=("format",))

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.check and self.to is not None:
            raise ConfigError("--check writes no file. Omit --to, or --check.")
        if not self.check and self.to is None:
            raise ConfigError("--to is required: the file to write, .onnx or .pt2.")
