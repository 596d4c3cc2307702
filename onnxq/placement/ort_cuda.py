"""Placement for ONNX Runtime's CUDA provider: what it computes on integers, which is MatMulInteger and nothing else.

A pair around any other operator would be two more kernels around a float one. So: matrix products with a constant
weight in int8, embedding tables stored in int8, everything else in the recipe's float type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.patterns import find_patterns, labels
from onnxq.patterns.pairs import existing_pair, kept, origin
from onnxq.placement.embeddings import STORED, TABLE, table_reason
from onnxq.placement.tensorrt import BOUNDED
from onnxq.placement.weighted import is_quantized_already, macs, weight_of, why_float, why_small
from onnxq.plan import INT8, Decision, Plan, Point, WeightPoint

if TYPE_CHECKING:
    from onnxq.formats import Format
    from onnxq.graph import Graph, Node, Value
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

ALIGNED = 32
"""K and N that cublasGemmEx takes as they are: integer_gemm.cc pads the leading dimensions to multiples of it."""


def place_cuda(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """Decide for every node of a prepared graph whether it becomes a MatMulInteger or reads an int8 table."""
    label = labels(find_patterns(graph))
    uses: dict[str, list[tuple[str, int]]] = {}
    values: dict[str, Value] = {}
    calibrators: dict[str, str] = {}
    joins: list[tuple[str, int, str]] = []
    weights: dict[tuple[str, int | None, Format], list[tuple[str, int]]] = {}
    decisions = []
    for node in graph.nodes:
        name = node.name or ""
        reason, chosen = _decide(graph, node, target, recipe, label.get(name))
        decisions.append(Decision(name, node.op_type, chosen, reason, macs(graph, node, target)))
        if not chosen or reason.endswith("already"):
            continue
        if node.op_type == "Gather":
            weights.setdefault((_name(node.inputs[0]), None, TABLE), []).append((name, 0))
            continue
        weight = weight_of(graph, node, target)
        assert weight is not None  # noqa: S101  `_decide` has seen it
        axis = None if recipe.rule_value(name, node.op_type, "per_channel") is False else weight.axis
        weights.setdefault((_name(weight.value), axis, INT8), []).append((name, weight.index))
        value = node.inputs[0]
        if value is not None and (pair := existing_pair(graph, value)) is not None:
            joins.append((name, 0, _name(pair)))
        elif value is not None:
            values[_name(value)] = value
            uses.setdefault(_name(value), []).append((name, 0))
            if (said := recipe.rule_value(name, node.op_type, "calibrator")) is not None:
                calibrators.setdefault(_name(value), said)
    return Plan(
        target=target.name,
        points={n: _point(graph, values[n], where, calibrators.get(n)) for n, where in uses.items()},
        weights=tuple(WeightPoint(n, tuple(w), axis, stored) for (n, axis, stored), w in weights.items()),
        decisions=tuple(decisions),
        kept=kept(graph),
        joins=tuple(joins),
    )


def _point(graph: Graph, value: Value, uses: list[tuple[str, int]], calibrator: str | None) -> Point:
    source = origin(graph, value)
    return Point(
        tensor=_name(value),
        uses=tuple(uses),
        observe=_name(source),
        group=_name(value),
        calibrator=calibrator,
        protected=graph.producer(source, *BOUNDED) is not None,
        dtype=graph.dtype(value) or "float32",
    )


def _decide(graph: Graph, node: Node, target: Target, recipe: Recipe, label: str | None) -> tuple[str, bool]:
    """(Reason, whether int8)."""
    said = recipe.rule_value(node.name or "", node.op_type, "quantize")
    if said is False:
        return "excluded by a rule", False
    if node.op_type == "Gather" and not node.domain:
        why = table_reason(graph, node, target)
        return (STORED, True) if why is None else (why, False)
    if node.op_type not in target.weighted or node.domain:
        return (f"part of {label}, kept whole" if label else "has no integer kernel on CUDA"), False
    if is_quantized_already(graph, node, target):
        return "quantized in the model already", True
    reason = why_float(graph, node, target) or _why_no_kernel(graph, node, insists=said is True)
    if reason is None and said is not True:
        reason = why_small(graph, node, target) or why_unaligned(graph, node)
    if reason is not None:
        return (f"attention: {reason}" if label == "Softmax attention" else reason), False
    return "int8 input and weight, a scale per output channel", True


def _why_no_kernel(graph: Graph, node: Node, *, insists: bool) -> str | None:
    """Why no integer kernel can do it, a rule or none."""
    if node.op_type in ("MatMul", "Gemm"):
        rank = graph.rank(node.inputs[1])
        return None if rank == 2 else f"a weight of rank {rank}; integer products take matrices"
    if node.op_type == "Conv" and is_pointwise(graph, node):
        return (
            None
            if insists
            else "a 1x1 convolution: as MatMulInteger unmeasured, a rule with quantize = true asks for it"
        )
    return "the provider has no integer convolution"


def why_unaligned(graph: Graph, node: Node) -> str | None:
    """Why the product's K speaks against int8; N can be padded offline, K is the activation's."""
    shape = graph.shape(node.inputs[1]) or ()
    if node.op_type != "Conv" and len(shape) != 2:
        return None
    transposed = node.op_type == "Conv" or graph.attribute(node, "transB", 0)
    k = shape[1] if transposed else shape[0]
    if not isinstance(k, int) or k % ALIGNED == 0:
        return None
    return (
        f"K is {k}, no multiple of {ALIGNED}: int8 Pad has no CUDA kernel, and unpadded each call copies both operands"
    )


def is_pointwise(graph: Graph, node: Node) -> bool:
    """Whether a convolution is a matrix product over pixels: 1x1, stride 1, no padding, one group, two dimensions."""
    shape = graph.shape(node.inputs[1]) or ()
    return (
        len(shape) == 4
        and shape[2:] == (1, 1)
        and graph.attribute(node, "group", 1) == 1
        and not any(graph.attribute(node, "pads", ()) or ())
        and all(s == 1 for s in graph.attribute(node, "strides", ()) or ())
    )


def _name(value: Value | None) -> str:
    return "" if value is None else str(value.name)
