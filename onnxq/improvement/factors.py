"""Factors that smooth a model before it is calibrated: chosen on some samples, judged on others.

Some of the picked samples show the layers' inputs, from which `onnxq.improvement.smoothing` chooses factors; the
others tell whether the quantized model really comes nearer to the float one. What does not, is dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.half_range import within_half
from onnxq.improvement.judging import Judge, confirmed, decibels, gains, halves, stretches
from onnxq.improvement.normalized import normalized
from onnxq.improvement.picking import run
from onnxq.improvement.sampling import patches, readable, rows, weight_as_rows
from onnxq.improvement.smoothing import MARGIN_DB, Allowed, Reading, beyond, choose
from onnxq.linear import constant_operand, linear_at
from onnxq.monitor import QUIET, Monitor
from onnxq.rescaling import find_sites
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.improvement.judging import Noise
    from onnxq.improvement.normalized import Normalized
    from onnxq.improvement.picking import ChannelReach, Inspected, Picked
    from onnxq.linear import Linear
    from onnxq.plan import Plan
    from onnxq.rescaling import Site
    from onnxq.statistics import Factor

    Array = npt.NDArray[Any]
    Factors = dict[str, Factor]

POINTWISE = ("Sqrt", "Exp", "Log", "Pow", "Tanh", "HardSwish", "Gelu", "LayerNormalization")
"""Makers behind which x' costs a convolution little: they run in float by themselves, and the factors join their
kernel. So does a product of two activations, a gate's or that of x sigmoid(x); `ort-cpu` has one for integers.
Constants that are multiplied and added behind them, a learned affine activation's for one, are of that kernel too; on
`ort-cpu` also what they are divided by, as at the end of a HardSwish in parts (for TensorRT that lost 0.1 to 0.8 dB).
Behind a convolution, an addition or a Concat they would keep that from writing int8, a pass over memory."""

LEAST_ROWS = 64
"""A layer input of which fewer rows were seen, over all samples, stays as it is: what its channels reach is not known.
With 16 rows a new one passes the largest value of every seventeenth channel."""

_WORK = 2**28
"""Multiply-accumulates of a layer on its sampled rows at most: large layers are sampled less often."""


def smoothing_axes(model: Inspected) -> dict[str, int]:
    """Tensor -> channel axis, of the tensors whose reach `smoothing_factors` wants to know."""
    return {w.tensor: w.axis for want in _wanted(model.graph, model.plan).values() for w in want}


def smoothing_factors(model: Inspected, picked: Picked, judge: Judge, monitor: Monitor = QUIET) -> Factors:
    """Site name -> factors that bring the quantized model's outputs nearer to the float model's; often none."""
    wanted = _wanted(model.graph, model.plan)
    if not wanted:
        return {}
    found = _chosen(model, wanted, picked, monitor)
    return _confirmed(model, _preferred(model, found, picked), picked, judge, monitor) if found else {}


def left_out(model: Inspected, picked: Picked, factors: Mapping[str, Factor]) -> dict[str, Array]:
    """Node -> values of what it reads smoothed, as a sample shows them that had no part in the factors.

    Factors bring every channel to about the same reach, and with it the farthest value of each of hundreds of
    channels to the end of the tensor's range: the next sample goes beyond it somewhere. What it shows there is what
    leaving out each sample in turn tells, and only those matter that hold the farthest value of a channel.
    """
    found: dict[str, Array] = {}
    for site, want in _wanted(model.graph, model.plan).items():
        if site.name in factors:
            for w in want:
                values = beyond(picked.reach[w.tensor], factors[site.name])
                found |= {str(linear.node.name): values for linear in w.linears}
    return found


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
    added = [t for (name, _), t in uses.items() if name in nodes and nodes[name].op_type == "Add"]
    places: dict[str, list[int]] = {}
    for place, tensor in enumerate(added):
        places.setdefault(tensor, []).append(place)
    little = _costing_little(graph, plan)
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
        if site.explicit and site.convolves and not little.issuperset(site.tensors):
            continue
        found[site] = [_Wanted(tensor, site.axis, tuple(group)) for (tensor, _), group in read.items()]
        if not site.explicit:
            read_by_add = sorted(place for tensor in set(site.tensors) for place in places.get(tensor, ()))
            found[site] += [_Wanted(added[place], site.axis, ()) for place in read_by_add]
    return found


def _costing_little(graph: Graph, plan: Plan) -> set[str]:
    """Tensors x whose x' may be computed in front of a convolution: nothing else is bound to its scale.

    See `POINTWISE`. On `ort-cpu`, which has integer kernels of pointwise operators, only what float ones make; there x'
    is computed by the QuantizeLinear, which is slow where channels come last.
    """
    sizes = Counter(point.group for point in plan.points.values())
    alone = {name for name, point in plan.points.items() if sizes[point.group] == 1}
    own = get_target(plan.target).placement == "ort-cpu"
    integers = {d.node for d in plan.decisions if d.quantized} if own else set()
    passed = ("Mul", "Add", "Div") if own else ("Mul", "Add")

    def joins(maker: Node | None) -> bool:
        while maker is not None and maker.op_type in passed and maker.name not in integers:
            constant = constant_operand(graph, maker)
            if constant is None or (maker.op_type == "Div" and constant == 0):
                break
            maker = graph.producer(maker.inputs[1 - constant])  # one more number in the same kernel
        gated = maker is not None and maker.op_type == "Mul" and not any(map(graph.is_const, maker.inputs))
        return maker is not None and (gated or maker.op_type in POINTWISE) and maker.name not in integers

    found = [v for v in graph.values() if str(v.name) in alone and joins(graph.producer(v))]
    return {str(v.name) for v in found if not (own and _channels_last(graph, integers, v))}


def _channels_last(graph: Graph, integers: set[str], value: Value) -> bool:
    """Whether a convolution in integers makes the tensor, with only operators on single values between.

    The provider holds all that with channels last, where a QuantizeLinear with a scale for each takes 20 to 60 times
    as long as with one.
    """
    open_, seen = [value], {value}
    while open_:
        current = open_.pop()
        maker = graph.producer(current)
        if maker is None:
            continue
        if maker.op_type == "Conv":
            if maker.name in integers:
                return True
            continue
        same = (v for v in maker.inputs if v is not None and graph.shape(v) == graph.shape(current))
        for v in same:
            if v not in seen and not graph.is_const(v):
                seen.add(v)
                open_.append(v)
    return False


def _chosen(
    model: Inspected,
    wanted: Mapping[Site, Sequence[_Wanted]],
    picked: Picked,
    monitor: Monitor,
) -> dict[Site, tuple[Factor, ...]]:
    """The factors that each site's own prediction asks for, the best first."""
    feeds, reach = picked.choosing, picked.reach
    every = list(dict.fromkeys(w for want in wanted.values() for w in want))
    products = normalized(model.graph)
    behind = {w: products.get(str(w.linears[0].node.name)) if len(w.linears) == 1 else None for w in every}
    looked_at = [*(w.tensor for w in every), *(b.tensor for b in behind.values() if b is not None)]
    session = model.session(tuple(dict.fromkeys(looked_at)))
    taken: dict[_Wanted, list[tuple[Array, Array | None]]] = {w: [] for w in every}
    share = (len(feeds), model.effort.rows)
    for seed, feed in enumerate(feeds):
        arrays = run(session, feed)
        for w in every:
            taken[w].append(_taken(model.graph, (w, behind[w]), arrays, seed, share))
    monitor.stage(f"Choosing factors for {len(wanted)} sites", len(wanted))
    found: dict[Site, tuple[Factor, ...]] = {}
    for site, want in wanted.items():
        readings = [_reading(model.graph, w, taken[w], reach[w.tensor]) for w in want]
        known = all(reach[w.tensor].rows >= LEAST_ROWS and taken[w][0][0].size for w in want)
        seen = min(reach[w.tensor].rows for w in want)
        reaches = [reach[w.tensor] for w in want]
        if known and (factors := choose(readings, _allowed(site, want, model, seen), reaches)):
            found[site] = factors
        monitor.advance()
    return found


