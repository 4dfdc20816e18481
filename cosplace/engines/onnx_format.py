"""ONNX files: one file per model, with named dynamic axes and metadata.

torch's exporter writes the model from a trace.  What it adds about the machine (paths of source files, names of Python
modules) is removed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cosplace.engines.deployable import DeployableNetwork, summarize_error, suppress_messages, trace
from cosplace.engines.engine import INPUT, OUTPUT
from cosplace.errors import ExportError

MAX_FILE_BYTES = 2_000_000_000  # larger models need a second file for the weights, because of protobuf


def write_onnx(
    deployable: DeployableNetwork,
    path: Path,
    *,
    opset: int | None = None,
    names: tuple[str, str] = (INPUT, OUTPUT),
) -> None:
    """Write a network as ONNX.

    opset: version of ONNX's operators, None for that of torch.  names: of input and output.
    Raises ExportError if torch cannot export it, or not with these operators, or if the file would be too large.
    """
    program = trace(deployable)
    try:
        with suppress_messages(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[names[0]],
                output_names=[names[1]],
                opset_version=opset,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            assert exported is not None
            model = exported.model_proto
    except Exception as error:  # the exporter raises many types
        raise ExportError(
            f"PyTorch cannot write the network as ONNX ({summarize_error(error)}). Use another version of torch."
        ) from error
    _equalize_ranks(model)
    _remove_debug_metadata(model)
    found = _opset(model)
    if opset not in (None, found):
        raise ExportError(f"PyTorch wrote opset {found}, not {opset}. Omit --opset, or use another version of torch.")
    if deployable.inputs.static_shape is None:
        _name_axes(model, deployable.inputs.channels_last)
    save_onnx(model, path)


def save_onnx(model: Any, path: Path) -> None:
    """Check an ONNX model and write it as one file."""
    import onnx

    size = model.ByteSize()
    if size > MAX_FILE_BYTES:
        raise ExportError(
            f"The network needs {size / 1e9:.1f} GB, but an ONNX file holds at most {MAX_FILE_BYTES / 1e9:.0f} GB. Use "
            f"--precision fp16."
        )
    model.producer_name, model.producer_version = "cosplace", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Store metadata in an ONNX file; ONNX Runtime returns it as custom metadata."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    save_onnx(model, path)


def opset_of(path: Path) -> int:
    """Return the version of ONNX's standard operators that a file needs."""
    import onnx

    return _opset(onnx.load(path, load_external_data=False))


def _opset(model: Any) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def nodes_from(model: Any, operators: Iterable[str]) -> list[str]:
    """Names of all nodes from the first one with one of these operators on, in the order of computation."""
    nodes, operators = list(model.graph.node), set(operators)
    first = next((number for number, node in enumerate(nodes) if node.op_type in operators), len(nodes))
    return [node.name for node in nodes[first:]]


def _equalize_ranks(model: Any) -> None:
    """Where a matrix is multiplied by a stack of matrices, give it as many axes as the stack.  No result changes.

    Products of inputs with different ranks are valid ONNX, but OpenVINO 2026.4 cannot compile them for any size.  If
    the stack is stored in the file, the matrix is also repeated once per matrix of the stack: otherwise OpenVINO fails,
    or returns descriptors of no photo.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}
    stored = {value.name: list(value.dims) for value in graph.initializer}
    ranks |= {name: len(sizes) for name, sizes in stored.items()}
    nodes = list(model.graph.node)
    for place in reversed(range(len(nodes))):  # so that what is inserted does not move the places to come
        node = nodes[place]
        if node.op_type != "MatMul":
            continue
        first, second = (ranks.get(name, 0) for name in node.input)
        if 2 <= first < second:
            sizes = stored.get(node.input[1])
            operator, values = (
                ("Unsqueeze", [*range(second - first)]) if sizes is None else ("Expand", [*sizes[:-2], 1, 1])
            )
            added, changed = f"{node.output[0]}_axes", f"{node.output[0]}_first"
            axes = onnx.helper.make_tensor(added, onnx.TensorProto.INT64, [len(values)], values)
            model.graph.initializer.append(axes)
            equalized = onnx.helper.make_node(operator, [node.input[0], added], [changed], changed)
            node.input[0] = changed
            model.graph.node.insert(place, equalized)


def _remove_debug_metadata(model: Any) -> None:
    """Remove what the exporter adds for debugging: names of torch's modules, stack traces with paths."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]  # shapes of intermediate results, which runtimes infer themselves
    graph.name = "cosplace"


def _name_axes(model: Any, channels_last: bool) -> None:
    """Name the dynamic axes.  Raises ExportError if the exporter made one of them constant."""
    layout = ("batch", "height", "width", 3) if channels_last else ("batch", 3, "height", "width")
    for value, names in ((model.graph.input[0], layout), (model.graph.output[0], ("batch", None))):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, names, strict=True):
            if not isinstance(name, str):
                continue
            if axis.HasField("dim_value"):
                raise ExportError(
                    f"PyTorch exported a network with a fixed {name} of {axis.dim_value}. Use another version of torch."
                )
            axis.dim_param = name
