"""Open an exported file as a network that `extract` and `evaluate` accept.

Other programs do not need this module: see examples/onnx_runtime.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.config.export import FORMATS
from cosplace.engines.engine import INPUT, OUTPUT
from cosplace.engines.input_format import InputFormat
from cosplace.errors import CheckpointError, ConfigError
from cosplace.export.settings import check_extra, format_of
from cosplace.export.torch_program import read_program
from cosplace.storage import problem_with_kind

UINT8_INPUT = "uint8"  # value of input_type in the metadata


class ExportedNetwork(nn.Module):
    """An exported file as a network: ImageNet-normalized photos (B, 3, H, W) -> unit descriptors (B, D) float32.

    run: computes descriptors from the input of the file.  metadata: that of the file.  Runs on the CPU only.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.run, self.metadata = run, dict(metadata)
        self.inputs = _inputs_of(self.metadata)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D).  Raises ConfigError for photos of a size that the file does not take."""
        inputs = self.inputs.from_normalized(images)
        if self.inputs.static_shape is None:
            return self.run(inputs)
        count, height, width = self.inputs.static_shape
        if images.shape[-2:] != (height, width):
            raise ConfigError(
                f"The file takes photos of {width} x {height} pixels, not {images.shape[-1]} x {images.shape[-2]}. "
                f"Resize them, or export without --static_shape."
            )
        # Complete batches: the last photo fills what is missing.
        descriptors = []
        for start in range(0, len(inputs), count):
            part = inputs[start : start + count]
            filled = torch.cat([part, part[-1:].expand(count - len(part), -1, -1, -1)])
            descriptors.append(self.run(filled)[: len(part)])
        return torch.cat(descriptors)


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
        raise CheckpointError(f"{path} {problem_with_kind(path, 'file')}. Check the path.")
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
    metadata = session.get_modelmeta().custom_metadata_map
    names = metadata.get("input_name", INPUT), metadata.get("output_name", OUTPUT)
    if (inputs, outputs) != ([names[0]], [names[1]]):
        raise CheckpointError(
            f"{path} has the inputs {inputs} and outputs {outputs}, so it is not a file of `cosplace export`. Choose "
            f"another file."
        )

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run([names[1]], {names[0]: images.numpy()})[0]))

    return ExportedNetwork(run, metadata)


def _inputs_of(metadata: Mapping[str, str]) -> InputFormat:
    """What a file takes, from its metadata; earlier files do not have all of it."""
    is_uint8 = metadata.get("input_type") == UINT8_INPUT
    shape = [int(side) for side in metadata.get("static_shape", "").split()]
    return InputFormat(
        values=metadata.get("input_values") or (UINT8_INPUT if is_uint8 else "normalized"),
        layout=metadata.get("input_layout", "NCHW"),
        static_shape=(shape[0], shape[1], shape[2]) if len(shape) == 3 else None,
    )
