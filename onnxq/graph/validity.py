"""What a model must be to be taken in: its names are text, everything read is made, its weights have their bytes.

onnx.checker asks for more, and refuses models that run everywhere; this is what onnxq cannot work without. A file
whose bytes were damaged mostly fails here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import onnx_ir as ir  # noqa: TID251  this is the wall

from onnxq.errors import ModelError
from onnxq.graph.normal import bodies, home_of
from onnxq.graph.signatures import axes_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx

_Key = TypeVar("_Key", str, int)
_Scopes = tuple[set[_Key], ...]
"""What can be read, of each graph from the outermost on: the union would be made anew for each body."""

_STRING = 8
_FIELDS = {
    **dict.fromkeys((ir.DataType.FLOAT, ir.DataType.COMPLEX64), "float_data"),
    **dict.fromkeys((ir.DataType.DOUBLE, ir.DataType.COMPLEX128), "double_data"),
    **dict.fromkeys((ir.DataType.UINT32, ir.DataType.UINT64), "uint64_data"),
    ir.DataType.INT64: "int64_data",
}
"""Element type -> the field that holds numbers of it; int32_data for all others (onnx.proto)."""


def check_proto(proto: onnx.ModelProto, where: str = "the model") -> None:
    """Check a model that was read.

    Args:
        proto: the model; weights in external data are not looked at.
        where: what the message calls it.

    Raises:
        ModelError: it is not usable.
    """
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    if (mapped := next((v.name for v in values if _is_map(v.type)), None)) is not None:
        raise ModelError(
            f"{where} has a map, {mapped!r}, where onnxq works on tensors",
            "Export it without: converters of scikit-learn and LightGBM models take options={'zipmap': False}.",
        )
    problem = next(_problems(proto), None)
    if problem is not None:
        raise ModelError(f"{where} is not a valid ONNX model: {problem}", "Copy the file again, or export it again.")


def _is_map(kind: onnx.TypeProto) -> bool:
    return kind.HasField("map_type") or (kind.HasField("sequence_type") and _is_map(kind.sequence_type.elem_type))


def _problems(proto: onnx.ModelProto) -> Iterator[str]:
    yield from _not_text([proto.producer_name, proto.producer_version, proto.domain, proto.doc_string])
    yield from _not_text(text for entry in proto.metadata_props for text in (entry.key, entry.value))
    yield from _graph_problems(proto.graph, ())
    for function in proto.functions:
        yield from _not_text([function.name, function.domain, *function.input, *function.output])
        yield from _node_problems(function.node, function.output, (set(function.input),))
    yield from _not_text(opset.domain for opset in proto.opset_import)
    yield from filter(None, [axes_problem(proto.graph)])


def _graph_problems(graph: onnx.GraphProto, outer: _Scopes[str]) -> Iterator[str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    yield from _not_text([graph.name, graph.doc_string, *(v.name for v in (*values, *graph.initializer))])
    yield from _not_text(d.dim_param for v in values for d in v.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        yield from _tensor_problems(tensor)
    own = {v.name for v in (*graph.input, *graph.initializer)}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    yield from _node_problems(graph.node, [v.name for v in graph.output], (*outer, own))


def _node_problems(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str], known: _Scopes[str]) -> Iterator[str]:
    """Problems of the nodes of one graph, in whatever order, that may read the known values."""
    made: set[str] = set()
    for node in nodes:
        yield from _not_text([node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output])
        if twice := made.intersection(node.output):
            yield f"two nodes make {min(twice)!r}"
        made.update(name for name in node.output if name)
    known = (*known, made)
    for node in nodes:
        if lost := [name for name in node.input if name and not _knows(known, name)]:
            yield f"node {node.name!r} ({node.op_type}) reads {lost[0]!r}, which nothing makes"
        for attribute in node.attribute:
            yield from _attribute_problems(attribute, node, known)
    if lost := [name for name in outputs if not _knows(known, name)]:
        yield f"nothing makes the output {lost[0]!r}"


def _attribute_problems(attribute: onnx.AttributeProto, node: onnx.NodeProto, known: _Scopes[str]) -> Iterator[str]:
    yield from _not_text([attribute.name])
    if attribute.type == attribute.UNDEFINED:
        yield f"attribute {attribute.name!r} of node {node.name!r} ({node.op_type}) has no type"
    for tensor in [attribute.t] if attribute.type == attribute.TENSOR else attribute.tensors:
        yield from _tensor_problems(tensor)
    for body in [attribute.g] if attribute.type == attribute.GRAPH else attribute.graphs:
        yield from _graph_problems(body, known)


def _tensor_problems(tensor: onnx.TensorProto) -> Iterator[str]:
    name = f"weight {tensor.name!r}"
    if tensor.data_type not in _TYPES:
        yield f"{name} is of the unknown element type {tensor.data_type}"
        return
    if min(tensor.dims, default=0) < 0:
        yield f"{name} has the shape {list(tensor.dims)}"
        return
    if tensor.data_location == tensor.EXTERNAL:
        return
    count = math.prod(tensor.dims)
    if tensor.data_type == _STRING:
        held, wanted, unit = len(tensor.string_data), count, "strings"
    elif tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), tensor_bytes(tensor), "bytes"
    else:
        field = _FIELDS.get(ir.DataType(tensor.data_type), "int32_data")
        held, wanted, unit = len(getattr(tensor, field)), _typed_count(tensor, count), "numbers"
        if other := [f for f in ("int32_data", *_FIELDS.values()) if f != field and len(getattr(tensor, f))]:
            yield f"{name} holds {other[0]}, where its element type has {field}"
    if held != wanted:
        yield f"{name} holds {held:,} {unit}, its shape {list(tensor.dims)} needs {wanted:,}"


def structure_problem(graph: ir.Graph, outer: _Scopes[int] = (), *, inside: bool = False) -> str | None:
    """What is wrong with a graph that was edited: values read before they are made, or made twice; else None.

    `outer` has the ids of the values that a body can read, of each of the graphs around it. Of a body that is looked at
    alone (`inside`) these are the values that neither it nor a body in it makes.
    """
    own = {id(v) for v in (*graph.inputs, *graph.initializers.values())}
    known = (*outer, *([_around(graph)] if inside else ()), own)
    names: set[str | None] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and not _knows(known, id(value)):
                return f"node {node.name!r} ({node.op_type}) reads {value.name!r} before anything makes it"
        for body in bodies(node):
            if (problem := structure_problem(body, known)) is not None:
                return problem
        for value in node.outputs:
            if value.name and value.name in names:
                return f"two nodes make {value.name!r}"
            own.add(id(value))
            names.add(value.name)
    lost = next((v.name for v in graph.outputs if not _knows(known, id(v))), None)
    return None if lost is None else f"nothing makes the output {lost!r}"


def _around(graph: ir.Graph) -> set[int]:
    """The ids of what a body reads of the graphs around it."""
    parts = (graph, *graph.subgraphs())
    inside = {id(part) for part in parts}
    read = [
        v for part in parts for values in (part.outputs, *(n.inputs for n in part)) for v in values if v is not None
    ]
    homes = ((id(v), home_of(v)) for v in read)
    return {key for key, home in homes if home is not None and id(home) not in inside}


def _knows(scopes: _Scopes[_Key], key: _Key) -> bool:
    return any(key in scope for scope in reversed(scopes))


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's shape and element type need; types below a byte are packed."""
    bits: int = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return -(-bits // 8)


def _typed_count(tensor: onnx.TensorProto, count: int) -> int:
    """How many numbers the typed fields hold: two for a complex one, one for a byte of packed ones (onnx.proto)."""
    kind = ir.DataType(tensor.data_type)
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    return tensor_bytes(tensor) if kind.bitwidth < 8 else count


def _not_text(names: Iterable[object]) -> Iterator[str]:
    """Names and remarks whose bytes are no UTF-8 come as bytes."""
    yield from (f"the name or remark {name!r} is not text" for name in names if not isinstance(name, str))


_TYPES = frozenset(int(kind) for kind in ir.DataType if kind != ir.DataType.UNDEFINED)
