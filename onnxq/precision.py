"""Which nodes stay in float32 when the rest of the graph goes to float16, and what must be seen to know it.

float16 ends at 65504 and loses digits below 6.1e-5. A calibrated range tells what overflows; sums of squares are
accumulated in float32, as NVIDIA advises for strongly typed networks; a constant that would overflow or vanish keeps
its node in float32. bfloat16 has float32's range: only sums stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.exposing import why_hidden
from onnxq.linear import BIASED
from onnxq.numerics import INT8_ASYMMETRIC, held_by, with_exact_shift
from onnxq.operators import RECURRENT
from onnxq.patterns import find_patterns
from onnxq.patterns.bounds import bound, bounds
from onnxq.patterns.chains import epilogue, exact_nodes, masks
from onnxq.patterns.peaks import peaks
from onnxq.patterns.ranges import (
    ASSUMED,
    COUNTED,
    GROWING,
    LIMIT,
    SMALLEST_SCALE,
    Known,
    covered,
    lost_scales,
    out_of_range,
    rounded_away,
)
from onnxq.placement.bodies import divided, part_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.numerics import QuantParams
    from onnxq.patterns import Pattern
    from onnxq.plan import Plan, Point
    from onnxq.statistics import Reach

_SUMS = frozenset({"Pow", "Exp", "CumSum", "ReduceSum", "ReduceSumSquare", "ReduceProd"} | {"ReduceL1", "ReduceL2"})
_LOG_SUMS = frozenset({"ReduceLogSum", "ReduceLogSumExp"})
_NORMS = frozenset({"LayerNorm", "RMSNorm", "Softmax"})  # in their decomposed forms; as one operator they are safe
_LAYERS = RECURRENT | {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}
_CUBE_LIMIT = 31.0  # x³ of a tanh-form GELU stays below LIMIT


HALF_OPSET = 19
"""The first opset whose Q/DQ nodes take scales in half precision."""


@dataclass(frozen=True)
class Halves:
    """What a model had in half precision that was brought to float32.

    Attributes:
        nodes: names of those that computed in it: they do so again, whatever their operator.
        wide: names of those that stay in float32, since they were.
        kind: "float16" or "bfloat16". What is then written in the other one is of another range or fewer digits, and
            held to be of a model in float32.
    """

    nodes: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    kind: str = "float16"


FLOAT32 = Halves()
"""Nothing."""


def with_float_types(graph: Graph, plan: Plan, tensors: Mapping[str, Reach], source: Halves = FLOAT32) -> Plan:
    """The plan with the type of every node that is not int8 and, where that stays float32, the reason.

    Args:
        graph: the prepared graph.
        plan: resolved with statistics, or of weights only; its float_type is float16 or bfloat16.
        tensors: what was observed; empty without data.
        source: what the model had in half precision itself.
    """
    plan = replace(plan, points={name: _rounded(p, plan.float_type) for name, p in plan.points.items()})
    kept = {n.name or "": "as the model has it" for part in graph.parts() for n in part.nodes if n.name in source.wide}
    proven = source.nodes if plan.float_type == source.kind else frozenset()
    parts = tuple(graph.parts())
    for part, share in zip(parts, divided(plan, parts), strict=True):
        if tensors and part_name(part) in plan.modes:
            kept |= {n.name or "": "no sample reached it, nothing is known of its range" for n in part.nodes}
        elif _stays(part):
            kept |= {
                n.name or "": "in a body without layers, which Casts at its ends would only slow" for n in part.nodes
            }
        kept |= float32_nodes(part, share, tensors, plan.float_type, proven)
    decisions = []
    wide = {n.name or "" for part in parts for n in part.nodes if any(part.dtype(v) == "float64" for v in n.outputs)}
    for decision in plan.decisions:
        reason = kept.get(decision.node)
        if decision.node in wide:
            decisions.append(replace(decision, dtype="float64"))
        elif reason is None:
            decisions.append(replace(decision, dtype=plan.float_type))
        else:
            decisions.append(replace(decision, reason=f"{decision.reason}; float32: {reason}"))
    notes = plan.notes
    if plan.float_type == "float16" and not tensors and not proven:
        notes = (*notes, "without calibration data nothing is known of what overflows float16")
    return replace(plan, decisions=tuple(decisions), float32=kept, notes=notes)


def _rounded(point: Point, dtype: str) -> Point:
    """The point with its scale rounded to the type, so that every scale of its group is the same number in both."""
    if point.params is None or point.dtype != "float32":
        return point
    if point.params.qtype == INT8_ASYMMETRIC and point.params.zero_point:  # written as a shift, to targets without any
        return replace(point, params=with_exact_shift(point.params, dtype))
    return replace(point, params=replace(point.params, scale=held_by(point.params.scale, dtype)))


def probes(graph: Graph, plan: Plan) -> tuple[str, ...]:
    """Float tensors, beyond the plan's points, whose values decide about float16.

    A tensor that only goes into a saturating operator, or into one that is itself seen and as large, need not be; nor
    one that float16 holds whatever the samples are, by what is seen of others.
    """
    observed = set(plan.observe)
    seen = observed | {p.tensor for p in plan.points.values() if p.observe in observed}
    parts = (part for part in graph.parts() if why_hidden(part) is None and not _stays(part))
    return tuple(name for part in parts for name in _unbounded(part, seen) if name not in seen)


def _stays(part: Graph) -> bool:
    """Whether it is a body that stays in float32 whatever was seen."""
    return part.body is not None and not any(node.op_type in _LAYERS for node in part.nodes)


def _unbounded(part: Graph, seen: AbstractSet[str]) -> Iterator[str]:
    """The tensors of a graph that must be seen besides those that are: what nothing else keeps within float16."""
    wanted, masking = set(_cubed(part)), masks(part)
    found: dict[str, float] = {}
    for value in part.inputs:
        if part.dtype(value) == "float32":
            found[str(value.name)] = LIMIT
            yield str(value.name)
    for node in part.nodes:
        reach = bound(part, node, found, masking)
        for value in node.outputs:
            name = str(value.name)
            within = reach <= LIMIT and node.op_type not in COUNTED and name not in wanted
            asked = _grows(part, value) and not covered(part, value) and not within
            if asked:
                yield name
            found[name] = min(reach, ASSUMED) if asked or name in seen else reach


def _cubed(graph: Graph) -> Iterator[str]:
    """Inputs of GELUs in tanh form: what is seen of them tells whether their cubes fit."""
    cubes = {node.name for node in graph.nodes if node.op_type in _SUMS}
    patterns = find_patterns(graph) if cubes else ()
    return (p.input for p in patterns if p.kind == "GELU" and not cubes.isdisjoint(p.nodes))


def _grows(graph: Graph, value: Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type in GROWING and not maker.domain and graph.dtype(value) == "float32"


def float32_nodes(
    graph: Graph, plan: Plan, tensors: Mapping[str, Reach], dtype: str, proven: AbstractSet[str] = frozenset()
) -> dict[str, str]:
    """Node name -> why it stays in float32.

    Args:
        graph: the prepared graph.
        plan: resolved with statistics, or of weights only.
        tensors: what was observed; empty without data.
        dtype: "float16" or "bfloat16".
        proven: names of nodes that computed in it before: of these only what int8 brings decides, and what is seen.
    """
    layers = frozenset(d.node for d in plan.decisions if d.quantized)
    reasons: dict[str, str] = {}
    for name, reason in _wanting(graph, tensors, layers):
        if name not in proven:
            reasons.setdefault(name, reason)
    for name, reason in _found(graph, plan, tensors) if dtype == "float16" else ():
        reasons.setdefault(name, reason)
    apart = {use for point in plan.points.values() for use in point.uses}
    for node in graph.nodes:  # a Cast between an int8 layer and what fuses behind it would part them
        if node.name in reasons and node.name in layers:
            for name in epilogue(graph, node, layers, apart):
                reasons.setdefault(name, f"fuses behind {node.name}, which stays in float32")
    return reasons


def _wanting(graph: Graph, tensors: Mapping[str, Reach], layers: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Nodes whose operators want more digits, whatever their values are."""
    yield from _accumulating(graph, find_patterns(graph), tensors)
    yield from exact_nodes(graph, layers)
    yield from ((name, reason) for name, reason in peaks(graph).items() if name not in layers)


