"""Plans of a model with bodies of If, Loop and Scan: one of each part, joined to one of the whole.

A tensor's name is unique in the model, so the joined plan reads like any other; what belongs to a part is told by
its nodes.
"""

from __future__ import annotations

from dataclasses import replace
from glob import escape
from typing import TYPE_CHECKING, TypeVar

from onnxq.patterns.peaks import peaks
from onnxq.patterns.shaping import shaping
from onnxq.patterns.spectra import logarithms, spectra
from onnxq.recipe import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from onnxq.graph import Graph
    from onnxq.plan import Plan, Point, WeightPoint
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

_T = TypeVar("_T")

UNASKED = "TensorRT runs bodies in float unless asked: a rule with quantize = true quantizes this node"
NEVER_RAN = "no sample reached it"


def part_name(part: Graph) -> str:
    """The name of a part: its node's and the attribute's, "" for the main graph."""
    return "" if part.body is None else part.body.name


def fallback(target: Target) -> str:
    """The mode of a body in which nothing can be observed."""
    return "weight-only" if "dynamic" in target.refuses else "dynamic"


def advised(part: Graph, target: Target, mode: str) -> dict[str, str]:
    """Node -> why it stays in float unless a rule asks for it, for reasons that lie around the node."""
    found = logarithms(part) | spectra(part) | peaks(part) if mode == "static" and not target.every_tensor else {}
    if (mode != "float" or target.placement == "tensorrt") and not target.every_tensor:
        found |= shaping(part)
    if part.body is not None and target.placement == "tensorrt":
        found |= {n.name or "": UNASKED for n in part.nodes}
    return found


def with_advice(recipe: Recipe, advice: Mapping[str, str]) -> Recipe:
    """The recipe with the advice as rules that every rule of its own wins over."""
    rules = tuple(Rule(escape(node), quantize=False) for node in advice)
    return replace(recipe, rules=(*rules, *recipe.rules))


def explained(plan: Plan, recipe: Recipe, advice: Mapping[str, str]) -> Plan:
    """The plan made with the advice, which gives its reasons where no rule of the recipe did."""
    decisions = (
        replace(d, reason=advice[d.node])
        if d.node in advice and not d.quantized and recipe.rule_value(d.node, d.op_type, "quantize") is None
        else d
        for d in plan.decisions
    )
    return replace(plan, decisions=tuple(decisions))


def joined(plans: Mapping[str, Plan], mode: str) -> Plan:
    """One plan of those of all parts, the main graph's first. A tensor that several parts read has one scale."""
    points: dict[str, Point] = {}
    same: dict[str, str] = {}
    for plan in plans.values():
        for name, point in plan.points.items():
            if (known := points.get(name)) is None:
                points[name] = point
                continue
            points[name] = replace(
                known, uses=(*known.uses, *point.uses), calibrator=known.calibrator or point.calibrator
            )
            one, other = sorted((_root(same, known.group), _root(same, point.group)))
            if one != other:
                same[other] = one
    first = next(iter(plans.values()))
    return replace(
        first,
        points={name: replace(p, group=_root(same, p.group)) for name, p in points.items()},
        weights=tuple(w for plan in plans.values() for w in plan.weights),
        decisions=tuple(d for plan in plans.values() for d in plan.decisions),
        kept=tuple(dict.fromkeys(t for plan in plans.values() for t in plan.kept)),
        joins=tuple(j for plan in plans.values() for j in plan.joins),
        notes=tuple(dict.fromkeys(n for plan in plans.values() for n in plan.notes)),
        mode=mode,
        modes={name: plan.mode for name, plan in plans.items() if plan.mode != mode},
    )


def within(plan: Plan, part: Graph) -> Plan:
    """What of the plan belongs to one part."""
    return divided(plan, (part,))[0]


