"""The rewrites of a model, in pipelines that can be read from top to bottom.

A pass is a callable that edits a `Graph` and returns the number of rewrites made. Passes know nothing of each
other; their order is decided here alone.
"""

from __future__ import annotations

if __name__ == "passes":
    raise ImportError("the passes of onnxq are imported as `onnxq.passes`, not as a package of their own")

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.passes.centre_codes import centre_codes
from onnxq.passes.cpu_attention import join_attention
from onnxq.passes.cpu_bias import fit_weight_scales, keep_biases_apart, round_biases
from onnxq.passes.cpu_channel_scales import channel_scales_in_rows
from onnxq.passes.cpu_clamps import clamps_apart
from onnxq.passes.cpu_gelu import fast_gelu
from onnxq.passes.cpu_norms import smooth_in_norms
from onnxq.passes.cpu_own_weights import own_weights
from onnxq.passes.cpu_qattention import quantize_attention
from onnxq.passes.cpu_scaled_inputs import ScalesInQuantize
from onnxq.passes.cpu_sums import sum_before_norm
from onnxq.passes.dynamic_lstm import DynamicLSTM
from onnxq.passes.dynamic_products import DynamicProducts
from onnxq.passes.einsum_to_matmul import einsum_to_matmul
from onnxq.passes.fit_biases import FitBiases
from onnxq.passes.fit_pairs import FitPairs
from onnxq.passes.flatten_to_reshape import flatten_to_reshape
from onnxq.passes.fold_affine import fold_affine
from onnxq.passes.fold_batch_norm import fold_batch_norm
from onnxq.passes.fold_constants import fold_constants
from onnxq.passes.fold_scales import fold_scales
from onnxq.passes.from_qonnx import from_qonnx
from onnxq.passes.fuse_layer_norm import fuse_layer_norm
from onnxq.passes.group_norm import group_norm
from onnxq.passes.high_precision import HighPrecision
from onnxq.passes.imply_zero_points import imply_zero_points
from onnxq.passes.infer_shapes import infer_shapes
from onnxq.passes.inline_if import inline_if
from onnxq.passes.insert_qdq import InsertQDQ
from onnxq.passes.integer_interface import integer_interface
from onnxq.passes.integer_products import integer_products
from onnxq.passes.loop_weights import loop_weights
from onnxq.passes.lower_ir_version import lower_ir_version
from onnxq.passes.lower_opset import lower_opset
from onnxq.passes.matmul_to_gemm import matmul_to_gemm
from onnxq.passes.move_codes import move_codes
from onnxq.passes.narrow_weights import NarrowWeights
from onnxq.passes.pad_channels import pad_channels
from onnxq.passes.plain_pairs import plain_pairs
from onnxq.passes.plain_pools import plain_pools
from onnxq.passes.quantize_tables import QuantizeTables
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.raise_opset import RaiseOpset
from onnxq.passes.remove_identities import remove_identities
from onnxq.passes.remove_redundant_qdq import remove_redundant_qdq
from onnxq.passes.remove_unused import remove_unused
from onnxq.passes.share_weights import share_weights
from onnxq.passes.sink_squeezes import sink_squeezes
from onnxq.passes.smooth import Smooth
from onnxq.passes.space_to_depth import SpaceToDepth
from onnxq.passes.split_gemms import split_gemms
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.passes.sum_to_add import sum_to_add
from onnxq.passes.to_operators import ToOperators
from onnxq.passes.widen_halves import widen_halves
from onnxq.pipeline import Everywhere
from onnxq.plan import INT8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxq.formats.stored import Stored
    from onnxq.graph import Graph
    from onnxq.numerics import QType
    from onnxq.plan import Plan, WeightPoint
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

    Pass = Callable[[Graph], int]

__all__ = [
    "FitPairs",
    "InsertQDQ",
    "QuantizeWeights",
    "RaiseOpset",
    "Smooth",
    "SplitOutliers",
    "finish",
    "fold_affine",
    "fold_batch_norm",
    "fold_constants",
    "fuse_layer_norm",
    "infer_shapes",
    "integer_interface",
    "prepare",
    "remove_identities",
    "remove_redundant_qdq",
    "remove_unused",
    "share_weights",
    "sum_to_add",
    "widen_halves",
]


