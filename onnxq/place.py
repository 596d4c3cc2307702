"""Placement: graph x target x recipe -> Plan. Decides only; nothing in the graph changes.

The rules are those of NVIDIA's explicit-quantization guide: all inputs of weighted operators; no outputs; of a
residual addition the identity input only; one scale around a Concat; pools at both ends; nothing around operators
that merely move data, nothing inside an activation, a normalization or attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxq.patterns import find_patterns, labels
from onnxq.plan import Decision, Plan, Point, WeightPoint
from onnxq.weighted import FLOAT_TYPES, is_quantized_already, macs, weight_of, why_float, why_small

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value
    from onnxq.patterns import Pattern
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

COPIES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Movers whose output holds exactly the values of their input."""

BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Softsign"})
"""The ends of these operators' ranges carry meaning: a clipped probability is a wrong one."""

_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass
class _Sites:
    """What has been decided so far."""

    graph: Graph
    target: Target
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

    def quantize(self, node: Node, index: int) -> None:
        """Put the node's input behind a Q/DQ pair, unless the model has one there."""
        value = node.inputs[index]
        if value is None or self.graph.is_const(value) or self.graph.producer(value, "DequantizeLinear"):
            return
        if (existing := existing_pair(self.graph, value)) is not None:
            self.kept[node.name or "", index] = str(existing.name)
            return
        name = str(value.name)
        self.values[name] = value
        self.uses.setdefault(name, {})[node.name or "", index] = None

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
    """Decide for every node of a prepared graph whether it runs in int8, and where the Q/DQ pairs go.

    Raises:
        RecipeError: a rule matches nothing.
    """
    nodes = graph.nodes
    recipe.check_rules((n.name or "", n.op_type) for n in nodes)
    patterns = find_patterns(graph)
    sites = _Sites(
        graph, target, {p.output: p for p in patterns}, _depths(graph), {str(v.name): v for v in graph.values()}
    )
    weights = _place_weighted(sites, recipe)
    for node in nodes:
        if node.op_type == "Add" and not _excluded(recipe, node):
            _place_residual(sites, node)
    _place_inner(sites, recipe)
    _unite_moved(sites)
    return Plan(
        target=target.name,
        points=_points(sites),
        weights=weights,
        decisions=tuple(_decisions(sites, labels(patterns), recipe)),
        kept=_kept(graph),
        joins=tuple((node, index, tensor) for (node, index), tensor in sites.kept.items()),
    )


def existing_pair(graph: Graph, value: Value) -> Value | None:
    """The output of a per-tensor Q/DQ pair that the model already has on this tensor."""
    for user, index in graph.users(value):
        if user.op_type == "QuantizeLinear" and index == 0 and not graph.in_body(user):
            for dequantize, _ in graph.users(user.outputs[0]):
                if dequantize.op_type == "DequantizeLinear" and not graph.in_body(dequantize):
                    return dequantize.outputs[0]
    return None


# -- weighted operators -------------------------------------------------------------------------------------


def _place_weighted(sites: _Sites, recipe: Recipe) -> tuple[WeightPoint, ...]:
    graph, target = sites.graph, sites.target
    uses: dict[tuple[str, int | None], list[tuple[str, int]]] = {}
    for node in graph.nodes:
        if node.op_type not in target.weighted or node.domain:
            continue
        name = node.name or ""
        if is_quantized_already(graph, node, target):
            sites.int8[name] = "quantized in the model already"
            continue
        reason = _why_not(graph, node, target, recipe)
        if reason is not None:
            sites.floats[name] = reason
            continue
        weight = weight_of(graph, node, target)
        if weight is None:
            continue
        axis = None if recipe.rule_value(name, node.op_type, "per_channel") is False else weight.axis
        uses.setdefault((str(weight.value.name), axis), []).append((name, weight.index))
        sites.int8[name] = "int8 input and weight, " + ("one scale" if axis is None else "a scale per output channel")
        source, index = _through_pad(graph, node)
        sites.quantize(source, index)
        said = recipe.rule_value(name, node.op_type, "calibrator")
        if said is not None:
            sites.calibrators[str(source.inputs[index].name)] = said
    return tuple(WeightPoint(tensor, tuple(where), axis) for (tensor, axis), where in uses.items())


def _why_not(graph: Graph, node: Node, target: Target, recipe: Recipe) -> str | None:
    said = recipe.rule_value(node.name or "", node.op_type, "quantize")
    if said is False:
        return "excluded by a rule"
    reason = why_float(graph, node, target)
    return reason if reason is not None or said is True else why_small(graph, node, target)


