"""From an onnx.ModelProto or a file to the indexed graphs that the checks read; weights stay where they are."""

from __future__ import annotations

from collections import ChainMap
from contextlib import suppress
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from onnxq.checks.index import COPIES, DQ, Model, Shape, is_onnx, is_qdq
from onnxq.errors import ModelError, no_onnx, refuse_no_file
from onnxq.inference import inferred
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

    from onnxq.checks.versions import Version

    Shapes = Mapping[str, tuple[int, ...]]
    """Input -> its shape, where the model leaves it open."""

NO_SHAPES: Shapes = MappingProxyType({})
"""Nothing is known but what the file says."""

SMALL = 1024  # elements; shape inference reads the values of small constants only (axes, target shapes)

_T = TypeVar("_T")


def read(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file, external data left where it is.

    Raises:
        ModelError: the file cannot be read or is no ONNX model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]  # has no types
    from onnx import ModelProto

    proto = ModelProto()
    data = b""
    try:
        refuse_no_file(Path(path))
        data = Path(path).read_bytes()
        proto.ParseFromString(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    except DecodeError as error:
        hint = "Copy or export the file again and compare its size."
        raise no_onnx(path, data, ", or is cut short", hint) from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path} holds no graph with outputs", "Name the .onnx file of a model.")
    return proto


def surroundings(proto: ModelProto, base_dir: str, version: Version) -> Model:
    """A Model of no nodes: what surrounds the main graph, its weights."""
    weights = big_constants(proto.graph) | {tensor.name: tensor for tensor in proto.graph.initializer}
    return Model(
        proto=proto,
        main=True,
        version=version,
        base_dir=base_dir,
        nodes=(),
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1),
        constants=weights,
        producers={},
        users={},
        inputs=frozenset(),
        outputs=frozenset(),
        shapes={name: tuple(tensor.dims) for name, tensor in weights.items()},
        types={name: tensor.data_type for name, tensor in weights.items()},
        carried={},
    )


def open_inputs(proto: ModelProto, shapes: Shapes = NO_SHAPES) -> list[str]:
    """The inputs of which a size is not known, batches aside, or the rank, and of which `shapes` does not tell."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [v.name for v in proto.graph.input if v.name not in constants and v.name not in shapes and _open(v)]


def _open(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type  # of what is no tensor, nothing is to be known
    unknown = not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim[1:])
    return value.type.HasField("tensor_type") and unknown


def graphs(proto: ModelProto, base_dir: str, version: Version, shapes: Shapes = NO_SHAPES) -> Iterator[Model]:
    """The main graph and its subgraph bodies, with shapes and types inferred. The graph must be sorted.

    Args:
        proto: the model.
        base_dir: folder of its external data.
        version: of TensorRT.
        shapes: of inputs, where the model leaves them open.
    """
    import onnx.inliner
    import onnx.shape_inference

    small = stub(proto)
    for value in small.graph.input:
        if (dims := shapes.get(value.name)) is not None:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, dims))
    if proto.functions:
        small = onnx.inliner.inline_local_functions(small)
    # ONNX Runtime's domain has the same Q and DQ; under ONNX's name inference knows them.
    contrib = {n.output[0] for n in small.graph.node if is_qdq(n) and n.domain == CONTRIB and n.output}
    _rename(small, contrib, "")
    # When inference fails, the checks know only the shapes that the model itself declares.
    with suppress(onnx.shape_inference.InferenceError):
        small = inferred(small)
    _rename(small, contrib, CONTRIB)
    yield from _indexed(small.graph, surroundings(proto, base_dir, version), main=True)


def stub(proto: ModelProto) -> ModelProto:
    """The model with big weights turned into graph inputs, so that inference copies no weights."""
    from onnx import ModelProto, TensorProto, helper

    whole = proto.graph
    small = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    small.graph.name = whole.name or "graph"
    weights = big_constants(whole)
    small.graph.node.extend(node for node in whole.node if not (node.output and node.output[0] in weights))
    small.graph.input.extend(whole.input)
    small.graph.output.extend(whole.output)
    small.graph.value_info.extend(whole.value_info)
    declared = {value.name for value in whole.input}
    for name, tensor in [*((t.name, t) for t in whole.initializer), *weights.items()]:
        if name not in weights and prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            small.graph.initializer.append(tensor)
        elif name not in declared:
            small.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return small


def big_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors of more than SMALL elements, or in external data, in Constant nodes, by the name they make."""
    from onnx import TensorProto

    return {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant" and is_onnx(node) and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
        and (prod(attribute.t.dims) > SMALL or attribute.t.data_location == TensorProto.EXTERNAL)
    }


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(proto: ModelProto, outputs: set[str], domain: str) -> None:
    for node in proto.graph.node:
        if node.output and node.output[0] in outputs:
            node.domain = domain


