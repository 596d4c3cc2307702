"""Powers of two from the scales of a float16 weight to that of the codes beside it.

    DQ(x, s_x) W  =  DQ(x, s_x 2^-k) (W 2^k),    exactly

float16 has all its digits down to 2^-14 alone, and the scale of a weight is its largest value over 127: one that goes
to 0.007 only, or holds a factor that was folded into it, would be left with few codes. Scales of activations are far
larger. The QuantizeLinear in front keeps its scale, and other readers their DequantizeLinear.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import LINEAR
from onnxq.patterns.ranges import SMALLEST_SCALE, lost_scales

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

_LENT = "_lent"


def lift_scales(graph: Graph, uses: Sequence[tuple[Node, int]], weight: npt.NDArray[Any], axis: int | None) -> int:
    """Divide the scales of what is multiplied with the weight by 2^k, and return k; 0 where nothing was changed.

    Args:
        graph: with pairs in front of what the nodes read.
        uses: (node, input index) of all that read the weight.
        weight: float16; other types hold all scales.
        axis: of its output channels.
    """
    amax = lost_scales(weight, axis) if weight.dtype == np.float16 else np.zeros(0)
    if not amax.size:
        return 0
    wanted = math.ceil(math.log2(127 * SMALLEST_SCALE / float(amax.min())))
    room = min(_room(graph, node, index) for node, index in uses)
    exponent = min(wanted, room)
    if exponent <= 0:
        return 0
    made: dict[int, Any] = {}
    for node, _ in uses:
        dequantize = graph.producer(node.inputs[0], "DequantizeLinear")
        assert dequantize is not None  # noqa: S101  there was room
        if id(dequantize) not in made:
            made[id(dequantize)] = _divided(graph, dequantize, exponent)
        graph.set_input(node, 0, made[id(dequantize)])
    return exponent


def lifted_by(graph: Graph, weight: Value) -> int:
    """The k of a weight that a finished model holds times 2^k, 0 of others.

    Args:
        graph: the model.
        weight: as its products read it.
    """
    for node, index in graph.users(weight):
        dequantize = graph.producer(node.inputs[0], "DequantizeLinear") if index == 1 else None
        quantize = None if dequantize is None else graph.producer(dequantize.inputs[0], "QuantizeLinear")
        if dequantize is not None and quantize is not None and f"{_LENT}/" in str(dequantize.name):
            given, left = graph.scalar(quantize.inputs[1]), graph.scalar(dequantize.inputs[1])
            return round(math.log2(given / left)) if given and left else 0
    return 0


def _room(graph: Graph, node: Node, index: int) -> int:
    """By how many powers of two the scale of the node's data can be divided."""
    dequantize = graph.producer(node.inputs[0], "DequantizeLinear")
    if dequantize is None or index != 1 or node.op_type not in LINEAR or node.domain:
        return 0
    scale = graph.scalar(dequantize.inputs[1])
    return math.floor(math.log2(scale / SMALLEST_SCALE)) if scale else 0


def _divided(graph: Graph, dequantize: Node, exponent: int) -> object:
    """What the DequantizeLinear makes, times 2^-exponent."""
    value, stored = dequantize.outputs[0], dequantize.inputs[1]
    scale = graph.const(stored)
    assert scale is not None  # noqa: S101  there was room
    divided = graph.constant(f"{value.name}_scale_lent", np.ldexp(scale, -exponent).astype(scale.dtype))
    inputs = [dequantize.inputs[0], divided, *dequantize.inputs[2:]]
    return graph.add("DequantizeLinear", inputs, name=f"{value.name}{_LENT}", like=value)
