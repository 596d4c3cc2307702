"""The points of a CPU placement: which tensors are quantized, and which share a scale, given the integer nodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING

from onnxq.patterns import find_patterns
from onnxq.patterns.behind import activations_behind, sums_behind
from onnxq.patterns.pairs import origin
from onnxq.placement.weighted import weight_of
from onnxq.plan import Point, WeightPoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxq.added import Added
    from onnxq.graph import Graph, Node, Value
    from onnxq.pointwise import Pointwise
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

BOUNDED = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}
"""Operator -> the range of what it makes, whatever was seen."""

_TAKEN = frozenset(
    {"Relu", "Clip", "Where", "ArgMax", "TopK", "Pad", "ReduceMax", "ReduceMin", "SpaceToDepth", "Upsample"}
)
"""What the provider may take between pairs beside operators of the target: a Where even beside a constant in float."""

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_TWO_OPERANDS = frozenset({"Add", "Mul", "MatMul"})


@dataclass(frozen=True)
class Island:
    """The integer nodes of a graph and what follows from them.

    Attributes:
        graph: it holds them.
        target: the CPU target.
        names: of the integer nodes.
        makers: tensor that is written in integers -> name of the node that writes it.
    """

    graph: Graph
    target: Target
    names: set[str]
    makers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        found = {
            str(end.name): node.name or ""
            for node in self.graph.nodes
            if node.name in self.names and self.writes_int8(node)
            for end in self.ends(node)
        }
        object.__setattr__(self, "makers", found)

    def drop(self, node: Node) -> None:
        """Leave a node in float; what depends on it follows, but not other nodes."""
        ends = self.ends(node)
        self.names.discard(node.name or "")
        for end in ends:
            self.makers.pop(str(end.name), None)
        for value in node.inputs:
            maker = None if value is None else self.maker(value)
            if maker is not None and not self.writes_int8(maker):
                self.makers.pop(str(value.name), None)  # type: ignore[union-attr]  # it has a maker

    def maker(self, value: Value) -> Node | None:
        """The integer node that writes the value in integers, be it through a clamp."""
        name, node = self.makers.get(str(value.name)), value.producer()
        if name is not None and node is not None and node.name != name:
            node = None if node.inputs[0] is None else node.inputs[0].producer()
        return None if name is None else node

    def operands(self, node: Node) -> list[Value]:
        """The activations that the node computes with."""
        return [node.inputs[i] for i in self.operand_indices(node) if not self.graph.is_const(node.inputs[i])]  # type: ignore[misc]  # operands are never left out

    def operand_indices(self, node: Node) -> Sequence[int]:
        """Indices of the inputs that are computed with, constants among them."""
        if node.op_type == "Concat":
            return range(len(node.inputs))
        return (0, 1) if node.op_type in _TWO_OPERANDS else (0,)

    def ends(self, node: Node) -> list[Value]:
        """The tensors that are quantized when the node writes integers: its outputs, or that of a Relu behind it."""
        clamp = self.clamp_of(node) if node.name in self.names else None
        return list(node.outputs) if clamp is None else [clamp.outputs[0]]

    def clamp_of(self, node: Node) -> Node | None:
        """The Relu or Clip that alone reads an integer node, and that a zero point of 0 makes needless."""
        if node.name not in self.names or node.op_type in self.target.movers or len(node.outputs) != 1:
            return None  # what a mover writes has the scale of what it reads
        user = self.graph.only_user(node.outputs[0])
        if user is None or user.domain or user.op_type not in ("Relu", "Clip") or user.inputs[0] is not node.outputs[0]:
            return None
        if self.graph.in_body(user) or any(self.graph.in_body(u) for u, _ in self.graph.users(user.outputs[0])):
            return None
        return user if user.op_type == "Relu" or self._holds_zero(user) else None

    def _holds_zero(self, clip: Node) -> bool:
        bounds = [clip.inputs[i] if i < len(clip.inputs) else None for i in (1, 2)]
        low, high = (self.graph.scalar(v) for v in bounds)
        if any(v is not None and n is None for v, n in zip(bounds, (low, high), strict=True)):
            return False
        return (low is None or low <= 0.0) and (high is None or high >= 0.0)

    def writes_int8(self, node: Node) -> bool:
        """Whether the integer node writes integers: a product of matrices only where its readers want them.

        A product that some read quantized and others as it is would run in float behind its DQ nodes; a Relu between
        does not help, as the provider drops it in front of a QuantizeLinear. So one reader is enough.
        """
        if node.op_type not in _PRODUCTS:
            return True
        (end,) = self.ends(node)
        users = [user for user, _ in self.graph.users(end)]
        wanted = [user.name in self.names for user in users]
        if end is not node.outputs[0] or (len(users) == 1 and not end.is_graph_output()):
            return bool(users) and not end.is_graph_output() and all(wanted)
        clamps = [user.outputs[0] for user in users if user.op_type in ("Relu", "Clip")]
        return any(wanted) or any(user.name in self.names for clamp in clamps for user, _ in self.graph.users(clamp))

    def is_int8(self, value: Value) -> bool:
        """Whether the tensor is written in integers."""
        return str(value.name) in self.makers

    def border(self, nodes: Sequence[Node]) -> Iterator[Value]:
        """The tensors that these nodes have quantized from float, and those of theirs that float readers want."""
        read = {str(v.name): v for node in nodes for v in self.operands(node) if not self.is_int8(v)}
        yield from read.values()
        for node in nodes:
            for end in self.ends(node) if self.writes_int8(node) else ():
                users = [user for user, _ in self.graph.users(end)]
                if end.is_graph_output() or any(u.name not in self.names for u in users):
                    yield end


def points(island: Island, recipe: Recipe) -> dict[str, Point]:
    """Tensor -> its point: what integer nodes read, for their sake, and what they write, for all its readers."""
    graph = island.graph
    values: dict[str, Value] = {}
    uses: dict[str, dict[tuple[str, int], None]] = {}
    calibrators: dict[str, str] = {}
    for node in graph.nodes:
        if node.name not in island.names:
            continue
        for index in island.operand_indices(node):
            value = node.inputs[index]
            if value is None or graph.is_const(value):
                continue
            values[str(value.name)] = value
            uses.setdefault(str(value.name), {})[node.name, index] = None
            if said := recipe.rule_value(node.name, node.op_type, "calibrator"):
                calibrators.setdefault(str(value.name), said)
        for end in island.ends(node) if island.writes_int8(node) else ():
            values[str(end.name)] = end
            mine = uses.setdefault(str(end.name), {})
            mine |= {(user.name or "", index): None for user, index in graph.users(end)}
    groups = _groups(island, values)
    behind: dict[str, Pointwise | Added] = {name: s for name, s in sums_behind(graph).items() if s.tensor in values}
    behind |= activations_behind(graph, find_patterns(graph))
    return {
        name: replace(
            _point(island, value, tuple(uses[name]), groups, calibrators.get(name), recipe), behind=behind.get(name)
        )
        for name, value in values.items()
        if uses[name] or value.is_graph_output()
    }


def weight_points(island: Island, recipe: Recipe) -> tuple[WeightPoint, ...]:
    """The weights of the integer nodes, and the scalars that they add or multiply with."""
    graph = island.graph
    weights: dict[tuple[str, int | None], list[tuple[str, int]]] = {}
    scalars: dict[str, list[tuple[str, int]]] = {}
    for node in graph.nodes:
        if node.name not in island.names:
            continue
        weight = weight_of(graph, node, island.target) if node.op_type in island.target.weighted else None
        if weight is not None:
            whole = recipe.rule_value(node.name, node.op_type, "per_channel") is False
            key = str(weight.value.name), None if whole else weight.axis
            weights.setdefault(key, []).append((node.name, weight.index))
        for index in island.operand_indices(node) if node.op_type in ("Add", "Mul") else ():
            if graph.is_const(node.inputs[index]):
                scalars.setdefault(str(node.inputs[index].name), []).append((node.name, index))  # type: ignore[union-attr]  # a constant is a value
    found = [WeightPoint(name, tuple(where), axis) for (name, axis), where in weights.items()]
    found += [WeightPoint(name, tuple(w), None, qtype=island.target.activation) for name, w in scalars.items()]
    return tuple(found)


def _point(
    island: Island,
    value: Value,
    uses: tuple[tuple[str, int], ...],
    groups: dict[str, str],
    calibrator: str | None,
    recipe: Recipe,
) -> Point:
    graph = island.graph
    name = str(value.name)
    maker = graph.producer(origin(graph, value), *BOUNDED)
    return Point(
        tensor=name,
        uses=uses,
        observe=_observed(island, value, groups),
        group=_root(groups, name),
        calibrator=calibrator,
        protected=maker is not None,
        dtype=graph.dtype(value) or "float32",
        range=None if maker is None else BOUNDED[maker.op_type],
        chosen=None if maker is None else maker.op_type.lower(),
        output=value.is_graph_output() and island.is_int8(value),
        bounds=_bounds(island, value),
        axis=_channel_axis(island, value, recipe),
    )


def _channel_axis(island: Island, value: Value, recipe: Recipe) -> int | None:
    """The axis along which a tensor may have scales at no cost: a convolution wrote it, and all readers want floats.

    The scales go into the rows of its weight, and into the DequantizeLinear in front of the readers.
    """
    graph, maker = island.graph, island.maker(value)
    if maker is None or maker.op_type != "Conv" or recipe.rule_value(str(maker.name), "Conv", "per_channel") is False:
        return None
    clamp = island.clamp_of(maker)
    users = [user for user, _ in graph.users(value)]
    plain = graph.rank(value) is not None and (clamp is None or clamp.op_type == "Relu")
    plain &= not value.is_graph_output() or recipe.io_types != "int8"  # of its codes one scale is told
    free = all(_reads_floats(island, user) for user in users) and not _leads_to_integers(island, value)
    return 1 if plain and free else None


def _leads_to_integers(island: Island, value: Value) -> bool:
    """Whether integers follow behind nothing but operators on single values.

    Then the provider computes all that between with channels last, where a DequantizeLinear with a scale for each takes
    seven to ten times as long as with one: six convolutions with HardSwish between took 1.5 times as long.
    """
    graph, open_, seen = island.graph, [value], {value}
    while open_:
        current = open_.pop()
        for user, _ in graph.users(current):
            if user.name in island.names:
                return True
            same = len(user.outputs) == 1 and graph.shape(user.outputs[0]) == graph.shape(current)
            if same and user.op_type not in island.target.weighted and user.outputs[0] not in seen:
                seen.add(user.outputs[0])
                open_.append(user.outputs[0])
    return False


def _reads_floats(island: Island, node: Node) -> bool:
    """Whether a node stays in float behind a DequantizeLinear, also as the provider sees it.

    That takes pairs through what moves data, drops a Relu or Clip in front of a QuantizeLinear, and has kernels for
    some operators between pairs, whatever was planned, all as if a tensor had one scale. And where two activations are
    added it takes transpositions of channels through the sum and the DequantizeLinear, which is slow along a last axis.
    """
    if node.name in island.names or island.graph.in_body(node):
        return False
    if node.op_type == "Add":
        return len(island.operands(node)) < len(node.inputs)
    if node.op_type in _TWO_OPERANDS:
        return not all(value is not None and _between_pairs(island, value) for value in node.inputs)
    taken = node.op_type in island.target.movers | island.target.both_ends | _TAKEN
    return not taken and node.op_type not in island.target.weighted


def _between_pairs(island: Island, value: Value) -> bool:
    """Whether a DequantizeLinear will make the tensor: one of the plan's, or one that the model had."""
    return island.is_int8(value) or island.graph.producer(value, "DequantizeLinear") is not None