def _taken(
    graph: Graph,
    read: tuple[_Wanted, Normalized | None],
    arrays: Mapping[str, Array],
    seed: int,
    share: tuple[int, int],
) -> tuple[Array, Array | None]:
    """Sampled rows of one sample and how much each weighs; `share`: how many samples, and rows of all of them."""
    (wanted, behind), (feeds, most) = read, share
    x, linear = arrays[wanted.tensor], wanted.linears[0] if wanted.linears else None
    size = sum(graph.size(linear.weight) or 0 for linear in wanted.linears)
    count = -(-max(min(most, _WORK // max(size, 1)), feeds) // feeds)
    if linear is not None and linear.node.op_type == "Conv":
        return patches(graph, linear, x, count, seed), None
    taken, which = rows(x, wanted.axis, count, seed)
    each = None if behind is None else behind.weighs(arrays[behind.tensor], x.size // x.shape[wanted.axis])
    return taken, None if each is None else each[which]


def _reading(
    graph: Graph, wanted: _Wanted, taken: Sequence[tuple[Array, Array | None]], reach: ChannelReach
) -> Reading:
    weight = weight_as_rows(graph, wanted.linears) if wanted.linears else None
    weighs = [w for _, w in taken if w is not None]
    every = np.concatenate(weighs) if len(weighs) == len(taken) else None
    return Reading(np.concatenate([x for x, _ in taken]), weight, reach.low, reach.high, every)


def _allowed(site: Site, want: Sequence[_Wanted], model: Inspected, seen: int) -> Allowed:
    """What the site can take; of which few rows were seen must gain more, since the next ones may reach further.

    Where x' needs a node of its own, it must be worth what the target says; see also `POINTWISE`.
    """
    convs = {str(x.node.name) for w in want for x in w.linears if x.node.op_type == "Conv"}
    folds = site.explicit and convs == {name for _, name in site.readers}  # else the Mul stays, for the other readers
    free = model.convolved_db if folds else None  # without a shift, which takes an Add
    least = free if free is not None else model.pointwise_db if site.explicit else MARGIN_DB
    shift, weights = site.shifts and free is None, site.explicit or not site.clips
    return Allowed(shift, weights=weights, margin=margin_db(seen, least), grid=model.grid)


def margin_db(rows: int, least: float = MARGIN_DB) -> float:
    """What a change must gain by prediction, in dB, where so many rows were seen of a tensor."""
    return least * (1 + _MANY_ROWS / max(rows, 1))


_MANY_ROWS = 128
"""With so many rows the margin doubles, with fewer it grows: a classifier's head reads one row a sample."""


# -- preferring ----------------------------------------------------------------------------------------------


def _preferred(model: Inspected, found: Mapping[Site, tuple[Factor, ...]], picked: Picked) -> dict[Site, Factor]:
    """Of two factors of a site those with which the model's outputs err less, everything else in float.

    The noise of a layer is not that of the model. What is cut off a channel that is large in every sample, as some of
    a transformer are, errs the same way everywhere, and a model may lean on just that: of two factors of the same
    predicted noise one cost MiniLM 7 dB more than the other.
    """
    chosen, rivals = {s: f[0] for s, f in found.items()}, {s: f[1] for s, f in found.items() if len(f) > 1}
    if model.half:
        chosen, rivals = within_half(model.graph, chosen), within_half(model.graph, rivals)
    if not rivals:
        return chosen
    judge = Judge(model, picked.few)
    feeds = picked.learning[: 2 * picked.judges]
    tried = [(_by_name(factors), model.quantizer(feeds)) for factors in (chosen, chosen | rivals)]
    for _, stretch in stretches(tuple(rivals)):
        nodes = [node for site in stretch for _, node in site.readers]
        one, other = (judge.noise(quantized(of, nodes), of) for of, quantized in tried)
        if decibels(one.first(one.samples), other.first(other.samples)).mean() < 0:
            chosen |= {site: rivals[site] for site in stretch}
    return chosen


def _by_name(factors: Mapping[Site, Factor]) -> Factors:
    return {site.name: factor for site, factor in factors.items()}


# -- confirming ----------------------------------------------------------------------------------------------


def _confirmed(
    model: Inspected, found: Mapping[Site, Factor], picked: Picked, judge: Judge, monitor: Monitor
) -> Factors:
    """Those of the factors that the model's outputs on the judging samples bear out.

    All of them, if they gain; else each kind of site by itself, and what does not gain by halves.
    """
    quantized = model.quantizer(picked.learning[: 2 * picked.judges])

    def noise(sites: Sequence[Site]) -> Noise:
        chosen = {s.name: found[s] for s in sites}
        return judge.noise(quantized(chosen), chosen)

    monitor.stage("Judging", None)
    everything = list(found)
    kinds = [[s for s in everything if (s.explicit, s.convolves) == kind] for kind in _KINDS]
    kinds = [kind for kind in kinds if kind]

    def parts(group: list[Site]) -> list[list[Site]]:
        return kinds if group is everything and len(kinds) > 1 else halves(group)

    trials = model.effort.trials
    kept, _ = confirmed([everything], noise, lambda _, before, after: gains(before, after), trials, parts)
    return {s.name: found[s] for s in everything if s in kept}


_KINDS = ((False, False), (False, True), (True, False), (True, True))
