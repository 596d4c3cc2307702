"""How edits of the graph find a place and keep the names of its outputs; `Graph` has the verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall

if TYPE_CHECKING:
    from onnxq.graph.graph import Graph


def insert(graph: ir.Graph, made: ir.Node, before: ir.Node | None) -> None:
    """Put a new node before another, else right behind the last of the nodes that make its inputs."""
    makers = {id(node): node for v in made.inputs if v is not None and (node := v.producer()) is not None}
    if before is not None:
        graph.insert_before(before, made)
    elif makers:
        only = next(iter(makers.values()))
        last = only if len(makers) == 1 else next(node for node in reversed(graph) if id(node) in makers)
        graph.insert_after(last, made)
    elif len(graph):
        graph.insert_before(graph[0], made)
    else:
        graph.append(made)


def take_over_output(graph: Graph, old: ir.Value, new: ir.Value) -> None:
    """Make `new`, or an Identity of it where it cannot give up its own name, the model output that `old` was."""
    name, outputs = old.name, graph.model.graph.outputs
    if new.producer() is None or new.is_graph_output():
        new = graph.add("Identity", [new], name=f"{name}/kept", like=old)
    outputs[[v is old for v in outputs].index(True)] = new
    if not old.uses() or old.is_initializer():  # a name is taken from what is dead, or a weight's
        old.name = graph.fresh(f"{name}/replaced")
    new.name = name
    new.shape = old.shape if new.shape is None else new.shape
    new.type = old.type if new.type is None else new.type


def tensor_type(dtype: str) -> ir.TensorType:
    """The tensor type of numpy's name of an element type; bfloat16 too, which numpy itself does not know."""
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)))
