"""What formats change in a plan of static int8: the grids of activations, one scale for a weight, narrow weights.

Rules mix formats. A node whose inputs a rule wants in float keeps a narrow weight only; where nodes that read one
tensor, or share a scale, want different integers, the finest of them serves all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.placement.weight_only import place_weights
from onnxq.schemes import GRIDS, backend, node_weights, parsed, weight_only

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.plan import Plan, Point
    from onnxq.recipe import Recipe, Rule
    from onnxq.targets.target import Target

FINEST = ("float8_e5m2", "float8_e4m3fn", "int8", "uint8", "int16", "uint16")
"""Grids, the coarsest first."""


def without_narrow(recipe: Recipe) -> Recipe:
    """The recipe whose rules leave those nodes in float that are to have narrow weights alone."""
    return replace(recipe, rules=tuple(replace(r, quantize=False) if weight_only(r) else r for r in recipe.rules))


def with_narrow(graph: Graph, plan: Plan, target: Target, recipe: Recipe) -> Plan:
    """The static plan with the weights that rules want narrow beside float inputs."""
    rules = tuple(replace(rule, quantize=True) if weight_only(rule) else rule for rule in recipe.rules)
    if rules == recipe.rules:
        return plan
    from onnxq.recipe import Rule

    alone = (Rule(quantize=False), *(r for r in rules if weight_only(r) or r.quantize is False))
    narrow = place_weights(graph, target, replace(recipe, rules=alone))
    found = {d.node: d for d in narrow.decisions if d.quantized or _meant(d.node, d.op_type, rules)}
    decisions = tuple(d if d.quantized else found.get(d.node, d) for d in plan.decisions)
    return replace(plan, decisions=decisions, weights=(*plan.weights, *narrow.weights))


def with_grids(plan: Plan, recipe: Recipe) -> Plan:
    """The static plan with the grids and granularities that the recipe and its rules ask for."""
    ops = {d.node: d.op_type for d in plan.decisions}
    target = backend(recipe)
    weights = tuple(
        replace(w, axis=None)
        if w.axis is not None
        and all(node_weights(recipe, target, n, ops[n]).granularity == "tensor" for n, _ in w.uses)
        else w
        for w in plan.weights
    )
    asked: dict[str, str] = {}
    for point in plan.points.values():
        for name, _ in point.uses:
            said = parsed(recipe.rule_value(name, ops.get(name, ""), "activations"), "activations")
            if said is not None and said.type in GRIDS:
                grids = (asked.get(point.group), GRIDS[said.type].dtype)
                asked[point.group] = max((g for g in grids if g), key=FINEST.index)
    points = {name: _on(p, asked) for name, p in plan.points.items()}
    wide = {n: p.qtype.dtype for p in points.values() if p.qtype is not None for n, _ in p.uses}
    kind = target.activation.dtype
    usual = "int8" if kind == "uint8" else kind
    decisions = tuple(replace(d, number=wide.get(d.node, usual)) if d.quantized else d for d in plan.decisions)
    return replace(plan, weights=weights, points=points, decisions=decisions)


def _meant(name: str, op_type: str, rules: tuple[Rule, ...]) -> bool:
    return any(weight_only(rule) and rule.matches(name, op_type) for rule in rules)


def _on(point: Point, asked: dict[str, str]) -> Point:
    dtype = asked.get(point.group)
    grid = next((g for g in GRIDS.values() if g.dtype == dtype), None)
    return point if grid is None else replace(point, qtype=grid)
