"""Graph: the model while onnxq works on it.

Passes get `Node` and `Value` objects only from here and edit them only with the verbs below. A node's inputs and
a value's uses can be read directly; everything that changes the graph is a method of `Graph`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall
from onnx_ir.passes import common as ir_passes  # noqa: TID251  this is the wall

from onnxq.errors import ModelError
from onnxq.graph import convert, edits
from onnxq.graph.digest import digest_of
from onnxq.graph.normal import all_values, bodies, normalize
from onnxq.graph.validity import check_proto, structure_problem
from onnxq.graph.values import Dim, dtype_of, shape_of, size_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import onnx

Node = ir.Node
Value = ir.Value
Attribute = Any
"""What an ONNX attribute can hold: int, float, str, or a list of one of them."""


class Graph:
    """A model with unique node and value names, its local functions inlined and its Constant nodes as weights.

    Weights stay where they are (the file, external data) until `const` reads them. Bodies of If, Loop and Scan
    stay attached to their node; `nodes` are those of the main graph.
    """

    def __init__(self, model: ir.Model, resource: object = None) -> None:
        self._model = model
        self._resource = resource  # keeps alive what lazily read weights need: a temporary folder, say
        self._names: set[str] | None = None

    # -- coming and going ---------------------------------------------------------------------------------

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, base_dir: str = "") -> Graph:
        """Take a model; the proto is not changed. `base_dir` is where its external data lies.

        Raises:
            ModelError: it is not a valid model.
        """
        check_proto(proto)
        try:
            return normalized(ir.from_proto(proto), base_dir)
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
        return ir.to_proto(self.inlined())

    def to_graphsurgeon(self) -> Any:  # noqa: ANN401  graphsurgeon ships no types
        """The model for editing with onnx-graphsurgeon; its metadata is lost on that way."""
        import onnx_graphsurgeon as gs  # noqa: TID251  an extra, and this is the wall

        return gs.import_onnx(self.to_proto())

    def copy(self) -> Graph:
        """An independent graph that shares the (never changed) weights."""
        return Graph(self._model.clone(), self._resource)

    def extract(self, values: Sequence[Value]) -> Graph:
        """A graph that computes these values of the main graph, which depend on weights alone; it shares those."""
        part = ir.convenience.extract(self._model.graph, (), values)
        return Graph(ir.Model(part, ir_version=self._model.ir_version), self._resource)

    def inlined(self) -> ir.Model:
        """A copy of the model whose weights are (views of) arrays, none a reference to a file."""
        clone = self._model.clone()
        ir.external_data.load_to_model(clone)
        return clone

    def save(self, path: str | os.PathLike[str], *, check: bool = True) -> list[Path]:
        """Write the model, whole or not at all; return the files written. See `onnxq.files.save`."""
        from onnxq import files  # it needs this module

        return files.save(self, path, check=check)

    @property
    def model(self) -> ir.Model:
        """The onnx_ir model, for `onnxq.files` and for callers who work with onnx_ir themselves."""
        return self._model

    def data_files(self) -> set[Path]:
        """Files outside the model that its weights are still to be read from."""
        tensors = (v.const_value for part in self._model.graphs() for v in part.initializers.values())
        return {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The main graph's nodes in order, safe to edit the graph while iterating."""
        return tuple(self._model.graph)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The model's inputs."""
        return tuple(self._model.graph.inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The model's outputs."""
        return tuple(self._model.graph.outputs)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self._model.opset_imports.get("", 1)

    @property
    def domains(self) -> dict[str, int]:
        """Every imported operator set."""
        return dict(self._model.opset_imports)

    @property
    def weights(self) -> dict[str, Value]:
        """Initializers of the main graph by name."""
        return {str(k): v for k, v in self._model.graph.initializers.items()}

    def values(self) -> Iterator[Value]:
        """Every activation of the main graph: inputs, then node outputs in order."""
        yield from self._model.graph.inputs
        for node in self._model.graph:
            yield from node.outputs

    def bodies(self, node: Node) -> Iterator[Node]:
        """The nodes inside an If, Loop or Scan, at any depth."""
        for body in bodies(node):
            for inner in body:
                yield inner
                yield from self.bodies(inner)

    def in_body(self, node: Node) -> bool:
        """Whether the node lies inside an If, Loop or Scan."""
        return node.graph is not self._model.graph

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
        if not self.is_const(value) or self.size(value) != 1:
            return None
        array = self.const(value)
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
        """The node that makes the value, if it is one of the op types (any, when none is named)."""
        node = None if value is None else value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or (op_types and node.op_type not in op_types):
            return None
        return node

    def digest(self) -> str:
        """SHA-256 over operators, wiring, attributes and weights; names of nodes and metadata do not count."""
        return digest_of(self._model)

    def problem(self) -> str | None:
        """What is wrong with the main graph's structure: undefined or doubly defined values, disorder; else None."""
        return structure_problem(self._model.graph)

    # -- editing ------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """The name itself, or the name with the first free number behind it."""
        if self._names is None:
            self._names = {str(v.name) for v in all_values(self._model.graph)}
            self._names |= {str(n.name) for n in self._model.graph.all_nodes()}
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def constant(self, name: str, array: npt.NDArray[Any]) -> Value:
        """A new weight."""
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=self.fresh(name))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._model.graph.register_initializer(value)
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
        output = ir.Value(name=self.fresh(name))
        if like is not None:
            output.type, output.shape = like.type, like.shape
        made = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(dict(attributes or {})),
            outputs=[output],
            name=self.fresh(f"{name}/{op_type}"),
        )
        if domain:
            self._model.opset_imports.setdefault(domain, 1)
        edits.insert(self._model.graph, made, before)
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
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def replace_uses(self, old: Value, new: Value, users: Iterable[tuple[Node, int]] | None = None) -> None:
        """Let the given uses (all, model outputs included, when None) read `new` instead of `old`.

        A model output keeps its name: `new` takes it when it is computed and no output itself, else an Identity
        carries the name. An output that is a model input stays: nothing else can have its name.
        """
        for node, index in self.users(old) if users is None else users:
            node.replace_input_with(index, new)
        if users is None and old.is_graph_output() and not old.is_graph_input():
            edits.take_over_output(self, old, new)

    def bypass(self, node: Node) -> None:
        """Drop a one-output node; whoever read its output reads its first input instead."""
        source = node.inputs[0]
        if source is None:
            raise ModelError(f"node {node.name!r} ({node.op_type}) has no first input")
        self.replace_uses(node.outputs[0], source)
        if node.graph is not None:
            self.remove(node)

    def absorb(self, node: Node, value: Value) -> None:
        """Drop a one-output node whose result `value` holds by now; it takes over the node's users and its name.

        A tensor's name so always stands for the same values as in the model before.
        """
        output = node.outputs[0]
        name = output.name
        self.replace_uses(output, value)
        self.remove(node)
        if output.name == name and not value.is_graph_output():
            output.name = self.fresh(f"{name}/absorbed")
            value.name = name

    def replace_output(self, old: Value, new: Value) -> None:
        """Make `new` the model output in place of `old`, under its name; the users of `old` keep reading it."""
        outputs, name = self._model.graph.outputs, old.name
        outputs[[v is old for v in outputs].index(True)] = new
        old.name = self.fresh(f"{name}/inner")
        new.name = name

    def retype(self, value: Value, dtype: str) -> None:
        """Say that an activation now has another element type; nothing is converted by this."""
        value.type = edits.tensor_type(dtype)

    def rename(self, value: Value, name: str) -> None:
        """Give an activation another name, made free by a number: its old one stood for other values."""
        value.name = self.fresh(name)

    def remove(self, node: Node) -> None:
        """Drop a node that nothing uses."""
        self._model.graph.remove(node, safe=True)

    def remove_unused(self) -> int:
        """Drop every node and weight that no output needs; return how many."""
        before = len(self._model.graph) + len(self._model.graph.initializers)
        ir_passes.RemoveUnusedNodesPass()(self._model)
        return before - len(self._model.graph) - len(self._model.graph.initializers)

    def sort(self) -> None:
        """Order nodes topologically, stably."""
        self._model.graph.sort()

    def add_output(self, value: Value) -> None:
        """Make an activation an output of the model (observation does this on a copy)."""
        if not value.is_graph_output():
            self._model.graph.outputs.append(value)

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Make these the model's outputs."""
        self._model.graph.outputs.clear()
        self._model.graph.outputs.extend(values)

    def find(self, name: str) -> Value | None:
        """The activation or weight of that name in the main graph."""
        return next((v for v in self.values() if v.name == name), self.weights.get(name))

    # -- whole-model steps done by onnx ----------------------------------------------------------------------

    def infer_shapes(self) -> None:
        """Fill in types and shapes as far as onnx's inference gets; what it cannot infer stays unknown."""
        convert.infer_shapes(self._model)

    def convert_opset(self, version: int) -> None:
        """Rewrite the model for another default-domain opset with onnx's version converter.

        Raises:
            ModelError: an operator has no conversion.
        """
        self._model = convert.converted(self._model, version)
        self._names = None


def normalized(model: ir.Model, base_dir: str = "", resource: object = None) -> Graph:
    """A Graph of a model just read: external data found, functions inlined, constants lifted, names unique."""
    ir.external_data.set_base_dir(model.graph, base_dir)
    normalize(model)
    return Graph(model, resource)
