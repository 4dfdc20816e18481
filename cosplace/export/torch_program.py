"""torch.export files (.pt2), which PyTorch runs without this package.

Reading such a file runs the operators of PyTorch that it names: read only files from sources that you trust.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosplace.engines.deployable import DeployableNetwork, suppress_messages, trace
from cosplace.errors import CheckpointError

METADATA_FILE = "cosplace.json"  # inside the .pt2 file


def write_program(deployable: DeployableNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network as a torch.export file.  Raises ExportError if torch cannot trace it."""
    program = trace(deployable)
    buffer = io.BytesIO()
    with suppress_messages():
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata), indent=2)})
    path.write_bytes(buffer.getvalue())


def read_program(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """Read the network and the metadata of a .pt2 file.  Raises CheckpointError for other or damaged files."""
    extra: dict[str, Any] = {METADATA_FILE: ""}
    try:
        with suppress_messages():
            module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
        return module, json.loads(extra[METADATA_FILE])
    except Exception as error:  # readers of damaged archives raise many types
        raise CheckpointError(
            f"{path} is damaged or not a file of `cosplace export --format torch_export`. Export the model again."
        ) from error
