"""Factors per channel in front of a convolution in int8, moved into the QuantizeLinear.

Smoothing computes x' = x m_j for a convolution by a Mul of its own, a pass over memory. A QuantizeLinear with a scale
for each channel makes the same codes, round(x m_j / s) = round(x / (s / m_j)), and costs what one with a single scale
does. The DequantizeLinear behind it keeps its one scale, and so does the QLinearConv that ONNX Runtime makes of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import constant_operand

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value


@dataclass(frozen=True)
class ScalesInQuantize:
    """Fold such a Mul into the QuantizeLinear that alone reads it.

    Attributes:
        movers: operators that move data: the provider takes a QuantizeLinear through them, as if it had one scale.
    """

    movers: Collection[str]

    def __call__(self, graph: Graph) -> int:
        """Return how many were folded."""
        return sum(self._fold(graph, node) for node in graph.nodes if node.op_type == "Mul" and not node.domain)

    def _fold(self, graph: Graph, mul: Node) -> bool:
        quantize = graph.only_user(mul.outputs[0])
        index = constant_operand(graph, mul)
        if index is None or quantize is None or quantize.op_type != "QuantizeLinear":
            return False
        if mul.outputs[0].is_graph_output() or not _in_front_of_convolutions(graph, quantize):
            return False
        value = mul.inputs[1 - index]
        factors = _by_channel(graph, value, mul.inputs[index])
        scale, zero = (graph.const(v) for v in quantize.inputs[1:3])
        if factors is None or scale is None or zero is None or scale.ndim or not self._stays(graph, value):
            return False
        with np.errstate(over="ignore"):
            steps = (scale.astype(np.float64) / factors).astype(scale.dtype)
        if not (np.isfinite(steps) & (steps >= np.finfo(scale.dtype).tiny)).all():
            return False
        graph.set_input(quantize, 0, value)
        for place, array in ((1, steps), (2, np.full(steps.shape, zero))):
            graph.set_input(quantize, place, graph.constant(f"{mul.outputs[0].name}_q{place}", array))
        graph.set_attribute(quantize, "axis", 1)
        graph.remove(mul)
        return True

    def _stays(self, graph: Graph, value: Value | None) -> bool:
        """Whether an operator in float makes the value that the provider leaves as it is in front of a pair.

        Not one whose operands all come from pairs, unless it is known that no integer kernel can be made of it.
        """
        maker = graph.producer(value)
        if maker is None or maker.op_type in {*self.movers, "Relu", "Clip", "Where", "DequantizeLinear"}:
            return False
        read = [v for v in maker.inputs if v is not None and not graph.is_const(v)]
        return maker.op_type in _FLOAT or any(graph.producer(v, "DequantizeLinear") is None for v in read)


_FLOAT = frozenset({"Sqrt", "Exp", "Log", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "Elu", "LayerNormalization"})
"""Operators without a kernel for integers."""


def _in_front_of_convolutions(graph: Graph, quantize: Node) -> bool:
    """Whether all that reads the codes are DequantizeLinear nodes, and all that reads those are inputs of Convs."""
    pairs = [user for user, _ in graph.users(quantize.outputs[0])]
    if not pairs or any(user.op_type != "DequantizeLinear" for user in pairs):
        return False
    reads = [use for pair in pairs for use in graph.users(pair.outputs[0])]
    ends = any(pair.outputs[0].is_graph_output() or graph.in_body(pair) for pair in pairs)
    return bool(reads) and not ends and all(user.op_type == "Conv" and index == 0 for user, index in reads)


def _by_channel(graph: Graph, value: Value | None, constant: Value | None) -> npt.NDArray[Any] | None:
    """Positive factors (C,) along axis 1 of a tensor of known rank 3 or more; None for others."""
    rank, array = graph.rank(value), graph.const(constant)
    if rank is None or rank < 3 or array is None or array.size < 2:
        return None
    along = (1,) * (rank - array.ndim) + array.shape
    if array.ndim > rank or along[1] != array.size or not (array > 0).all():
        return None
    return array.reshape(-1).astype(np.float64)