def _through_pad(graph: Graph, node: Node) -> tuple[Node, int]:
    """Where the pair goes: before a zero Pad, so that the Pad can fold into the convolution."""
    pad = graph.producer(node.inputs[0], "Pad")
    if pad is None or node.op_type != "Conv" or graph.only_user(pad.outputs[0]) is not node:
        return node, 0
    zero = len(pad.inputs) < 3 or pad.inputs[2] is None or graph.scalar(pad.inputs[2]) == 0.0
    constant = graph.attribute(pad, "mode", "constant") == "constant"
    return (pad, 0) if zero and constant else (node, 0)


def _excluded(recipe: Recipe, node: Node) -> bool:
    return recipe.rule_value(node.name or "", node.op_type, "quantize") is False


# -- what lies between them ---------------------------------------------------------------------------------


def _place_residual(sites: _Sites, node: Node) -> None:
    """Identity + convolution: TensorRT fuses the addition into the convolution and reads the identity in int8."""
    a, b = node.inputs[0], node.inputs[1]
    graph = sites.graph
    if a is None or b is None or a is b or graph.is_const(a) or graph.is_const(b):
        return
    if graph.dtype(a) not in FLOAT_TYPES or _broadcasts(graph, a, b):
        return
    branches = [i for i, v in enumerate((a, b)) if _ends_in_convolution(sites, v)]
    if not branches:
        return
    # With a convolution on both sides the shortcut is the shorter one.
    branch = max(branches, key=lambda i: (sites.depth[str((a, b)[i].name)], -i))
    sites.quantize(node, 1 - branch)
    sites.int8[node.name or ""] = "residual: fuses into the convolution, its identity input is int8"


def _ends_in_convolution(sites: _Sites, value: Value) -> bool:
    """Whether the tensor is a quantized convolution's result, with at most a bias, BatchNorm or SiLU on the way."""
    graph, found = sites.graph, value
    while graph.only_user(found) is not None:
        node = graph.producer(found)
        if node is None:
            return False
        if node.op_type in _CONVOLUTIONS:
            return sites.int8.get(node.name or "", "").startswith("int8")
        pattern = sites.patterns.get(str(found.name))
        if pattern is not None and pattern.kind == "SiLU":
            source = sites.named.get(pattern.input)
            node = graph.producer(source, *_CONVOLUTIONS, "BatchNormalization")
            return node is not None and source is not None and not source.is_graph_output()
        if node.op_type in ("Add", "Mul") and sum(map(graph.is_const, node.inputs)) == 1:
            found = next(v for v in node.inputs if v is not None and not graph.is_const(v))
        elif node.op_type == "BatchNormalization" and node.inputs[0] is not None:
            found = node.inputs[0]
        else:
            return False
    return False


def _broadcasts(graph: Graph, a: Value, b: Value) -> bool:
    one, other = graph.shape(a), graph.shape(b)
    if one is None or other is None:
        return False
    known = [(x, y) for x, y in zip(one, other, strict=False) if isinstance(x, int) and isinstance(y, int)]
    return len(one) != len(other) or any(x != y for x, y in known)


def _place_inner(sites: _Sites, recipe: Recipe) -> None:
    """Concat and pools: int8 when what follows is int8. Backwards, so that one pass settles chains of them."""
    for node in reversed(sites.graph.nodes):
        if node.domain or _excluded(recipe, node) or not _feeds_point(sites, node.outputs[0]):
            continue
        if node.op_type == "Concat":
            _place_concat(sites, node)
        elif node.op_type in sites.target.both_ends and _from_int8(sites, node.inputs[0]):
            sites.quantize(node, 0)
            sites.int8[node.name or ""] = "pool with int8 at both ends"


def _place_concat(sites: _Sites, node: Node) -> None:
    """One scale into and out of a Concat: otherwise each branch is requantized."""
    inputs = [v for v in node.inputs if v is not None]
    if any(sites.graph.is_const(v) or sites.graph.dtype(v) not in FLOAT_TYPES for v in inputs):
        sites.floats[node.name or ""] = "joins constants or other types"
        return
    if not sites.is_point(node.outputs[0]) or existing_pair(sites.graph, node.outputs[0]) is not None:
        sites.floats[node.name or ""] = "its scale is set further on"
        return
    for index, value in enumerate(inputs):
        sites.quantize(node, index)
        sites.unite(value, node.outputs[0])
    sites.int8[node.name or ""] = "one common scale at all inputs and the output"


def _feeds_point(sites: _Sites, value: Value) -> bool:
    """Whether the tensor is quantized, itself or behind operators that copy it."""
    if sites.is_point(value):
        return True
    users = [u for u, i in sites.graph.users(value) if u.op_type in COPIES and i == 0 and not sites.graph.in_body(u)]
    return any(_feeds_point(sites, u.outputs[0]) for u in users)


