"""Open an exported file as a network that `extract` and `evaluate` accept.

Other programs do not need this module: see examples/onnx_runtime.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.config.export import FORMATS
from cosplace.errors import CheckpointError
from cosplace.export.onnx_format import INPUT, OUTPUT
from cosplace.export.settings import check_extra, format_of
from cosplace.export.torch_program import read_program
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

UINT8_INPUT = "uint8"  # value of input_type in the metadata


class ExportedNetwork(nn.Module):
    """An exported file as a network: ImageNet-normalized photos (B, 3, H, W) -> unit descriptors (B, D) float32.

    run: computes descriptors from the input of the file.  metadata: that of the file.  Runs on the CPU only.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.run, self.metadata = run, dict(metadata)
        self.takes_pixels = self.metadata.get("input_type") == UINT8_INPUT

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D)."""
        return self.run(_to_pixels(images) if self.takes_pixels else images.contiguous())


def open_exported(path: str | Path, format: str | None = None) -> ExportedNetwork:
    """Open an exported file.

    format: onnx or torch_export; None takes the format of the suffix.  ONNX files run in ONNX Runtime on the CPU, with
    as many threads as torch.
    Raises ConfigError for another suffix or a missing package, CheckpointError for a file that is missing or damaged.
    """
    path = Path(path)
    format = format or format_of(path)
    assert format in FORMATS, format
    if not path.is_file():
        raise CheckpointError(f"The file {path} does not exist. Check the path.")
    if format == "onnx":
        check_extra(format)
        return _open_onnx(path)
    program, metadata = read_program(path)
    return ExportedNetwork(program, metadata)


def _open_onnx(path: Path) -> ExportedNetwork:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the parser and each operator raise types of their own
        raise CheckpointError(
            f"ONNX Runtime cannot open {path}: it is damaged or not an ONNX file. Export the model again."
        ) from error
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    if (inputs, outputs) != ([INPUT], [OUTPUT]):
        raise CheckpointError(
            f"{path} has the inputs {inputs} and outputs {outputs}, so it is not a file of `cosplace export`. Choose "
            f"another file."
        )

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: images.numpy()})[0]))

    return ExportedNetwork(run, session.get_modelmeta().custom_metadata_map)


def _to_pixels(normalized: Tensor) -> Tensor:
    """Undo the normalization of photos (B, 3, H, W): exactly the pixels that were normalized, (B, H, W, 3) uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (255 * (normalized * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
