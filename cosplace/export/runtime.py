"""An exported file as a network again, for all that takes a network: `extract`, `evaluate`, this package's checks.

Runtimes elsewhere need none of this: see examples/onnx_runtime.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.errors import CheckpointError
from cosplace.export.onnx_format import INPUT, OUTPUT
from cosplace.export.settings import FORMATS, check_extra, format_of
from cosplace.export.torch_program import read_program
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

UINT8_INPUT = "uint8"


class ExportedNetwork(nn.Module):
    """Photos (B, 3, H, W), normalised as ImageNet's are -> unit descriptors (B, D) float32, by an exported file.

    run: from what the file takes to descriptors; facts: what the file tells of itself.  On the CPU only.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], facts: Mapping[str, str]) -> None:
        super().__init__()
        self.run, self.facts = run, dict(facts)
        self.takes_pixels = self.facts.get("input_type") == UINT8_INPUT

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D)."""
        return self.run(_pixels(images) if self.takes_pixels else images.contiguous())


def open_exported(path: str | Path, format: str | None = None) -> ExportedNetwork:
    """Open an exported file; format: onnx or torch_export, None for what its suffix says.

    ONNX runs in ONNX Runtime on the CPU, with as many threads as torch.
    Raises ConfigError for another suffix or a missing package, CheckpointError for a file that is missing or damaged.
    """
    path = Path(path)
    format = format or format_of(path)
    assert format in FORMATS, format
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}: check the path.")
    if format == "onnx":
        check_extra(format)
        return _open_onnx(path)
    program, facts = read_program(path)
    return ExportedNetwork(program, facts)


def _open_onnx(path: Path) -> ExportedNetwork:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the parser and of each operator
        raise CheckpointError(f"ONNX Runtime cannot open {path}: it is damaged or no ONNX file.") from error
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != ([INPUT], [OUTPUT]):
        raise CheckpointError(f"{path} takes {names[0]} and gives {names[1]}: it is no file of `cosplace export`.")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: images.numpy()})[0]))

    return ExportedNetwork(run, session.get_modelmeta().custom_metadata_map)


def _pixels(normalized: Tensor) -> Tensor:
    """Undo the normalisation of photos (B, 3, H, W): (B, H, W, 3) uint8, exactly what was normalised."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (255 * (normalized * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
