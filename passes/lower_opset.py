"""Write the model in the operator set in which most of its nodes have a kernel of ONNX Runtime's CUDA provider.

A kernel without an end matches one version of its operator alone (`onnxq.checks.ort_cuda_kernels`), so newer operator
sets lose kernels: Pad has none from 19 on, MaxPool none from 22 on. An older set in which every node means the same
(`onnxq.restated`) gives the same bits. Of equals the lowest is taken, whose kernels older releases of ONNX Runtime have
too: those of Transpose, Reshape, Cast and Conv from 21 and 22 on came in 2025.

QuantizeLinear and DequantizeLinear take float32 only below 19, and have no kernel from 23 on. Those of float16 become
ONNX Runtime's operators of the same names there (com.microsoft, ContribOperators.md), which compute the same, have
kernels for float16 on CUDA, and are read by the fusion to MatMulNBits like ONNX's (qdq_util.cc, MatchDQNode). Weights
in blocks, which came with 21, become MatMulNBits itself (`onnxq.packed`) where that leaves fewer nodes to the CPU.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnxq.operators import CONTRIB
from onnxq.packed import is_packable, pack
from onnxq.restated import DEFAULT, LOWEST, fits, onnx_name, rounds_otherwise, signature, unknown_attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value

NEUTRAL = {"saturate": 1, "block_size": 0, "output_dtype": 0, "precision": 0}
"""Attributes that ONNX Runtime's lack, and what they say there nevertheless."""


def lower_opset(graph: Graph) -> int:
    """Change the version of the default operator set; return how many nodes that changed, and 1 for itself."""
    if "" not in graph.domains:
        return 0
    *_, best = min(_prices(graph))
    changed = sum(_restate(part, node, best) for part in tuple(graph.parts()) for node in part.nodes)
    changed += best != graph.opset
    graph.restate_opset(best)
    return changed


def _prices(graph: Graph) -> Iterator[tuple[int, int, int, int]]:
    """Of the model's own opset and each older one that its nodes take as they are: what it costs, the worst first.

    Nodes without a kernel; nodes that become others or round otherwise; integers of shapes without a kernel, which
    belong on the CPU; the opset itself.
    """
    for opset in range(graph.opset, min(LOWEST, graph.opset) - 1, -1):
        missed: Counter[str] = Counter()
        for part in graph.parts():
            for node in part.nodes:
                if _becomes_packed(part, node, opset):
                    missed["moved"] += len(part.users(node.outputs[0]))
                    continue
                becomes = _becomes_contrib(part, node, opset)
                if not becomes and not fits(part, node, opset):
                    return  # and no older one takes it
                missed["moved"] += becomes or rounds_otherwise(part, node, opset)
                missed[_lack(part, node, opset, CONTRIB if becomes else node.domain)] += 1
        yield missed["E"] + missed["W"], missed["moved"], missed["I"], opset


def _lack(graph: Graph, node: Node, opset: int, domain: str) -> str:
    from onnxq.checks.ort_cuda_kernels import lack  # with all checks, which other targets need not wait for

    found = signature(node.op_type, opset) if domain in DEFAULT else None
    version = 1 if domain not in DEFAULT else opset if found is None else found.version
    kinds = [tuple(_kind(graph, value) for value in side) for side in (node.inputs, node.outputs)]
    return lack("" if domain in DEFAULT else domain, node.op_type, version, kinds[0], kinds[1])


def _kind(graph: Graph, value: Value | None) -> str:
    dtype = None if value is None else graph.dtype(value)
    return "float32" if dtype == "float32" else onnx_name(dtype)  # the table has ONNX's names but for this one


def _becomes_packed(graph: Graph, node: Node, opset: int) -> bool:
    """Whether it is a weight in blocks that the opset does not take, or has no kernel for."""
    return is_packable(graph, node) and (not fits(graph, node, opset) or _lack(graph, node, opset, "") != "")


def _becomes_contrib(graph: Graph, node: Node, opset: int) -> bool:
    """Whether it is of float16, for which the opset's QuantizeLinear has no kernel, and ONNX Runtime's own has."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain not in DEFAULT:
        return False
    quantizes = node.op_type == "QuantizeLinear"
    real, codes = (node.inputs[0], node.outputs[0]) if quantizes else (node.outputs[0], node.inputs[0])
    if quantizes and len(node.inputs) < 3:
        return False  # its codes' type is in an attribute
    return (
        graph.dtype(real) == graph.dtype(node.inputs[1]) == "float16"
        and graph.dtype(codes) in ("int8", "uint8")
        and all(graph.attribute(node, name) == NEUTRAL.get(name) for name in node.attributes if name != "axis")
        and _lack(graph, node, opset, "") != ""
    )


def _restate(graph: Graph, node: Node, opset: int) -> int:
    """Write the node as the opset has it; return 1 if that changes it, else 0."""
    if _becomes_packed(graph, node, opset):
        pack(graph, node)
        return 1
    if not _becomes_contrib(graph, node, opset):
        unknown = unknown_attributes(node, opset)
        for name in unknown:
            graph.set_attribute(node, name, None)
        return bool(unknown)
    # there no axis means one scale, here it is 1
    axis = {} if graph.size(node.inputs[1]) == 1 else {"axis": int(graph.attribute(node, "axis", 1))}
    output = node.outputs[0]
    made = graph.add(
        node.op_type, node.inputs, name=f"{output.name}/own", before=node, attributes=axis, like=output, domain=CONTRIB
    )
    made.shape = made.shape or (node.inputs[0].shape if node.inputs[0] is not None else None)  # onnx infers none for it
    graph.absorb(node, made)
    return 1
