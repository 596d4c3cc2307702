"""Graph: the model while onnxq works on it.

Passes get `Node` and `Value` objects only from here and edit them only with the verbs below. A node's inputs and
a value's uses can be read directly; everything that changes the graph is a method of `Graph`.
"""

from __future__ import annotations

from collections import ChainMap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import onnx_ir as ir  # noqa: TID251  this is the wall

from onnxq.errors import ModelError
from onnxq.graph import convert, edits
from onnxq.graph.digest import digest_of
from onnxq.graph.normal import Body, all_values, bodies, captured, initializers, named_bodies, normalize, numbered
from onnxq.graph.shelf import Shelf
from onnxq.graph.validity import check_proto, structure_problem
from onnxq.graph.values import Dim, dtype_of, shape_of, size_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import onnx

Node = ir.Node
Value = ir.Value
Attribute = Any
"""What an ONNX attribute can hold: int, float, str, a list of one of them, or (written only) an array."""


class Graph:
    """A model with unique node and value names, its local functions inlined and its Constant nodes as weights.

    Weights stay where they are until `const` reads them. Bodies of If, Loop and Scan stay attached to their node;
    `parts` gives each as a Graph of its own that shares the model, and its `body` says where it lies.
    """

    def __init__(self, model: ir.Model, shelf: Shelf | None = None, body: Body | None = None) -> None:
        self._model = model
        self._shelf = shelf  # where larger weights lie, and new ones go; None to hold them in memory
        self.body = body
        self._graph: ir.Graph = model.graph if body is None else body.graph
        self._names: dict[str, int] | None = None

    # -- coming and going ---------------------------------------------------------------------------------

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, base_dir: str = "") -> Graph:
        """Take a model; the proto is not changed. `base_dir` is where its external data lies.

        Raises:
            ModelError: it is not a valid model.
        """
        check_proto(proto)
        try:
            model = ir.from_proto(proto)
            normalize(model, base_dir)
            return cls(model)
        except ModelError:
            raise
        except Exception as error:  # whatever a malformed graph trips over in the library
            raise ModelError(f"the model is not valid: {error}", "Check it with `onnx.checker`.") from error

    @classmethod
    def from_graphsurgeon(cls, graph: Any) -> Graph:  # noqa: ANN401  graphsurgeon ships no types
        """Take a graph edited with onnx-graphsurgeon."""
        import onnx_graphsurgeon as gs  # noqa: TID251  an extra, and this is the wall

        return cls.from_proto(gs.export_onnx(graph))

    def to_proto(self) -> onnx.ModelProto:
        """The model with its weights inside."""
        clone = self._model.clone()
        ir.external_data.load_to_model(clone)
        return ir.to_proto(clone)

    def to_graphsurgeon(self) -> Any:  # noqa: ANN401  graphsurgeon ships no types
        """The model for editing with onnx-graphsurgeon; its metadata is lost on that way."""
        import onnx_graphsurgeon as gs  # noqa: TID251  an extra, and this is the wall

        return gs.import_onnx(self.to_proto())

    def copy(self) -> Graph:
        """An independent graph that shares the (never changed) weights."""
        return Graph(self._model.clone(), None if self._shelf is None else Shelf(self._shelf))

    def extract(self, values: Sequence[Value]) -> Graph:
        """A graph that computes these values, which depend on weights alone; it shares those."""
        return Graph(edits.extract(self._model, self._graph, values), self._shelf)

    def save(self, path: str | os.PathLike[str], *, check: bool = True) -> list[Path]:
        """Write the model, whole or not at all; return the files written. See `onnxq.files.save`."""
        from onnxq import files  # it needs this module

        return files.save(self, path, check=check)

    @property
    def shelf(self) -> Path | None:
        """The temporary folder where its larger weights lie, those that lie in no file of the user's; None for none."""
        return None if self._shelf is None else self._shelf.folder

    @property
    def model(self) -> ir.Model:
        """The onnx_ir model, for `onnxq.files` and for callers who work with onnx_ir themselves."""
        return self._model

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The graph's nodes in order, those in bodies aside; safe to edit the graph while iterating."""
        return tuple(self._graph)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The model's inputs."""
        return tuple(self._graph.inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The model's outputs."""
        return tuple(self._graph.outputs)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self._model.opset_imports.get("", 1)

    @property
    def domains(self) -> dict[str, int]:
        """Every imported operator set."""
        return dict(self._model.opset_imports)

    @property
    def weights(self) -> Mapping[str, Value]:
        """A view of the initializers by name; of a body also those of the graphs around it, which it can read."""
        return MappingProxyType(ChainMap(*initializers(self._graph, self.body)))

    def values(self) -> Iterator[Value]:
        """Every activation: inputs, what a body reads of the graphs around it, then node outputs in order."""
        yield from self._graph.inputs
        yield from () if self.body is None else captured(self._graph)
        for node in self._graph:
            yield from node.outputs

    def parts(self) -> Iterator[Graph]:
        """The graph itself, then the bodies inside it at any depth, each as a Graph."""
        yield self
        for node in self._graph:
            for part in self.bodies_of(node):
                yield from part.parts()

    def bodies_of(self, node: Node) -> Iterator[Graph]:
        """The bodies that a node of this graph holds, each as a Graph."""
        for name, graph in named_bodies(node):
            yield Graph(self._model, self._shelf, Body(graph, f"{node.name}/{name}", node, self))

    def bodies(self, node: Node) -> Iterator[Node]:
        """The nodes inside an If, Loop or Scan, at any depth."""
        for body in bodies(node):
            for inner in body:
                yield inner
                yield from self.bodies(inner)

    def in_body(self, node: Node) -> bool:
        """Whether the node lies in another graph: in a body, or around this one."""
        return node.graph is not self._graph

    def const(self, value: Value | None) -> npt.NDArray[Any] | None:
        """The value's array when it is a weight, else None. Do not write into it."""
        if value is None or not value.is_initializer() or value.const_value is None:
            return None
        return value.const_value.numpy()

    def is_const(self, value: Value | None) -> bool:
        """Whether the value is a weight; does not read it."""
        return value is not None and value.is_initializer()

    def scalar(self, value: Value | None) -> float | None:
        """The number held by a one-element weight, else None."""
        array = self.const(value) if self.size(value) == 1 else None
        return None if array is None else float(array.reshape(-1)[0])

    def shape(self, value: Value | None) -> tuple[Dim, ...] | None:
        """Dimensions: int where known, name or None where not; None when even the rank is unknown."""
        return None if value is None else shape_of(value)

    def rank(self, value: Value | None) -> int | None:
        """Number of dimensions where known."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def size(self, value: Value | None) -> int | None:
        """Number of elements when every dimension is known."""
        return None if value is None else size_of(value)

    def dtype(self, value: Value | None) -> str | None:
        """Numpy's name of the element type ("float32"), or None where unknown or not a tensor."""
        return None if value is None else dtype_of(value)

    def attribute(self, node: Node, name: str, default: Any = None) -> Any:  # noqa: ANN401  depends on the attribute
        """The attribute's plain value, or the default."""
        found = node.attributes.get(name)
        return default if found is None else found.value

    def users(self, value: Value) -> tuple[tuple[Node, int], ...]:
        """(node, input index) for every use, those inside bodies included, in a stable order."""
        return tuple((use.node, use.idx) for use in value.uses())

    def only_user(self, value: Value) -> Node | None:
        """The node that alone uses the value, once or more, when it is no model output; else None."""
        nodes = {id(use.node): use.node for use in value.uses()}
        return next(iter(nodes.values())) if len(nodes) == 1 and not value.is_graph_output() else None

    def producer(self, value: Value | None, *op_types: str) -> Node | None:
        """The node of this graph that makes the value, if it is one of the op types (any, when none is named)."""
        node = None if value is None else value.producer()
        if node is None or self.in_body(node) or node.domain not in ("", "ai.onnx"):
            return None
        return node if not op_types or node.op_type in op_types else None

    def digest(self) -> str:
        """SHA-256 over operators, wiring, attributes and weights; names of nodes and metadata do not count."""
        return digest_of(self._model)

    def problem(self) -> str | None:
        """What is wrong with the graph's structure: undefined or doubly defined values, disorder; else None."""
        return structure_problem(self._graph, inside=self.body is not None)

    # -- editing ------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """The name itself, or the name with the first free number behind it."""
        if self.body is not None:
            return self.body.around.fresh(name)
        if self._names is None:
            names = (*(v.name for v in all_values(self._graph)), *(n.name for n in self._graph.all_nodes()))
            self._names = dict.fromkeys(map(str, names), 1)
        return numbered(name, self._names)

    def constant(self, name: str, array: npt.NDArray[Any]) -> Value:
        """A new weight; a large one goes to a file where the graph's others lie in one."""
        value = edits.weight(self.fresh(name), array)
        if self._shelf is not None:
            self._shelf.take(value)
        self._graph.register_initializer(value)
        return value

    def add(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        *,
        name: str,
        before: Node | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        like: Value | None = None,
        domain: str = "",
    ) -> Value:
        """Add a node with one output and return that output.

        The node goes before `before`, else right behind the last of the nodes that make its inputs (to the front
        when all are model inputs and weights). `like` lends the output its type and shape. `name` names the
        output; a number is appended when it is taken.
        """
        output = edits.value_like(self.fresh(name), like)
        made = edits.node(op_type, inputs, output, self.fresh(f"{name}/{op_type}"), attributes or {}, domain)
        if domain:
            self._model.opset_imports.setdefault(domain, 1)
        edits.insert(self._graph, made, before)
        return output

    def extend(self, node: Node, name: str, dtype: str) -> Value:
        """Give a node one more output, and return it."""
        node.resize_outputs(len(node.outputs) + 1)
        output = node.outputs[-1]
        output.name, output.type = self.fresh(name), edits.tensor_type(dtype)
        return output

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make the node read another value."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def cut_inputs(self, node: Node, count: int) -> None:
        """Leave out the (optional) inputs behind the first `count`."""
        node.resize_inputs(count)

    def set_attribute(self, node: Node, name: str, value: Attribute | None) -> None:
        """Write an attribute, or drop it with None."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = edits.attribute(name, value)

    def replace_uses(self, old: Value, new: Value, users: Iterable[tuple[Node, int]] | None = None) -> None:
        """Let the given uses (all, model outputs included, when None) read `new` instead of `old`.

        A model output keeps its name: `new` takes it when it is computed and no output itself, else an Identity
        carries the name. An output that is a model input stays: nothing else can have its name.
        """
        for node, index in self.users(old) if users is None else users:
            node.replace_input_with(index, new)
        if users is None and old.is_graph_output() and not old.is_graph_input():
            edits.take_over_output(self, self._graph.outputs, old, new)

    def bypass(self, node: Node) -> None:
        """Drop a one-output node; whoever read its output reads its first input instead."""
        source = node.inputs[0]
        if source is None:
            raise ModelError(f"node {node.name!r} ({node.op_type}) has no first input")
        self.replace_uses(node.outputs[0], source)
        if node.graph is not None:
            self.remove(node)

    def absorb(self, node: Node, value: Value) -> None:
        """Drop a one-output node whose result `value` holds by now; it takes over the node's users and its name."""
        output = node.outputs[0]
        name = output.name
        self.replace_uses(output, value)
        self.remove(node)
        if output.name == name and not value.is_graph_output():
            output.name = self.fresh(f"{name}/absorbed")
            value.name = name

    def replace_output(self, old: Value, new: Value) -> None:
        """Make `new` the model output in place of `old`, under its name; the users of `old` keep reading it."""
        edits.replace_output(self, self._graph.outputs, old, new)

    def inline(self, node: Node, branch: str) -> tuple[Node, ...]:
        """Put a branch of an If in its place; return the nodes that moved."""
        return edits.inline(self, self._graph, node, branch)

    def retype(self, value: Value, dtype: str, *, sequence: bool = False) -> None:
        """Say that an activation now has another element type, or is a `sequence`; nothing is converted by this."""
        value.type = edits.sequence_type(dtype) if sequence else edits.tensor_type(dtype)

    def rename(self, value: Value, name: str) -> None:
        """Give an activation another name, made free by a number: its old one stood for other values, and is free."""
        (self._names or {}).pop(str(value.name), None)  # of a body none: the names around it stay taken
        value.name = self.fresh(name)

    def remove(self, node: Node) -> None:
        """Drop a node that nothing uses."""
        self._graph.remove(node, safe=True)
        edits.let_go(node)

    def remove_unused(self) -> int:
        """Drop what no output needs, of the graph and its bodies; return how many nodes and weights of this graph."""
        return edits.remove_unused(self._model, self._graph)

    def sort(self) -> None:
        """Order nodes topologically, stably."""
        self._graph.sort()

    def add_input(self, name: str, dtype: str) -> Value:
        """One more input, of unknown shape."""
        value = edits.activation(self.fresh(name), dtype)
        self._graph.inputs.append(value)
        return value

    def add_output(self, value: Value, index: int | None = None) -> None:
        """Make an activation an output, the last unless told (observation does this on a copy)."""
        if not value.is_graph_output():
            self._graph.outputs.insert(len(self._graph.outputs) if index is None else index, value)

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Make these the model's outputs."""
        self._graph.outputs.clear()
        self._graph.outputs.extend(values)

    def find(self, name: str) -> Value | None:
        """The activation or weight of that name in this graph."""
        return self.weights.get(name) or next((v for v in self.values() if v.name == name), None)

    # -- whole-model steps done by onnx ----------------------------------------------------------------------

    def infer_shapes(self, inputs: Mapping[str, Sequence[int]] = MappingProxyType({})) -> None:
        """Fill in types and shapes, given those of some inputs, as far as onnx gets; the rest stays unknown."""
        convert.infer_shapes(self._model, inputs)

    def restate_opset(self, version: int) -> None:
        """Import another version of the default domain, in which the nodes as they are mean the same."""
        self._model.opset_imports[""] = version

    def convert_opset(self, version: int) -> None:
        """Rewrite the model for another default-domain opset with onnx's version converter.

        Raises:
            ModelError: an operator has no conversion.
        """
        self._model = convert.converted(self._model, version)
        self._graph, self._names = self._model.graph, None
