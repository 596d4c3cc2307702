"""Which function places what: the table PLACEMENTS, and the plan of a recipe's mode."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.exposing import why_hidden
from onnxq.modes import mode_of
from onnxq.placement.bodies import (
    NEVER_RAN,
    advised,
    explained,
    fallback,
    joined,
    part_name,
    reasoned,
    replaced,
    unreached,
    with_advice,
)
from onnxq.placement.dynamic import place_dynamic
from onnxq.placement.floats import place_floats
from onnxq.placement.formats import with_grids, with_narrow, without_narrow
from onnxq.placement.ort_cpu import place_cpu
from onnxq.placement.ort_cuda import place_cuda
from onnxq.placement.tensorrt import place
from onnxq.placement.weight_only import place_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    "float": place_floats,
}
"""`Target.placement` for static int8, or the name of another mode -> the function that decides."""


def placed(graph: Graph, target: Target, recipe: Recipe) -> Plan:
    """The plan of a prepared graph and its bodies in the recipe's mode.

    Raises:
        RecipeError: a rule matches nothing.
    """
    parts = tuple(graph.parts())
    recipe.check_rules((n.name or "", n.op_type) for part in parts for n in part.nodes)
    mode = mode_of(graph, target, recipe)
    return joined({part_name(part): _placed(part, target, recipe, mode) for part in parts}, mode)


def settled(graph: Graph, plan: Plan, seen: Mapping[str, bool], target: Target, recipe: Recipe) -> Plan:
    """The plan with other modes for bodies that no sample reached: nothing is known of what they compute.

    `seen` tells of each observed tensor whether a value of it was seen, be it NaN.
    """
    for part in unreached(graph, plan, seen):
        mode = fallback(target)
        plan = replaced(plan, part, place_part(part, target, recipe, mode), NEVER_RAN)
        how = "its inputs are quantized at run time" if mode == "dynamic" else "its weights alone are quantized"
        plan = replace(plan, notes=(*plan.notes, f"{part_name(part)}: {NEVER_RAN}, {how}"))
    return plan


def _placed(part: Graph, target: Target, recipe: Recipe, mode: str) -> Plan:
    hidden = why_hidden(part) if mode == "static" else None
    if hidden is None:
        return place_part(part, target, recipe, mode)
    return reasoned(place_part(part, target, recipe, fallback(target)), hidden)


def place_part(part: Graph, target: Target, recipe: Recipe, mode: str) -> Plan:
    """The plan of one part alone in a mode."""
    advice = advised(part, target, mode)
    place_it = PLACEMENTS[target.placement if mode == "static" else mode]
    advised_recipe = with_advice(recipe, advice)
    if mode != "static":
        plan = explained(place_it(part, target, advised_recipe), recipe, advice)
        return replace(with_grids(plan, recipe) if mode == "dynamic" else plan, mode=mode)
    plan = place_it(part, target, without_narrow(advised_recipe))
    plan = with_narrow(part, explained(plan, recipe, advice), target, advised_recipe)
    return replace(with_grids(plan, recipe), mode=mode)
