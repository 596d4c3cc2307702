"""P36: on a DLA every float tensor has a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks.finding import Breach
from onnxq.checks.index import CONVS, DQ, Q, is_qdq
from onnxq.dtypes import FLOATS
from onnxq.operators import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.index import Model


def every_tensor(model: Model) -> Iterator[Breach]:
    """On a DLA every float tensor has a pair: around one without, the region runs in fp16.

    Not weights, biases, and what shapes are computed from; bodies of If, Loop and Scan are the GPU's.
    """
    if not model.version.every_tensor or not model.main:
        return
    shapes, own = _of_shapes(model), {id(node) for node in model.nodes}
    made = [name for node in model.nodes for name in node.output if name]
    for name in (*sorted(model.inputs), *made):
        if model.types.get(name) not in FLOATS or name in shapes or model.constant(name) or _dequantized(model, name):
            continue
        if (name in model.outputs or _read(model, name, own)) and not _quantized(model, name):
            yield Breach("W", name, "has no pair")


def _dequantized(model: Model, name: str) -> bool:
    """Whether a DequantizeLinear makes it, through a Cast to another float type perhaps."""
    node = model.producers.get(name)
    if node is not None and node.op_type == "Cast" and node.input:
        node = model.producers.get(node.input[0])
    return node is not None and node.op_type == DQ


def _quantized(model: Model, name: str) -> bool:
    casts = frozenset({"Cast"})
    return any(reader.op_type == Q for reader in model.readers(name, casts))


def _read(model: Model, name: str, own: set[int]) -> bool:
    """Whether one of the `own` nodes, by id, computes with it."""
    return any(_computes(user, name) for user in model.users.get(name, ()) if id(user) in own)


def _computes(user: NodeProto, name: str) -> bool:
    if user.op_type in ("Shape", "Size") or is_qdq(user):
        return False
    slots = [slot for slot, read in enumerate(user.input) if read == name]
    if user.op_type == "Resize":
        return 0 in slots
    return any(slot != 2 for slot in slots) if user.op_type in CONVS | {"Gemm"} else True


def _of_shapes(model: Model) -> set[str]:
    """What shapes are computed from, up to where a Shape or Size node takes it from the data."""
    found: set[str] = set()
    stack = [n.input[slot] for n in model.op(*SHAPES) for slot in SHAPES[n.op_type] if slot < len(n.input)]
    while stack:
        name = stack.pop()
        if not name or name in found:
            continue
        found.add(name)
        node = model.producers.get(name)
        if node is not None and node.op_type not in ("Shape", "Size"):
            stack.extend(node.input)
    return found
