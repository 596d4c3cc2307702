"""How edits of the graph find a place and keep the names of its outputs; `Graph` has the verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall
from onnx_ir.passes import common as ir_passes  # noqa: TID251  this is the wall

from onnxq.graph.normal import bodies
from onnxq.numerics import numpy_type

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableSequence, Sequence
    from typing import Any

    import numpy.typing as npt

    from onnxq.graph.graph import Graph


def insert(graph: ir.Graph, made: ir.Node, before: ir.Node | None) -> None:
    """Put a new node before another, else right behind the last of the nodes that make its inputs."""
    producers = (v.producer() for v in made.inputs if v is not None)
    makers = {id(node): node for node in producers if node is not None and node.graph is graph}
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


def take_over_output(graph: Graph, outputs: MutableSequence[ir.Value], old: ir.Value, new: ir.Value) -> None:
    """Make `new`, or an Identity of it where it cannot give up its own name, the model output that `old` was."""
    name, maker = old.name, new.producer()
    if maker is None or graph.in_body(maker) or new.is_graph_output():
        new = graph.add("Identity", [new], name=f"{name}/kept", like=old)
    outputs[[v is old for v in outputs].index(True)] = new
    if not old.uses() or old.is_initializer():  # a name is taken from what is dead, or a weight's
        old.name = graph.fresh(f"{name}/replaced")
    new.name = name
    new.shape = old.shape if new.shape is None else new.shape
    new.type = old.type if new.type is None else new.type


def replace_output(graph: Graph, outputs: MutableSequence[ir.Value], old: ir.Value, new: ir.Value) -> None:
    """Make `new` the output that `old` was, under its name."""
    name = old.name
    outputs[[v is old for v in outputs].index(True)] = new
    old.name = graph.fresh(f"{name}/inner")
    new.name = name
    new.shape = old.shape if new.shape is None else new.shape


def extract(model: ir.Model, graph: ir.Graph, values: Sequence[ir.Value]) -> ir.Model:
    """A model of what these values of a graph are computed from."""
    part = ir.Model(ir.convenience.extract(graph, (), values), ir_version=model.ir_version)
    part.opset_imports.update(model.opset_imports)  # a body has none of its own
    return part


def tensor_type(dtype: str) -> ir.TensorType:
    """The tensor type of numpy's name of an element type."""
    return ir.TensorType(ir.DataType.from_numpy(numpy_type(dtype)))


def sequence_type(dtype: str) -> ir.SequenceType:
    """The type of a sequence of such tensors."""
    return ir.SequenceType(tensor_type(dtype))


def weight(name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A weight of no graph yet."""
    # Not `ir.tensor`, which first asks what protocols the array has: most of the time that a small weight takes.
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def remove_unused(model: ir.Model, graph: ir.Graph) -> int:
    """Drop nodes and weights of a graph and its bodies that nothing needs; return how many of this graph."""
    before = len(graph) + len(graph.initializers)
    for holder in reversed([node for node in graph.all_nodes() if any(True for _ in bodies(node))]):
        if not any(v.uses() or v.is_graph_output() for v in holder.outputs):
            let_go(holder)
    ir_passes.RemoveUnusedNodesPass()(model if graph is model.graph else ir.Model(graph, ir_version=model.ir_version))
    for node in graph.all_nodes():  # the pass cuts off the condition that a Loop may leave out, but must name
        if node.op_type == "Loop" and len(node.inputs) < 2:
            node.resize_inputs(2)
    for body in graph.subgraphs():  # the pass leaves their weights
        for name, value in tuple(body.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del body.initializers[name]
    return before - len(graph) - len(graph.initializers)


def attribute(name: str, value: Any) -> ir.Attr:  # noqa: ANN401  depends on the attribute
    """An attribute that holds a plain value, or an array as a tensor."""
    return ir.convenience.convert_attribute(name, ir.tensor(value) if isinstance(value, np.ndarray) else value)


def activation(name: str, dtype: str) -> ir.Value:
    """An activation of no node yet, of unknown shape."""
    return ir.Value(name=name, type=tensor_type(dtype))


def value_like(name: str, like: ir.Value | None) -> ir.Value:
    """An activation of no node yet, with the type and shape of another."""
    return ir.Value(name=name) if like is None else ir.Value(name=name, type=like.type, shape=like.shape)


def node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    output: ir.Value,
    name: str,
    attributes: Mapping[str, Any],
    domain: str,
) -> ir.Node:
    """A node of no graph yet."""
    said = ir.convenience.convert_attributes(dict(attributes))
    return ir.Node(domain, op_type, inputs, said, outputs=[output], name=name)


def inline(graph: Graph, around: ir.Graph, holder: ir.Node, branch: str) -> tuple[ir.Node, ...]:
    """Move the nodes and weights of an If's branch in front of it, let its users read them, and drop it."""
    body: ir.Graph = holder.attributes[branch].value
    results, nodes = tuple(body.outputs), tuple(body)
    body.outputs.clear()
    for name, value in tuple(body.initializers.items()):
        del body.initializers[name]
        around.register_initializer(value)
    for moved in nodes:
        body.remove(moved)
        around.insert_before(holder, moved)
    for old, new in zip(holder.outputs, results, strict=True):
        graph.replace_uses(old, new)
    graph.remove(holder)
    return nodes


def let_go(holder: ir.Node) -> None:
    """Take the inputs from the nodes inside a node that disappears: they would count as uses of what they read."""
    for inner in (inner for body in bodies(holder) for inner in body.all_nodes()):
        inner.resize_inputs(0)
