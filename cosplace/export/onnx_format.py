"""ONNX: one file, free axes with names, and facts about the model inside.

The file is written by torch's exporter from a trace.  What it notes about the machine it ran on (paths of source
files, names inside of Python) is taken out again.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cosplace.export.deployable import Portable, first_line, quietly, trace
from cosplace.export.settings import ExportError

INPUT, OUTPUT = "images", "descriptors"
LARGEST_FILE = 2_000_000_000  # bytes; beyond, protobuf needs a second file for the weights


def write_onnx(portable: Portable, path: Path) -> None:
    """Write a network as ONNX.  Raises ExportError when torch cannot, or the file would be too large."""
    program = trace(portable)
    try:
        with quietly(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises nearly anything
        raise ExportError(f"PyTorch cannot write the network as ONNX ({first_line(error)}).") from error
    assert exported is not None
    model = exported.model_proto
    _without_notes(model)
    _name_axes(model, portable.with_preprocessing)
    save_onnx(model, path)


def save_onnx(model: Any, path: Path) -> None:
    """Check and write an ONNX model as one file."""
    import onnx

    size = model.ByteSize()
    if size > LARGEST_FILE:
        raise ExportError(
            f"The network takes {size / 1e9:.1f} GB, more than one ONNX file holds: use --precision fp16."
        )
    model.producer_name, model.producer_version = "cosplace", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def add_facts(path: Path, facts: Mapping[str, str]) -> None:
    """Put facts about the model into its file, where ONNX Runtime finds them as custom metadata."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(facts))
    save_onnx(model, path)


def opset_of(path: Path) -> int:
    """Version of ONNX's standard operators that a file needs."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _without_notes(model: Any) -> None:
    """Take out what the exporter noted: names inside of torch, stacks with paths of this machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.initializer)
    for thing in (model, graph, *graph.node, *values):
        thing.doc_string = ""
        del thing.metadata_props[:]
    del graph.value_info[:]  # shapes in between, under names of torch's; runtimes find them anew
    graph.name = "cosplace"


def _name_axes(model: Any, channels_last: bool) -> None:
    """Give the free axes their names.  Raises ExportError when the exporter fixed one of them."""
    layout = ("batch", "height", "width", 3) if channels_last else ("batch", 3, "height", "width")
    for value, names in ((model.graph.input[0], layout), (model.graph.output[0], ("batch", None))):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, names, strict=True):
            if not isinstance(name, str):
                continue
            if axis.HasField("dim_value"):
                raise ExportError(
                    f"PyTorch fixed the {name} of the exported network to {axis.dim_value}: use another version."
                )
            axis.dim_param = name


def node_names(model: Any, operators: Iterable[str]) -> list[str]:
    """Names of the nodes from the first of `operators` on, in the order in which they are computed."""
    wanted = set(operators)
    first = next((at for at, node in enumerate(model.graph.node) if node.op_type in wanted), len(model.graph.node))
    return [node.name for node in model.graph.node[first:]]
