"""What makes a model better in int8 before it is calibrated: factors are chosen on some samples, judged on others.

A few samples are picked by the hash of their content, so that neither their order nor their batches matter. Half of
them show the layers' inputs, from which `onnxq.smoothing` chooses factors; the other half, which had no part in
that, tell whether the quantized model really comes nearer to the float one. What does not, is dropped.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.collect import sample_hash, samples, session_for
from onnxq.linear import linear_at
from onnxq.monitor import QUIET, Monitor
from onnxq.rescaling import find_sites
from onnxq.sampling import patches, readable, rows, weight_as_rows
from onnxq.smoothing import EXPLICIT_DB, MARGIN_DB, Allowed, Reading, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.linear import Linear
    from onnxq.plan import Plan
    from onnxq.rescaling import Site
    from onnxq.runtime import Session
    from onnxq.statistics import Factor

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]
    Factors = dict[str, Factor]
    Reach = dict[str, tuple[Array, Array, int]]
    """Tensor -> the smallest and the largest value of each channel, and how many values each had."""
    Quantizer = Callable[[Factors, Sequence[Feed]], Graph]
    """(factors, feeds to calibrate on) -> the smoothed, quantized model."""

PICKED = 32
"""Samples that are looked at: half choose, half judge."""

LEAST = 16
"""With fewer nothing is chosen: what few samples gain by is as often chance."""

GAIN_DB = 0.1
"""The least gain at the model's outputs that is kept."""

_ROWS = 384
"""Rows of a layer's input that are sampled, over all samples."""

POINTWISE = ("Sqrt", "Exp", "Log", "Pow", "Tanh", "LayerNormalization")
"""Makers behind which x' costs a convolution little: they run in float by themselves, and the factors join their
kernel. Behind a convolution, an addition or a Concat they would keep that from writing int8, a pass over memory."""

LEAST_ROWS = 64
"""A layer input of which fewer rows were seen, over all samples, stays as it is: what its channels reach is not known.
With 16 rows a new one passes the largest value of every seventeenth channel."""

_WORK = 2**28
"""Multiply-accumulates of a layer on its sampled rows at most: large layers are sampled less often."""


@dataclass(frozen=True)
class Inspected:
    """A prepared model and how it is run.

    Attributes:
        graph: the prepared graph.
        plan: its plan.
        quantizer: (factors, feeds to calibrate on) -> the smoothed and quantized graph, in float32 what is not int8.
        providers: where ONNX Runtime runs it.
        custom_ops: libraries with its custom operators.
    """

    graph: Graph
    plan: Plan
    quantizer: Quantizer
    providers: tuple[str, ...] = ("cpu",)
    custom_ops: tuple[str, ...] = ()

    def session(self, tensors: Sequence[str]) -> Session:
        """The float model with these tensors as outputs, its own where none is named."""
        return session_for(self.graph, tensors, self.providers, self.custom_ops)


