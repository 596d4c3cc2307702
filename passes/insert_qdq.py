"""Put a QuantizeLinear/DequantizeLinear pair in front of the planned uses of every point.

One pair per tensor serves all its uses. Zero points and axes are always written: a parser's default is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import PassError

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Plan, Point


@dataclass(frozen=True)
class InsertQDQ:
    """Insert the activation pairs of a resolved plan, and join uses to pairs the model already has."""

    plan: Plan

    def __call__(self, graph: Graph) -> int:
        """Return how many pairs were inserted and uses joined."""
        nodes = {n.name or "": n for n in graph.nodes}
        values = {str(v.name): v for v in graph.values()}
        for point in self.plan.points.values():
            _insert(graph, point, values[point.tensor], nodes)
        for node, index, tensor in self.plan.joins:
            graph.set_input(nodes[node], index, values[tensor])
        if self.plan.joins:
            graph.sort()  # the model's own pair may stand behind the node that joins it
        return len(self.plan.points) + len(self.plan.joins)


def _insert(graph: Graph, point: Point, value: Value, nodes: dict[str, Node]) -> None:
    if point.params is None:
        raise PassError(f"point {point.tensor!r} has no parameters", "Resolve the plan with statistics first.")
    name = point.tensor
    dtype = np.dtype(point.dtype)
    # A scale below the type's smallest normal number would be flushed to zero.
    scale_array = np.maximum(point.params.scale.astype(dtype), np.finfo(dtype).tiny).astype(dtype)
    scale = graph.constant(f"{name}_scale", scale_array)
    zero_point = graph.constant(f"{name}_zero_point", point.params.zero_point)
    by = {} if point.params.axis is None else {"axis": point.params.axis}
    quantized = graph.add("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantized", attributes=by)
    graph.retype(quantized, point.params.zero_point.dtype.name)
    inputs = [quantized, scale, zero_point]
    real = graph.add("DequantizeLinear", inputs, name=f"{name}_dequantized", attributes=by, like=value)
    graph.replace_uses(value, real, [(nodes[node], index) for node, index in point.uses])
    if point.output:
        graph.replace_output(value, real)