def _indexed(graph: GraphProto, outer: Model, *, main: bool = False) -> Iterator[Model]:
    """The index of a graph inside `outer`, then those of the bodies inside it."""
    constants = {tensor.name: tensor for tensor in graph.initializer} | _constants(graph)
    shapes, types = _declared(graph)
    producers = {name: node for node in graph.node for name in node.output if name}
    readers = dict.fromkeys((*producers, *constants, *(value.name for value in graph.input)), ()) | _users(graph)
    # A name from outside keeps all its readers; a body's own names may recur in a sibling body.
    seen = {name for name in readers if name in outer.users and (name in outer.types or name in outer.producers)}
    over = _merged if main else _chained
    scope = Model(
        proto=outer.proto,
        main=main,
        version=outer.version,
        base_dir=outer.base_dir,
        nodes=tuple(graph.node),
        opset=outer.opset,
        constants=over(constants, outer.constants),
        producers=over(producers, outer.producers),
        users=over({name: users for name, users in readers.items() if name not in seen}, outer.users),
        inputs=frozenset(value.name for value in graph.input),
        outputs=frozenset(value.name for value in graph.output),
        shapes=over(shapes | {name: tuple(tensor.dims) for name, tensor in constants.items()}, outer.shapes),
        types=over(types | {name: tensor.data_type for name, tensor in constants.items()}, outer.types),
        carried=_carried(graph, outer.carried, main=main),
    )
    yield scope
    for node in graph.node:
        for body in bodies(node):
            yield from _indexed(body, scope)


def own(table: Mapping[str, _T]) -> Mapping[str, _T]:
    """What a graph itself holds, of one of the tables of its Model; for the main graph all of it."""
    return table.maps[0] if isinstance(table, ChainMap) else table


def _merged(inner: dict[str, _T], outer: Mapping[str, _T]) -> Mapping[str, _T]:
    """What a graph holds by name, in one table with what is around it."""
    return {**outer, **inner}


def _chained(inner: dict[str, _T], outer: Mapping[str, _T]) -> Mapping[str, _T]:
    """The same for a body, without a copy of all that is around it: a model may have thousands of bodies."""
    return ChainMap(inner, *(outer.maps if isinstance(outer, ChainMap) else [cast("dict[str, _T]", outer)]))


def _carried(graph: GraphProto, outer: Mapping[str, NodeProto], *, main: bool) -> Mapping[str, NodeProto]:
    inner: dict[str, NodeProto] = {}
    found = inner if main else _chained(inner, outer)
    for node in graph.node:
        makers = [found.get(name) for name in node.input]
        maker = node if node.op_type == DQ and is_qdq(node) else None
        if is_onnx(node) and (node.op_type in COPIES or (node.op_type == "Concat" and None not in makers)):
            maker = next(iter(makers), None)
        if maker is not None:
            inner |= {name: maker for name in node.output if name}
    return found


def _declared(graph: GraphProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and element types by tensor name, of those that are known."""
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            dims = kind.shape.dim
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return shapes, types


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The values of Constant nodes by the tensor they make; text constants have no place in the checks."""
    from onnx import AttributeProto, helper, numpy_helper

    numbers = {
        AttributeProto.FLOAT: np.float32,
        AttributeProto.FLOATS: np.float32,
        AttributeProto.INT: np.int64,
        AttributeProto.INTS: np.int64,
    }
    found: dict[str, TensorProto] = {}
    for node in graph.node:
        if node.op_type == "Constant" and is_onnx(node) and node.output:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    found[node.output[0]] = attribute.t
                elif attribute.type in numbers:
                    values = np.array(helper.get_attribute_value(attribute), numbers[attribute.type])
                    found[node.output[0]] = numpy_helper.from_array(values)
    return found


def _users(graph: GraphProto) -> dict[str, tuple[NodeProto, ...]]:
    """The nodes that read each tensor, those of nested bodies included, each once."""
    found: dict[str, list[NodeProto]] = {}
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            stack.extend(bodies(node))
            for name in dict.fromkeys(filter(None, node.input)):
                found.setdefault(name, []).append(node)
    return {name: tuple(nodes) for name, nodes in found.items()}
