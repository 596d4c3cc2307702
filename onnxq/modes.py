"""Modes: static, dynamic and weight-only int8; which a target takes, and which one `auto` stands for."""

from __future__ import annotations

from math import inf, prod
from typing import TYPE_CHECKING

from onnxq.errors import RecipeError
from onnxq.formats import Format, cell, check_cell
from onnxq.formats.grammar import SMALLEST_BLOCK
from onnxq.schemes import formats_of, parsed, weight_format

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

MODES = ("static", "dynamic", "weight-only", "float", "auto")

FEW_ROWS = 16
"""Up to so many rows a product reads far more weight than activation, and reading a narrower weight is what pays.

Follows from the bytes that each form moves; measured on no GPU.
"""

HALF_OPSET = 19
"""The first opset whose Q/DQ nodes take scales in half precision: `onnxq.precision` has it too, a floor above."""


def check_mode(recipe: Recipe, target: Target) -> None:
    """Whether mode, weight bits and block size go together and with the target.

    Raises:
        RecipeError: they do not; the message says why.
    """
    if recipe.mode in target.refuses:
        others = ", ".join(m for m in MODES if m not in target.refuses)
        raise RecipeError(
            f"{target.name} cannot run mode {recipe.mode}: {target.refuses[recipe.mode]}", f"It has: {others}."
        )
    bits, size = recipe.weight_bits, recipe.block_size
    if (bits is not None or size is not None) and recipe.mode not in ("weight-only", "auto"):
        raise RecipeError(
            f"weight_bits and block_size are choices of mode weight-only, not of {recipe.mode}",
            "Add mode = 'weight-only', or leave them out.",
        )
    if recipe.weight_method != "nearest" and recipe.mode not in ("weight-only", "dynamic", "auto"):
        raise RecipeError(
            f"weight_method {recipe.weight_method} is a choice of the modes weight-only and dynamic, not of "
            f"{recipe.mode}",
            "Leave it out. With static activations --effort balanced rounds by GPTQ's recursion, against the inputs as "
            "they are quantized, and scales channels, where samples that had no part in it confirm it.",
        )
    _check_outliers(recipe)
    blocked = bits in (3, 4) or size is not None
    if blocked and (4 if bits == 3 else bits or 8) not in target.blocked_bits:
        known = " and ".join(map(str, sorted(target.blocked_bits))) or "no"
        raise RecipeError(
            f"{target.name} takes weights in blocks in {known} bits only", "Choose other bits, or no block_size."
        )
    _check_stored(recipe, target)
    lacks = cell(Format("bf16"), "weights", target.name).reason
    if recipe.float_type == "bfloat16" and lacks:
        raise RecipeError(f"{target.name} cannot run with bf16: {lacks}", "Give fp16 or fp32.")


def check_width(recipe: Recipe) -> None:
    """Whether the numbers that stand for a weight format make one.

    Raises:
        RecipeError: they do not.
    """
    bits, size = recipe.weight_bits, recipe.block_size
    if bits not in (None, 3, 4, 8):
        raise RecipeError(f"weight_bits is {bits}", "Give 8, 4 or 3; --weights has other formats.")
    if size is not None and (size < SMALLEST_BLOCK or size & (size - 1)):
        raise RecipeError(f"block_size is {size}", f"Give a power of two, {SMALLEST_BLOCK} or more.")


def check_interface(recipe: Recipe, target: Target) -> None:
    """Whether the model can have integer inputs and outputs, where the recipe asks for them.

    Raises:
        RecipeError: it cannot; the message says why.
    """
    if recipe.io_types != "int8":
        return
    activations = parsed(recipe.activations)
    reason = _NO_INTERFACE.get(target.name)
    if target.every_tensor:
        reason = "a DLA's input and output types are set when building, as trtexec --inputIOFormats=int8:dla_linear"
    elif target.products == "integer":
        reason = "only products run in int8 there, so codes at the ends would be turned into floats at once"
    if reason is not None:
        raise RecipeError(f"{target.name} has no integer interface: {reason}", "Leave io_types out.")
    if recipe.mode not in ("static", "auto"):
        raise RecipeError(
            f"io_types int8 needs static scales, which mode {recipe.mode} has not", "Leave one of the two out."
        )
    if activations is not None and activations.type not in ("int8", "uint8"):
        raise RecipeError(
            f"io_types int8 beside activations in {activations}: codes at the ends have the activations' type",
            "Take activations in int8 or uint8, or leave io_types out.",
        )