def _found(graph: Graph, plan: Plan, tensors: Mapping[str, Reach]) -> Iterator[tuple[str, str]]:
    """Nodes with numbers that float16 does not hold."""
    known = _known(graph, plan, tensors)
    for node in graph.nodes:
        yield from out_of_range(known, node)
    yield from _long_biases(graph, plan)
    yield from _underflowing(graph, plan)


def _known(graph: Graph, plan: Plan, tensors: Mapping[str, Reach]) -> Known:
    seen = {
        **tensors,
        **{p.tensor: tensors[p.observe] for p in plan.points.values() if p.observe in tensors and not p.also},
    }
    masking = frozenset(masks(graph))
    if not tensors or why_hidden(graph) is not None:
        return Known(graph, seen, masking)
    ranges = {p.tensor: _range(p.params) for p in plan.points.values() if p.params is not None}
    reached = {name: max(r.max, 0.0) if name in masking else r.amax for name, r in seen.items()}
    limits = bounds(graph, ranges | reached, masking)
    unseen = {str(v.name): limits[str(v.name)] for n in graph.nodes for v in n.outputs if _grows(graph, v)}
    return Known(graph, seen, masking, {name: limit for name, limit in unseen.items() if limit < inf})


def _range(params: QuantParams) -> float:
    """The largest |x| that the codes stand for."""
    zero_point = params.zero_point.astype(np.float64)
    steps = np.maximum(params.qtype.qmax - zero_point, zero_point - params.qtype.qmin)
    return float(np.max(steps * params.scale))


