"""DLA: a Q/DQ pair on every float tensor, model outputs included, and what the accelerator does not run.

DLA compiles a region as one piece, which runs in int8 only when every tensor in it has a scale. So the plan for the
GPU, which spares tensors inside fusions, is filled up here. Source of the layers and their limits: NVIDIA's
"DLA Supported Layers and Restrictions"; it has more limits than a file shows, and the builder has the last word.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.operators import SHAPES
from onnxq.patterns.pairs import arrives_quantized, existing_pair, origin
from onnxq.placement.tensorrt import BOUNDED
from onnxq.placement.weighted import FLOAT_TYPES
from onnxq.plan import Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Decision, Plan
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Abs", "Sin", "Cos", "Atan"})
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "PRelu", "BatchNormalization"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_SHUFFLES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"})
_FP16 = frozenset({"Softmax", "LRN"})  # DLA computes these in fp16, whatever is around them
_OTHERS = frozenset({"Conv", "ConvTranspose", "Concat", "Resize", "ReduceMax"})
SUPPORTED = _ELEMENTWISE | _ACTIVATIONS | _POOLS | _SHUFFLES | _FP16 | _OTHERS
"""Operators that DLA has, with the limits of `why_gpu`."""

FALLS_BACK = "falls back to the GPU"

_SHAPES = frozenset({"Shape", "Size"})


def cover(graph: Graph, plan: Plan, target: Target, recipe: Recipe) -> Plan:
    """The plan with a pair on every float activation of the main graph, and where each node runs.

    Nodes that a rule leaves in float keep reading float. Tensors that have a pair in the model share that.

    Args:
        graph: the prepared graph.
        plan: of `place`, not yet resolved.
        target: whose `every_tensor` is set.
        recipe: its rules count.
    """
    points, joins = dict(plan.points), dict.fromkeys(plan.joins)
    if "" not in graph.domains:  # no node is onnx's own, and a pair would be the first
        return plan
    sizes = _of_shapes(graph)
    for value in graph.values():
        if not value.name or graph.dtype(value) not in FLOAT_TYPES or arrives_quantized(graph, value):
            continue
        if value.name in sizes:
            continue
        uses = _uses(graph, value, recipe)
        if (pair := existing_pair(graph, value)) is not None:
            joins |= dict.fromkeys((node, index, str(pair.name)) for node, index in uses)
            continue
        is_output = value.is_graph_output() and not value.is_graph_input()
        if uses or is_output:
            points[value.name] = _point(graph, value, uses, points.get(value.name), is_output=is_output)
    points = _grouped(graph, points, target)
    gpu = {n.name or "": why for n in graph.nodes if (why := why_gpu(graph, n)) is not None}
    decisions = tuple(_decided(graph, plan.decisions, gpu))
    notes = (*plan.notes, *_notes(graph, decisions, gpu), *filter(None, [target.remark]))
    return replace(plan, points=points, joins=tuple(joins), decisions=decisions, notes=notes)


# -- points -------------------------------------------------------------------------------------------------


def _of_shapes(graph: Graph) -> set[str]:
    """Names of what shapes are computed from, up to where a Shape or Size node takes it from the data."""
    found: set[str] = set()
    ends = [(node, slot) for node in graph.nodes for slot in SHAPES.get(node.op_type, ())]
    stack = [node.inputs[slot] for node, slot in ends if slot < len(node.inputs)]
    while stack:
        value = stack.pop()
        if value is None or not value.name or value.name in found:
            continue
        found.add(value.name)
        node = graph.producer(value)
        if node is not None and node.op_type not in ("Shape", "Size"):
            stack.extend(node.inputs)
    return found


def _uses(graph: Graph, value: Value, recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """The uses that go behind the pair: not those in bodies, of shapes, and of nodes a rule keeps in float."""
    found = []
    for user, index in graph.users(value):
        name = user.name or ""
        skip = graph.in_body(user) or user.op_type in _SHAPES or (user.op_type == "QuantizeLinear" and index == 0)
        parameter = user.op_type == "Resize" and index > 0  # sizes and scales, which the parser wants in float
        parameter |= user.op_type in ("Conv", "ConvTranspose", "Gemm") and index == 2  # a bias, which stays float
        if not skip and not parameter and recipe.rule_value(name, user.op_type, "quantize") is not False:
            found.append((name, index))
    return tuple(found)


def _point(
    graph: Graph, value: Value, uses: tuple[tuple[str, int], ...], known: Point | None, *, is_output: bool
) -> Point:
    """The tensor's point; what placement knew of it (its calibrator, its group) stays."""
    name = str(value.name)
    point = known or Point(
        tensor=name,
        uses=(),
        observe=name,
        group=name,
        protected=graph.producer(origin(graph, value), *BOUNDED) is not None,
        dtype=graph.dtype(value) or "float32",
    )
    return replace(point, uses=tuple(dict.fromkeys((*point.uses, *uses))), observe=name, output=is_output)


