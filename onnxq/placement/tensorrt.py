"""Placement: graph x target x recipe -> Plan. Decides only; nothing in the graph changes.

The rules are those of NVIDIA's explicit-quantization guide: all inputs of weighted operators; no outputs; of a
residual addition the identity input only; one scale around a Concat; pools at both ends; nothing around operators
that merely move data, nothing inside an activation, a normalization or attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq.customs import is_custom
from onnxq.operators import RECURRENT
from onnxq.patterns import find_patterns, labels
from onnxq.patterns.gates import gated
from onnxq.patterns.pairs import COPIES, arrives_quantized, existing_pair, interpolates, kept, origin, shift_notes
from onnxq.patterns.products import SOFTMAX, attentions, is_probability, why_float_products
from onnxq.patterns.residuals import CONVOLUTIONS, broadcasts, convolution_behind, depths
from onnxq.placement.weighted import (
    FLOAT_TYPES,
    input_site,
    is_quantized_already,
    keeps_weight,
    macs,
    unquantizable,
    weight_of,
    why_float,
    why_small,
)
from onnxq.plan import Decision, Plan, Point, WeightPoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value
    from onnxq.patterns import Pattern
    from onnxq.patterns.attention import Attention
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Softsign"})
"""The ends of these operators' ranges carry meaning: a clipped probability is a wrong one."""

_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass
class _Sites:
    """What has been decided so far."""

    graph: Graph
    target: Target
    recipe: Recipe
    patterns: dict[str, Pattern]  # by output tensor
    depth: dict[str, int]
    named: dict[str, Value]
    int8: dict[str, str] = field(default_factory=dict)  # node -> why it is int8
    floats: dict[str, str] = field(default_factory=dict)  # node -> why it is not
    uses: dict[str, dict[tuple[str, int], None]] = field(default_factory=dict)  # tensor -> its quantized uses
    values: dict[str, Value] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)  # union-find over tensors
    calibrators: dict[str, str] = field(default_factory=dict)
    kept: dict[tuple[str, int], str] = field(default_factory=dict)  # use -> DequantizeLinear output it joins
    probabilities: set[str] = field(default_factory=set)  # tensors with the range [0, 1]

    def quantize(self, node: Node, index: int, owner: Node | None = None) -> None:
        """Put the node's input behind a Q/DQ pair, unless the model has one there.

        `owner` is the node for whose sake this is done and whose rules count: the node itself when None.
        """
        value = node.inputs[index]
        if value is None or self.graph.is_const(value) or arrives_quantized(self.graph, value):
            return
        if (existing := existing_pair(self.graph, value)) is not None:
            self.kept[node.name or "", index] = str(existing.name)
            return
        name = str(value.name)
        self.values[name] = value
        self.uses.setdefault(name, {})[node.name or "", index] = None
        said = self.said(owner or node, "calibrator")
        if said is not None:
            self.calibrators.setdefault(name, said)

    def said(self, node: Node, effect: str) -> Any:  # noqa: ANN401  depends on the effect
        """What the recipe's rules say of the node."""
        return self.recipe.rule_value(node.name or "", node.op_type, effect)

    def excluded(self, node: Node) -> bool:
        """Whether a rule keeps the node in float."""
        return self.said(node, "quantize") is False

    def is_point(self, value: Value | None) -> bool:
        """Whether the tensor is quantized for some use."""
        return value is not None and (str(value.name) in self.uses or existing_pair(self.graph, value) is not None)

    def root(self, name: str) -> str:
        """The representative of the tensor's scale group."""
        while self.groups.get(name, name) != name:
            name = self.groups[name]
        return name

    def unite(self, a: Value, b: Value) -> None:
        """Give two tensors one scale."""
        one, other = sorted((self.root(str(a.name)), self.root(str(b.name))))
        self.groups[other] = one