def _accumulating(
    graph: Graph, patterns: tuple[Pattern, ...], tensors: Mapping[str, Reach]
) -> Iterator[tuple[str, str]]:
    safe: set[str] = set()
    for pattern in patterns:
        if pattern.kind in _NORMS and len(pattern.nodes) > 1:
            yield from ((name, f"{pattern.kind} accumulates in float32") for name in pattern.nodes)
        if pattern.kind == "GELU" and _within(tensors.get(pattern.input), _CUBE_LIMIT):
            safe.update(pattern.nodes)
    for node in graph.nodes:
        if node.op_type in _SUMS | _LOG_SUMS and not node.domain and node.name is not None and node.name not in safe:
            yield node.name, f"{node.op_type} accumulates in float32"


def _within(reach: Reach | None, limit: float) -> bool:
    return reach is not None and reach.amax <= limit


def _underflowing(graph: Graph, plan: Plan) -> Iterator[tuple[str, str]]:
    """Nodes behind a scale that float16 cannot hold."""
    for point in plan.points.values():
        if point.params is not None and float(point.params.scale) < SMALLEST_SCALE:
            yield from ((node, f"the scale of {point.tensor} is too small for float16") for node, _ in point.uses)
    yield from _own_pairs(graph)
    weights = graph.weights
    for weight in plan.weights:
        array = graph.const(weights[weight.tensor])
        if array is None or array.dtype != np.float32:
            continue
        if lost_scales(array, weight.axis).size:
            yield from ((node, f"scales of {weight.tensor} are too small for float16") for node, _ in weight.uses)


def _own_pairs(graph: Graph) -> Iterator[tuple[str, str]]:
    """Nodes behind such scales of the model's own."""
    for node in graph.nodes:
        scale = graph.const(node.inputs[1]) if node.op_type == "DequantizeLinear" and not node.domain else None
        if scale is None or scale.dtype != np.float32 or not scale.size:
            continue
        if rounded_away(scale).any():
            readers = (user for user, _ in graph.users(node.outputs[0]) if not graph.in_body(user))
            yield from ((user.name or "", "scales of its own are too small for float16") for user in readers)


def _long_biases(graph: Graph, plan: Plan) -> Iterator[tuple[str, str]]:
    """Layers whose bias is more steps of scale_x * scale_w than float16 can count.

    ONNX Runtime writes such a bias as an integer, computing bias / (scale_x * scale_w) in the layer's type, when the
    layer's output is quantized again (its WeightBiasQuantization); a quotient beyond 65504 would become infinite. A
    bias that makes up for a zero point (`passes/centre_codes.py`) is some thousands of steps for each input.
    """
    grids = {use: p.params for p in plan.points.values() if p.params is not None for use in p.uses}
    stored = graph.weights
    weights = {node: stored[w.tensor] for w in plan.weights for node, _ in w.uses}
    axes = {node: w.axis for w in plan.weights for node, _ in w.uses}
    for node in graph.nodes:
        name = node.name or ""
        weight, grid = graph.const(weights.get(name)), grids.get((name, 0))
        bias, last = _bias(graph, node)
        if weight is None or grid is None or bias is None or weight.dtype != np.float32 or bias.ndim != 1:
            continue
        chain, point = _chain_to_point(graph, plan, last)
        if point is None or point.params is None:
            continue
        others = tuple(i for i in range(weight.ndim) if i != axes[name])
        step = np.float64(grid.scale) * np.maximum(np.abs(weight).max(axis=others), 127 * SMALLEST_SCALE) / 127
        most = np.abs(bias) + _shift(grid) * np.abs(weight.sum(axis=others, dtype=np.float64)) + _shift(point.params)
        if np.max(most / step, initial=0.0) > LIMIT:
            layer = dict.fromkeys((name, *chain))
            yield from ((n, "its bias is more steps of the int8 scales than float16 counts") for n in layer)


def _bias(graph: Graph, node: Node) -> tuple[npt.NDArray[Any] | None, Node]:
    """Its constant bias, zero where it could have one, and the node that adds it.

    ONNX Runtime makes a Gemm of a MatMul and the Add of a vector behind it.
    """
    if node.op_type == "MatMul":
        add = graph.only_user(node.outputs[0])
        added = [] if add is None or add.op_type != "Add" else [graph.const(v) for v in add.inputs]
        vectors = [array for array in added if array is not None and array.ndim == 1]
        return (vectors[0], add) if vectors and add is not None else (np.zeros(1, np.float32), node)
    if node.op_type not in BIASED:
        return None, node
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    return (graph.const(node.inputs[2]) if given else np.zeros(1, np.float32)), node


def _shift(params: QuantParams) -> float:
    """What stands for the zero point in a graph without any, in absolute value."""
    return abs(float(params.zero_point) * float(params.scale))


def _chain_to_point(graph: Graph, plan: Plan, node: Node) -> tuple[list[str], Point | None]:
    """The layer and the Relu and Clip nodes that fuse into it, and the point behind when nothing but its Q reads it."""
    chain, value = [node.name or ""], node.outputs[0]
    while (user := graph.only_user(value)) is not None and user.op_type in ("Relu", "Clip"):
        chain.append(user.name or "")
        value = user.outputs[0]
    point = plan.points.get(str(value.name))
    read = {(user.name or "", index) for user, index in graph.users(value)}
    alone = point is not None and read == set(point.uses) and (point.output or not value.is_graph_output())
    return chain, point if alone else None
