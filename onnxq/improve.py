"""What makes a model better in int8 before it is calibrated: factors are chosen on some samples, judged on others.

A few samples are picked by the hash of their content, so that neither their order nor their batches matter. Half of
them show the layers' inputs, from which `onnxq.smoothing` chooses factors; the other half, which had no part in
that, tell whether the quantized model really comes nearer to the float one. What does not, is dropped.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq import pipeline
from onnxq.choose import resolve
from onnxq.collect import collect, sample_hash, samples, session_for
from onnxq.data import Source
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import SMALLEST_SCALE
from onnxq.passes import lower
from onnxq.passes.smooth import Smooth
from onnxq.place import place
from onnxq.rescaling import find_sites
from onnxq.runtime import Session
from onnxq.sampling import patches, rows_of, weight_as_rows
from onnxq.smoothing import EXPLICIT_CONV_DB, EXPLICIT_DB, MARGIN_DB, Allowed, Reading, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph, Node
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.rescaling import Site
    from onnxq.statistics import Factor
    from onnxq.targets.target import Target

    Array = npt.NDArray[Any]

PICKED = 32
"""Samples that are looked at: half choose, half judge."""

LEAST = 4
"""With fewer nothing is chosen: one sample says little of another."""

GAIN_DB = 0.1
"""The least gain of the model's output that is kept."""

_ROWS = 384
"""Rows of a layer's input that are sampled, over all samples."""

_ELEMENTS = 2**20
"""Values of a layer's sampled input at most: wide patches are sampled less often."""


def smoothing_factors(
    graph: Graph, recipe: Recipe, target: Target, source: Source, monitor: Monitor = QUIET
) -> dict[str, Factor]:
    """Site name -> factors that bring the quantized model's outputs nearer to the float model's; often none.

    The same for every order and batching of the samples.

    Args:
        graph: the prepared graph.
        recipe: the run's recipe; what stays in float is judged in float32.
        target: the recipe's target.
        source: the calibration data; it is read once.
        monitor: progress and warnings.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    recipe = replace(recipe, high_precision="fp32")
    feeds = _picked(graph, source, recipe, monitor)
    if len(feeds) < LEAST:
        monitor.warn(f"{len(feeds)} samples are too few to improve the model on; it is calibrated as with effort fast")
        return {}
    choosing, judging = feeds[::2], feeds[1::2]
    factors = _chosen(graph, place(graph, target, recipe), recipe, choosing, monitor)
    if not factors:
        return {}
    judge = _judge(graph, recipe, target, choosing, judging)
    return _confirmed(factors, _kinds(graph, factors), judge, monitor)


# -- samples -------------------------------------------------------------------------------------------------


def _picked(graph: Graph, source: Source, recipe: Recipe, monitor: Monitor) -> list[Feed]:
    """The samples of the smallest hashes, in their order; equal ones count once."""
    session = session_for(graph, [], recipe.provider_list)
    kept: dict[int, Feed] = {}
    heap: list[int] = []
    for _, feed in samples(session, source, monitor):
        key = sample_hash(feed)
        if key in kept or (len(heap) == PICKED and key > -heap[0]):
            continue
        kept[key] = {name: array.copy() for name, array in feed.items()}
        heapq.heappush(heap, -key)
        if len(heap) > PICKED:
            del kept[-heapq.heappop(heap)]
    return [kept[key] for key in sorted(kept)]


# -- choosing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A reading to be sampled: the nodes that share it, or the Add that reads the tensor quantized."""

    tensor: str
    axis: int
    nodes: tuple[Node, ...]


def _chosen(
    graph: Graph, plan: Plan, recipe: Recipe, feeds: Sequence[Feed], monitor: Monitor
) -> dict[str, Factor]:
    wanted = _wanted(graph, plan)
    monitor.stage(f"Smoothing {len(wanted)} sites", len(wanted))
    tensors = tuple(dict.fromkeys(w.tensor for want in wanted.values() for w in want))
    taken = _sampled(graph, tensors, [w for want in wanted.values() for w in want], recipe, feeds)
    found: dict[str, Factor] = {}
    for site, want in wanted.items():
        readings = [_reading(graph, w, taken) for w in want]
        factor = choose(readings, _allowed(site, want))
        if factor is not None:
            found[site.name] = factor
        monitor.advance()
    return found


def _wanted(graph: Graph, plan: Plan) -> dict[Site, list[_Wanted]]:
    """What to look at, for every site that a quantized linear node reads."""
    nodes = {str(n.name): n for n in graph.nodes}
    uses = {use: point.tensor for point in plan.points.values() for use in point.uses}
    found = {}
    for site in find_sites(graph):
        read: dict[tuple[str, object], list[Node]] = {}
        for tensor, name in site.readers:
            if (name, 0) in uses:
                kind = nodes[name].op_type
                read.setdefault((tensor, name if kind == "Conv" else kind), []).append(nodes[name])
        if not read or any(not patches.readable(graph, n) for group in read.values() for n in group):
            continue
        want = [_Wanted(tensor, site.axis, tuple(group)) for (tensor, _), group in read.items()]
        inside = set(site.tensors)
        if not site.explicit:
            want += [
                _Wanted(tensor, site.axis, ())
                for (name, _), tensor in uses.items()
                if tensor in inside and nodes[name].op_type == "Add"
            ]
        found[site] = want
    return found


def _allowed(site: Site, want: Sequence[_Wanted]) -> Allowed:
    conv = any(node.op_type == "Conv" for w in want for node in w.nodes)
    margin = (EXPLICIT_CONV_DB if conv else EXPLICIT_DB) if site.explicit else MARGIN_DB
    return Allowed(site.shifts, weights=not site.clips, margin=margin)