def place(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """Decide for every node of a prepared graph whether it runs in int8, and where the Q/DQ pairs go."""
    nodes = graph.nodes
    patterns = find_patterns(graph)
    sites = _Sites(
        graph, target, recipe, {p.output: p for p in patterns}, depths(graph), {str(v.name): v for v in graph.values()}
    )
    weights = _place_weighted(sites)
    for attention in attentions(graph):
        _place_attention(sites, attention)
    for node in (n for n in nodes if not n.domain):
        if node.op_type == "Add" and not sites.excluded(node):
            _place_residual(sites, node)
        elif node.op_type == "LayerNormalization" and not sites.excluded(node):
            _place_norm(sites, node)
    _place_inner(sites)
    _unite_moved(sites)
    return Plan(
        target=target.name,
        points=_points(sites),
        weights=weights,
        decisions=tuple(_decisions(sites, labels(patterns))),
        kept=kept(graph),
        joins=tuple((node, index, tensor) for (node, index), tensor in sites.kept.items()),
        notes=shift_notes(graph),
    )


# -- weighted operators -------------------------------------------------------------------------------------


def _place_weighted(sites: _Sites) -> tuple[WeightPoint, ...]:
    graph, target = sites.graph, sites.target
    uses: dict[tuple[str, int | None], list[tuple[str, int]]] = {}
    for node in graph.nodes:
        if node.op_type not in target.weighted or node.domain:
            continue
        name = node.name or ""
        if is_quantized_already(graph, node, target):
            sites.int8[name] = "quantized in the model already"
            continue
        reason = _why_not(sites, node)
        if reason is not None:
            sites.floats[name] = reason
            continue
        if (weight := weight_of(graph, node, target)) is not None:
            axis = None if sites.said(node, "per_channel") is False else weight.axis
            uses.setdefault((str(weight.value.name), axis), []).append((name, weight.index))
            kind = "one scale" if axis is None else "a scale per output channel"
        sites.int8[name] = f"int8 input and weight, {kind}" if weight else "int8 input, its weight was int8 already"
        source, index = input_site(graph, node)
        sites.quantize(source, index, node)
        if source is not node:
            sites.floats[source.name or ""] = "folds into the convolution behind it"
    return tuple(WeightPoint(tensor, tuple(where), axis) for (tensor, axis), where in uses.items())


def _why_not(sites: _Sites, node: Node) -> str | None:
    if sites.excluded(node):
        return "excluded by a rule"
    kept = keeps_weight(sites.graph, node, sites.target)
    reason = None if kept else why_float(sites.graph, node, sites.target)
    insists = sites.said(node, "quantize") is True
    return reason if reason is not None or insists else why_small(sites.graph, node, sites.target)


# -- products of two activations ----------------------------------------------------------------------------


def _place_attention(sites: _Sites, found: Attention) -> None:
    """Q K^T and P V, both operands, where a rule asks for it. The mask and the scores stay in float.

    Not by default: P gets the range [0, 1] whatever was seen, as ModelOpt has it, and over many tokens most of P is
    smaller than half of its step of 1/127. docs/placement.md has what that costs.
    """
    advice = why_float_products(sites.graph, found, sites.target.min_channels)
    for node in (found.scores[0], found.mixed[-1]):
        name = node.name or ""
        if name in sites.int8 or sites.excluded(node):
            continue
        if sites.said(node, "quantize") is not True:
            sites.floats[name] = advice or "attention: int8 costs accuracy here, a rule with quantize = true allows it"
            continue
        if kinds := [k for k in map(sites.graph.dtype, filter(None, node.inputs)) if k not in FLOAT_TYPES]:
            sites.floats[name] = f"it reads {kinds[0]}, only float32 and float16 are quantized"
            continue
        for index in (0, 1):
            sites.quantize(node, index)
        sites.floats.pop(name, None)
        sites.int8[name] = "; ".join(filter(None, ("two int8 activations, as a rule says", advice)))
    if is_probability(sites.graph, found):
        sites.probabilities |= {str(v.name) for v in found.mixed[-1].inputs[:1] if v is not None}


# -- what lies between them ---------------------------------------------------------------------------------


def _place_residual(sites: _Sites, node: Node) -> None:
    """Identity + convolution: TensorRT fuses the addition into the convolution and reads the identity in int8."""
    a, b = node.inputs[0], node.inputs[1]
    graph = sites.graph
    if a is None or b is None or a is b or graph.is_const(a) or graph.is_const(b):
        return
    if broadcasts(graph, a, b):
        return
    ends = [convolution_behind(graph, v, sites.patterns) for v in (a, b)]
    branches = [i for i, conv in enumerate(ends) if conv is not None and _is_int8(sites, conv)]
    if not branches:
        return
    # With a convolution on both sides the shortcut is the shorter one.
    branch = max(branches, key=lambda i: (sites.depth[str((a, b)[i].name)], -i))
    sites.quantize(node, 1 - branch)
    sites.int8[node.name or ""] = "residual: fuses into the convolution, its identity input is int8"


def _is_int8(sites: _Sites, node: Node) -> bool:
    return sites.int8.get(node.name or "", "").startswith("int8")


def _place_norm(sites: _Sites, node: Node) -> None:
    """LayerNorm behind a convolution: it computes in float, but reading int8 it lets the convolution write int8."""
    graph, value = sites.graph, node.inputs[0]
    while value is not None and graph.only_user(value) is not None:
        maker = graph.producer(value, *COPIES, *CONVOLUTIONS)
        if maker is not None and maker.op_type in CONVOLUTIONS and _is_int8(sites, maker):
            sites.quantize(node, 0)
            sites.floats[node.name or ""] = "runs in float, its input is int8 for the convolution before it"
        value = maker.inputs[0] if maker is not None and maker.op_type in COPIES else None


def _place_inner(sites: _Sites) -> None:
    """Concat, pools, Resize: int8 when what follows is int8. Backwards, so that one pass settles chains of them."""
    for node in reversed(sites.graph.nodes):
        if node.domain or sites.excluded(node) or not _feeds_point(sites, node.outputs[0]):
            continue
        if node.op_type == "Concat":
            _place_concat(sites, node)
        elif (kind := _reads_and_writes_int8(sites, node)) is not None:
            if _from_int8(sites, _carried(sites, node)):
                for index in range(2 if gated(sites.patterns, node) else 1):
                    sites.quantize(node, index)
                sites.int8[node.name or ""] = kind
            else:
                sites.floats[node.name or ""] = "what it reads is float"


def _reads_and_writes_int8(sites: _Sites, node: Node) -> str | None:
    """How the operator runs in int8 if it is one that needs int8 at both ends, else None."""
    if node.op_type in sites.target.both_ends:
        return "pool with int8 at both ends"
    if gated(sites.patterns, node):
        return "squeeze-excite: int8 at both inputs and the output"
    return "int8 at both ends, one scale" if interpolates(sites.graph, node) else None


def _carried(sites: _Sites, node: Node) -> Value | None:
    """The input whose values the node passes on: the wide one of a gate, the first of any other."""
    return sites.named.get(gated(sites.patterns, node) or "", node.inputs[0])


def _place_concat(sites: _Sites, node: Node) -> None:
    """One scale into and out of a Concat: otherwise each branch is requantized."""
    graph = sites.graph
    inputs = [v for v in node.inputs if v is not None]
    if any(graph.is_const(v) or graph.dtype(v) != "float32" for v in inputs):  # ONNX Runtime loads it in no other
        sites.floats[node.name or ""] = "joins constants, or is not float32"
        return
    points = list(_copied_points(sites, node.outputs[0]))
    if any(arrives_quantized(graph, v) or existing_pair(graph, v) is not None for v in (*inputs, *points)):
        sites.floats[node.name or ""] = "meets scales that the model has already"
        return
    for index in range(len(inputs)):
        sites.quantize(node, index)
    for value in (*inputs, *points):
        sites.unite(value, points[0])
    sites.int8[node.name or ""] = "one common scale at all inputs and the output"


def _feeds_point(sites: _Sites, value: Value) -> bool:
    """Whether the tensor is quantized, itself or behind operators that copy it."""
    return next(_copied_points(sites, value), None) is not None


def _copied_points(sites: _Sites, value: Value) -> Iterator[Value]:
    """The quantized ones among a tensor and its rearranged copies."""
    if sites.is_point(value):
        yield value
    for user, index in sites.graph.users(value):
        if user.op_type in COPIES and index == 0 and not sites.graph.in_body(user):
            yield from _copied_points(sites, user.outputs[0])


def _from_int8(sites: _Sites, value: Value | None) -> bool:
    """Whether the tensor leaves a quantized operator, perhaps through an activation: int8 costs nothing there."""
    if value is None or sites.graph.dtype(value) not in FLOAT_TYPES:
        return False
    node = sites.graph.producer(value)
    if sites.is_point(value) or (node is not None and node.name in sites.int8):
        return True
    pattern = sites.patterns.get(str(value.name))
    if pattern is not None and pattern.kind in ("SiLU", "HardSwish"):
        return _from_int8(sites, sites.named.get(pattern.input))
    if node is None:
        return False
    if node.op_type == "Concat":
        return all(_from_int8(sites, v) for v in node.inputs)
    moves = node.op_type in _FUSED or node.op_type in sites.target.movers
    moves = moves or (_reads_and_writes_int8(sites, node) is not None and not sites.excluded(node))
    return moves and _from_int8(sites, _carried(sites, node))


def _unite_moved(sites: _Sites) -> None:
    """A tensor and what MaxPool, Slice, Resize ... take from it share a scale, so that one Q serves both."""
    for node in sites.graph.nodes:
        moves = node.op_type in sites.target.movers or (node.op_type == "Resize" and node.name in sites.int8)
        if node.domain or not moves or node.inputs[0] is None:
            continue
        for output in node.outputs:
            if str(output.name) in sites.uses and str(node.inputs[0].name) in sites.uses:
                sites.unite(node.inputs[0], output)


# -- the plan -----------------------------------------------------------------------------------------------


def _points(sites: _Sites) -> dict[str, Point]:
    return {name: _point(sites, name) for name in sites.uses}


def _point(sites: _Sites, name: str) -> Point:
    value = sites.values[name]
    known = name in sites.probabilities
    return Point(
        tensor=name,
        uses=tuple(sites.uses[name]),
        observe=_observed(sites, value),
        group=sites.root(name),
        calibrator=sites.calibrators.get(name),
        protected=sites.graph.producer(origin(sites.graph, value), *BOUNDED) is not None,
        dtype=sites.graph.dtype(value) or "float32",
        range=(0.0, 1.0) if known else None,
        chosen=SOFTMAX if known else None,
    )


def _observed(sites: _Sites, value: Value) -> str:
    """Whose values to look at. Where an input of Concat, MaxPool or Resize shares the scale, its values say enough."""
    node = sites.graph.producer(value, "Concat", "MaxPool", "Resize")
    if node is not None and node.inputs[0] is not None and str(node.inputs[0].name) in sites.uses:
        source = node.inputs[0]
        if sites.root(str(source.name)) == sites.root(str(value.name)):
            return _observed(sites, source)
    return str(origin(sites.graph, value).name)


def _decisions(sites: _Sites, label: dict[str, str]) -> list[Decision]:
    made = []
    for node in sites.graph.nodes:
        name = node.name or ""
        quantized = name in sites.int8
        reason = sites.int8.get(name) or sites.floats.get(name) or _why_other(sites, node, label)
        made.append(Decision(name, node.op_type, quantized, reason, macs(sites.graph, node, sites.target)))
    return made


def _why_other(sites: _Sites, node: Node, label: dict[str, str]) -> str:
    """Why a node without weights has no pair of its own."""
    kind = label.get(node.name or "")
    no_float = unquantizable(sites.graph, node)
    reasons = (
        (sites.excluded(node), "excluded by a rule"),
        (node.op_type in ("QuantizeLinear", "DequantizeLinear"), "was in the model"),
        (kind is not None, f"part of {kind}, kept whole"),
        (bool(node.domain), f"custom operator ({node.domain})"),
        (is_custom(node.op_type, ""), "custom operator"),
        (node.op_type in _CONTROL, "control flow; the nodes of its bodies have reasons of their own"),
        (node.op_type in RECURRENT, "recurrent, runs in float"),
        (bool(no_float), no_float),
        (node.op_type in sites.target.movers, "moves data in the precision of its neighbours"),
        (node.op_type in _FUSED, "activation, fuses into the layer before it"),
        (node.op_type == "Concat" or _reads_and_writes_int8(sites, node) is not None, "nothing int8 follows it"),
    )
    return next((text for holds, text in reasons if holds), "runs in float; quantizing it would split a fusion")
