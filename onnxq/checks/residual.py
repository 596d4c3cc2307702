"""P22 and P23: additions and pools; they run in int8 fused into a convolution, or with both ends in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks.finding import warning
from onnxq.checks.index import CONVS, GATES, Q, is_addition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.finding import Breach
    from onnxq.checks.index import Model


def residual_identity(model: Model) -> Iterator[Breach]:
    """A residual Add fuses into the convolution before it when that operand is float and the other one int8.

    Neither operand quantized is fine too. When both are convolutions (a projection shortcut), at most one is.
    """
    for node in filter(is_addition, model.nodes):
        if any(map(model.constant, node.input)):
            continue
        branches = [name for name in node.input if _is_branch(model, name)]
        quantized = [name for name in branches if model.dequantizer(name) is not None]
        if branches and len(quantized) == len(branches):
            yield warning(node, f"{quantized[0]}, the convolution's side of the Add, is quantized")


def _is_branch(model: Model, name: str) -> bool:
    """Whether an Add's operand comes from a convolution that nothing else reads, see `branch`."""
    return branch(model, name) is not None


def branch(model: Model, name: str) -> NodeProto | None:
    """The convolution whose result an Add's operand is; None when another node reads what lies on the way.

    A Q/DQ pair, SiLU, batch norm and constant Adds and Muls may lie there (ModelOpt's PR #450 for SiLU).
    """
    start = model.before_pair(name)
    path = [start] if start == name else [start, model.producers[name].input[0], name]
    if not all(_private(model, step) for step in path):
        return None
    node = model.producers.get(start)
    if node is not None and (gated := gated_input(model, node)):
        start = gated
        if len(model.users[start]) != 2 or start in model.outputs:  # the gate and the Mul
            return None
        node = model.producers.get(start)
    while node is not None and node.op_type not in CONVS:
        start = node.input[0] if node.op_type == "BatchNormalization" else model.without_constant(node, "Add", "Mul")
        node = model.producers.get(start) if _private(model, start) else None
    return node


def _private(model: Model, name: str) -> bool:
    return len(model.users.get(name, ())) == 1 and name not in model.outputs


def gated_input(model: Model, mul: NodeProto) -> str:
    """The x where a Mul is the end of SiLU, x * Sigmoid(x), or of the same with HardSigmoid; empty otherwise."""
    if mul.op_type != "Mul" or len(mul.input) != 2:
        return ""
    for name, other in (mul.input, reversed(mul.input)):
        gate = model.producers.get(other)
        if gate is not None and gate.op_type in GATES and gate.input[0] == name:
            return str(name)
    return ""


def int8_in_and_out(model: Model) -> Iterator[Breach]:
    """An op without weights that reads int8 reads nothing else and writes int8."""
    for node in model.op("Add", "Sum", "AveragePool", "GlobalAveragePool"):
        reads = [model.dequantizer(name) is not None for name in node.input if not model.constant(name)]
        if not any(reads) or (is_addition(node) and any(_is_branch(model, name) for name in node.input)):
            continue
        readers = model.readers(node.output[0])
        if not all(reads):
            yield warning(node, f"only some inputs of {node.op_type} are quantized")
        elif not readers or not all(reader.op_type == Q for reader in readers):
            yield warning(node, f"{node.op_type} reads 8 bits and writes float")
