"""P27 to P29: sizes for which int8 does not pay, or is not fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.checks.finding import note, warning
from onnxq.checks.index import COPIES, Q, integer
from onnxq.checks.islands import low_precision
from onnxq.checks.scales import qtype
from onnxq.dtypes import INT8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.finding import Breach
    from onnxq.checks.index import Model

LONGEST = 512  # ModelOpt leaves both products of attention in float above this sequence length
PROBABILITY_SCALE = 1 / 127  # of a Softmax, whose range is 0 to 1
_SCORES = COPIES | {"Mul", "Div", "Add", "Where"}  # between the first product and Softmax


def conv_channels(model: Model) -> Iterator[Breach]:
    """Int8 convolutions have enough channels, aligned ones, and groups of multiples of four."""
    for node in model.op("Conv"):
        dims, group = model.shapes.get(node.input[1], ()), integer(node, "group", 1)
        if not 3 <= len(dims) <= 5 or None in dims or model.dequantizer(node.input[1]) is None:
            continue
        outputs, inputs, *kernel = (dim or 0 for dim in dims)
        depthwise = inputs == 1 and group > 1
        if (outputs < 16 or inputs < 16) and not _worth_int8(model, node, (outputs, inputs, group), kernel):
            yield warning(node, f"{outputs}x{inputs} channels, kernel {kernel}: too small for int8")
        elif group > 1 and not depthwise and (inputs % 4 or outputs // group % 4):
            yield warning(node, f"groups of {inputs} and {outputs // group}, not multiples of 4")
        elif outputs % 16 or (group == 1 and inputs % 16):
            yield note(node, f"{outputs}x{inputs} channels are not multiples of 16")
        ops = {user.op_type for user in model.users.get(node.output[0], ())}
        if depthwise and {"Sigmoid", "Mul"} <= ops:
            yield note(node, "a depthwise int8 convolution does not fuse with SiLU")


def _worth_int8(model: Model, node: NodeProto, channels: tuple[int, int, int], kernel: list[int]) -> bool:
    """NVIDIA's exception for convolutions (outputs, inputs per group, group) with fewer than 16 channels."""
    outputs, inputs, group = channels
    if group > 1:
        return outputs % 8 == 0 and min(kernel) >= 3
    first = model.before_pair(node.input[0]) in model.inputs
    aligned = outputs % 8 == 0 or inputs % 8 == 0
    return aligned and (first or max(outputs, inputs) >= 16) and len(set(kernel)) == 1


def matrix_size(model: Model) -> Iterator[Breach]:
    """An int8 product has more than one row, counted over a batch with one weight, and K and N of at least 16.

    As in placement: [seq, 1, K] has seq rows.
    """
    for node in model.op("Gemm", "MatMul"):
        left, right = (model.shapes.get(name, ()) for name in (*node.input, "")[:2])
        if min(len(left), len(right)) < 2 or model.dequantizer(node.input[0]) is None:
            continue
        m = left[-1] if integer(node, "transA", 0) else left[-2]
        if all(dim == 1 for dim in right[:-2]) and any(dim != 1 for dim in left[:-2]):
            m = None  # more rows than one, or as many as only the data tells
        k, n = (right[-1], right[-2]) if integer(node, "transB", 0) else (right[-2], right[-1])
        if m == 1 or n == 1:
            yield warning(node, "matrix-vector product in int8")
        elif (k is not None and k < 16) or (n is not None and n < 16):
            yield warning(node, f"K {k}, N {n}: below 16 int8 does not pay")


def attention(model: Model) -> Iterator[Breach]:
    """Int8 attention has a sequence of at most 512, and the scale 1/127 on what Softmax writes."""
    for node in model.op("Softmax"):
        scores = _product_above(model, node.input[0])
        readers = model.readers(node.output[0])
        values = [reader for reader in _behind_pairs(model, readers) if reader.op_type == "MatMul"]
        if scores is None or not values:
            continue
        length = model.shapes.get(scores.output[0], (None,))[-1:]
        for product in (scores, *values):
            kind = low_precision(model, product)
            if kind and length and (length[0] or 0) > LONGEST:
                yield warning(product, f"attention over {length[0]} positions in {kind}, more than {LONGEST}")
        for reader in readers:
            scale = model.array(reader.input[1]) if reader.op_type == Q else None
            if scale is None or qtype(model, reader) != INT8:
                continue
            if not np.allclose(scale.astype(np.float64), PROBABILITY_SCALE, rtol=1e-3):
                yield warning(reader, f"scale {scale.ravel()[0]:.4g} on a Softmax, not 1/127")


def _product_above(model: Model, name: str) -> NodeProto | None:
    """The product of two activations whose scores reach a Softmax through scale, mask and copies."""
    stack, seen = [name], set()
    while stack:
        node = model.producers.get(stack.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type == "MatMul":
            return None if any(map(model.constant, node.input)) else node
        if node.op_type in _SCORES:
            stack.extend(filter(None, node.input))
    return None


def _behind_pairs(model: Model, readers: list[NodeProto]) -> list[NodeProto]:
    """Readers of a tensor, those behind a Q/DQ pair in place of the Q."""
    pairs = [dq for reader in readers if reader.op_type == Q for dq in model.readers(reader.output[0])]
    return [r for r in readers if r.op_type != Q] + [r for dq in pairs for r in model.readers(dq.output[0])]
