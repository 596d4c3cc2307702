"""Placement of mode float: nothing is quantized, the whole model goes to fp16 or bf16 but for what would overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.placement.weighted import macs
from onnxq.plan import Decision, Plan

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target


def place_floats(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """No node is quantized; `onnxq.precision` says which stay in float32."""
    reason = f"computes in {recipe.float_type}"
    decisions = tuple(Decision(n.name or "", n.op_type, False, reason, macs(graph, n, target)) for n in graph.nodes)
    return Plan(target.name, {}, (), decisions)