def smoothing_factors(model: Inspected, source: Source, monitor: Monitor = QUIET) -> Factors:
    """Site name -> factors that bring the quantized model's outputs nearer to the float model's; often none.

    The same for every order and batching of the samples. The source is read once.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    wanted = _wanted(model.graph, model.plan)
    if not wanted:
        return {}
    monitor.stage(f"Looking at {len(wanted)} layer inputs on {source.name}", source.length)
    feeds, reach = _surveyed(model, wanted, source, monitor)
    if len(feeds) < LEAST:
        monitor.warn(f"{len(feeds)} different samples are too few to improve the model on: effort is fast")
        return {}
    found = _chosen(model, wanted, feeds[::2], reach, monitor)
    return _confirmed(model, found, feeds, monitor) if found else {}


# -- samples -------------------------------------------------------------------------------------------------


def _surveyed(
    model: Inspected, wanted: Mapping[Site, Sequence[_Wanted]], source: Source, monitor: Monitor
) -> tuple[list[Feed], Reach]:
    """The samples of the smallest hashes, in their order, equal ones once; and how far each channel reaches in all.

    All samples count for the reach: a channel that is quiet in most may hold a rare, large value that matters.
    """
    axes = {w.tensor: w.axis for want in wanted.values() for w in want}
    session = model.session(tuple(axes))
    kept: dict[int, Feed] = {}
    heap: list[int] = []
    reach: Reach = {}
    for _, feed in samples(session, source, monitor):
        arrays = _run(session, feed)
        for name, axis in axes.items():
            others = tuple(i for i in range(arrays[name].ndim) if i != axis)
            low, high = arrays[name].min(axis=others, initial=np.inf), arrays[name].max(axis=others, initial=-np.inf)
            before = reach.get(name, (low, high, 0))
            count = before[2] + arrays[name].size // max(low.size, 1)
            reach[name] = np.minimum(before[0], low), np.maximum(before[1], high), count
        key = sample_hash(feed)
        if key in kept or (len(heap) == PICKED and key > -heap[0]):
            continue
        kept[key] = {name: array.copy() for name, array in feed.items()}
        heapq.heappush(heap, -key)
        if len(heap) > PICKED:
            del kept[-heapq.heappop(heap)]
    return [kept[key] for key in sorted(kept)], reach


def _run(session: Session, feed: Feed) -> dict[str, Array]:
    """Every tensor that the session computes, and the inputs."""
    given = {name: feed[name] for name in session.inputs}
    return {**feed, **dict(zip(session.outputs, session.run(given, session.outputs), strict=True))}


# -- choosing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A reading to be sampled.

    Attributes:
        tensor: what is read.
        axis: its channel axis.
        linears: the nodes that read the same rows; none where the tensor is only quantized, for an addition.
    """

    tensor: str
    axis: int
    linears: tuple[Linear, ...]


def _wanted(graph: Graph, plan: Plan) -> dict[Site, list[_Wanted]]:
    """What to look at, for every site that a quantized linear node reads."""
    nodes = {str(n.name): n for n in graph.nodes}
    uses = {use: point.tensor for point in plan.points.values() for use in point.uses}
    found = {}
    for site in find_sites(graph):
        read: dict[tuple[str, str], list[Linear]] = {}
        for tensor, name in site.readers:
            linear = linear_at(graph, nodes[name])
            if linear is not None and (name, 0) in uses:
                conv = linear.node.op_type == "Conv"  # others read one row at a time, all the same rows
                read.setdefault((tensor, name if conv else ""), []).append(linear)
        if not read or not all(readable(graph, nodes[name]) for _, name in site.readers):
            continue
        if site.explicit and site.convolves and not _costs_little(graph, plan, site):
            continue
        found[site] = [_Wanted(tensor, site.axis, tuple(group)) for (tensor, _), group in read.items()]
        if not site.explicit:
            found[site] += [
                _Wanted(tensor, site.axis, ())
                for (name, _), tensor in uses.items()
                if tensor in site.tensors and nodes[name].op_type == "Add"
            ]
    return found


def _costs_little(graph: Graph, plan: Plan, site: Site) -> bool:
    """Whether x' may be computed in front of a convolution: nothing else is bound to its scale, see `POINTWISE`."""
    point = plan.points.get(site.name)
    value = graph.find(site.name)
    alone = point is not None and [p.group for p in plan.points.values()].count(point.group) == 1
    return alone and value is not None and graph.producer(value, *POINTWISE) is not None


def _chosen(
    model: Inspected,
    wanted: Mapping[Site, Sequence[_Wanted]],
    feeds: Sequence[Feed],
    reach: Reach,
    monitor: Monitor,
) -> dict[Site, Factor]:
    """The factors that each site's own prediction asks for."""
    every = list(dict.fromkeys(w for want in wanted.values() for w in want))
    session = model.session(tuple(dict.fromkeys(w.tensor for w in every)))
    taken: dict[_Wanted, list[Array]] = {w: [] for w in every}
    for seed, feed in enumerate(feeds):
        arrays = _run(session, feed)
        for w in every:
            taken[w].append(_taken(model.graph, w, arrays[w.tensor], seed, len(feeds)))
    monitor.stage(f"Choosing factors for {len(wanted)} sites", len(wanted))
    found: dict[Site, Factor] = {}
    for site, want in wanted.items():
        readings = [_reading(model.graph, w, taken[w], reach[w.tensor][:2]) for w in want]
        known = all(reach[w.tensor][2] >= LEAST_ROWS and taken[w][0].size for w in want)
        factor = choose(readings, _allowed(site)) if known else None
        if factor is not None:
            found[site] = factor
        monitor.advance()
    return found


