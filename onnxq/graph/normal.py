"""The form that every model has inside onnxq: no local functions, no Constant nodes, unique names, nodes in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir  # noqa: TID251  this is the wall
from onnx_ir.passes import common as ir_passes  # noqa: TID251  this is the wall

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


def normalize(model: ir.Model) -> None:
    """Bring a model into that form, in place.

    Raises:
        ModelError: its nodes form a cycle.
    """
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
    model.ir_version = _ir_version(model)
    _name_nodes(model.graph)
    if not _in_order(model.graph):  # the standard wants them in order, ONNX Runtime does not mind
        try:
            model.graph.sort()
        except ValueError as error:
            raise ModelError("the model's nodes form a cycle", "Export the model again.") from error


def _ir_version(model: ir.Model) -> int:
    """The model's own between 7 (opset 13's) and 10, more only when its opset needs it: runtimes lag behind."""
    from onnx import helper

    needed = helper.find_min_ir_version_for(
        [helper.make_opsetid(d, v) for d, v in model.opset_imports.items()], ignore_unknown=True
    )
    return max(7, needed, min(model.ir_version or 0, 10))


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
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


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
    seen: set[str] = set()
    for node in graph.all_nodes():
        base = node.name or next((f"{node.op_type}:{v.name}" for v in node.outputs if v.name), node.op_type)
        name, count = base, 1
        while name in seen:
            name, count = f"{base}_{count}", count + 1
        seen.add(name)
        node.name = name
