"""From model and data to a sensitivity report, or to a quantized model that keeps a budget."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from onnxq import api, intake
from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.data import Source, rereadable
from onnxq.errors import DataError, ModelError, RecipeError
from onnxq.monitor import QUIET, Monitor
from onnxq.parts import HERE, Running
from onnxq.placement.groups import groups
from onnxq.search.aside import Aside
from onnxq.search.budget import Search, unmet, within
from onnxq.search.goals import MaxDrop, MinSqnr
from onnxq.search.measuring import key_of, measure
from onnxq.search.metrics import Metric, load_metric
from onnxq.search.predicted import predictable, predicted
from onnxq.search.split import SEARCHED, split
from onnxq.search.timed import check_timed, timed
from onnxq.search.trials import Trials
from onnxq.statistics import Statistics, is_statistics, merge_shapes
from onnxq.targets import get_target
from onnxq.weights import needs_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from onnxq.api import Prepared
    from onnxq.caches import Cache
    from onnxq.graph import Graph
    from onnxq.outcome import Sensitivity
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.search.goals import Goal
    from onnxq.search.split import Split


@dataclass(frozen=True)
class Evaluation:
    """What to judge by, beside the recipe.

    Attributes:
        data: held-back data, anything that `onnxq.data` reads; None holds back a part of the calibration data.
        metric: a function in place of the recipe's script; see `onnxq.search.metrics`.
        measure: whether the choices of the Pareto list are timed in ONNX Runtime, for its targets.
    """

    data: object = None
    metric: Callable[..., Any] | None = None
    measure: bool = False


DEFAULT = Evaluation()


def sensitivity(
    model: intake.Model,
    data: object,
    recipe: Recipe = api.DEFAULT,
    monitor: Monitor = QUIET,
    *,
    eval_data: object = None,
    aside: Path | None = None,
) -> Sensitivity:
    """What each group of quantized layers costs: at its own output, and at the model's.

    Samples that calibrate are not measured on: of the data a quarter is held back, of which 32 samples are used.

    Args:
        model: as for `onnxq.quantize`.
        data: calibration data.
        recipe: every choice.
        monitor: progress and warnings.
        eval_data: what to measure on in place of a part of the data; 32 samples are used of it too.
        aside: a file that keeps results as they come; a run that was stopped goes on from it. It goes at the end.

    Raises:
        OnnxqError: see its children.
    """
    ready = api.prepared(model, recipe, monitor)
    if not groups(ready.plan):
        raise ModelError(
            "there is no layer to measure: " + _why_none(ready.plan),
            "Give the float model, and the target and mode that it is to be quantized for.",
        )
    trials, parts = _trials(ready, data, eval_data, monitor)
    every = groups(trials.ready.plan)
    store = Aside.open(aside, key_of(trials, parts.key), monitor)
    found = measure(trials, every, parts.judging[:SEARCHED], store, monitor)
    store.done()
    return found


def within_budget(
    ready: Prepared,
    data: object,
    monitor: Monitor = QUIET,
    evaluation: Evaluation = DEFAULT,
    cache: Cache | None = None,
    running: Running = HERE,
) -> tuple[Graph, Plan, Statistics | None]:
    """Quantize with as much in int8 as the recipe's budget allows; the plan's `budget` says how it was kept.

    Args:
        ready: the prepared model, with its recipe.
        data: samples; not statistics, on which nothing can be judged.
        monitor: progress and warnings.
        evaluation: what to judge by.
        cache: calibration scales that win over the data's.
        running: how the samples that calibrate are run.

    Returns:
        The graph, the plan and what was observed.

    Raises:
        AccuracyError: the budget cannot be met.
        OnnxqError: see its children.
    """
    goals = _goals(ready.recipe, evaluation.metric)
    if evaluation.measure:
        check_timed(ready.recipe)
    fallback = [rule.weights for rule in ready.recipe.fallback_rules if rule.weights is not None]
    trials, parts = _trials(ready, data, evaluation.data, monitor, cache, running)
    monitor.stage("Running the float model", len(parts.searching) + len(parts.judging))
    exact = trials.exact(parts.searching, monitor), trials.exact(parts.judging, monitor)
    behind = behind_customs(ready.graph) - {name for made in exact[1].outputs[:1] for name in made}
    if lost := [str(v.name) for v in ready.graph.outputs if v.name in behind]:
        monitor.warn(f"outputs that do not count, behind custom operators without --custom-ops: {', '.join(lost)}")
    if not exact[1].names and ready.recipe.min_sqnr is not None:
        raise RecipeError(
            "min_sqnr has nothing to go by: no output of the model is a tensor of floating point",
            "Give a metric of what it puts out, with max_drop.",
        )
    found = groups(trials.ready.plan)
    search = Search(trials, found, goals, *exact, monitor, evaluation.data is None, fallback)
    monitor.stage("Judging", None)
    floor = float("-inf")
    if search.reaches((), floor):
        graph, plan, verdicts = search.judge(())
        if all(v.met for v in verdicts):
            plan = replace(plan, budget=search.budget((), plan, verdicts, None))
            return _told(graph, plan, search), _timed(plan, search, ready, evaluation), trials.statistics
        floor = search.raised((), verdicts)
    if not search.groups:
        raise unmet(search)
    costs = measure(trials, search.groups, exact[0].feeds, Aside(None, ""), monitor)
    graph, plan = within(search, costs, floor)
    return _told(graph, plan, search), _timed(plan, search, ready, evaluation), trials.statistics


def _timed(plan: Plan, search: Search, ready: Prepared, evaluation: Evaluation) -> Plan:
    """The plan with times in its budget's list: measured where that is asked for, predicted where a GPU is meant."""
    if plan.budget is None:
        return plan
    if predictable(get_target(ready.recipe.target)):
        return replace(plan, budget=predicted(plan.budget, search, ready.graph))
    return replace(plan, budget=timed(plan.budget, search, ready.graph)) if evaluation.measure else plan


