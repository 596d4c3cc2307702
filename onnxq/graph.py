"""Graph: the model while onnxq works on it. The one wall around onnx_ir (and graphsurgeon, for exchange).

Passes get `Node` and `Value` objects only from here and edit them only with the verbs below. A node's inputs and
a value's uses can be read directly; everything that changes the graph is a method of `Graph`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall
from onnx_ir.passes import common as ir_passes  # noqa: TID251  this is the wall

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import onnx

Node = ir.Node
Value = ir.Value
Dim = int | str | None
Attribute = Any
"""What an ONNX attribute can hold: int, float, str, or a list of one of them."""

MAX_OPSET = 25
"""The newest default-domain opset onnxq writes: ONNX Runtime and TensorRT lag behind the standard."""

_SKELETON_BYTES = 1024  # larger weights are taken out before the model goes through onnx's C++ code


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
        """Take a model; the proto is not changed. `base_dir` is where its external data lies."""
        return normalized(ir.from_proto(proto), base_dir)

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

    @property
    def model(self) -> ir.Model:
        """The onnx_ir model, for `onnxq.files` and for callers who work with onnx_ir themselves."""
        return self._model

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
        for attribute in node.attributes.values():
            graphs = (
                [attribute.value]
                if attribute.type == ir.AttributeType.GRAPH
                else attribute.value
                if attribute.type == ir.AttributeType.GRAPHS
                else []
            )
            for body in graphs:
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
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(d) for d in value.const_value.shape)
        if value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else d.value for d in value.shape)

    def rank(self, value: Value | None) -> int | None:
        """Number of dimensions where known."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def size(self, value: Value | None) -> int | None:
        """Number of elements when every dimension is known."""
        shape = self.shape(value)
        if shape is None or any(not isinstance(d, int) for d in shape):
            return None
        return int(np.prod([int(d) for d in shape if isinstance(d, int)], dtype=np.int64))

    def dtype(self, value: Value | None) -> str | None:
        """Numpy's name of the element type ("float32"), or None where unknown or not a tensor."""
        if value is None:
            return None
        kind = value.dtype if value.const_value is None else value.const_value.dtype
        if kind is None or not isinstance(value.type, ir.TensorType | None):
            return None
        try:
            return kind.numpy().name
        except TypeError:
            return None

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
        h = hashlib.sha256()
        for value in (*self.inputs, *self.outputs):
            h.update(f"{value.name}|{value.dtype}|{self.shape(value)}\n".encode())
        for name, value in sorted(self.weights.items()):
            tensor = value.const_value
            if tensor is not None:
                h.update(f"{name}|{tensor.dtype}|{tensor.shape}\n".encode())
                h.update(memoryview(np.ascontiguousarray(tensor.numpy()).reshape(-1)).cast("B") if tensor.size else b"")
        for node in self._model.graph:
            names = [v.name if v is not None else "" for v in node.inputs], [v.name for v in node.outputs]
            h.update(f"{node.domain}|{node.op_type}|{names}\n".encode())
            for _, found in sorted(node.attributes.items()):
                h.update(ir.serde.serialize_attribute(found).SerializeToString(deterministic=True))
        return h.hexdigest()

    def problem(self) -> str | None:
        """What is wrong with the main graph's structure: undefined or doubly defined values, disorder; else None."""
        known = {id(v) for v in (*self.inputs, *self._model.graph.initializers.values())}
        names: set[str | None] = set()
        for node in self._model.graph:
            for value in node.inputs:
                if value is not None and id(value) not in known:
                    return f"node {node.name!r} ({node.op_type}) reads {value.name!r} before anything makes it"
            for value in node.outputs:
                if value.name and value.name in names:
                    return f"two nodes make {value.name!r}"
                known.add(id(value))
                names.add(value.name)
        lost = next((v.name for v in self.outputs if id(v) not in known), None)
        return None if lost is None else f"nothing makes the model output {lost!r}"

    # -- editing ------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """The name itself, or the name with the first free number behind it."""
        if self._names is None:
            self._names = {str(v.name) for v in _all_values(self._model.graph)}
            self._names |= {str(n.name) for n in self._model.graph.all_nodes()}
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def constant(self, name: str, array: npt.NDArray[Any]) -> Value:
        """A new weight."""
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=self.fresh(name))
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
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

        The node goes before `before`, else right behind the producer of its last computed input (to the front when
        all inputs are model inputs and weights). `like` lends the output its type and shape. `name` names the
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
        graph = self._model.graph
        makers = [v.producer() for v in inputs if v is not None]
        behind = next((n for n in reversed(makers) if n is not None), None)
        if before is not None:
            graph.insert_before(before, made)
        elif behind is not None:
            graph.insert_after(behind, made)
        elif len(graph):
            graph.insert_before(graph[0], made)
        else:
            graph.append(made)
        return output

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make the node read another value."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def set_attribute(self, node: Node, name: str, value: Attribute | None) -> None:
        """Write an attribute, or drop it with None."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def replace_uses(self, old: Value, new: Value, users: Iterable[tuple[Node, int]] | None = None) -> None:
        """Let the given uses (all, model outputs included, when None) read `new` instead of `old`.

        A model output keeps its name: `new` takes it when it is computed and no output itself, else an Identity
        carries the name.
        """
        for node, index in self.users(old) if users is None else users:
            node.replace_input_with(index, new)
        if users is None and old.is_graph_output():
            self._take_over_output(old, new)

    def bypass(self, node: Node) -> None:
        """Drop a one-output node; whoever read its output reads its first input instead."""
        source = node.inputs[0]
        if source is None:
            raise ModelError(f"node {node.name!r} ({node.op_type}) has no first input")
        self.replace_uses(node.outputs[0], source)
        if node.graph is not None:
            self.remove(node)

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
        import onnx

        try:
            proto = onnx.shape_inference.infer_shapes(self._skeleton()[0], data_prop=True)
        except Exception:  # noqa: BLE001  the C++ code raises several types; unknown shapes are no error
            return
        # onnx_ir's own pass would make tensors of sequences whose type was unknown, and takes quadratic time.
        found = {i.name: i.type for i in (*proto.graph.value_info, *proto.graph.output)}
        for value in (v for node in self._model.graph for v in node.outputs if v.name and v.name in found):
            kind = ir.serde.deserialize_type_proto_for_type(found[str(value.name)])
            shape = ir.serde.deserialize_type_proto_for_shape(found[str(value.name)])
            value.type = value.type if kind is None else kind
            value.shape = value.shape if shape is None else shape

    def convert_opset(self, version: int) -> None:
        """Rewrite the model for another default-domain opset with onnx's version converter.

        Raises:
            ModelError: an operator has no conversion.
        """
        from onnx import version_converter

        proto, taken = self._skeleton()
        try:
            converted = ir.from_proto(version_converter.convert_version(proto, version))
        except Exception as error:  # the C++ code raises several types
            raise ModelError(
                f"the model cannot be brought from opset {self.opset} to {version}: {str(error).strip()}",
                f"Export the model again with opset {version} or later.",
            ) from error
        for value in tuple(converted.graph.inputs):
            if (tensor := taken.get(str(value.name))) is not None:
                converted.graph.inputs.remove(value)
                value.const_value = tensor
                converted.graph.register_initializer(value)
        old = self._model
        self._model = ir.Model(
            converted.graph,
            ir_version=max(old.ir_version, 7),
            producer_name=old.producer_name,
            producer_version=old.producer_version,
            domain=old.domain,
            model_version=old.model_version,
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        self._model.opset_imports.update({k: v for k, v in old.opset_imports.items() if k not in ("", "ai.onnx")})
        self._names = None
        _normalize(self._model)

    # -- inside -------------------------------------------------------------------------------------------

    def _skeleton(self) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
        """The model with its larger weights turned into inputs, and those weights: onnx's C++ stops at 2 GB."""
        import onnx

        graph = self._model.graph
        taken = {
            str(name): value.const_value
            for name, value in graph.initializers.items()
            if value.const_value is not None and value.const_value.nbytes > _SKELETON_BYTES
        }
        for value in (v for part in self._model.graphs() for v in part.initializers.values()):
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and taken.get(str(value.name)) is not tensor:
                value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]
        view = ir.GraphView(
            [*graph.inputs, *(graph.initializers[name] for name in taken)],
            graph.outputs,
            nodes=graph,
            initializers=[v for name, v in graph.initializers.items() if name not in taken],
            name=graph.name,
        )
        opsets = [onnx.helper.make_opsetid(k, v) for k, v in self._model.opset_imports.items()]
        inside = ir.to_proto(view)  # type: ignore[call-overload]  # it takes views; its annotations forgot them
        proto = onnx.ModelProto(ir_version=self._model.ir_version, graph=inside, opset_import=opsets)
        return proto, taken

    def _take_over_output(self, old: Value, new: Value) -> None:
        name = old.name
        outputs = self._model.graph.outputs
        node = old.producer()
        if new.producer() is None or new.is_graph_output():
            new = self.add("Identity", [new], name=f"{name}/kept", like=old)
        outputs[[v is old for v in outputs].index(True)] = new
        if node is not None and not old.uses():
            old.name = self.fresh(f"{name}/replaced")
        new.name = name
        new.shape = old.shape if new.shape is None else new.shape
        new.type = old.type if new.type is None else new.type


def normalized(model: ir.Model, base_dir: str = "", resource: object = None) -> Graph:
    """A Graph of a model just read: external data found, functions inlined, constants lifted, names unique."""
    ir.external_data.set_base_dir(model.graph, base_dir)
    _normalize(model)
    return Graph(model, resource)


def _normalize(model: ir.Model) -> None:
    for domain in ("ai.onnx",):  # the default domain's other spelling
        if domain in model.opset_imports:
            model.opset_imports[""] = model.opset_imports.pop(domain)
    if model.functions:
        ir_passes.InlinePass()(model)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # An input that also has an initializer is a default nobody feeds: old exporters list every weight so.
    ir_passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, 7)  # from 4 on weights need not be inputs; 7 is opset 13's
    _name_nodes(model.graph)


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


def _all_values(graph: ir.Graph) -> Iterator[Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all_values(attribute.value)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.value:
                    yield from _all_values(body)
