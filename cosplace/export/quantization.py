"""8-bit weights and activations, calibrated on photos (ONNX Runtime's static quantization, QDQ form).

Convolutions, additions and poolings of the backbone compute with 8 bits: weights signed and scaled by channel,
activations unsigned.  From the first norm on all stays in float32: GeM's powers would magnify rounding, and the linear
layer is small.  Ranges of activations are percentiles of what is seen, so that a rare peak does not widen them.
"""

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cosplace.errors import DatasetError, ImageError
from cosplace.export.deployable import first_line, quietly
from cosplace.export.onnx_format import INPUT, node_names, save_onnx
from cosplace.export.settings import ExportError
from cosplace.photos.image_list import ImageList
from cosplace.photos.normalization import normalize
from cosplace.photos.opening import open_image

QUANTIZED = ("Conv", "Add", "MaxPool", "Relu")
FLOAT_FROM = ("ReduceL2", "Log", "LpNormalization")  # the first of them is the norm before GeM
PERCENTILE = 99.999

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (photos done, all photos)


def quantize(
    fp32: Path,
    to: Path,
    images: ImageList,
    rows: list[int],
    *,
    image_size: int | None,
    with_preprocessing: bool,
    progress: Progress,
) -> None:
    """Quantize an ONNX file, calibrated on some photos of a list, which can be opened.

    Raises ExportError when ONNX Runtime cannot.
    """
    import onnx
    from onnxruntime import quantization

    reader: Any = _Reader(images, rows, image_size=image_size, with_preprocessing=with_preprocessing, progress=progress)
    try:
        with quietly(), contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints
            quantization.quantize_static(
                str(fp32),
                str(to),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=node_names(onnx.load(fp32), FLOAT_FROM),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                # One photo at a time: else the activations of all photos would be held in memory at once.
                extra_options={"CalibStridedMinMax": 1, "CalibPercentile": PERCENTILE},
            )
    except ImageError:
        raise
    except Exception as error:  # the quantizer raises nearly anything
        raise ExportError(f"ONNX Runtime cannot quantize the network ({first_line(error)}).") from error
    save_onnx(onnx.load(to), to)


def spread_photos(images: ImageList, most: int) -> list[int]:
    """Rows of up to `most` photos, evenly spread over a list; those that cannot be opened are left out.

    Raises DatasetError when that is every one of them.
    """
    chosen, first_problem = [], ""
    for row in np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64)).tolist():
        try:
            open_image(images.path(row))
        except ImageError as error:
            first_problem = first_problem or str(error)
            continue
        chosen.append(row)
    if not chosen:
        raise DatasetError(f"None of the photos chosen in {images.folder} can be opened, the first: {first_problem}")
    if first_problem:
        log.warning("photos are left out: %s", first_problem)
    return chosen


class _Reader:
    """Photos one after another, in the form that ONNX Runtime's calibrators ask for."""

    def __init__(
        self,
        images: ImageList,
        rows: list[int],
        *,
        image_size: int | None,
        with_preprocessing: bool,
        progress: Progress,
    ) -> None:
        self.images, self.rows, self.image_size = images, rows, image_size
        self.with_preprocessing, self.progress = with_preprocessing, progress
        self.next_place, self.stop = 0, len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give only some of the photos, then end."""
        self.next_place, self.stop = start_index, end_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next photo as input of the network; None after the last."""
        if self.next_place >= self.stop:
            return None
        photo = open_image(self.images.path(self.rows[self.next_place]))
        self.next_place += 1
        self.progress(self.next_place, len(self.rows))
        return {INPUT: file_input(sized(photo, self.image_size)[None], self.with_preprocessing).numpy()}


def sized(photo: torch.Tensor, image_size: int | None) -> torch.Tensor:
    """A photo (3, H, W) uint8 with so many pixels along its shorter side, as everywhere in the package."""
    if image_size is None:
        return photo
    return resize(photo, [image_size], InterpolationMode.BILINEAR, antialias=True)


def file_input(photos: torch.Tensor, with_preprocessing: bool) -> torch.Tensor:
    """Photos (B, 3, H, W) uint8 as a file takes them: (B, H, W, 3) uint8, or normalised (B, 3, H, W) float32."""
    return photos.permute(0, 2, 3, 1).contiguous() if with_preprocessing else normalize(photos).contiguous()
