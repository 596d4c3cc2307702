"""Calibration caches out of statistics, for builders that still use implicit int8."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq import api, intake, pipeline
from onnxq.caches import ALGORITHMS, Cache, version_code
from onnxq.choose import resolve, symmetric_scales
from onnxq.errors import RecipeError, StatisticsError
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import INT8
from onnxq.passes import infer_shapes
from onnxq.placement import settled
from onnxq.placement.tensorrt import BOUNDED
from onnxq.targets import get_target

if TYPE_CHECKING:
    from onnxq.recipe import Recipe
    from onnxq.statistics import Statistics


def make_cache(
    model: intake.Model,
    statistics: Statistics,
    recipe: Recipe = api.DEFAULT,
    *,
    algorithm: str = "entropy2",
    version: str = "8.6.1",
    monitor: Monitor = QUIET,
) -> Cache:
    """A calibration cache for implicit int8 from statistics, best those of `calibrate(..., all_tensors=True)`.

    Args:
        model: the float model, as for `quantize`.
        statistics: what was observed of it.
        recipe: its calibrator and rules choose the ranges.
        algorithm: "entropy2", "entropy" or "minmax": what the builder that reads the cache expects.
        version: that builder's version, as 8.6.1 or 8601.
        monitor: progress and warnings.

    Raises:
        StatisticsError: they belong to another model or lack a tensor of the plan.
        RecipeError: the algorithm or version is none that reads caches.
    """
    if algorithm not in ALGORITHMS:
        raise RecipeError(f"unknown algorithm {algorithm!r}", f"Known: {', '.join(ALGORITHMS)}.")
    code = version_code(version)
    ready = api.prepared(model, recipe, monitor)
    if statistics.smoothing:
        raise StatisticsError(
            "the statistics are of a smoothed model; a cache holds scales for the model as it is",
            "Collect them with --effort fast.",
        )
    statistics.check_model(ready.graph.digest())
    monitor.stage("Choosing ranges", None)
    target = get_target(recipe.target)
    plan = settled(ready.graph, ready.plan, statistics.met, target, recipe)
    plan = resolve(plan, statistics, recipe, replace(target, activation=INT8))
    for note in plan.warnings:
        monitor.warn(note)
    bounded = {str(v.name) for v in ready.graph.values() if ready.graph.producer(v, *BOUNDED) is not None}
    seen = statistics.ranges if recipe.calibrator == "minmax" else statistics.tensors
    scales = symmetric_scales(plan, seen, recipe, bounded)
    return Cache(ALGORITHMS[algorithm], code, dict(sorted(scales.items())))


def without_scale(model: intake.Model, cache: Cache) -> tuple[str, ...]:
    """The model's own float activations that the cache lacks, sorted: implicit quantization runs those in float.

    Raises:
        ModelError: the model cannot be read.
    """
    graph = intake.load(model)
    pipeline.run(graph, (infer_shapes,))
    return tuple(sorted(set(api.activations(graph)) - cache.scales.keys()))
