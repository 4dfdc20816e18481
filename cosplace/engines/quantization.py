"""8-bit weights and activations, calibrated on photos (ONNX Runtime's static quantization, QDQ format).

Convolutions, additions and poolings of the backbone compute with 8 bits: signed weights with one scale per channel,
unsigned activations.  From the first norm on, everything stays in float32: the powers of GeM would amplify rounding
errors, and the linear layer is small.  The ranges of activations are percentiles, so that rare peaks do not widen them.
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.engines.deployable import summarize_error, suppress_messages
from cosplace.engines.engine import INPUT
from cosplace.engines.input_format import InputFormat
from cosplace.engines.onnx_format import nodes_from, save_onnx
from cosplace.errors import DatasetError, ExportError, ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.normalization import normalize
from cosplace.photos.opening import open_image
from cosplace.progress import Progress, no_progress

QUANTIZED_OPERATORS = ("Conv", "Add", "MaxPool", "Relu")
FIRST_FLOAT_OPERATORS = ("ReduceL2", "Log", "LpNormalization")  # the first of them is the norm before GeM
PERCENTILE = 99.999  # of the activations, within the range of 8 bits

log = logging.getLogger(__name__)


def quantize(
    fp32_path: Path,
    to: Path,
    images: ImageList,
    rows: list[int],
    *,
    image_size: int | None,
    inputs: InputFormat,
    input_name: str = INPUT,
    progress: Progress = no_progress,
) -> None:
    """Quantize an ONNX file.

    rows: the photos of `images` to calibrate on.  inputs, input_name: what the file takes.
    Raises ExportError if ONNX Runtime cannot quantize it.
    """
    import onnx
    from onnxruntime import quantization

    reader: Any = _CalibrationReader(
        images, rows, image_size=image_size, inputs=inputs, input_name=input_name, progress=progress
    )
    try:
        with suppress_messages(), contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints
            quantization.quantize_static(
                str(fp32_path),
                str(to),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                nodes_to_exclude=nodes_from(onnx.load(fp32_path), FIRST_FLOAT_OPERATORS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                # One photo at a time, otherwise the activations of all photos are in memory at once.
                extra_options={"CalibStridedMinMax": 1, "CalibPercentile": PERCENTILE},
            )
    except ImageError:
        raise
    except Exception as error:  # the quantizer raises many types
        raise ExportError(
            f"ONNX Runtime cannot quantize the network ({summarize_error(error)}). Use --precision fp32."
        ) from error
    save_onnx(onnx.load(to), to)


def select_photos(images: ImageList, count: int) -> list[int]:
    """Rows of up to `count` photos, evenly spaced over a list, without those that cannot be opened.

    Raises DatasetError if none of them can be opened.
    """
    rows, errors = [], []
    for row in evenly_spaced(images, count):
        try:
            open_image(images.path(row))
            rows.append(row)
        except ImageError as error:
            errors.append(str(error))
    if not rows:
        raise DatasetError(
            f"None of the photos selected in {images.folder} can be opened, the first error: {errors[0]}"
        )
    if errors:
        log.warning("%d photos are skipped. The first error: %s", len(errors), errors[0])
    return rows


class _CalibrationReader:
    """Photos as inputs of the network, one at a time: ONNX Runtime's interface of calibration data."""

    def __init__(
        self,
        images: ImageList,
        rows: list[int],
        *,
        image_size: int | None,
        inputs: InputFormat,
        input_name: str,
        progress: Progress,
    ) -> None:
        self.images, self.rows, self.image_size = images, rows, image_size
        self.inputs, self.input_name, self.progress = inputs, input_name, progress
        self.position, self.end = 0, len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with photo start_index and stop before photo end_index."""
        self.position, self.end = start_index, end_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next photo as input of the network; None after the last."""
        if self.position >= self.end:
            return None
        photo = open_image(self.images.path(self.rows[self.position]))
        photos = self.inputs.fit(photo, self.image_size)[None]  # (1, 3, H, W) uint8
        if self.inputs.static_shape is not None:
            photos = photos.expand(self.inputs.static_shape[0], -1, -1, -1)
        self.position += 1
        self.progress("calibration", self.position, len(self.rows))
        if self.inputs == InputFormat():
            return {self.input_name: normalize(photos).contiguous().numpy()}
        return {self.input_name: self.inputs.from_pixels(photos).numpy()}
