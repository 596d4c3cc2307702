"""Scales per channel of what a convolution writes, moved into the rows of its weight.

Such a tensor y with a grid per channel has a Q and a DQ with scales s_j and zero points z_j along the channels. ONNX
Runtime's QLinearConv writes with one scale s and one zero point z, and has a scale for each row of the weight:

    y'_j = y_j s / s_j + (z_j - z) s        round(y' / s) + z = round(y_j / s_j) + z_j

So the rows' scales are multiplied by s / s_j, which leaves their codes what they are; the bias likewise, and moved by
(z_j - z) s; and only the DequantizeLinear in front of the readers, in float, keeps a scale per channel. Behind a Relu
all zero points are 0, and it commutes with a positive factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import PassError
from onnxq.smoothed import Smoothed, record
from onnxq.statistics import Factor

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]


def channel_scales_in_rows(graph: Graph) -> int:
    """Do so for every convolution in int8; return for how many."""
    return sum(_move(graph, node) for node in graph.nodes if node.op_type == "QuantizeLinear" and not node.domain)


def _move(graph: Graph, quantize: Node) -> bool:
    steps, zeros = (graph.const(value) for value in quantize.inputs[1:3])
    conv = _convolution(graph, quantize.inputs[0])
    if conv is None or steps is None or zeros is None or steps.ndim != 1 or graph.attribute(quantize, "axis", 1) != 1:
        return False
    weight = graph.producer(conv.inputs[1], "DequantizeLinear")
    scale = None if weight is None else graph.const(weight.inputs[1])
    by_row = weight is not None and (scale is None or scale.ndim == 0 or graph.attribute(weight, "axis", 1) == 0)
    clamped = graph.producer(quantize.inputs[0], "Relu") is not None
    if weight is None or scale is None or not by_row or (clamped and zeros.any()):
        return False
    step, zero = steps.astype(np.float64).max(), int(np.median(zeros))
    factor = step / steps.astype(np.float64)
    shift = (zeros.astype(np.float64) - zero) * step
    _scale_rows(graph, conv, weight, scale * factor)
    _set_bias(graph, conv, factor, shift)
    for index, array in ((1, np.asarray(step, steps.dtype)), (2, np.asarray(zero, zeros.dtype))):
        graph.set_input(quantize, index, graph.constant(f"{quantize.inputs[index].name}_one", array))  # type: ignore[union-attr]  # both are constants
    graph.set_attribute(quantize, "axis", None)
    _rename(graph, conv, quantize, Factor((1 / factor).astype(np.float32), (-shift / factor).astype(np.float32)))
    return True


def _convolution(graph: Graph, value: Value | None) -> Node | None:
    """The convolution in int8 whose output, or that behind a Relu, nothing else reads."""
    relu = graph.producer(value, "Relu")
    made = value if relu is None else relu.inputs[0]
    conv = graph.producer(made, "Conv")
    alone = all(v is not None and not v.is_graph_output() and len(graph.users(v)) == 1 for v in (value, made))
    if conv is None or conv.domain or not alone or graph.in_body(conv):
        return None
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    paired = all(graph.producer(v, "DequantizeLinear") is not None for v in conv.inputs[:2])
    return conv if paired and (bias is None or graph.is_const(bias)) else None


def _scale_rows(graph: Graph, conv: Node, weight: Node, scale: Array) -> None:
    """Give the convolution its weight's codes with other scales; who shares the weight keeps those it has."""
    codes, old, *rest = weight.inputs
    zeros = graph.const(rest[0]) if rest and rest[0] is not None else np.zeros((), np.int8)
    if old is None or zeros is None:
        raise PassError(f"the scales of {weight.name!r} are no constants", "This is a fault in onnxq.")
    inputs = [
        codes,
        graph.constant(f"{old.name}_rows", scale.astype(np.float32)),
        graph.constant(f"{old.name}_rows_zero_point", np.broadcast_to(zeros, scale.shape).copy()),
    ]
    name = f"{weight.outputs[0].name}_rows"
    made = graph.add("DequantizeLinear", inputs, name=name, attributes={"axis": 0}, like=conv.inputs[1], before=conv)
    graph.set_input(conv, 1, made)


def _set_bias(graph: Graph, conv: Node, factor: Array, shift: Array) -> None:
    old = conv.inputs[2] if len(conv.inputs) > 2 else None
    array = np.zeros(factor.size) if old is None else np.asarray(graph.const(old), np.float64)
    moved = array * factor + shift
    if old is not None or moved.any():
        name = f"{conv.name}/bias" if old is None else f"{old.name}_rows"
        graph.set_input(conv, 2, graph.constant(name, moved.astype(np.float32)))


def _rename(graph: Graph, conv: Node, quantize: Node, factor: Factor) -> None:
    """Names stand for the float model's values: what has others gets another, and the metadata tells of it."""
    told: list[Smoothed] = []
    values = dict.fromkeys((conv.outputs[0], quantize.inputs[0]))
    for value in values:
        assert value is not None  # noqa: S101  the convolution's output, and what is read
        name, rank = str(value.name), graph.rank(value) or 0
        graph.rename(value, f"{name}/channels")
        told.append(Smoothed(name, str(value.name), 1 - rank))
    record(graph, told, told[0].name, factor)