def _from_int8(sites: _Sites, value: Value | None) -> bool:
    """Whether the tensor leaves a quantized operator, perhaps through an activation: int8 costs nothing there."""
    if value is None or sites.graph.dtype(value) not in FLOAT_TYPES:
        return False
    if sites.is_point(value):
        return True
    node = sites.graph.producer(value)
    pattern = sites.patterns.get(str(value.name))
    if pattern is not None and pattern.kind in ("SiLU", "HardSwish"):
        return _from_int8(sites, sites.named.get(pattern.input))
    if node is None:
        return False
    if node.name in sites.int8:
        return True
    moves = node.op_type in _FUSED or node.op_type in sites.target.movers
    return moves and _from_int8(sites, node.inputs[0])


def _unite_moved(sites: _Sites) -> None:
    """A tensor and what MaxPool, Slice, ... take from it share a scale, so that one Q serves both."""
    for node in sites.graph.nodes:
        if node.domain or node.op_type not in sites.target.movers or node.inputs[0] is None:
            continue
        for output in node.outputs:
            if str(output.name) in sites.uses and str(node.inputs[0].name) in sites.uses:
                sites.unite(node.inputs[0], output)


# -- the plan -----------------------------------------------------------------------------------------------


def _points(sites: _Sites) -> dict[str, Point]:
    return {
        name: Point(
            tensor=name,
            uses=tuple(uses),
            observe=_observed(sites, sites.values[name]),
            group=sites.root(name),
            calibrator=sites.calibrators.get(name),
            protected=sites.graph.producer(_origin(sites.graph, sites.values[name]), *BOUNDED) is not None,
            dtype=sites.graph.dtype(sites.values[name]) or "float32",
        )
        for name, uses in sites.uses.items()
    }


def _origin(graph: Graph, value: Value) -> Value:
    """The tensor of which this one is a rearranged copy."""
    while (node := graph.producer(value, *COPIES)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _observed(sites: _Sites, value: Value) -> str:
    """Whose values to look at. Where a Concat's or MaxPool's input shares the scale, its values say enough."""
    node = sites.graph.producer(value, "Concat", "MaxPool")
    if node is not None and node.inputs[0] is not None and str(node.inputs[0].name) in sites.uses:
        source = node.inputs[0]
        if sites.root(str(source.name)) == sites.root(str(value.name)):
            return _observed(sites, source)
    return str(_origin(sites.graph, value).name)


def _depths(graph: Graph) -> dict[str, int]:
    """Tensor -> number of nodes on the longest path to it."""
    depth: dict[str, int] = {}
    for node in graph.nodes:
        deepest = max((depth.get(str(v.name), 0) for v in node.inputs if v is not None), default=0)
        depth |= {str(v.name): deepest + 1 for v in node.outputs}
    return {**{str(v.name): 0 for v in graph.inputs}, **depth}


def _kept(graph: Graph) -> tuple[str, ...]:
    """Tensors that the model quantizes already."""
    quantized = (n.inputs[0] for n in graph.nodes if n.op_type == "QuantizeLinear")
    return tuple(dict.fromkeys(str(v.name) for v in quantized if v is not None))


def _decisions(sites: _Sites, label: dict[str, str], recipe: Recipe) -> list[Decision]:
    made = []
    for node in sites.graph.nodes:
        name = node.name or ""
        quantized = name in sites.int8
        reason = sites.int8.get(name) or sites.floats.get(name) or _why_other(sites, node, label, recipe)
        if label.get(name) == "Softmax attention" and reason == "product of two activations":
            reason = "attention: product of two activations"
        made.append(Decision(name, node.op_type, quantized, reason, macs(sites.graph, node, sites.target)))
        made += [
            Decision(inner.name or "", inner.op_type, quantized=False, reason=f"inside the body of a {node.op_type}")
            for inner in sites.graph.bodies(node)
            if inner.op_type in sites.target.weighted
        ]
    return made


def _why_other(sites: _Sites, node: Node, label: dict[str, str], recipe: Recipe) -> str:
    """Why a node without weights has no pair of its own."""
    kind = label.get(node.name or "")
    outputs = [sites.graph.dtype(v) for v in node.outputs]
    reasons = (
        (_excluded(recipe, node), "excluded by a rule"),
        (node.op_type in ("QuantizeLinear", "DequantizeLinear"), "was in the model"),
        (kind is not None, f"part of {kind}, kept whole"),
        (node.op_type in _CONTROL, "control flow, its bodies stay in float"),
        (node.op_type in _RECURRENT, "recurrent, runs in float"),
        (all(k is not None and k not in FLOAT_TYPES for k in outputs), "not floating point"),
        (node.op_type in sites.target.movers, "moves data in the precision of its neighbours"),
        (node.op_type in _FUSED, "activation, fuses into the layer before it"),
        (node.op_type in sites.target.both_ends or node.op_type == "Concat", "nothing int8 follows it"),
        (bool(node.domain), f"custom operator ({node.domain})"),
    )
    return next((text for holds, text in reasons if holds), "runs in float; quantizing it would split a fusion")