def _bounds(island: Island, value: Value) -> tuple[float, float]:
    """What a Relu or Clip leaves of the tensor, before it was moved about; infinite where nothing cuts it off."""
    node = island.graph.producer(value)
    while node is not None and node.op_type in island.target.movers and node.inputs[0] is not None:
        node = island.graph.producer(node.inputs[0])
    if node is None or node.op_type not in ("Relu", "Clip"):
        return -inf, inf
    if node.op_type == "Relu":
        return 0.0, inf
    low, high = (island.graph.scalar(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
    return -inf if low is None else low, inf if high is None else high


def _groups(island: Island, values: dict[str, Value]) -> dict[str, str]:
    """Union-find over tensors: an integer node that only moves data writes the scale that it reads."""
    groups: dict[str, str] = {}
    for node in island.graph.nodes:
        if node.name not in island.names:
            continue
        if node.op_type in island.target.movers or (node.op_type == "Concat" and _alike(island, node)):
            ends = [v for v in (*island.operands(node), *node.outputs) if str(v.name) in values]
            for other in ends[1:]:
                one, two = sorted((_root(groups, str(ends[0].name)), _root(groups, str(other.name))))
                if one != two:
                    groups[two] = one
    return groups


def _alike(island: Island, concat: Node) -> bool:
    """Whether a Concat's inputs may share a scale: a Relu or Clip vanishes only before a range that starts at 0.

    Without a common scale the provider requantizes each input with a table.
    """
    if island.clamp_of(concat) is not None:
        return False
    kinds = {_clamp_kind(island, value) for value in island.operands(concat)}
    return kinds in ({"Relu"}, {None})


def _clamp_kind(island: Island, value: Value) -> str | None:
    """The operator that cut the tensor off before it was moved about; None for one that may have both signs."""
    node = island.graph.producer(value)
    while node is not None and node.op_type in {*island.target.movers, "AveragePool"}:
        value = node.inputs[0]  # type: ignore[assignment]  # a mover has an input
        node = island.graph.producer(value)
    if node is None or node.op_type not in ("Relu", "Clip", *BOUNDED):
        return None
    return node.op_type


def _root(groups: dict[str, str], name: str) -> str:
    while groups.get(name, name) != name:
        name = groups[name]
    return name


def _observed(island: Island, value: Value, groups: dict[str, str]) -> str:
    """Whose values to look at: those of what a mover reads say enough where both share a scale."""
    node = island.graph.producer(value)
    if node is not None and node.name in island.names and node.op_type in {*island.target.movers, "Concat"}:
        source = node.inputs[0]
        if source is not None and _root(groups, str(source.name)) == _root(groups, str(value.name)):
            return _observed(island, source, groups)
    return str(origin(island.graph, value).name)
