"""A weight in blocks of rows and the products that read it as com.microsoft MatMulNBits, which no opset binds.

    x MatMul(DequantizeLinear(codes[K, N], scale[K/B, N], zero_point, axis 0, block_size B))  =  MatMulNBits(x, packed)

ONNX Runtime makes the same of the pair by itself (DQMatMulToMatMulNBits), but ONNX has blocks from opset 21 on only.
Layout (ContribOperators.md): codes uint8 [N, blocks, B bits / 8], of two in a byte the first in its low half; scales
[N blocks]; zero points packed along the blocks, left out where all are the middle of the range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.grammar import SMALLEST_BLOCK
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}


def is_packable(graph: Graph, node: Node) -> bool:
    """Whether a node is such a DequantizeLinear, and only matrix products of its type read it."""
    if node.op_type != "DequantizeLinear" or node.domain or not all(graph.is_const(v) for v in node.inputs):
        return False
    size, codes, real = graph.attribute(node, "block_size", 0), node.inputs[0], node.outputs[0]
    blocked = size >= SMALLEST_BLOCK and not size & (size - 1) and graph.attribute(node, "axis", 1) in (0, -2)
    users = graph.users(real)
    return (
        blocked
        and graph.rank(codes) == 2
        and graph.dtype(codes) in BITS
        and not real.is_graph_output()
        and all(_reads(graph, user, index, graph.dtype(node.inputs[1])) for user, index in users)
    )


def pack(graph: Graph, node: Node) -> None:
    """Put MatMulNBits in the place of the products that read the node, and drop it."""
    name = str(node.outputs[0].name)
    codes, scale = graph.const(node.inputs[0]), graph.const(node.inputs[1])
    assert codes is not None  # noqa: S101  `is_packable` has looked
    assert scale is not None  # noqa: S101  likewise
    bits, size = BITS[codes.dtype.name], int(graph.attribute(node, "block_size"))
    middle = 2 ** (bits - 1)
    offset = middle if codes.dtype.name.startswith("int") else 0
    zero = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    zeros = np.full(scale.shape, offset, np.int16) if zero is None else zero.astype(np.int16) + np.int16(offset)
    blocks, (k, n) = scale.shape[0], codes.shape
    whole = np.repeat(zeros, size, axis=0)  # what fills up the last block stands for 0
    whole[:k] = codes.astype(np.int16) + np.int16(offset)
    packed = graph.constant(f"{name}_packed", _halves(whole.T.reshape(n, blocks, size), bits))
    inputs = [packed, graph.constant(f"{name}_scales", np.ascontiguousarray(scale.T).reshape(-1))]
    if (zeros != middle).any():
        inputs.append(graph.constant(f"{name}_zero_points", _halves(zeros.T, bits).reshape(-1)))
    for user, _ in graph.users(node.outputs[0]):
        _replace(graph, user, [user.inputs[0], *inputs], {"K": k, "N": n, "bits": bits, "block_size": size})
    graph.remove(node)


def _replace(graph: Graph, user: Node, inputs: list[Value | None], said: dict[str, int]) -> None:
    out = user.outputs[0]
    made = graph.add(
        "MatMulNBits", inputs, name=f"{out.name}/packed", before=user, attributes=said, like=out, domain=CONTRIB
    )
    if len(user.inputs) > 2 and user.inputs[2] is not None:
        made = graph.add("Add", [made, user.inputs[2]], name=f"{out.name}/biased", before=user, like=out)
    graph.absorb(user, made)


def _reads(graph: Graph, user: Node, index: int, dtype: str | None) -> bool:
    """Whether a MatMul, or a Gemm that is one and adds its bias as it is, multiplies by the matrix."""
    if user.op_type not in ("MatMul", "Gemm") or user.domain or index != 1 or graph.in_body(user):
        return False
    attribute = graph.attribute
    plain = not any(attribute(user, name, 0) for name in ("transA", "transB"))
    plain = plain and all(attribute(user, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return plain and dtype in ("float32", "float16") and graph.dtype(user.inputs[0]) == dtype


def _halves(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Bytes of the codes along the last axis: of two codes of 4 bits the first in the low half."""
    if bits == 8:
        return codes.astype(np.uint8)
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return np.asarray(even[..., 0::2] | even[..., 1::2] << 4, np.uint8)
