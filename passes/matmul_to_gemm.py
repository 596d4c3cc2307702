"""Join a product of plain matrices with the bias behind it: MatMul + Add -> Gemm.

    x W + b = Gemm(x, W, b)      for x of rank 2 and b of one value per column

ONNX Runtime does this itself before it looks for Q/DQ pairs, so a plan made for the two would not fit what it sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.linear import linear_before

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node


def matmul_to_gemm(graph: Graph) -> int:
    """Rewrite them; return how many."""
    return sum(_join(graph, node) for node in graph.nodes if node.op_type == "Add" and not node.domain)


def _join(graph: Graph, add: Node) -> bool:
    for product, bias in (add.inputs[:2], add.inputs[1::-1]):
        node = graph.producer(product, "MatMul")
        if node is None or not graph.is_const(bias) or graph.dtype(bias) != "float32":
            continue
        linear = linear_before(graph, add, product)
        if linear is None or graph.rank(node.inputs[0]) != 2 or graph.rank(linear.weight) != 2:
            continue
        if graph.shape(bias) not in ((linear.channels,), (1, linear.channels)):
            continue
        inputs = [node.inputs[0], node.inputs[1], bias]
        output = add.outputs[0]
        joined = graph.add("Gemm", inputs, name=f"{output.name}/joined", before=node, like=output)
        graph.absorb(add, joined)
        graph.remove(node)
        return True
    return False
