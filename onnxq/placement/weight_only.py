"""Placement of mode weight-only: narrow weights, float activations; no data is needed.

What gains is the reading of weights. ONNX Runtime's providers have one kernel for it, MatMulNBits, to which they fuse
a DequantizeLinear of a constant [K, N] before a MatMul or Gemm. A convolution behind such a node would dequantize its
weight on every call; what tables of levels spell is computed once, so it takes those. TensorRT takes a DequantizeLinear
on every weight, in blocks of a product's only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.formats.codebooks import CODEBOOKS
from onnxq.patterns.ranges import SMALLEST_SCALE
from onnxq.placement.embeddings import STORED, TABLE, table_reason
from onnxq.placement.weighted import is_quantized_already, macs, weight_of, why_float
from onnxq.plan import INT8, Decision, Plan, WeightPoint
from onnxq.schemes import node_weights

if TYPE_CHECKING:
    from onnxq.formats import Format
    from onnxq.graph import Graph, Node
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

PRODUCTS = ("MatMul", "Gemm")
TABLES = (*CODEBOOKS, "binary")
"""Types that are given back by other nodes than DequantizeLinear."""
DEQUANTIZED_AGAIN = "a convolution would dequantize its weight on every call; a rule with quantize = true takes it"


COLUMNS_OF_2_BITS = 4
"""With other numbers of columns ONNX Runtime 1.31 fuses 2-bit codes to a MatMulNBits with wrong results."""

COLUMNS_OF_FLOAT4 = 16
"""Source: Torch-TensorRT's tutorial of NVFP4 weights."""