def _taken(graph: Graph, wanted: _Wanted, x: Array, seed: int, feeds: int) -> Array:
    """Sampled rows of one sample."""
    linear = wanted.linears[0] if wanted.linears else None
    conv = linear is not None and linear.node.op_type == "Conv"
    size = sum(graph.size(linear.weight) or 0 for linear in wanted.linears)
    count = -(-max(min(_ROWS, _WORK // max(size, 1)), feeds) // feeds)
    if conv and linear is not None:
        return patches(graph, linear, x, count, seed)
    return rows(x, wanted.axis, count, seed)


def _reading(graph: Graph, wanted: _Wanted, taken: Sequence[Array], reach: tuple[Array, Array]) -> Reading:
    weight = weight_as_rows(graph, wanted.linears) if wanted.linears else None
    return Reading(np.concatenate(taken), weight, *reach)


def _allowed(site: Site) -> Allowed:
    if not site.explicit:
        return Allowed(site.shifts, weights=not site.clips, margin=MARGIN_DB)
    return Allowed(site.shifts, weights=True, margin=EXPLICIT_DB)


# -- confirming ----------------------------------------------------------------------------------------------


def _confirmed(model: Inspected, found: Mapping[Site, Factor], feeds: Sequence[Feed], monitor: Monitor) -> Factors:
    """Those of the factors that the model's outputs on the judging samples bear out.

    All of them, if they gain; else each kind of site by itself, and what does not gain by halves.
    """
    choosing, judging = feeds[::2], feeds[1::2]
    session = model.session(())
    names = tuple(n for n in session.outputs)
    exact = [session.run({n: f[n] for n in session.inputs}, names) for f in judging]

    def noise(sites: Sequence[Site]) -> Floats:
        graph = model.quantizer({s.name: found[s] for s in sites}, choosing)
        return output_noise(session_for(graph, (), model.providers, model.custom_ops), judging, names, exact)

    monitor.stage("Judging", None)
    kept: list[Site] = []
    least = noise(())
    everything = list(found)
    groups = [everything]
    kinds = [[s for s in everything if (s.explicit, s.convolves) == kind] for kind in _KINDS]
    tried = 0
    while groups and tried < _TRIALS:
        group, tried = groups.pop(0), tried + 1
        error = noise([*kept, *group])
        if gains(least, error):
            kept, least = [*kept, *group], error
        elif group is everything and sum(map(bool, kinds)) > 1:
            groups += [kind for kind in kinds if kind]
        elif len(group) > 1:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return {s.name: found[s] for s in everything if s in kept}


_KINDS = ((False, False), (False, True), (True, False), (True, True))
_TRIALS = 7
"""Times that the quantized model is made and run at most."""


def gains(before: Floats, after: Floats) -> bool:
    """Whether noise over signal, one number a sample, fell by GAIN_DB on average, and by more than by chance.

    By chance: the standard error of the mean of the samples' gains in dB.
    """
    if not (np.isfinite(before) & np.isfinite(after)).all():
        return False
    floor = np.finfo(np.float64).tiny
    gained = 10 * (np.log10(np.maximum(before, floor)) - np.log10(np.maximum(after, floor)))
    error = float(gained.std(ddof=1)) / math.sqrt(gained.size) if gained.size > 1 else 0.0
    return float(gained.mean()) > max(GAIN_DB, error)


def output_noise(session: Session, feeds: Sequence[Feed], names: Sequence[str], exact: Sequence[list[Any]]) -> Floats:
    """Noise over signal of the model's float outputs, summed over the outputs, of each feed."""
    total = np.zeros(len(feeds))
    for i, (feed, wanted) in enumerate(zip(feeds, exact, strict=True)):
        found = session.run({n: feed[n] for n in session.inputs}, names)
        for a, b in zip(wanted, found, strict=True):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
                continue
            signal = a.astype(np.float64)
            finite = np.isfinite(signal)
            power = float(np.square(signal[finite]).sum())
            if power > 0:
                total[i] += float(np.square(signal[finite] - b[finite]).sum()) / power
    return total
