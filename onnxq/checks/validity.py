"""P34: the model is valid ONNX: nodes in order, tensors whole, and what onnx.checker asks."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.checks.build import big_constants, bodies, stub
from onnxq.checks.finding import Breach, error, note
from onnxq.customs import is_custom, stand_in
from onnxq.dtypes import FOUR_BITS, type_name
from onnxq.inference import check_fully, ranked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from onnxq.checks.index import Model


def valid(model: Model) -> Iterator[Breach]:
    """The model is valid ONNX.

    onnx.checker (full check, with strict shape inference) sees the model without its big weights; whether their
    bytes are all there, in the file and in external data, is counted here. An operator that the standard does not
    have is no error (I): TensorRT looks for a plugin of its name.
    """
    if not model.main:
        return
    disorder = unsorted(model.proto.graph)
    yield from disorder
    yield from _tensors(model)
    yield from _plugins(model.proto)
    if not disorder:
        yield from _checked(model.proto)


def unsorted(graph: GraphProto) -> list[Breach]:
    """What is wrong with the order of nodes.

    Of those that read what is made later, or on a cycle, the first, with how many they are, since sorting mends them
    all; and each that reads what is made nowhere.
    """
    found = list(reads_ahead(graph))
    late = [(node, name) for node, name, made in found if made]
    lost = [error(node, f"reads {name}, which no node makes") for node, name, made in found if not made]
    if not late:
        return lost
    (node, name), count = late[0], len({id(node) for node, _ in late})
    which = f"this one, the first of {count}," if count > 1 else "this one"
    text = f"the nodes are not in topological order: {which} reads {name}, which no earlier node makes"
    return [error(node, text), *lost]


def reads_ahead(
    graph: GraphProto, outer: tuple[tuple[AbstractSet[str], AbstractSet[str]], ...] = ()
) -> Iterator[tuple[NodeProto, str, bool]]:
    """(node, tensor that it reads and nothing before it makes, whether anything makes it at all), in graph order.

    `outer`: of the graphs around this one, (names known so far, names of all outputs).
    """
    known = {t.name for t in graph.initializer} | {value.name for value in graph.input}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    made = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known and not any(name in names for names, _ in outer):
                yield node, name, name in made or any(name in names for _, names in outer)
        for body in bodies(node):
            yield from reads_ahead(body, ((known, made), *outer))
        known |= set(node.output)


def _plugins(proto: ModelProto) -> Iterator[Breach]:
    own = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if (node.domain, node.op_type) not in own and is_custom(node.op_type, node.domain):
            yield note(node, f"{node.op_type} is no ONNX operator, TensorRT needs a plugin of that name")


def _tensors(model: Model) -> Iterator[Breach]:
    graph = model.proto.graph
    for name, tensor in [*((t.name, t) for t in graph.initializer), *big_constants(graph).items()]:
        problem = _problem(tensor, model.base_dir)
        if problem:
            yield Breach("E", name, problem)


def _problem(tensor: TensorProto, base_dir: str) -> str:
    """What is wrong with a tensor's bytes; empty when nothing is. Text tensors and typed fields are the checker's."""
    from onnx import TensorProto

    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return ""
    wanted = _bytes(tensor)
    if tensor.data_location != TensorProto.EXTERNAL:
        held = len(tensor.raw_data) if tensor.HasField("raw_data") else wanted
        return "" if held == wanted else f"{held} bytes for {wanted} of {type_name(tensor.data_type)}"
    return _external_problem(tensor, Path(base_dir or ".").resolve(), wanted)


def _external_problem(tensor: TensorProto, folder: Path, wanted: int) -> str:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = folder / location
    if not location or not file.resolve().is_relative_to(folder):
        return f"external data {location!r} lies outside the model's folder"
    if not file.is_file():
        return f"external data file {location!r} is missing"
    offset, length = (_number(entries.get(key), default) for key, default in (("offset", 0), ("length", wanted)))
    if length != wanted:
        return f"{length} bytes of external data for {wanted} of {type_name(tensor.data_type)}"
    if offset < 0 or offset + length > file.stat().st_size:
        return f"external data file {location!r} ends before byte {offset + length}"
    return ""


def _number(text: str | None, default: int) -> int:
    """What an entry of external data says; -1, which no offset or length is, for what is no number."""
    if text is None:
        return default
    return int(text) if text.isdecimal() else -1


def _bytes(tensor: TensorProto) -> int:
    from onnx import TensorProto, helper

    count: int = prod(tensor.dims)
    if tensor.data_type in FOUR_BITS | {TensorProto.UINT4}:
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _checked(proto: ModelProto) -> Iterator[Breach]:
    small = stub(proto)
    stand_in(small)
    for name in ranked(small):
        yield Breach("E", name, "the input declares no rank: TensorRT wants one, with names for sizes that vary")
    try:
        check_fully(small)
    except Exception as refusal:  # noqa: BLE001  ValidationError, InferenceError and others from C++
        yield Breach("E", proto.graph.name or "model", f"onnx.checker: {' '.join(str(refusal).split())[:400]}")
