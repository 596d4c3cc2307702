"""Write a Gemm with a narrow weight and an activation behind it as MatMul and Sum.

ONNX Runtime (seen with 1.31) joins Gemm and activation into FusedGemm before it looks for weights behind a
DequantizeLinear, and then dequantizes the whole weight in every run. MatMul and Add it joins to a Gemm again, MatMul
and Sum it does not: the MatMul becomes MatMulNBits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node

ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Softplus", "ThresholdedRelu"})
"""What a Gemm is joined with (onnxruntime/core/optimizer/gemm_activation_fusion.cc)."""


def split_gemms(graph: Graph) -> int:
    """Rewrite them; return how many."""
    return sum(_split(graph, node) for node in graph.nodes if node.op_type == "Gemm" and not node.domain)


def _split(graph: Graph, gemm: Node) -> bool:
    output = gemm.outputs[0]
    user = graph.only_user(output)
    weight = graph.producer(gemm.inputs[1], "DequantizeLinear")
    plain = all(graph.attribute(gemm, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    turned = any(graph.attribute(gemm, name, 0) for name in ("transA", "transB"))
    if user is None or user.op_type not in ACTIVATIONS or weight is None or not plain or turned:
        return False
    if not graph.is_const(weight.inputs[0]) or output.is_graph_output():
        return False
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if bias is not None and not (graph.is_const(bias) and graph.rank(bias) == 1):
        return False
    product = graph.add("MatMul", gemm.inputs[:2], name=f"{output.name}/product", before=gemm, like=output)
    if bias is not None:
        product = graph.add("Sum", [product, bias], name=f"{output.name}/biased", before=gemm, like=output)
    graph.absorb(gemm, product)
    return True