def _why_none(plan: Plan) -> str:
    if plan.kept:
        return f"{len(plan.kept)} tensors are quantized already, and nothing else would be"
    return plan.why_empty()


def _told(graph: Graph, plan: Plan, search: Search) -> Graph:
    """The graph, after the warnings of its plan, which no trial has told, and what its verdicts do not tell."""
    verdicts = plan.budget.verdicts if plan.budget is not None else ()
    doubts = [g.doubt(v, len(search.judging.feeds)) for g, v in zip(search.goals, verdicts, strict=True)]
    for note in (*plan.warnings, *filter(None, doubts)):
        search.monitor.warn(note)
    return graph


def _trials(
    ready: Prepared,
    data: object,
    eval_data: object,
    monitor: Monitor,
    cache: Cache | None = None,
    running: Running = HERE,
) -> tuple[Trials, Split]:
    """The model, what was observed of it, and the samples by their part."""
    recipe = ready.recipe
    held_back = None if eval_data is None else rereadable(_opened(eval_data, ready, "eval-data", monitor))
    if eval_data is not None:  # what only calibrates needs no labels
        ready = replace(ready, recipe=replace(recipe, labels=""))
    source = rereadable(_opened(data, ready, "data", monitor))
    session = session_for(ready.graph, (), recipe.provider_list, recipe.custom_op_list)
    parts = split(session, source, held_back, monitor)
    # Samples are counted already, and which layers go to float is for the budget to say.
    ready = replace(ready, recipe=replace(ready.recipe, max_samples=None, float_share=0.0))
    statistics = None
    if ready.plan.mode == "static" or needs_data(recipe, ready.plan.mode):
        statistics = api.measured(ready, parts.calibration, monitor, cache, running)
    if statistics is not None:
        ready = api.smoothed(ready, statistics.smoothing, statistics.outliers)
        ready = ready.sized(statistics.shapes)
        statistics = replace(statistics, smoothing={}, outliers={})  # they are in the graph now, whose digest it has
    else:
        shapes = ({name: (array.shape, array.shape) for name, array in feed.items()} for feed in parts.searching)
        ready = ready.sized(reduce(merge_shapes, shapes))
    return Trials(ready, statistics, cache), parts


def _opened(data: object, ready: Prepared, option: str, monitor: Monitor) -> Source:
    path = isinstance(data, str | os.PathLike)
    if data is None or isinstance(data, Statistics) or (path and is_statistics(str(data))):
        had = "none was given" if data is None else "statistics hold none of its samples"
        raise DataError(
            f"a budget and sensitivity are judged on data, and {had}",
            f"Give the samples themselves: --{option}. They are split; those that calibrate do not judge.",
        )
    return intake.open_data(data, ready.graph, ready.recipe, monitor)


def _goals(recipe: Recipe, function: Callable[..., Any] | None) -> tuple[Goal, ...]:
    goals: list[Goal] = [] if recipe.min_sqnr is None else [MinSqnr(recipe.min_sqnr)]
    if recipe.max_drop is not None:
        name = getattr(function, "__name__", "metric")
        metric = load_metric(recipe.metric) if function is None else Metric(name, function)
        goals.append(MaxDrop(metric, recipe.max_drop, recipe.max_drop_relative, recipe.metric_direction == "higher"))
    elif function is not None:
        raise RecipeError("a metric was given, but no max_drop", "Give the recipe max_drop and metric_direction.")
    if not goals:
        raise RecipeError("the recipe has no budget", "Give it min_sqnr, or metric and max_drop.")
    return tuple(goals)
