"""From a model and a recipe to a graph that is ready to be observed and lowered, and its plan."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from onnxq import files, pipeline
from onnxq.collect import learn_types
from onnxq.customs import behind_customs, listed, notes
from onnxq.errors import ModelError, RecipeError
from onnxq.halves import of_halves
from onnxq.intake import checked, load
from onnxq.modes import lowest_opset
from onnxq.monitor import QUIET, Monitor
from onnxq.operators import is_integer
from onnxq.passes import FitPairs, Smooth, SplitOutliers, fold_constants, prepare
from onnxq.placement import placed
from onnxq.placement.dla import cover
from onnxq.placement.float_costs import work_seen
from onnxq.placement.interface import with_interface
from onnxq.placement.weighted import FLOAT_TYPES
from onnxq.plan import FEW_STEPS
from onnxq.precision import FLOAT32, Halves, probes
from onnxq.recipe import Recipe, Rule
from onnxq.schemes import backend
from onnxq.targets import get_target
from onnxq.timing import timed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxq.graph import Graph
    from onnxq.intake import Model
    from onnxq.plan import Plan, Point
    from onnxq.statistics import Bounds, Factor, Statistics


_FOLD = pipeline.Everywhere(fold_constants)

PARTED = f"joins tensors of ranges that differ by more than {FEW_STEPS} times: one scale would leave some no steps"
"""Why a Concat stays in float."""

SPARED = "left in float: in int8 it makes far more of the error than of the work (--float-share 0: int8)"
"""Why an effort leaves a layer in float."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to be observed and lowered, with its (unresolved) plan.

    Attributes:
        graph: the model.
        plan: its plan.
        recipe: every choice.
        work: node -> multiply-accumulates by the shapes that data had, where those of the graph leave some open.
        source: what the model had in half precision, before it was brought to float32.
    """

    graph: Graph
    plan: Plan
    recipe: Recipe
    work: Mapping[str, int] = field(default_factory=dict)
    source: Halves = FLOAT32

    def under(self, recipe: Recipe) -> Prepared:
        """The same planned by another recipe, for what was observed.

        Raises:
            RecipeError: a rule matches nothing.
        """
        return replace(self, plan=_observed(planned(self.graph, recipe, self.work), self.plan), recipe=recipe)

    def sized(self, seen: Mapping[str, Bounds]) -> Prepared:
        """The same with its work counted by shapes that inputs were seen to have; done once."""
        work = self.work or work_seen(self.graph, get_target(self.recipe.target), seen, _FOLD)
        return replace(self, plan=_counted(self.plan, work), work=work)


def prepared(model: Model, recipe: Recipe, monitor: Monitor = QUIET) -> Prepared:
    """Load, bring to the form that is observed and lowered, and plan.

    Raises:
        ModelError: the model cannot be read, nothing in it can be quantized, or the target has not what it holds.
        RecipeError: a rule matches nothing.
    """
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{type(recipe).__name__} is no recipe", "Give onnxq.Recipe(...), or leave it out.")
    monitor.stage("Preparing", None)
    with checked(model):
        made = drafted(model, recipe, monitor)
    where = str(model) if isinstance(model, str | os.PathLike) else "the model"
    if made.plan.empty:
        raise ModelError(f"there is nothing to quantize in {where}", made.plan.why_empty())
    if unknown := lacking(made):
        raise ModelError(
            f"{where} computes on integers already, with operators that TensorRT lacks: {unknown}",
            "Quantize the float model that it was made from. --target ort-cpu takes it as it is.",
        )
    return made


def lacking(ready: Prepared) -> str:
    """The integer operators that the graph came with and TensorRT lacks, with their nodes; empty for other targets.

    No file that holds one becomes an engine, whatever else is done to it.
    """
    if get_target(ready.recipe.target).placement != "tensorrt":
        return ""
    found = [node for part in ready.graph.parts() for node in part.nodes if is_integer(node.op_type, node.domain)]
    return listed(found)


def drafted(model: Model, recipe: Recipe, monitor: Monitor = QUIET) -> Prepared:
    """`prepared`, also where there is nothing to quantize.

    Raises:
        OnnxqError: the model cannot be read or prepared, or a rule matches nothing.
    """
    target = backend(recipe)
    with timed(monitor, "reading the model"):
        graph = load(model)
    widen = target.placement == "ort-cpu" and recipe.mode not in ("weight-only", "float")  # integer kernels want it
    recipe, source = of_halves(graph, recipe)
    prepares = prepare(lowest_opset(recipe, target), target.placement, every_tensor=target.every_tensor, widen=widen)
    passes: tuple[pipeline.Pass, ...] = (*prepares, FitPairs(target.activation))
    pipeline.run(graph, passes)
    if recipe.custom_ops and learn_types(graph, recipe.custom_op_list, recipe.provider_list):
        pipeline.run(graph, passes)  # types that were unknown are inferred now
    if files.weight_bytes(graph) > files.SPILL_BYTES:
        graph = files.spill(graph)
    return Prepared(graph, planned(graph, recipe), recipe, source=source)


def planned(graph: Graph, recipe: Recipe, work: Mapping[str, int] = MappingProxyType({})) -> Plan:
    """The plan of a prepared graph; `work` is that of nodes by shapes which the graph does not know.

    Raises:
        RecipeError: a rule matches nothing.
    """
    target = backend(recipe)
    plan = placed(graph, target, recipe)
    plan = replace(plan, float_type=recipe.float_type, notes=(*plan.notes, *notes(graph)))
    if target.every_tensor:
        plan = cover(graph, plan, target, recipe)
    if recipe.io_types == "int8":
        plan = with_interface(graph, plan)
    if recipe.float_type == "float16":
        unseen = set() if recipe.custom_ops else behind_customs(graph)
        plan = replace(plan, probes=tuple(name for name in probes(graph, plan) if name not in unseen))
    return _counted(plan, work)


def _counted(plan: Plan, work: Mapping[str, int]) -> Plan:
    """The plan with the work that is told of its nodes."""
    decisions = (replace(d, macs=work[d.node]) if d.node in work else d for d in plan.decisions)
    return replace(plan, decisions=tuple(decisions)) if work else plan


def smoothed(
    ready: Prepared, factors: Mapping[str, Factor], outliers: Mapping[str, tuple[int, ...]] | None = None
) -> Prepared:
    """The prepared model with the factors in it and outlier columns apart, and its plan; itself when there are none.

    Raises:
        StatisticsError: they belong to another model.
    """
    if not factors and not outliers:
        return ready
    graph = ready.graph.copy()
    pipeline.run(graph, (Smooth(factors), SplitOutliers(outliers or {})))
    return replace(ready, graph=graph, plan=planned(graph, ready.recipe, ready.work))


def activations(graph: Graph) -> tuple[str, ...]:
    """Names of the main graph's float activations, model inputs and outputs among them."""
    return tuple(str(v.name) for v in graph.values() if v.name and graph.dtype(v) in FLOAT_TYPES)