def divided(plan: Plan, parts: Sequence[Graph]) -> list[Plan]:
    """What of the plan belongs to each of the parts."""
    home = {n.name or "": i for i, part in enumerate(parts) for n in part.nodes}
    ends: dict[str, set[int]] = {}
    for i, part in enumerate(parts):
        for value in part.outputs:
            ends.setdefault(str(value.name), set()).add(i)
    points: list[dict[str, Point]] = [{} for _ in parts]
    for name, point in plan.points.items():
        uses = _by_home(point.uses, home)
        made = ends.get(name, set()) if point.output else set()
        for i in sorted(uses.keys() | made):
            points[i][name] = replace(point, uses=uses.get(i, ()), output=i in made)
    weights: list[list[WeightPoint]] = [[] for _ in parts]
    for weight in plan.weights:
        for i, uses_there in _by_home(weight.uses, home).items():
            weights[i].append(replace(weight, uses=uses_there))
    decisions = _grouped(((d.node, d) for d in plan.decisions), home)
    joins = _grouped(((j[0], j) for j in plan.joins), home)
    return [
        replace(
            plan,
            points=points[i],
            weights=tuple(weights[i]),
            decisions=decisions.get(i, ()),
            joins=joins.get(i, ()),
            mode=plan.modes.get(part_name(part), plan.mode),
            modes={},
        )
        for i, part in enumerate(parts)
    ]


def _by_home(uses: Iterable[tuple[str, int]], home: Mapping[str, int]) -> dict[int, tuple[tuple[str, int], ...]]:
    return _grouped(((use[0], use) for use in uses), home)


def _grouped(found: Iterable[tuple[str, _T]], home: Mapping[str, int]) -> dict[int, tuple[_T, ...]]:
    """Part -> what belongs to its nodes, in order."""
    groups: dict[int, list[_T]] = {}
    for node, item in found:
        if node in home:
            groups.setdefault(home[node], []).append(item)
    return {i: tuple(items) for i, items in groups.items()}


def unreached(graph: Graph, plan: Plan, seen: Mapping[str, bool]) -> Iterator[Graph]:
    """The bodies of which the plan observes tensors, and none of these was ever made.

    `seen` tells of each observed tensor whether a value of it was seen, be it NaN.
    """
    parts = tuple(graph.parts())[1:]
    for part, share in zip(parts, divided(plan, parts), strict=True):
        own = {str(v.name) for v in (*part.inputs, *(v for n in part.nodes for v in n.outputs))}
        observed = [p.observe for p in share.points.values() if p.range is None and p.observe in own]
        if observed and not any(seen.get(name, True) for name in observed):
            yield part


def reasoned(plan: Plan, why: str) -> Plan:
    """The plan of a body that could not be observed, saying so wherever something is quantized."""
    decisions = (replace(d, reason=f"{d.reason} ({why})") if d.quantized else d for d in plan.decisions)
    return replace(plan, decisions=tuple(decisions))


def replaced(plan: Plan, part: Graph, other: Plan, why: str) -> Plan:
    """The plan with that of one body exchanged."""
    names = {n.name or "" for n in part.nodes}
    left = {n: replace(p, uses=tuple(u for u in p.uses if u[0] not in names)) for n, p in plan.points.items()}
    outputs = {str(v.name) for v in part.outputs}
    decisions = {d.node: d for d in reasoned(other, why).decisions}
    weights = ((w, tuple(u for u in w.uses if u[0] not in names)) for w in plan.weights)
    return replace(
        plan,
        points={n: p for n, p in left.items() if p.uses or (p.output and n not in outputs)},
        weights=(*(replace(w, uses=uses) for w, uses in weights if uses), *other.weights),
        decisions=tuple(decisions.get(d.node, d) for d in plan.decisions),
        joins=tuple(j for j in plan.joins if j[0] not in names),
        modes={**plan.modes, part_name(part): other.mode},
    )


def _root(same: Mapping[str, str], name: str) -> str:
    while name in same:
        name = same[name]
    return name
