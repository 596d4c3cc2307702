"""Large model files, read and written in two parts: the model, and the bytes of its larger weights.

Protobuf would hold those bytes three times over. Reading maps them and leaves them where they are, in the file as
it was opened: that it is replaced later does no harm. Writing streams them, one weight at a time.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir  # noqa: TID251  this is the wall

from onnxq.graph.validity import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Bytes = npt.NDArray[np.uint8]

SMALL_BYTES = 1024
"""Weights up to this size stay in the model: most are shapes, axes and the like."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto in onnx.proto
_SIZES = {0: 0, 1: 8, 5: 4}  # bytes behind a field's key by wire type; a varint's own are skipped as it is read
_VARINT, _LENGTH = 0, 2  # wire types


def read_apart(path: Path, small: int) -> tuple[bytes, dict[str, Bytes]]:
    """A model file's bytes, and of a file of more than `small` bytes the larger weights by name.

    The weights taken out are marked as external data without a file, and `put_back` gives them to the parsed model. A
    file that is not whole is returned as it is, for the parser to complain about.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= small:
            return file.read(), {}
        views: dict[str, Bytes] = {}
        try:
            with_stubs = b"".join(_model_parts(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), views))
        except (ValueError, IndexError):
            return file.read(), {}
    return with_stubs, views


def put_back(model: ir.Model, views: Mapping[str, Bytes]) -> None:
    """Give the weights that `read_apart` took out their bytes again."""
    for name, view in views.items():
        value = model.graph.initializers[name]
        stub = value.const_value
        if stub is not None:
            dtype = np.dtype(stub.dtype.numpy()).newbyteorder("<")
            array = view.view(dtype).reshape(stub.shape.numpy())
            value.const_value = ir.Tensor(array, stub.dtype, name=name, doc_string=stub.doc_string)


def write_joined(model: ir.Model, path: Path) -> None:
    """Write a model with all its weights inside.

    Raises:
        OSError: it cannot be written.
    """
    clone, held = with_stubs(model, "held")
    data: bytes = ir.to_proto(clone).SerializeToString()
    with path.open("wb") as file:
        for number, begin, payload, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                file.write(data[begin:end])
                continue
            parts = [part for field in _fields(data, payload, end) for part in _joined(data, field, held)]
            file.write(_head(_GRAPH, sum(len(p) if isinstance(p, bytes) else p.nbytes for p in parts)))
            for part in parts:
                _write_part(part, file)


def with_stubs(model: ir.Model, location: str) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy with the main graph's larger weights replaced by stubs and the others in memory, and the larger ones.

    A stub says that its bytes lie in the file `location`, and not where in it.
    """
    clone = model.clone()
    held: dict[str, ir.TensorProtocol] = {}
    for graph in clone.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if graph is clone.graph and tensor.nbytes > SMALL_BYTES:
                held[name] = tensor
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor(
                    location, None, None, tensor.dtype, shape=shape, name=name, doc_string=tensor.doc_string
                )
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]
    return clone, held


def _joined(
    data: bytes, field: tuple[int, int, int, int], held: Mapping[str, ir.TensorProtocol]
) -> Iterator[bytes | ir.TensorProtocol]:
    """A field of the graph, with a held weight in place of its stub."""
    import onnx

    number, begin, payload, end = field
    stub = onnx.TensorProto.FromString(data[payload:end]) if number == _INITIALIZER else None
    if stub is None or stub.name not in held:
        yield data[begin:end]
        return
    tensor = held[stub.name]
    stub.ClearField("data_location")
    stub.ClearField("external_data")
    inside = stub.SerializeToString() + _head(_RAW_DATA, tensor.nbytes)
    yield _head(_INITIALIZER, len(inside) + tensor.nbytes) + inside
    yield tensor


def _write_part(part: bytes | ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(part, bytes):
        file.write(part)
    elif isinstance(part, ir.Tensor | ir.ExternalTensor):
        part.tofile(file)
    else:
        file.write(part.tobytes())


def _model_parts(data: mmap.mmap, views: dict[str, Bytes]) -> Iterator[bytes]:
    for number, begin, payload, end in _fields(data, 0, len(data)):
        if number == _GRAPH:
            yield _field(_GRAPH, b"".join(_graph_parts(data, payload, end, views)))
        else:
            yield data[begin:end]


def _graph_parts(data: mmap.mmap, start: int, stop: int, views: dict[str, Bytes]) -> Iterator[bytes]:
    for number, begin, payload, end in _fields(data, start, stop):
        if number == _INITIALIZER and end - payload > SMALL_BYTES:
            yield _field(_INITIALIZER, _tensor_stub(data, payload, end, views))
        else:
            yield data[begin:end]


def _tensor_stub(data: mmap.mmap, start: int, stop: int, views: dict[str, Bytes]) -> bytes:
    """A TensorProto without its raw_data, which goes into views; as it is where that is not all of its data."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]  # has no types

    fields = list(_fields(data, start, stop))
    raw = [np.frombuffer(data, np.uint8, end - at, at) for number, _, at, end in fields if number == _RAW_DATA]
    try:
        tensor = onnx.TensorProto.FromString(b"".join(data[b:e] for n, b, _, e in fields if n != _RAW_DATA))
    except DecodeError as error:
        raise ValueError(str(error)) from error
    whole = len(raw) == 1 and _whole_bytes(tensor.data_type) and raw[0].size == tensor_bytes(tensor)
    if not whole or tensor.HasField("data_location") or tensor.name in views:
        return data[start:stop]
    views[tensor.name] = raw[0]
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="mapped")
    return bytes(tensor.SerializeToString())


def _whole_bytes(data_type: int) -> bool:
    """Whether numpy can view the stored bytes as the element type."""
    known: dict[int, Any] = {int(kind): kind for kind in ir.DataType}
    kind = known.get(data_type)
    return kind not in (None, ir.DataType.UNDEFINED, ir.DataType.STRING) and kind.bitwidth % 8 == 0


def _fields(data: mmap.mmap | bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, begin, payload, end) of every field of a message in protobuf's wire format (protobuf.dev/encoding).

    Raises:
        ValueError, IndexError: the bytes are no whole message.
    """
    while start < stop:
        key, at = _varint(data, start)
        size = _SIZES.get(key & 7)
        if key & 7 == _VARINT:
            _, at = _varint(data, at)
        elif key & 7 == _LENGTH:
            size, at = _varint(data, at)
        if size is None or at + size > stop:
            raise ValueError("not a whole message")
        yield key >> 3, start, at, at + size
        start = at + size


def _varint(data: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    """The number that begins there, 7 bits to a byte, least first, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _field(number: int, payload: bytes) -> bytes:
    """A field of bytes in protobuf's wire format; number is below 16."""
    return _head(number, len(payload)) + payload


def _head(number: int, size: int) -> bytes:
    """What stands before the payload of such a field."""
    head = bytearray([number << 3 | _LENGTH])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