def without_nodes(ready: Prepared, names: Collection[str], because: str, others: tuple[Rule, ...] = ()) -> Prepared:
    """The prepared model placed again with these nodes in float and by these rules, and all that must go with them.

    Nothing is quantized in their stead, so that statistics of `ready` serve. The recipe has a rule for every such node.

    Args:
        ready: the prepared model; names that none of its nodes has are passed over.
        names: of nodes.
        because: why, for the plan.
        others: rules for other nodes.

    Raises:
        RecipeError: the target cannot do what these rules say.
    """
    before, target, left = _uses(ready.plan), get_target(ready.recipe.target), set(names)
    while True:
        recipe = replace(ready.recipe, rules=(*ready.recipe.rules, *float_rules(ready.plan, left), *others))
        plan = planned(ready.graph, recipe, ready.work)
        added = {node for node, _ in _uses(plan) - before} - left
        if not added or target.every_tensor:
            return replace(ready, plan=_observed(_explained(plan, left, because), ready.plan), recipe=recipe)
        left |= added  # an addition, say, that would fuse into its other branch now: it stays in float


def parted(ready: Prepared, statistics: Statistics) -> Prepared:
    """The prepared model with those Concats in float whose one scale would leave a tensor no steps that need them.

    With `FEW_STEPS` times its own range a tensor keeps 3 bits and the sign. What reads all of the Concat with one scale
    loses nothing by it; what reads the smaller tensor by itself does, and what reads the Concat in float, as the
    normalizations of a U-Net do. Their layers stay as they are.
    """
    joins = {str(n.name): (part, n) for part in ready.graph.parts() for n in part.nodes if n.op_type == "Concat"}
    if not joins or ready.plan.mode != "static" or get_target(ready.recipe.target).every_tensor:
        return ready
    seen, plan, asked = statistics.reach, ready.plan, ready.recipe.rule_value
    reach = {
        p.tensor: max((seen[n].amax for n in p.observed if n in seen), default=0.0)
        for p in plan.points.values()
        if p.range is None
    }
    widest: dict[str, float] = {}
    uses: dict[str, list[tuple[str, str]]] = {}
    for point in plan.points.values():
        widest[point.group] = max(reach.get(point.tensor, 0.0), widest.get(point.group, 0.0))
        uses.setdefault(point.group, []).extend((point.tensor, node) for node, _ in point.uses)
    joint = {str(join.outputs[0].name) for _, join in joins.values()}  # of these one input is observed
    small = {n for n, r in reach.items() if n not in joint and 0.0 < r * FEW_STEPS < widest[plan.points[n].group]}
    quantized, names = {d.node for d in plan.decisions if d.quantized}, []
    for group in dict.fromkeys(plan.points[n].group for n in reach if n in small):
        alone = any(tensor in small and node not in joins for tensor, node in uses[group])
        for name in dict.fromkeys(node for _, node in uses[group] if node in joins):
            part, (made,) = joins[name][0], joins[name][1].outputs
            floats = made.is_graph_output() or any(user.name not in quantized for user, _ in part.users(made))
            if (alone or floats) and asked(name, "Concat", "quantize") is not True:
                names.append(name)
    return without_nodes(ready, names, PARTED) if names else ready


