"""What makes two models the same: operators, wiring, attributes and weights, wherever those weights are stored."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...  # noqa: ANN401  any buffer


def digest_of(model: ir.Model) -> str:
    """SHA-256 in hexadecimal. Names of nodes, documentation and metadata do not count."""
    found = hashlib.sha256(f"{sorted(model.opset_imports.items())}\n".encode())
    _add_graph(found, model.graph)
    return found.hexdigest()


def _add_graph(found: _Hash, graph: ir.Graph) -> None:
    for value in (*graph.inputs, *graph.outputs):
        found.update(f"{value.name}|{value.dtype}|{value.shape}\n".encode())
    for name, value in sorted(graph.initializers.items()):
        _add_tensor(found, name, value.const_value)
    for node in graph:
        names = [v.name or "" if v is not None else "" for v in node.inputs], [v.name or "" for v in node.outputs]
        found.update(f"{node.domain}|{node.op_type}|{names}\n".encode())
        for _, attribute in sorted(node.attributes.items()):
            _add_attribute(found, attribute)


def _add_attribute(found: _Hash, attribute: ir.Attr) -> None:
    kind = attribute.type
    found.update(f"{attribute.name}|{kind.name}\n".encode())
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        for body in [attribute.value] if kind == ir.AttributeType.GRAPH else attribute.value:
            _add_graph(found, body)
    elif kind in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        for tensor in [attribute.value] if kind == ir.AttributeType.TENSOR else attribute.value:
            _add_tensor(found, "", tensor)  # the name of an attribute's tensor means nothing
    else:  # as in a file, where floats are rounded to 32 bits
        proto = ir.serde.serialize_attribute(attribute)
        proto.ClearField("doc_string")
        found.update(proto.SerializeToString(deterministic=True))


def _add_tensor(found: _Hash, name: str, tensor: ir.TensorProtocol | None) -> None:
    if tensor is None:
        return
    found.update(f"{name}|{tensor.dtype.name}|{list(tensor.shape)}\n".encode())
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    if tensor.dtype == ir.DataType.STRING:
        for text in array:
            raw = text if isinstance(text, bytes) else str(text).encode()
            found.update(f"{len(raw)}|".encode() + raw)
    elif array.size:
        found.update(array.view(np.uint8))  # without a copy: it may be gigabytes
