"""8-bit weights: an ONNX file of a quarter of the size, whose activations stay in float32.

The weights of convolutions and linear layers are signed 8-bit numbers with one scale per output channel, and a node
DequantizeLinear makes floats of them.  Unlike `quantization`, this needs no photos.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cosplace.engines.onnx_format import save_onnx

LARGEST = 127  # absolute value of a weight


def round_weights(fp32_path: Path, to: Path) -> None:
    """Write an ONNX file with 8-bit weights."""
    import onnx

    model = onnx.load(fp32_path)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    added = []
    for name, axis in _weight_axes(graph).items():
        weights = onnx.numpy_helper.to_array(stored[name])
        if weights.dtype != np.float32:
            continue
        rounded, scales = round_channels(weights, axis)
        inputs = [f"{name}_int8", f"{name}_scales"]
        graph.initializer.remove(stored[name])
        graph.initializer.append(onnx.numpy_helper.from_array(rounded, inputs[0]))
        graph.initializer.append(onnx.numpy_helper.from_array(scales, inputs[1]))
        # Its output has the name of the weights, so that the other nodes stay as they are.
        added.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}_floats", axis=axis))
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    save_onnx(model, to)


def round_channels(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8, and the scale float32 of each channel along an axis: weights are about int8 times scale."""
    others = tuple(one for one in range(weights.ndim) if one != axis)
    scales = np.abs(weights).max(axis=others, keepdims=True) / np.float32(LARGEST)
    scales[scales == 0] = 1  # of a channel whose weights are 0
    rounded = np.clip(np.rint(weights / scales), -LARGEST, LARGEST).astype(np.int8)
    return rounded, scales.reshape(-1)


def _weight_axes(graph: Any) -> dict[str, int]:
    """The axis of the output channels of each stored weight of a convolution or a linear layer, by name."""
    stored = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    axes: dict[str, int] = {}
    for node in graph.node:
        is_transposed = any(one.name == "transB" and one.i for one in node.attribute)
        name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if node.op_type == "Conv" and name in stored:
            axes.setdefault(name, 0)
        elif stored.get(name) == 2:
            axes.setdefault(name, 0 if is_transposed else 1)
    return axes
