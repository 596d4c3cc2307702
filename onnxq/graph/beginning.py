"""Where a model begins: other inputs than it has, and their shapes. For calibration, on a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir  # noqa: TID251  this is the wall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.graph.graph import Graph


def begin_at(graph: Graph, names: Sequence[str]) -> None:
    """Make these activations inputs, under their names; what made them stays, under others."""
    wanted = set(names)
    for value in [v for v in graph.values() if v.name in wanted and not v.is_graph_input()]:
        name = str(value.name)
        given = ir.Value(name=graph.fresh(name), type=value.type, shape=value.shape)
        for node, index in graph.users(value):
            node.replace_input_with(index, given)
        graph.rename(value, f"{name}/made")
        given.name = name
        graph.model.graph.inputs.append(given)


def remove_unread_inputs(graph: Graph) -> None:
    """Drop inputs that nothing reads and that are no output."""
    for value in graph.inputs:
        if not value.uses() and not value.is_graph_output():
            graph.model.graph.inputs.remove(value)


def fix_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Say that inputs have these sizes."""
    for value in graph.inputs:
        if (shape := shapes.get(str(value.name))) is not None:
            value.shape = ir.Shape(shape)
