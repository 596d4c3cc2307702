"""P19 to P21 and P24 to P26: where pairs stand, and what they cut in two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks.finding import Breach, label, note, warning
from onnxq.checks.index import ACTIVATIONS, CONVS, COPIES, DQ, GATES, INTEGER_COPIES, WEIGHTED, Q
from onnxq.checks.scales import qtype, same_scale
from onnxq.dtypes import FOUR_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.index import Model


def pairs_whole(model: Model) -> Iterator[Breach]:
    """A Q goes to DQs, a DQ comes from a Q or a constant (W); int8 graph inputs and outputs are known (I).

    Before TensorRT 10 a weight stored in int8 is a warning too: the guide of 8 asks for float weights with Q and DQ.
    """
    for node in model.pairs:
        yield from _dangling_q(model, node) if node.op_type == Q else _dangling_dq(model, node)


def _dangling_q(model: Model, node: NodeProto) -> Iterator[Breach]:
    readers = model.readers(node.output[0], INTEGER_COPIES)
    is_output = any(name in model.outputs for name in model.spread(node.output[0], INTEGER_COPIES))
    if is_output:
        yield note(node, "quantized graph output")
    if not all(reader.op_type == DQ for reader in readers) or not (readers or is_output):
        yield warning(node, "QuantizeLinear without a DequantizeLinear after it")


def _dangling_dq(model: Model, node: NodeProto) -> Iterator[Breach]:
    origin = model.origin(node.input[0], INTEGER_COPIES)
    maker = model.producers.get(origin)
    if model.constant(origin):
        if not model.version.stored_weights and maker is None:
            yield warning(
                node, f"{node.input[0]} is stored quantized: {model.version.name} documents float weights only"
            )
    elif origin in model.inputs:
        yield note(node, f"quantized graph input {origin}")
    elif maker is None or maker.op_type != Q:
        yield warning(node, "DequantizeLinear without a QuantizeLinear before it")


def both_operands(model: Model) -> Iterator[Breach]:
    """A weighted op has both operands quantized or none; four-bit weights may stand alone."""
    for node in model.op(*WEIGHTED):
        makers = [model.dequantizer(name) for name in node.input[:2]]
        found = [maker for maker in makers if maker is not None]
        if len(found) == 1 and qtype(model, found[0]) not in FOUR_BITS:
            lone = node.input[0] if makers[0] is None else node.input[1]
            yield warning(node, f"{lone} is not quantized, so {node.op_type} runs in float")


def fusion_whole(model: Model) -> Iterator[Breach]:
    """No Q/DQ between a convolution or Gemm and the batch norm or activation that would fuse with it."""
    for node in model.op(Q):
        behind = [user for dq in model.users.get(node.output[0], ()) for user in _users_of_output(model, dq)]
        for user in behind:
            if _splits(model, node.input[0], user, behind):
                yield warning(node, f"stands before {user.op_type} {label(user)}: fusion is lost")


def _users_of_output(model: Model, node: NodeProto) -> tuple[NodeProto, ...]:
    return model.users.get(node.output[0], ()) if node.op_type == DQ else ()


def _splits(model: Model, name: str, user: NodeProto, behind: list[NodeProto]) -> bool:
    """Whether the pair on tensor `name`, read behind it by `user` among others, cuts a fusion."""
    gate = model.producers.get(name)
    if gate is not None and gate.op_type in GATES:  # x -> Sigmoid -> Q/DQ -> Mul(x)
        start = model.before_pair(gate.input[0])
        gated = user.op_type == "Mul" and start in map(model.before_pair, user.input)
        return gated and model.linear(start, CONVS | {"Gemm"}) is not None
    if not model.read_only_by(name, Q) or model.linear(name, CONVS | {"Gemm"}) is None:
        return False
    if user.op_type in GATES:
        return any(mul.op_type == "Mul" and user.output[0] in mul.input for mul in behind)
    return user.op_type in ACTIVATIONS


def concat_scales(model: Model) -> Iterator[Breach]:
    """A Concat in int8 has one scale on all inputs and on its output."""
    for node in model.op("Concat"):
        makers = [model.dequantizer(name) for name in node.input]
        after = [reader for reader in model.readers(node.output[0]) if reader.op_type == Q]
        if any(makers) and not same_scale(model, *makers, *after):
            yield warning(node, "scales around Concat differ: one requantization per input")


def one_pair_per_tensor(model: Model) -> Iterator[Breach]:
    """A tensor has one pair, and no pair follows a pair."""
    quantizers: dict[str, list[NodeProto]] = {}
    for node in model.op(Q):
        quantizers.setdefault(node.input[0], []).append(node)
    for name, nodes in quantizers.items():
        if len(nodes) > 1:
            kind = "equal" if same_scale(model, *nodes) else "different"
            yield Breach("W", name, f"{len(nodes)} Q nodes with {kind} scales on one tensor")
    for node in model.op(Q):
        before = model.producers.get(node.input[0])
        if before is not None and before.op_type == DQ:
            kind = "redundant" if same_scale(model, before, node) else "requantizes"
            yield warning(node, f"Q straight after DQ {label(before)}: {kind}")


def _folds(model: Model, pad: NodeProto) -> bool:
    """Whether the Pad can become a convolution's own padding: that is of zeros."""
    fill = model.array(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    return fill is None or not fill.any()


def needless_pairs(model: Model) -> Iterator[Breach]:
    """No pair around a copy op, inside GELU, on an attention mask, or between a Pad of zeros and convolution."""
    for node in model.op(Q):
        maker = model.producers.get(node.input[0])
        users = [user for dq in model.users.get(node.output[0], ()) for user in _users_of_output(model, dq)]
        ops = {user.op_type for user in users}
        source = "" if maker is None else maker.op_type
        if source in COPIES - {"Pad"} and (before := model.dequantizer(node.input[0])) is not None:
            kind = "redundant" if same_scale(model, before, node) else "requantizes"
            if kind == "requantizes" or source != "MaxPool":  # a maximum, and between equal pairs an int8 one
                yield warning(node, f"{source} is a copy between two pairs: {kind}")
        if maker is not None and source == "Pad" and ops & CONVS and _folds(model, maker):
            yield warning(node, "stands between Pad and convolution: Pad no longer folds into it")
        if source == "Erf" or "Erf" in ops:
            yield warning(node, "stands inside GELU")
        for user in users:
            heads = {reader.op_type for reader in model.users.get(user.output[0], ())}
            if user.op_type == "Add" and "Softmax" in heads:
                yield warning(node, "stands on the scores or the mask before a Softmax")
