"""A large model file read in two parts: the model parsed, its larger weights mapped and left where they are.

Parsing such a file whole would hold its bytes three times. The mapping is of the file as it was opened: that the
file is replaced later does no harm.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

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


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
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


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """The number that begins there, 7 bits to a byte, least first, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _field(number: int, payload: bytes) -> bytes:
    """A field of bytes in protobuf's wire format; number is below 16."""
    head, size = bytearray([number << 3 | _LENGTH]), len(payload)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + payload