_NO_INTERFACE = {
    "tensorrt@8": "integer inputs of networks with Q/DQ are not documented for TensorRT 8; trtexec sets the types of "
    "inputs and outputs when building, with --inputIOFormats and --outputIOFormats",
}
"""Target -> why, where no field of the target tells."""


def _check_outliers(recipe: Recipe) -> None:
    threshold = recipe.outlier_threshold
    if threshold is None:
        return
    if not 0 < threshold < inf:
        raise RecipeError(f"outlier_threshold is {threshold}", "Give a positive number; 6.0 is usual.")
    if recipe.mode == "weight-only":
        raise RecipeError(
            "outlier_threshold is about int8 activations, and mode weight-only has none", "Leave it or the mode out."
        )
    if recipe.effort == "best":  # the default gives way
        raise RecipeError(
            "outlier_threshold and effort best are two ways to deal with outliers",
            "Choose one: take the columns apart, or smooth them.",
        )


def check_cpu(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError for what only the CPU provider has, and for what it has not."""
    cpu = target.placement == "ort-cpu"
    if not cpu and (recipe.reduce_range or recipe.format != "qdq"):
        said = "reduce_range" if recipe.reduce_range else f"format {recipe.format}"
        raise RecipeError(f"{said} is for target ort-cpu, not {recipe.target}", "Leave it out, or change the target.")
    if cpu and recipe.mode != "float" and recipe.float_type != "float32":
        raise RecipeError(
            f"{recipe.target} runs its float part in fp32, not {recipe.high_precision}",
            "Its integer kernels take float32 scales, and half precision is slow on CPUs. Leave high_precision out.",
        )


def _check_stored(recipe: Recipe, target: Target) -> None:
    """Whether the target takes what weights are stored in, where no activation is quantized."""
    if recipe.mode == "float" and recipe.float_type == "float32":
        raise RecipeError("mode float leaves the model as it is", "Give --high-precision fp16 or bf16.")
    if recipe.mode == "float":
        check_cell(_half(recipe, target), "weights", target.name)
    if recipe.mode == "weight-only":
        check_cell(weight_format(recipe, target), "weights", target.name)


def lowest_opset(recipe: Recipe, target: Target) -> int:
    """The lowest opset in which everything the recipe asks for can be written."""
    if recipe.mode == "float":
        return max(target.min_opset, cell(_half(recipe, target), "weights", target.name).opset)
    half = recipe.float_type != "float32"
    weights = max(cell(f, "weights", target.name).opset for f in formats_of(recipe, target))
    activations = max(cell(f, "activations", target.name).opset for f in formats_of(recipe, target))
    return max(target.min_opset, HALF_OPSET if half else 0, weights, activations)


def _half(recipe: Recipe, target: Target) -> Format:
    return Format(recipe.high_precision or target.high_precision)


def mode_of(graph: Graph, target: Target, recipe: Recipe) -> str:
    """The recipe's mode; for `auto`: weight-only on ort-cuda where all large products are known to have few rows.

    Large: with at least half of the largest weight's values. Rows are known from static shapes alone. Everywhere
    else `auto` is static.
    """
    if recipe.mode != "auto":
        return recipe.mode
    if target.products != "integer":
        return "static"
    found = [(graph.size(n.inputs[1]) or 0, rows(graph, n)) for n in graph.nodes if _is_product(graph, n)]
    largest = max((size for size, _ in found), default=0)
    counts = [count for size, count in found if 2 * size >= largest]
    few = bool(counts) and all(count is not None and count <= FEW_ROWS for count in counts)
    return "weight-only" if few else "static"


def rows(graph: Graph, node: Node) -> int | None:
    """Rows of a matrix product's output, batch dimensions included, where known."""
    shape = graph.shape(node.outputs[0])
    if not shape:
        return None
    known = [d for d in shape[:-1] if isinstance(d, int)]
    return prod(known) if len(known) == len(shape) - 1 else None


def _is_product(graph: Graph, node: Node) -> bool:
    return node.op_type in ("MatMul", "Gemm") and not node.domain and graph.is_const(node.inputs[1])