def _grouped(graph: Graph, points: dict[str, Point], target: Target) -> dict[str, Point]:
    """One scale for what a node only moves, and around a Concat: nothing is requantized there."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    def unite(names: Iterable[str]) -> None:
        roots = sorted({root(points[name].group) for name in names if name in points})
        parent.update(dict.fromkeys(roots[1:], roots[0]) if roots else {})

    for node in graph.nodes:
        if not node.domain and _moves(graph, node, target):
            inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            unite(str(v.name) for v in (*inputs, *node.outputs) if v is not None)
    return {name: replace(point, group=root(point.group)) for name, point in points.items()}


def _moves(graph: Graph, node: Node, target: Target) -> bool:
    if node.op_type == "Resize":
        return _interpolates(graph, node)  # a cubic one makes values beyond those it reads
    return node.op_type == "Concat" or node.op_type in target.movers


# -- where nodes run ----------------------------------------------------------------------------------------


def why_gpu(graph: Graph, node: Node) -> str | None:
    """Why DLA does not run a node that makes floating-point numbers; None when it may."""
    own = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    if own or not any(graph.dtype(v) in FLOAT_TYPES for v in node.outputs):
        return None
    if node.op_type in ("Gemm", "MatMul"):
        return "DLA has no matrix product, a convolution of kernel 1x1 it would run"
    if node.domain or node.op_type not in SUPPORTED:
        return f"DLA has no {node.op_type}"
    return _why_not_conv(graph, node) if node.op_type in ("Conv", "ConvTranspose") else _limit(graph, node)


def _limit(graph: Graph, node: Node) -> str | None:
    rank = graph.rank(node.outputs[0])
    outside = {
        "Concat": (graph.attribute(node, "axis") not in (1, -3), "DLA joins along channels only"),
        "Clip": (graph.scalar((*node.inputs, None)[1]) != 0.0, "DLA clips from 0 on only"),
        "Resize": (not _interpolates(graph, node), "DLA resizes by nearest or linear only"),
    }
    holds, why = outside.get(node.op_type, (False, ""))
    flat = node.op_type not in _SHUFFLES and rank not in (None, 4)
    return why if holds else f"DLA wants tensors of rank 4 here, not {rank}" if flat else None


def _interpolates(graph: Graph, node: Node) -> bool:
    return graph.attribute(node, "mode", "nearest") in ("nearest", "linear")


def _why_not_conv(graph: Graph, node: Node) -> str | None:
    shape = graph.shape(node.inputs[1]) or ()
    if len(shape) != 4:
        return "DLA convolves in two dimensions only"
    if any(isinstance(k, int) and k > 32 for k in shape[2:]) or _largest(graph, node, "strides") > 8:
        return "DLA ends at a kernel of 32 and a stride of 8"
    plain = graph.attribute(node, "group", 1) == 1 and _largest(graph, node, "dilations") <= 1
    padded = any(graph.attribute(node, "pads", ())) or graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    if node.op_type == "ConvTranspose" and (not plain or padded):
        return "DLA has transposed convolutions without groups, dilation and padding only"
    return None


def _largest(graph: Graph, node: Node, attribute: str) -> int:
    return max((int(n) for n in graph.attribute(node, attribute, ())), default=1)


def _decided(graph: Graph, decisions: Sequence[Decision], gpu: dict[str, str]) -> Iterable[Decision]:
    floats = {n.name or "": n.op_type for n in graph.nodes if any(graph.dtype(v) in FLOAT_TYPES for v in n.outputs)}
    for decision in decisions:
        name = decision.node
        if name not in floats or decision.reason in ("excluded by a rule", "was in the model"):
            yield decision
        elif name in gpu:
            kept = f"{decision.reason}; " if decision.quantized and decision.macs else ""
            yield replace(decision, quantized=bool(kept), reason=f"{kept}{FALLS_BACK}: {gpu[name]}")
        elif floats[name] in _FP16:
            yield replace(decision, quantized=False, reason="DLA runs it in fp16")
        elif decision.macs == 0 or not decision.quantized:
            weighted = floats[name] in ("Conv", "ConvTranspose")  # in float for want of a weight, not of a pair
            yield decision if weighted else replace(decision, quantized=True, reason="int8 at all its ends, for DLA")
        else:
            yield decision


def _notes(graph: Graph, decisions: Iterable[Decision], gpu: dict[str, str]) -> Iterable[str]:
    nodes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for d in decisions:
        if FALLS_BACK in d.reason:
            nodes[d.op_type, gpu[d.node]].append(d.node)
    for (op_type, why), names in nodes.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{len(names)} {op_type} {FALLS_BACK}: {why} ({', '.join(names[:3])}{more})"
    if any(not isinstance(d, int) for v in graph.inputs for d in graph.shape(v) or (None,)):
        yield "DLA has no dynamic dimensions: build with one shape as minimum, optimum and maximum"
