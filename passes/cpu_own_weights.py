"""A model's own quantized weights in the form that ONNX Runtime's CPU provider reads as it is meant (seen with 1.31).

It joins a weight's DequantizeLinear and that of what is multiplied with it to an integer product, and takes the scales
for those of output channels, whatever axis they go along: of a square matrix with a scale for each row all numbers are
wrong, of another the run fails. Such weights, and those in blocks, become float, and are quantized anew. Where the zero
point is left out it puts a single one, and then refuses several scales: zeros are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.numerics import along

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

_TYPES = ("int8", "uint8")


def own_weights(graph: Graph) -> int:
    """Rewrite them; return how many."""
    found = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and not n.domain]
    return sum(_to_float(graph, n) or _with_zeros(graph, n) for n in found if _several_scales(graph, n))


def _several_scales(graph: Graph, node: Node) -> bool:
    codes, scale = node.inputs[:2]
    stored = graph.is_const(codes) and graph.is_const(scale)  # read later: they may be large
    return stored and graph.dtype(codes) in _TYPES and (graph.rank(scale) or 0) > 0


def _to_float(graph: Graph, node: Node) -> bool:
    axis, block = int(graph.attribute(node, "axis", 1)), graph.attribute(node, "block_size", 0)
    rank, output = graph.rank(node.inputs[0]) or 0, node.outputs[0]
    products = [(n, along) for n, along in _products(graph, output, axis % max(rank, 1)) if _is_integer(graph, n)]
    if not any(block or along != _output_axis(graph, n, rank) for n, along in products) or output.is_graph_output():
        return False
    graph.replace_uses(output, graph.constant(f"{output.name}_float", _real(graph, node, axis % rank, int(block))))
    graph.remove(node)
    return True


def _products(graph: Graph, value: Value, axis: int) -> Iterator[tuple[Node, int | None]]:
    """(node, axis of the scales as it reads them) of all products that read the weight, through Transposes too.

    None for an axis of a first operand, of which there can be but one scale.
    """
    for user, index in graph.users(value):
        if user.domain:
            continue
        if user.op_type == "Transpose":
            order = graph.attribute(user, "perm") or range(graph.rank(value) or 0)[::-1]
            yield from _products(graph, user.outputs[0], list(order).index(axis))
        elif user.op_type in ("Conv", "Gemm", "MatMul") and index < 2:
            yield user, axis if index else None


def _is_integer(graph: Graph, product: Node) -> bool:
    """Whether both operands come from codes, through Transposes or not."""
    for value in product.inputs[:2]:
        read = value
        while (moved := graph.producer(read, "Transpose")) is not None:
            read = moved.inputs[0]
        if graph.producer(read, "DequantizeLinear") is None:
            return False
    return True


def _output_axis(graph: Graph, product: Node, rank: int) -> int:
    """Of the weight's axes that of output channels."""
    if product.op_type == "MatMul":
        return rank - 1
    return 1 if product.op_type == "Gemm" and not graph.attribute(product, "transB", 0) else 0


def _real(graph: Graph, node: Node, axis: int, block: int) -> npt.NDArray[Any]:
    """What the DequantizeLinear makes: (codes - zero point) scale."""
    codes, scale, *rest = (np.asarray(graph.const(v)) for v in node.inputs if v is not None)

    def spread(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if block:
            return np.repeat(array.astype(np.float64), block, axis).take(range(codes.shape[axis]), axis)
        return along(array.astype(np.float64), codes.ndim, axis)

    zero = spread(rest[0]) if rest else 0.0
    return np.asarray((codes.astype(np.float64) - zero) * spread(scale), scale.dtype)


def _with_zeros(graph: Graph, node: Node) -> bool:
    scale, codes = node.inputs[1], node.inputs[0]
    if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return False
    zeros = np.zeros([d for d in graph.shape(scale) or () if isinstance(d, int)], graph.dtype(codes) or "int8")
    graph.set_input(node, 2, graph.constant(f"{scale.name}_zero_point", zeros))
    return True
