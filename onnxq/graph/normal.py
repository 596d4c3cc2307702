"""The form that every model has inside onnxq: no local functions, no Constant nodes, unique names, nodes in order."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import onnx_ir as ir  # noqa: TID251  this is the wall
from onnx_ir.passes import common as ir_passes  # noqa: TID251  this is the wall

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping

    from onnxq.graph.graph import Graph


@dataclass(frozen=True)
class Body:
    """A body of If, Loop or Scan, and where it lies.

    Attributes:
        graph: the body.
        name: its node's name and the attribute's: "If_0/then_branch".
        node: the node that holds it.
        around: the graph of that node.
    """

    graph: ir.Graph
    name: str
    node: ir.Node
    around: Graph


def normalize(model: ir.Model, base_dir: str | None = None) -> None:
    """Bring a model into that form, in place; `base_dir` is where the external data of one just read lies.

    Raises:
        ModelError: its nodes form a cycle.
    """
    if base_dir is not None:
        ir.external_data.set_base_dir(model.graph, base_dir)
    if "ai.onnx" in model.opset_imports:  # the default domain's other spelling
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    if model.functions:
        ir_passes.InlinePass()(model)
    for node in model.graph.all_nodes():  # exporters forget the domains of plugins; onnx does nothing without them
        if node.domain:
            model.opset_imports.setdefault(node.domain, 1)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # An input that also has an initializer is a default nobody feeds: old exporters list every weight so.
    ir_passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = lowest_ir_version(model)
    _forget_negative_sizes(model.graph)
    _name_nodes(model.graph)
    _name_values(model.graph)
    if not _in_order(model.graph):  # the standard wants them in order, ONNX Runtime does not mind
        try:
            model.graph.sort()
        except ValueError as error:
            raise ModelError(f"the model's nodes form a cycle{_cycle(model.graph)}", "Export it again.") from error


def _cycle(graph: ir.Graph) -> str:
    """Nodes of which each reads the one before it, and the first one the last; empty where it goes through a body."""
    makers = {
        str(node.name): {str(p.name): None for v in node.inputs if v is not None and (p := v.producer()) is not None}
        for node in graph.all_nodes()
    }
    try:
        TopologicalSorter(makers).prepare()
    except CycleError as error:
        names = [repr(name) for name in error.args[1]]
        return ": " + " -> ".join(names if len(names) <= _NAMED else [*names[:_NAMED], "..."])
    return ""


_NAMED = 6
"""Nodes of a cycle that an error names."""


def _forget_negative_sizes(graph: ir.Graph) -> None:
    """A size of -1 is how older exporters wrote a free axis; the standard has no number for that."""
    for value in all_values(graph):
        dims = list(value.shape or ())
        if any(isinstance(d, int) and d < 0 for d in dims):
            value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in dims])


def lowest_ir_version(model: ir.Model) -> int:
    """The lowest version of the file format that has all that the model holds, 7 (opset 13's) or more: runtimes lag.

    Metadata of nodes, values and weights came with 10; files that say less and have them are read nevertheless.
    """
    from onnx import helper

    opsets = [helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    values = tuple(all_values(model.graph))
    needed = [7, helper.find_min_ir_version_for(opsets, ignore_unknown=True)]
    needed += [_CAME_WITH.get(int(v.dtype), 7) for v in values if v.dtype is not None]
    needed += [8 for v in values if isinstance(v.type, ir.OptionalType)]
    if (model.ir_version or 0) >= _REMARKS and _has_remarks(model, values):
        needed.append(_REMARKS)
    return max(needed)


_CAME_WITH = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 14, 28: 14}
"""Number of an element type -> the first version of the file format that has it (onnx.proto): float8, int4, float4,
the scales of MXFP, int2, float6."""
_REMARKS = 10


def _has_remarks(model: ir.Model, values: Iterable[ir.Value]) -> bool:
    held = (*values, *(v.const_value for v in values), *model.graph.all_nodes(), *model.graphs())
    return any(one is not None and one.metadata_props for one in held)


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of a graph and of the bodies inside it."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
        for body in bodies(node):
            yield from all_values(body)


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds: of If, Loop, Scan."""
    yield from (graph for _, graph in named_bodies(node))


def named_bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """(attribute, graph) of what a node holds; a number stands behind the attribute's name where it holds several."""
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}/{index}", graph) for index, graph in enumerate(attribute.value))


def initializers(graph: ir.Graph, body: Body | None) -> list[MutableMapping[str, ir.Value]]:
    """Those of a graph, and of the graphs around it where it is a body, its own first."""
    found: list[MutableMapping[str, ir.Value]] = [graph.initializers]
    while body is not None:
        around = body.around.body
        found.append((body.around.model.graph if around is None else around.graph).initializers)
        body = around
    return found


def captured(graph: ir.Graph) -> Iterator[ir.Value]:
    """What a body and those inside it read of the activations of the graphs around it."""
    inside = {id(graph), *(id(body) for body in graph.subgraphs())}
    read = (v for node in graph.all_nodes() for v in node.inputs if v is not None and not v.is_initializer())
    yield from {id(v): v for v in (*read, *graph.outputs) if id(home_of(v)) not in inside}.values()


def home_of(value: ir.Value) -> ir.Graph | None:
    """The graph that makes the value; that of an output may be another."""
    maker = value.producer()
    return value.graph if maker is None else maker.graph


def _in_order(graph: ir.Graph) -> bool:
    """Whether every node comes after those whose values it, or a body of its, reads."""
    made: set[int] = set()
    for node in graph.all_nodes():  # a node comes before the nodes of its bodies
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker is not None and id(maker) not in made for maker in makers):
            return False
        made.add(id(node))
    return True


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a unique name, made from its first output where it has none: stable under edits."""
    seen: dict[str, int] = {}
    for node in graph.all_nodes():
        base = node.name or next((f"{node.op_type}:{v.name}" for v in node.outputs if v.name), node.op_type)
        node.name = numbered(base, seen)


def numbered(name: str, taken: dict[str, int]) -> str:
    """The name, with the first free number behind it where it is taken; it is taken from now on.

    `taken` has for every name the number to try next: thousands of nodes may have the same name.
    """
    found, count = name, taken.get(name, 1)
    while found in taken:
        found, count = f"{name}_{count}", count + 1
    taken[name] = count
    taken.setdefault(found, 1)
    return found


def _name_values(graph: ir.Graph) -> None:
    """Give every value inside bodies a name that no other has: two branches may use the same one."""
    own = (v for values in (graph.inputs, graph.initializers.values()) for v in values)
    seen = dict.fromkeys((str(v.name) for v in (*own, *(v for node in graph for v in node.outputs))), 1)
    for body in graph.subgraphs():
        inside = (*body.inputs, *body.initializers.values(), *(v for node in body for v in node.outputs))
        for value in {id(v): v for v in inside if v.name}.values():
            name = numbered(str(value.name), seen)
            if name != value.name:
                value.name = name
