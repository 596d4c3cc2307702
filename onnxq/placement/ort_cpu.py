"""Placement for ONNX Runtime's CPU provider: graph x target x recipe -> Plan. Decides only.

A node runs in integers when all that it reads and what it writes is quantized; products of matrices alone may write
float. So the graph falls into islands of integer nodes, with a QuantizeLinear at every way in and a DequantizeLinear
at every way out, and an island stays when its products save more than that costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from onnxq.patterns import find_patterns, labels
from onnxq.patterns.pairs import kept
from onnxq.placement.embeddings import STORED, stored_tables
from onnxq.placement.ort_cpu_kernels import is_product, why_no_kernel
from onnxq.placement.ort_cpu_points import Island, points, weight_points
from onnxq.placement.weighted import macs, unquantizable
from onnxq.plan import Decision, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

MACS_PER_ELEMENT = 16
"""Multiply-accumulates that an island must have for every element that is quantized on the way in or dequantized on
the way out. Measured on a CPU with VNNI with single convolutions between float tensors: at 5 the pair costs more than
integers save, at 8 to 16 they are even, from 30 on they take 0.3 to 0.6 of the time (docs/benchmarks.md)."""

_LET_IN = frozenset({"SiLU", "squeeze-excite"})
"""Patterns whose parts have integer kernels of their own; the others are fused in float and stay whole."""


@dataclass
class _Choice:
    """What has been decided so far: every node is in one of the two tables."""

    graph: Graph
    target: Target
    recipe: Recipe
    int8: dict[str, str] = field(default_factory=dict)  # node -> how it runs
    floats: dict[str, str] = field(default_factory=dict)  # node -> why it does not

    def said(self, node: Node, effect: str) -> object:
        """What the recipe's rules say of the node."""
        return self.recipe.rule_value(node.name or "", node.op_type, effect)

    def chosen(self) -> list[Node]:
        """The integer nodes, in order."""
        return [n for n in self.graph.nodes if n.name in self.int8]

    def to_float(self, node: Node, reason: str) -> None:
        """Leave the node in float after all."""
        self.int8.pop(node.name or "", None)
        self.floats[node.name or ""] = reason


def place_cpu(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """Decide for every node of a prepared graph whether it runs in integers, and where the Q/DQ pairs go."""
    choice = _Choice(graph, target, recipe)
    _consider(choice)
    _settle(choice)
    while _drop_poor_islands(choice):
        _settle(choice)
    island = Island(graph, target, set(choice.int8))
    for node in graph.nodes:
        if (clamp := island.clamp_of(node)) is not None:
            choice.floats[clamp.name or ""] = "vanishes: the zero point before it is where it clips"
    found = stored_tables(graph, target, recipe)
    choice.int8 |= {name: STORED for table in found for name, _ in table.uses}
    return Plan(
        target=target.name,
        points=points(island, recipe),
        weights=(*weight_points(island, recipe), *found),
        decisions=tuple(_decisions(choice)),
        kept=kept(graph),
        notes=_notes(graph),
    )


def _consider(choice: _Choice) -> None:
    """Sort out what can never run in integers."""
    kinds = labels(p for p in find_patterns(choice.graph) if p.kind not in _LET_IN)
    for node in choice.graph.nodes:
        name = node.name or ""
        reason = _why_not(choice, node, kinds.get(name))
        if reason is None:
            choice.int8[name] = _how(choice, node)
        else:
            choice.floats[name] = reason


def _why_not(choice: _Choice, node: Node, kind: str | None) -> str | None:
    if choice.said(node, "quantize") is False:
        return "excluded by a rule"
    product = is_product(choice.graph, node)
    if product and choice.said(node, "quantize") is not True:
        where = "attention: " if kind == "Softmax attention" else ""
        return f"{where}product of two activations: costs accuracy, saves little; a rule with quantize = true allows it"
    if kind is not None and node.op_type not in choice.target.weighted:
        return f"part of {kind}, kept whole"
    return why_no_kernel(choice.graph, node, choice.target)


def _how(choice: _Choice, node: Node) -> str:
    if node.op_type in choice.target.movers:
        return "moves int8"
    if node.op_type not in choice.target.weighted:
        return "int8 at both ends"
    if is_product(choice.graph, node):
        return "two int8 activations, as a rule says"
    per_channel = choice.said(node, "per_channel") is not False
    return "int8 input and weight, " + ("a scale per output channel" if per_channel else "one scale")


def _settle(choice: _Choice) -> None:
    """Leave nodes without weights in float until each reads integers only and hands some on."""
    island = Island(choice.graph, choice.target, set(choice.int8))
    candidates = [node for node in choice.chosen() if node.op_type not in choice.target.weighted]
    changed = True
    while changed:  # forwards, then backwards, and so on: a chain of nodes falls in one go, from either end
        left = []
        for node in candidates:
            reason = _why_outside(island, node)
            if reason is None:
                left.append(node)
            else:
                choice.to_float(node, reason)
                island.drop(node)
        changed = len(left) < len(candidates)
        candidates = left[::-1]


def _why_outside(island: Island, node: Node) -> str | None:
    if not all(island.is_int8(value) for value in island.operands(node)):
        return "what it reads is float"
    if not any(user.name in island.names for end in island.ends(node) for user, _ in island.graph.users(end)):
        return "nothing int8 follows it"
    return None


def _drop_poor_islands(choice: _Choice) -> int:
    """Leave islands in float whose products do not pay for their borders; return how many nodes that were."""
    island = Island(choice.graph, choice.target, set(choice.int8))
    dropped = 0
    for nodes in _components(island, choice.chosen()):
        work = sum(macs(choice.graph, node, choice.target) for node in nodes)
        border = sum(_elements(choice.graph, value) for value in island.border(nodes))
        if work >= MACS_PER_ELEMENT * border or any(choice.said(n, "quantize") is True for n in nodes):
            continue
        for node in nodes:
            choice.to_float(node, f"too little work between float neighbours: {work / max(border, 1):.1f} MACs a value")
        dropped += len(nodes)
    return dropped


def _components(island: Island, nodes: list[Node]) -> Iterator[list[Node]]:
    """Integer nodes that hand integers to one another."""
    leader = {n.name or "": n.name or "" for n in nodes}

    def root(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]  # halves the path: a chain of nodes is one long path
            name = leader[name]
        return name

    for node in nodes:
        for value in island.operands(node):
            if (maker := island.makers.get(str(value.name))) is not None:
                leader[root(maker)] = root(node.name or "")
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(root(node.name or ""), []).append(node)
    yield from groups.values()


def _elements(graph: Graph, value: Value) -> int:
    """Number of values with unknown dimensions counted as 1, as `macs` counts them."""
    return prod(d if isinstance(d, int) else 1 for d in graph.shape(value) or ())


def _decisions(choice: _Choice) -> Iterator[Decision]:
    graph = choice.graph
    for node in graph.nodes:
        name = node.name or ""
        reason = choice.int8.get(name) or choice.floats[name]
        reason = unquantizable(graph, node) or reason
        yield Decision(name, node.op_type, name in choice.int8, reason, macs(graph, node, choice.target))


def _notes(graph: Graph) -> tuple[str, ...]:
    own = kept(graph)
    said = "1 tensor is" if len(own) == 1 else f"{len(own)} tensors are"
    return (f"{said} quantized in the model already, and kept so",) if own else ()
