"""torch.export: the network as a .pt2 file, which PyTorch runs without this package.

Reading one runs operators of PyTorch that the file names, so read only files whose origin you trust.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosplace.errors import CheckpointError
from cosplace.export.deployable import Portable, quietly, trace

FACTS = "cosplace.json"  # beside the program, inside the file


def write_program(portable: Portable, path: Path, facts: Mapping[str, str]) -> None:
    """Write a network as a program of torch.export.  Raises ExportError when torch cannot trace it."""
    program = trace(portable)
    buffer = io.BytesIO()
    with quietly():
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(dict(facts), indent=2)})
    path.write_bytes(buffer.getvalue())


def read_program(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """Read the network of a .pt2 file and the facts beside it.  Raises CheckpointError when it is no such file."""
    extra: dict[str, Any] = {FACTS: ""}
    try:
        with quietly():
            module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
        return module, json.loads(extra[FACTS])
    except Exception as error:  # readers of damaged archives raise nearly anything
        raise CheckpointError(f"{path} is no file of `cosplace export --format torch_export`: export again.") from error
