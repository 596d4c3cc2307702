"""Which function places what: the table PLACEMENTS, and the plan of a recipe's mode."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.modes import mode_of
from onnxq.placement.dynamic import place_dynamic
from onnxq.placement.ort_cpu import place_cpu
from onnxq.placement.ort_cuda import place_cuda
from onnxq.placement.tensorrt import place
from onnxq.placement.weight_only import place_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.graph import Graph
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

    Placement = Callable[[Graph, Target, Recipe], Plan]

PLACEMENTS: dict[str, Placement] = {
    "tensorrt": place,
    "ort-cpu": place_cpu,
    "ort-cuda": place_cuda,
    "weight-only": place_weights,
    "dynamic": place_dynamic,
}
"""`Target.placement` for static int8, or the name of another mode -> the function that decides."""


def placed(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """The plan of a prepared graph in the recipe's mode.

    Raises:
        RecipeError: a rule matches nothing.
    """
    mode = mode_of(graph, target, recipe)
    plan = PLACEMENTS[target.placement if mode == "static" else mode](graph, target, recipe)
    return replace(plan, mode=mode)