def float_rules(plan: Plan, names: Collection[str]) -> tuple[Rule, ...]:
    """What takes nodes out of int8, in the model's order: to float, as no target computes with 16-bit activations."""
    return tuple(Rule(nodes=glob.escape(d.node), quantize=False) for d in plan.decisions if d.node in names)


def _uses(plan: Plan) -> set[tuple[str, int]]:
    pairs = {use for point in plan.points.values() for use in point.uses}
    return pairs | {use for weight in plan.weights for use in weight.uses}


def _observed(plan: Plan, before: Plan) -> Plan:
    """The plan that asks for nothing but what was observed: what a float node moves now has the range it had."""
    seen = set(before.observe)
    groups: dict[str, list[str]] = {}
    for point in before.points.values():
        groups.setdefault(point.group, []).extend(point.observed)

    def known(point: Point) -> Point:
        if point.observe in seen or point.tensor not in before.points:
            return point
        first, *others = dict.fromkeys(
            (*before.points[point.tensor].observed, *groups[before.points[point.tensor].group])
        )
        return replace(point, observe=first, also=tuple(others))

    return replace(plan, points={name: known(point) for name, point in plan.points.items()})


def _explained(plan: Plan, names: Collection[str], because: str) -> Plan:
    """The plan that says of these nodes why a rule excludes them."""
    decisions = tuple(
        replace(d, reason=because) if d.node in names and not d.quantized and d.reason == "excluded by a rule" else d
        for d in plan.decisions
    )
    return replace(plan, decisions=decisions)