def prepare(
    min_opset: int, placement: str = "tensorrt", *, every_tensor: bool = False, widen: bool = False
) -> tuple[Pass, ...]:
    """Bring a float model into the form that planning expects, without changing its function.

    Args:
        min_opset: lowest version of the default operator set that the target reads.
        placement: the target's.
        every_tensor: the target's.
        widen: whether what is in half precision is to be in float32.
    """
    return (
        *((widen_halves,) if widen else ()),  # before the opset is raised, which Q/DQ pairs of halves would ask for
        group_norm,  # before the opset is raised: what later ones lack
        RaiseOpset(min_opset, every_tensor),  # early: the passes below are written for opset 13 and later
        inline_if,  # what is then in the main graph needs no care for bodies
        infer_shapes,  # folding of Shape nodes needs static shapes
        Everywhere(remove_identities),  # an Identity between two nodes hides that one feeds the other
        loop_weights,  # a state that never changes is a constant to what comes next
        Everywhere(fold_constants),  # weights computed in the graph become weights
        from_qonnx,  # the scales it reads are constants now; the types of its pairs are inferred below
        inline_if,  # conditions that were computed from shapes
        Everywhere(einsum_to_matmul),  # layers of some exporters; before shapes are inferred again
        Everywhere(sum_to_add),  # old exporters write residual additions as Sum
        infer_shapes,  # targets of Reshape and Expand are constants now
        Everywhere(remove_identities),  # what those shapes prove to change nothing
        Everywhere(sink_squeezes),  # shapes are known; biases fold and batch norms follow
        Everywhere(fold_affine),  # brings a batch norm right behind its convolution
        Everywhere(fold_batch_norm),
        Everywhere(fold_affine),  # scales behind a batch norm, now right behind the convolution
        Everywhere(fuse_layer_norm),  # after the folds: its scale and bias are plain constants now
        *(
            (Everywhere(matmul_to_gemm),) if placement == "ort-cpu" else ()
        ),  # as the provider does before it reads pairs
        # of pairs that a model came with each backend takes other forms
        Everywhere(own_weights) if placement == "ort-cpu" else plain_pairs,
        remove_unused,  # last: weights that the folds replaced
    )


def lower(plan: Plan, target: Target, recipe: Recipe, chosen: Mapping[str, Stored] | None = None) -> tuple[Pass, ...]:
    """Write a resolved plan into the prepared graph as Q/DQ nodes and int8 weights.

    `chosen` has the codes and scales of weights for which they were found from data (modes weight-only and dynamic).
    """
    if plan.mode == "dynamic":
        return _lower_dynamic(plan, target, recipe, chosen or {})
    if chosen:
        return _lower_weights(plan, target, recipe, chosen)
    kind = target.placement if plan.mode == "static" else plan.mode
    lowering = LOWERINGS.get(kind, _lower_qdq)
    narrow = _narrow(plan) if plan.mode == "static" else ()
    if not narrow:
        return lowering(plan, target, recipe)
    rest = replace(plan, weights=tuple(w for w in plan.weights if w not in narrow))
    return (
        NarrowWeights(replace(plan, weights=narrow), recipe.weight_range, float4=target.float4),
        *lowering(rest, target, recipe),
    )


def finish(target: Target, *, interface: bool = False) -> tuple[Pass, ...]:
    """What is done to the written model as a whole, bodies included.

    Args:
        target: what it is for.
        interface: whether its inputs and outputs are to be codes.
    """
    return (
        share_weights,
        *((integer_interface,) if interface else ()),
        # last, since they look at what is written; a Flatten that the operator set still lacks a kernel of
        *((lower_opset, Everywhere(flatten_to_reshape), remove_unused) if target.placement == "ort-cuda" else ()),
        *((Everywhere(plain_pools),) if target.placement == "ort-cpu" else ()),
        lower_ir_version,  # behind all that brings types or changes the opset
    )


def _narrow(plan: Plan) -> tuple[WeightPoint, ...]:
    """The weights of products and convolutions in other formats than those beside integer inputs."""
    ops = {d.node: d.op_type for d in plan.decisions}
    return tuple(w for w in plan.weights if w.format != INT8 and ops[w.uses[0][0]] in ("MatMul", "Gemm", "Conv"))


def _lower_float(plan: Plan, target: Target, recipe: Recipe) -> tuple[Pass, ...]:
    del target
    return (
        HighPrecision(plan.float_type, frozenset(plan.float32), keep_io=recipe.io_types != "high-precision"),
        remove_unused,
    )


def _lower_qdq(plan: Plan, target: Target, recipe: Recipe) -> tuple[Pass, ...]:
    form = recipe.weight_form or target.weight_form
    half = HighPrecision(plan.float_type, frozenset(plan.float32), keep_io=recipe.io_types != "high-precision")
    return (
        InsertQDQ(plan),
        # factors beside the new pairs; where every tensor has a pair, a factor lies between two of them
        *(() if target.every_tensor else (fold_scales,)),
        remove_redundant_qdq,  # behind pairs that the model already had
        QuantizeWeights(plan, target.weight, recipe.weight_range, form),
        # zero points that effort chose: behind the weights, since biases make up for them with the codes of those
        *((centre_codes,) if any(p.qtype == INT8_ASYMMETRIC for p in plan.points.values()) else ()),
        # their sizes are known now; before the type of everything changes
        *((FitBiases(plan.float_type, frozenset(plan.float32)),) if plan.float_type != "float32" else ()),
        *((half,) if plan.float_type != "float32" else ()),  # behind the pairs, whose scales take its type
        imply_zero_points,  # last of the pairs' changes: the others read them
        remove_unused,  # float weights that nothing reads any more
    )


def weight_grid(target: Target, recipe: Recipe) -> QType:
    """The grid that weights are rounded to."""
    return replace(target.weight, limit=REDUCED) if recipe.reduce_range else target.weight