def place_weights(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """Decide for every node whether its weight is stored narrow."""
    uses: dict[tuple[str, int | None, Format], list[tuple[str, int]]] = {}
    decisions = []
    for node in graph.nodes:
        wanted = node_weights(recipe, target, node.name or "", node.op_type)
        reason, choice = _decide(graph, node, target, recipe, wanted)
        if choice is not None:
            weight = weight_of(graph, node, target) if node.op_type in target.weighted else None
            value, index = (node.inputs[0], 0) if weight is None else (weight.value, weight.index)
            assert value is not None  # noqa: S101  a table is a constant
            axis = None if weight is None or choice.granularity == "tensor" else weight.axis
            key = (str(value.name), axis, choice)
            uses.setdefault(key, []).append((node.name or "", index))
        work = macs(graph, node, target)
        decisions.append(Decision(node.name or "", node.op_type, choice is not None, reason, work))
    weights = tuple(WeightPoint(name, tuple(where), axis, stored) for (name, axis, stored), where in uses.items())
    return Plan(target.name, {}, weights, tuple(decisions))


def _decide(graph: Graph, node: Node, target: Target, recipe: Recipe, wanted: Format) -> tuple[str, Format | None]:
    """(Reason, what is stored, None for the float weight)."""
    if recipe.rule_value(node.name or "", node.op_type, "quantize") is False:
        return "excluded by a rule", None
    if node.op_type == "Gather" and not node.domain:
        reason = table_reason(graph, node, target)
        return (reason, None) if reason is not None else (STORED, TABLE)
    if node.op_type not in target.weighted or node.domain:
        return "has no weight that is read narrow", None
    if is_quantized_already(graph, node, target):
        return "quantized in the model already", None
    insists = recipe.rule_value(node.name or "", node.op_type, "quantize") is True
    reason = why_float(graph, node, target) or _why_wide(graph, node, target, wanted, insists=insists)
    reason = reason or _why_small(graph, node, target, wanted)
    if reason is not None:
        return reason, None
    shared = {"block": f"blocks of {wanted.block_size}", "channel": "a scale per column", "tensor": "one scale"}
    return f"{wanted.type} weight, {shared[wanted.granularity]}, float input", wanted


_ENOUGH = 7
"""Codes of either sign that a small weight needs at least."""


def _why_small(graph: Graph, node: Node, target: Target, wanted: Format) -> str | None:
    """Why scales in float16 would not do: with no codes beside the weight nothing else can take a factor of theirs.

    A weight's root mean square is about a quarter of what its channels reach. A quarter of the codes must be left with
    the least scale, and 7 of either sign where there are so many: of 4 bits, all.
    """
    weight = weight_of(graph, node, target)
    array = None if weight is None else graph.const(weight.value)
    if array is None or array.dtype != np.float16:
        return None
    whole = wanted.type.lstrip("u").startswith("int")
    codes = 2 ** ((wanted.kind.width or wanted.kind.bits) - 1) - 1 if whole else 1
    needed = max(codes / 4, min(codes, _ENOUGH)) if whole else codes / 4
    typical = float(np.sqrt(np.square(array, dtype=np.float64).mean()))
    if typical == 0 or 4 * typical >= needed * SMALLEST_SCALE:
        return None
    return f"values of {typical:.2g} (rms): scales of {wanted.type} codes are too small for float16"


def _why_wide(graph: Graph, node: Node, target: Target, wanted: Format, *, insists: bool) -> str | None:
    """Why the weight stays as wide as it is, although it could be quantized; None when it need not."""
    if node.op_type in PRODUCTS:
        return _why_wide_product(graph, node, target, wanted)
    if wanted == INT8:
        return None if insists or target.placement == "tensorrt" else DEQUANTIZED_AGAIN
    if node.op_type != "Conv" or target.placement == "tensorrt":
        return f"{target.name} takes {wanted} for the weights of matrix products only"
    if wanted.type in TABLES:  # ONNX Runtime computes what no DequantizeLinear is in when it loads the model
        return _why_not_float32(graph, node, wanted)
    return None if insists else DEQUANTIZED_AGAIN


def _why_wide_product(graph: Graph, node: Node, target: Target, wanted: Format) -> str | None:
    blocked = wanted.block_size is not None
    shape = graph.shape(node.inputs[1]) or ()
    if (reason := _why_not_float32(graph, node, wanted)) is not None:
        return reason
    if len(shape) != 2:
        return f"a weight of rank {len(shape)}; narrow weights are matrices"
    if node.op_type == "Gemm" and not plain_gemm(graph, node) and (blocked or target.placement != "tensorrt"):
        return "a Gemm with transA, alpha or beta: MatMulNBits has none of them"
    transposed = node.op_type == "Gemm" and bool(graph.attribute(node, "transB", 0))
    k, n = (shape[1], shape[0]) if transposed else shape
    if wanted.kind.bits == 2 and isinstance(n, int) and n % COLUMNS_OF_2_BITS:
        return f"{n} columns: ONNX Runtime spoils 2-bit codes unless the columns are a multiple of {COLUMNS_OF_2_BITS}"
    return _why_not_whole(k, n, target, wanted) if blocked and target.placement == "tensorrt" else None


def _why_not_float32(graph: Graph, node: Node, wanted: Format) -> str | None:
    if wanted.type in TABLES and graph.dtype(node.inputs[1]) != "float32":
        return f"{wanted.type} gives a float32 matrix back, and this one is {graph.dtype(node.inputs[1])}"
    return None


def _why_not_whole(k: object, n: object, target: Target, wanted: Format) -> str | None:
    """TensorRT takes whole blocks, and float4 matrices of whole tiles."""
    if isinstance(k, int) and k % (wanted.block_size or 1):
        return f"{k} rows are no multiple of a block of {wanted.block_size}"
    if wanted.type == "nvfp4" and target.float4 and isinstance(n, int) and n % COLUMNS_OF_FLOAT4:
        return f"{n} columns: TensorRT wants both sides of a float4 matrix to be multiples of {COLUMNS_OF_FLOAT4}"
    return None


def plain_gemm(graph: Graph, node: Node) -> bool:
    """Whether a Gemm is A B + C, B perhaps transposed."""
    factors = (graph.attribute(node, "alpha", 1.0), graph.attribute(node, "beta", 1.0))
    return factors == (1.0, 1.0) and not graph.attribute(node, "transA", 0)
