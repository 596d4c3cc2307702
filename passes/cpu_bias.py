"""Biases in the form that lets ONNX Runtime's CPU provider run the layer in integers.

Seen with 1.31: behind quantized inputs it still joins a MatMul of known shape with the Add of a bias [N] into a float
Gemm, which then has no integer kernel; a bias [1, ..., N] it leaves alone. It replaces a Gemm without a Q behind it
only when the bias is int32 behind a DequantizeLinear, and 1.22 no Conv or Gemm with a Relu in front of the Q: only
later versions round such a bias themselves, to int32 in steps of scale_x * scale_w. They do so without a look at the
range: where a channel's weights are tiny beside its bias, that overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.numerics import along

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node

LARGEST = 2**30
"""Largest code of a bias: half of int32, the other half is for the products it is added to."""


def fit_weight_scales(graph: Graph) -> int:
    """Raise the weight scales of channels whose bias would not fit int32; return in how many layers.

    s_w = max(s_w, |b| / (2^30 s_x)): such a channel's weights are below 2^-22 of its bias, whatever rounds them.
    """
    return sum(_fit(graph, node) for node in graph.nodes if node.op_type in ("Conv", "Gemm") and not node.domain)


def round_biases(graph: Graph) -> int:
    """Store the bias of every quantized Conv and Gemm as int32 with the scale s_x * s_w; return how many."""
    return sum(_round(graph, node) for node in graph.nodes if node.op_type in ("Conv", "Gemm") and not node.domain)


def keep_biases_apart(graph: Graph) -> int:
    """Give the bias behind a quantized MatMul of rank 3 or more the shape [1, ..., N]; return how many."""
    return sum(_lift(graph, node) for node in graph.nodes if node.op_type == "Add" and not node.domain)


def _fit(graph: Graph, node: Node) -> bool:
    found = _scales(graph, node)
    bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    dequantize = graph.producer(node.inputs[1], "DequantizeLinear")
    if found is None or bias is None or dequantize is None:
        return False
    source, weight = found
    least = np.abs(bias.astype(np.float64)).reshape(-1) / (LARGEST * source)
    least = least.max(initial=0.0) if weight.size == 1 else least
    if np.all(weight >= least):
        return False
    (stored, old, *zeros), codes = dequantize.inputs, graph.const(dequantize.inputs[0])
    zero = graph.const(zeros[0]) if zeros and zeros[0] is not None else np.zeros((), np.int8)
    if codes is None or stored is None or old is None or zero is None:
        return False
    new = np.maximum(weight, least).astype(np.float32)
    axis = int(graph.attribute(dequantize, "axis", 1))
    both = (zero.astype(np.float64), weight / new)
    middle, ratio = (along(a, codes.ndim, axis if a.ndim else None) for a in both)
    moved = (np.rint((codes - middle) * ratio) + middle).astype(codes.dtype)
    real = graph.add(
        "DequantizeLinear",
        [graph.constant(f"{stored.name}_fitted", moved), graph.constant(f"{old.name}_fitted", new), *zeros],
        name=f"{stored.name}_fitted_dequantized",
        attributes={"axis": axis} if new.ndim else None,
        like=dequantize.outputs[0],
    )
    graph.set_input(node, 1, real)
    return True


def _round(graph: Graph, node: Node) -> bool:
    found = _scales(graph, node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = graph.const(bias)
    if found is None or bias is None or array is None or array.dtype != np.float32:
        return False
    source, weight = found
    scale = np.broadcast_to(source * weight, array.size).astype(np.float32)
    if not scale.all():  # too small for a float32
        return False
    codes = np.rint(array.reshape(-1).astype(np.float64) / scale)
    if np.abs(codes).max(initial=0.0) > np.iinfo(np.int32).max:
        return False
    parts = (("quantized", codes.astype(np.int32)), ("scale", scale), ("zero_point", np.zeros(array.size, np.int32)))
    inputs = [graph.constant(f"{bias.name}_{what}", part) for what, part in parts]
    real = graph.add("DequantizeLinear", inputs, name=f"{bias.name}_dequantized", attributes={"axis": 0}, before=node)
    graph.set_input(node, 2, real)
    return True


def _lift(graph: Graph, add: Node) -> bool:
    for index in (0, 1):
        node, bias = graph.producer(add.inputs[1 - index], "MatMul"), add.inputs[index]
        if node is None or bias is None or graph.rank(bias) != 1:
            continue
        array, rank = graph.const(bias), graph.rank(node.outputs[0])
        quantized = all(graph.producer(v, "DequantizeLinear") is not None for v in node.inputs)
        if array is None or rank is None or rank < 3 or not quantized:
            continue
        shape = (*(1,) * (rank - 1), array.size)
        graph.set_input(add, index, graph.constant(f"{bias.name}_apart", array.reshape(shape)))
        return True
    return False


def _scales(graph: Graph, node: Node) -> tuple[float, npt.NDArray[Any]] | None:
    """(scale of the input, scale or scales of the weight) of a node between DequantizeLinear nodes, in float64.

    None where the weight, kept from the input model, has no scale for each output channel: biases have no others.
    """
    pairs = [graph.producer(v, "DequantizeLinear") for v in node.inputs[:2]]
    source, weight = (None if pair is None else graph.const(pair.inputs[1]) for pair in pairs)
    if source is None or weight is None or source.size != 1 or not (weight.size == 1 or _by_output(graph, node)):
        return None
    return float(source.reshape(-1)[0]), np.asarray(weight, np.float64)


def _by_output(graph: Graph, node: Node) -> bool:
    """Whether the scales of a Conv's or Gemm's weight lie along its output channels."""
    dequantize = graph.producer(node.inputs[1], "DequantizeLinear")
    rank = None if dequantize is None else graph.rank(dequantize.inputs[0])
    if dequantize is None or not rank or graph.attribute(dequantize, "block_size", 0):
        return False
    outputs = 1 if node.op_type == "Gemm" and not graph.attribute(node, "transB", 0) else 0
    return int(graph.attribute(dequantize, "axis", 1)) % rank == outputs