def _without_blocks(plan: Plan) -> Plan:
    """The plan without the tables, which `QuantizeTables` writes."""
    return replace(plan, weights=tuple(w for w in plan.weights if w.block_size is None))


def _lower_cpu(plan: Plan, target: Target, recipe: Recipe) -> tuple[Pass, ...]:
    return (
        InsertQDQ(plan),
        remove_redundant_qdq,  # behind pairs that the model already had
        QuantizeWeights(_without_blocks(plan), weight_grid(target, recipe), recipe.weight_range, "dq"),
        QuantizeTables(plan, recipe.weight_range),
        ScalesInQuantize(target.movers),
        channel_scales_in_rows,  # before biases are rounded, and channels padded
        SpaceToDepth(inputs=recipe.io_types != "int8"),  # an image has three channels, and kernels want many
        pad_channels,  # or four at least
        fit_weight_scales,  # before biases are rounded in steps of them
        round_biases,  # what old versions of the provider replace only with an int32 bias
        keep_biases_apart,  # or the provider makes a float Gemm of product and bias
        sum_before_norm,  # after it: takes the bias along, and keeps the slow SkipLayerNormalization away
        smooth_in_norms,  # after it: the residual is a term of such a sum
        *((ToOperators(target.movers),) if recipe.format == "qoperator" else ()),
        clamps_apart,  # behind the operators, which need no help
        fast_gelu,  # behind the operators, which take biases along; it and the next take those of Q/DQ graphs
        join_attention,  # the kernels around the products of an attention, which stay in float
        remove_unused,  # float weights that nothing reads any more
        # those and the products that make Q, K and V: not of Q/DQ graphs, whose weights keep pairs and names
        *((quantize_attention, remove_unused) if recipe.format == "qoperator" else ()),
    )


def _lower_cuda(plan: Plan, target: Target, recipe: Recipe) -> tuple[Pass, ...]:
    if not plan.points and not plan.joins:
        return _lower_weights(plan, target, recipe)  # without data
    *pairs, implied, unused = _lower_qdq(_without_blocks(plan), target, recipe)
    return (
        *pairs,
        integer_products,  # behind the change of the float type: the accumulators of a product stay in float32
        move_codes,  # what is moved to a product is moved as int8
        QuantizeTables(plan, recipe.weight_range),  # likewise, so that its scales have the type of its rows
        implied,  # of the pairs that the products left over: those read zero points
        unused,
    )


def _lower_weights(
    plan: Plan, target: Target, recipe: Recipe, chosen: Mapping[str, Stored] | None = None
) -> tuple[Pass, ...]:
    plain = all(w.format.type == "int8" and not w.block_size for w in plan.weights)
    if target.placement == "tensorrt" and not chosen and plain:
        return _lower_qdq(plan, target, recipe)  # it takes a DequantizeLinear on every kind of weight
    half = HighPrecision(plan.float_type, frozenset(plan.float32), keep_io=recipe.io_types != "high-precision")
    ops = {d.node: d.op_type for d in plan.decisions}
    others = tuple(w for w in plan.weights if ops[w.uses[0][0]] in ("Conv", "ConvTranspose") and w.format == INT8)
    return (
        NarrowWeights(plan, recipe.weight_range, chosen or {}, recipe.format == "qoperator", target.float4),
        *((split_gemms,) if target.placement != "tensorrt" else ()),  # or ONNX Runtime widens their weights
        QuantizeWeights(replace(plan, weights=others), target.weight, recipe.weight_range, "dq"),
        *((half,) if plan.float_type != "float32" else ()),  # the scales take its type
        QuantizeTables(plan, recipe.weight_range),
        *(IN_FLOAT if target.placement == "ort-cpu" else ()),
        remove_unused,
    )


def _lower_dynamic(plan: Plan, target: Target, recipe: Recipe, chosen: Mapping[str, Stored]) -> tuple[Pass, ...]:
    weight = weight_grid(target, recipe)
    return (
        DynamicProducts(plan, weight, recipe.weight_range, recipe.activations == "int8/token", chosen),
        DynamicLSTM(plan, weight),
        QuantizeTables(plan, recipe.weight_range),
        *IN_FLOAT,
        remove_unused,
    )


IN_FLOAT: tuple[Pass, ...] = (
    sum_before_norm,  # keeps the slow SkipLayerNormalization away
    join_attention,  # the kernels around its products
)
"""What ONNX Runtime's CPU provider computes in float in the modes dynamic and weight-only, in fewer kernels."""

REDUCED = 64
"""Largest weight code where pairs of products are added in 16 bits: 2 * 255 * 64 < 2^15."""

LOWERINGS: dict[str, Callable[[Plan, Target, Recipe], tuple[Pass, ...]]] = {
    "ort-cpu": _lower_cpu,
    "ort-cuda": _lower_cuda,
    "weight-only": _lower_weights,
    "float": _lower_float,
}
"""`Target.placement`, or a mode but static -> how a plan is written, where not as Q/DQ pairs for TensorRT."""
