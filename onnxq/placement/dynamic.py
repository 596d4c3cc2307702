"""Placement of mode dynamic: int8 weights, activations quantized at run time with the range of each input.

For providers that fuse DynamicQuantizeLinear + MatMulInteger, run ConvInteger, or have DynamicQuantizeLSTM: ONNX
Runtime's CPU provider. Needs no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.placement.embeddings import STORED, stored_tables
from onnxq.placement.weighted import is_quantized_already, macs, weight_of, why_float
from onnxq.plan import Decision, Plan, WeightPoint

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

LSTM_WEIGHTS = (1, 2)
"""Inputs W and R of an LSTM."""


def place_dynamic(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """Decide for every node whether it is computed on integers with scales found at run time."""
    uses: dict[tuple[str, int | None], list[tuple[str, int]]] = {}
    decisions = []
    tables = stored_tables(graph, target, recipe)
    stored = {name for table in tables for name, _ in table.uses}
    for node in graph.nodes:
        name = node.name or ""
        if name in stored:
            decisions.append(Decision(name, node.op_type, quantized=True, reason=STORED, macs=0))
            continue
        reason = _why_float(graph, node, target, recipe)
        text = reason or "int8 weight, the input quantized at run time"
        decisions.append(Decision(name, node.op_type, reason is None, text, macs(graph, node, target)))
        if reason is not None:
            continue
        for index in LSTM_WEIGHTS if node.op_type == "LSTM" else (1,):
            weight = weight_of(graph, node, target) if node.op_type in target.weighted else None
            axis = None if weight is None else weight.axis
            uses.setdefault((str(node.inputs[index].name), axis), []).append((name, index))  # type: ignore[union-attr]  # seen by _why_float
    return Plan(
        target.name,
        {},
        (*(WeightPoint(n, tuple(where), axis) for (n, axis), where in uses.items()), *tables),
        tuple(decisions),
    )


def _why_float(graph: Graph, node: Node, target: Target, recipe: Recipe) -> str | None:
    if recipe.rule_value(node.name or "", node.op_type, "quantize") is False:
        return "excluded by a rule"
    if node.domain:
        return f"custom operator ({node.domain})"
    if recipe.activations == "int8/token" and node.op_type in ("LSTM", "Conv"):
        return "a scale per token is for matrix products"
    if node.op_type == "LSTM":
        return _why_float_lstm(graph, node)
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return "has no form with scales found at run time"
    return why_float(graph, node, target) or _why_float_product(graph, node, target)


def _why_float_product(graph: Graph, node: Node, target: Target) -> str | None:
    rank = graph.rank(node.inputs[1]) or 0
    reasons = (
        (is_quantized_already(graph, node, target), "quantized in the model already"),
        (node.op_type != "Conv" and rank != 2, f"a weight of rank {rank}; integer products take matrices"),
        (node.op_type == "Gemm" and bool(graph.attribute(node, "transA", 0)), "a Gemm with transA"),
        (graph.dtype(node.inputs[0]) not in ("float32", None), "DynamicQuantizeLinear takes float32 only"),
    )
    return next((text for holds, text in reasons if holds), None)


def _why_float_lstm(graph: Graph, node: Node) -> str | None:
    """DynamicQuantizeLSTM takes constant float32 weights, no peepholes are touched, and no layout but the first."""
    if graph.attribute(node, "layout", 0):
        return "an LSTM with the batch first (layout 1)"
    for index in LSTM_WEIGHTS:
        value = node.inputs[index]
        if not graph.is_const(value) or graph.dtype(value) != "float32":
            return "an LSTM whose weights are no float32 constants"
    return None
