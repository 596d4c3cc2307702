"""Models in float16 and bfloat16, brought to float32, where they are improved and quantized.

Factors, zero points and codes are found and folded in float32 and written as for any other model. What is not int8 is
then in the model's own type again, unless the recipe says something else or the target lacks it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq import pipeline
from onnxq.dtypes import NUMBERS
from onnxq.errors import ModelError
from onnxq.formats import Format, cell
from onnxq.passes import widen_halves
from onnxq.precision import FLOAT32, Halves
from onnxq.recipe import HIGH_PRECISION
from onnxq.schemes import backend
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph
    from onnxq.recipe import Recipe

_SHORT = {name: short for short, name in HIGH_PRECISION.items()}


def of_halves(graph: Graph, recipe: Recipe) -> tuple[Recipe, Halves]:
    """Bring a model with weights in half precision to float32; return the recipe to follow, and what was in it.

    Raises:
        ModelError: the model has ends in bfloat16, and the target lacks it.
    """
    sizes = _sizes(graph)
    kind = "bfloat16" if sizes["bfloat16"] else "float16"
    _refuse_ends(graph, recipe)
    if not sizes[kind] or not _fits(recipe, kind):
        return recipe, FLOAT32
    graph.infer_shapes()
    made = {dtype: frozenset(_making(graph, dtype)) for dtype in (kind, "float32")}
    if not sum(step.rewrites for step in pipeline.run(graph, (widen_halves,))):
        return recipe, FLOAT32
    mixed = recipe.float_type != "float32" and kind == "float16"  # what is float32 would be float16 anyway
    minor = recipe.float_type != "float32" and sizes[kind] < sizes["float32"]
    if recipe.high_precision is not None or mixed or minor or not _has(recipe, kind):
        return recipe, Halves(made[kind], kind=kind)
    return replace(recipe, high_precision=_SHORT[kind]), Halves(made[kind], made["float32"], kind)


def has_bfloat16(recipe: Recipe) -> bool:
    """Whether the recipe's target computes in it."""
    return not cell(Format("bf16"), "weights", get_target(recipe.target).name).reason


def _has(recipe: Recipe, kind: str) -> bool:
    return kind == "float16" or has_bfloat16(recipe)


def _fits(recipe: Recipe, kind: str) -> bool:
    """Whether it is done for the recipe's target and mode, which take float16 as it is where it is not."""
    target = backend(recipe)
    return kind == "bfloat16" or (
        target.placement == "tensorrt" and not target.every_tensor and recipe.mode in ("static", "auto")
    )


def _refuse_ends(graph: Graph, recipe: Recipe) -> None:
    """Raise ModelError for inputs and outputs in bfloat16 where nothing on the target reads or writes it."""
    target = get_target(recipe.target)
    lacks = cell(Format("bf16"), "weights", target.name.removesuffix("+dla")).reason
    ends = [str(v.name) for v in (*graph.inputs, *graph.outputs) if graph.dtype(v) == "bfloat16"]
    if ends and lacks and target.placement == "tensorrt":  # others cast them
        raise ModelError(
            f"{ends[0]!r} is bfloat16, but {lacks}",
            f"Give it in float32 or float16, or take another target than {target.name}.",
        )


def _sizes(graph: Graph) -> Counter[str]:
    """Elements of the weights of each type; a weight that a Cast turns into one counts as of that one."""
    sizes: Counter[str] = Counter()
    weights = {str(name): value for name, value in graph.weights.items() if (graph.rank(value) or 0) > 1}
    for value in weights.values():
        sizes[str(graph.dtype(value))] += graph.size(value) or 0
    names = {number: name for name, number in NUMBERS.items()}
    for part in graph.parts():
        for node in part.nodes:
            read = node.inputs[0] if node.op_type == "Cast" else None
            if read is not None and str(read.name) in weights:
                sizes[names.get(graph.attribute(node, "to"), "")] += graph.size(read) or 0
                sizes[str(graph.dtype(read))] -= graph.size(read) or 0
    return sizes


def _making(graph: Graph, kind: str) -> Iterator[str]:
    """Names of the nodes that compute something of the type."""
    for part in graph.parts():
        for node in part.nodes:
            if node.op_type != "Cast" and any(part.dtype(v) == kind for v in node.outputs):
                yield str(node.name)
