"""Rounding of weights with regard to what they are multiplied with.

Rounded one by one, weights err by half a step each, and so does the output. But an error in one weight can be made up
for in those that are not yet rounded, as far as their inputs go together. That is GPTQ, see `onnxq.feedback`, with
H = E[x x^T] of inputs on the very grid that is emitted. The scales are those of plain rounding. H is summed over rows
of samples that choose; whether the model's outputs come nearer to what they are in float, other samples tell.

A weight that several layers share has one set of codes, chosen on the rows of all of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from onnxq.ahead import cores
from onnxq.blas import side_by_side
from onnxq.feedback import DAMP, feedback, whole
from onnxq.improvement.judging import gains
from onnxq.improvement.normalized import normalized
from onnxq.improvement.picking import run
from onnxq.improvement.sampling import patches, positions, readable, rows_as_weight, weight_as_rows
from onnxq.linear import LINEAR, linear_at
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import dequantize, quantize, weight_params
from onnxq.sharers import kind
from onnxq.statistics import Rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph, Node
    from onnxq.improvement.judging import Noise
    from onnxq.improvement.normalized import Normalized
    from onnxq.improvement.picking import Inspected, Picked
    from onnxq.linear import Linear
    from onnxq.numerics import QType, QuantParams
    from onnxq.plan import Plan, WeightPoint

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]

_ROWS_PER_INPUT = 3
"""Rows that H is summed over, per input of the layer, where the samples have so many."""

_LEAST_ROWS = 512

_TRUSTED = 2
"""Rows per input from which on H is trusted; with fewer its diagonal weighs more, by the ratio (see `DAMP`)."""

_FEWEST = 4
"""Inputs per row at most."""

_SAMPLES = 12
"""Samples that the rows come from at least: those of one sample are alike."""

_WORTH_DB = 0.3
"""What the model must gain with weights in float, or rounding has nothing to gain: the error is that of activations."""

_BYTES = 2**29
"""Bytes of the matrices H that are summed in one run over the samples."""


def rounded_weights(
    model: Inspected,
    plan: Plan,
    picked: Picked,
    grid: tuple[QType, str],
    nearest: Noise,
    noise: Callable[[Mapping[str, Rounded] | None], Noise],
    monitor: Monitor = QUIET,
) -> tuple[dict[str, Rounded], frozenset[str], Noise]:
    """Weight name -> its codes, where they bring the outputs of the quantized model nearer; often none.

    And which of them would like to see more rows than the samples that do not judge hold, and the noise with them.

    Args:
        model: the graph that is lowered, with the factors of smoothing in it.
        plan: resolved.
        picked: the samples.
        grid: of the weights, and how their ranges are chosen.
        nearest: noise over signal of the model without codes, of each judging sample.
        noise: codes -> the same with them; None: with weights in float, which is the most that rounding can reach.
        monitor: progress.
    """
    layers = _affordable(list(_layers(model.graph, plan)), model.effort.work)
    if not layers:
        return {}, frozenset(), nearest
    if not gains(nearest, noise(None), _WORTH_DB, expected=True):
        return {}, frozenset(), nearest
    monitor.stage(f"Rounding {len(layers)} weights", len(layers))
    found, lacking = _codes(model, layers, picked.learning, grid, monitor)
    if not found:
        return {}, frozenset(), nearest
    monitor.stage("Judging", None)
    after = noise(found)
    return (found, lacking, after) if gains(nearest, after, expected=True) else ({}, frozenset(), nearest)


def rounded_again(
    model: Inspected, plan: Plan, picked: Picked, grid: tuple[QType, str], lacking: Collection[str], monitor: Monitor
) -> dict[str, Rounded]:
    """The codes of these weights with regard to all samples, those that judged too: for when nothing is left to judge.

    Of few samples every second one judges, and H of half as many rows fits what it was summed over, not other data.
    """
    layers = [layer for layer in _layers(model.graph, plan) if layer.point.tensor in lacking]
    if layers:
        monitor.stage(f"Rounding {len(layers)} weights by all samples", len(layers))
    return _codes(model, layers, [*picked.learning, *picked.judging], grid, monitor)[0]


def _codes(
    model: Inspected, layers: Sequence[_Layer], feeds: Sequence[Feed], grid: tuple[QType, str], monitor: Monitor
) -> tuple[dict[str, Rounded], frozenset[str]]:
    """Weight name -> its codes, where there are rows enough; and those of which there were fewer than wanted."""
    found: dict[str, Rounded] = {}
    lacking = set()

    def codes(known: tuple[_Layer, tuple[Floats | None, int]]) -> Rounded | None:
        layer, (hessian, rows) = known
        damp = DAMP * max(1.0, _TRUSTED * layer.sizes[1] / max(rows, 1))
        return None if hessian is None else _rounded(model.graph, layer, (hessian, damp), grid)

    for part in _parts(layers):
        known = list(zip(part, _hessians(model, part, feeds), strict=True))
        for (layer, (_, rows)), made in zip(known, side_by_side(codes, known, _threads()), strict=True):
            if made is not None:
                found[layer.point.tensor] = made
                lacking |= {layer.point.tensor} if rows < layer.wanted_rows else set()
            monitor.advance()
    return found, frozenset(lacking)


# -- which -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Layer:
    """A weight and its linear nodes, each with the grid of its input and what is normalized behind it.

    K inputs and N outputs in each of G groups.
    """

    point: WeightPoint
    linears: tuple[Linear, ...]
    params: tuple[QuantParams, ...]
    sizes: tuple[int, int, int]
    behind: tuple[Normalized | None, ...]

    @property
    def linear(self) -> Linear:
        """Any of them: in what counts for the weight they are alike."""
        return self.linears[0]

    @property
    def tensors(self) -> tuple[str, ...]:
        """What each of them reads."""
        return tuple("" if x.node.inputs[0] is None else str(x.node.inputs[0].name) for x in self.linears)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """These, and what is normalized behind the nodes."""
        return (*self.tensors, *(found.tensor for found in self.behind if found is not None))

    @property
    def wanted_rows(self) -> int:
        """Rows that H is summed over."""
        return max(_ROWS_PER_INPUT * self.sizes[1], _LEAST_ROWS)

    @property
    def work(self) -> float:
        """Multiply-accumulates: the sums, a factorization, and the feedback."""
        groups, k, n = self.sizes
        return groups * float(k) ** 2 * (self.wanted_rows + k / 3 + n / 2)


def _layers(graph: Graph, plan: Plan) -> Iterator[_Layer]:
    nodes = {str(n.name): n for n in graph.nodes}
    params = {use: p.params for p in plan.points.values() for use in p.uses}
    behind = normalized(graph)
    found = [layer for point in plan.weights if (layer := _layer(graph, nodes, params, behind, point)) is not None]
    times = Counter(layer.point.tensor for layer in found)
    yield from (layer for layer in found if times[layer.point.tensor] == 1)  # not what has scales along either axis


def _layer(
    graph: Graph,
    nodes: Mapping[str, Node],
    params: Mapping[tuple[str, int], QuantParams | None],
    behind: Mapping[str, Normalized],
    point: WeightPoint,
) -> _Layer | None:
    """What reads the weight, None where one of these nodes is in a body, is none of the kind or reads floats."""
    read = [nodes[name] if index == 1 and name in nodes else None for name, index in point.uses]
    linears = [linear for node in read if (linear := _rounds(graph, node)) is not None]
    grids = [grid for name, _ in point.uses if (grid := params.get((name, 0))) is not None]
    plain = point.bits == 8 and point.block_size is None and point.qtype is None
    if not plain or not len(linears) == len(grids) == len(read) or len({kind(graph, x) for x in linears}) != 1:
        return None
    linear = linears[0]
    if graph.dtype(linear.weight) != "float32" or str(linear.weight.name) != point.tensor:
        return None
    shape = [d for d in graph.shape(linear.weight) or () if isinstance(d, int)]
    sizes = (linear.groups, int(np.prod(shape)) // linear.channels, linear.channels // linear.groups)
    found = tuple(behind.get(str(x.node.name)) for x in linears)
    alike = (None,) * len(found) if None in found else found  # rows divided by their size add up with such alone
    return _Layer(point, tuple(linears), tuple(grids), sizes, alike)


def _rounds(graph: Graph, node: Node | None) -> Linear | None:
    """The node as a `Linear`, where it is known which numbers it multiplies with its weight."""
    if node is None or node.op_type not in _READ or not readable(graph, node):
        return None
    return None if node.op_type == "Gemm" and graph.attribute(node, "transA", 0) else linear_at(graph, node)


_READ = tuple(op for op in LINEAR if op != "ConvTranspose")


def _affordable(layers: list[_Layer], work: float) -> list[_Layer]:
    """The layers that cost least, as many as the work allows, in their own order."""
    taken: set[int] = set()
    for index in sorted(range(len(layers)), key=lambda i: (layers[i].work, i)):
        work -= layers[index].work
        if work < 0:
            break
        taken.add(index)
    return [layer for index, layer in enumerate(layers) if index in taken]


def _threads() -> int:
    """Layers that are worked on at once: each takes several times its matrix H."""
    return min(cores(), 4)


def _parts(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """The layers in runs whose matrices fit into memory together."""
    part: list[_Layer] = []
    for layer in layers:
        part.append(layer)
        if sum(8 * x.sizes[0] * x.sizes[1] ** 2 for x in part) > _BYTES:
            yield part
            part = []
    if part:
        yield part


# -- what they read ----------------------------------------------------------------------------------------


def _hessians(model: Inspected, layers: Sequence[_Layer], feeds: Sequence[Feed]) -> list[tuple[Floats | None, int]]:
    """H of each layer, (G, K, K), and of how many rows; None in its place where there are too few."""
    session = model.session(tuple(dict.fromkeys(tensor for layer in layers for tensor in layer.looked_at)))
    keys = [_key(layer) for layer in layers]
    readers = dict(zip(keys, layers, strict=True))
    sums: dict[object, Floats] = {}
    counts: dict[object, int] = dict.fromkeys(readers, 0)
    for seed, feed in enumerate(feeds):
        lacking = {key: layer for key, layer in readers.items() if counts[key] < layer.wanted_rows}
        if not lacking:
            break
        arrays = run(session, feed)

        def product(layer: _Layer, arrays: Mapping[str, Array] = arrays, seed: int = seed) -> tuple[Array, int]:
            count = range(len(layer.linears))
            x = np.concatenate([_taken(model.graph, layer, which, arrays, seed) for which in count])
            grouped = _by_group(x, layer.sizes[0])
            return grouped.transpose(0, 2, 1) @ grouped, len(x)

        found = side_by_side(product, lacking.values(), _threads())
        for key, (squares, count) in zip(lacking, found, strict=True):
            if key in sums:
                sums[key] += squares  # in float64, and in place: the matrices are large
            else:
                sums[key] = squares.astype(np.float64)
            counts[key] += count
    means = (
        sums[key] / counts[key] if counts[key] * _FEWEST >= x.sizes[1] else None
        for key, x in zip(keys, layers, strict=True)
    )
    whole = [None if mean is None or not np.isfinite(mean).all() else mean for mean in means]
    return [(mean, counts[key]) for mean, key in zip(whole, keys, strict=True)]


def _key(layer: _Layer) -> object:
    """Layers of one key read the same rows: products all of a tensor's, a convolution its own."""
    return layer.point.tensor if layer.linear.node.op_type == "Conv" else (layer.looked_at, layer.sizes[1])


def _taken(graph: Graph, layer: _Layer, which: int, arrays: Mapping[str, Array], seed: int) -> Array:
    """Some of what a node of the layer reads of one sample, (R, k, C), on its grid, as much as each row weighs."""
    linear, params, behind, x = layer.linears[which], layer.params[which], layer.behind[which], layer.tensors[which]
    count = -(-layer.wanted_rows // (_SAMPLES * len(layer.linears)))
    weighs = None
    if linear.node.op_type == "Conv":
        taken = patches(graph, linear, arrays[x], count, seed)
    else:
        vectors = arrays[x].reshape(-1, arrays[x].shape[-1])
        chosen = positions(len(vectors), count, seed)
        taken = vectors[chosen][:, None]
        sizes = None if behind is None else behind.sizes(arrays[behind.tensor], len(vectors))
        weighs = None if sizes is None else sizes[chosen]
    known = ~np.isnan(taken).any(axis=(1, 2))  # no code stands for NaN
    rounded = dequantize(quantize(taken[known], params), params)
    return rounded if weighs is None else rounded * weighs[known, None, None]


def _by_group(x: Array, groups: int) -> Array:
    """(R, k, C) -> (G, R, k * C / G): the order of `weight_as_rows`."""
    count, size, each = x.shape[0], x.shape[1], x.shape[2] // groups
    return np.ascontiguousarray(
        x.reshape(count, size, groups, each).transpose(2, 0, 1, 3).reshape(groups, count, size * each), np.float32
    )


# -- rounding ----------------------------------------------------------------------------------------------


def _rounded(graph: Graph, layer: _Layer, damped: tuple[Floats, float], grid: tuple[QType, str]) -> Rounded:
    (qtype, method), (hessian, damp) = grid, damped
    weight = np.asarray(graph.const(layer.linear.weight), np.float32)
    params = weight_params(weight, layer.point.axis, cast("Literal['absmax', 'mse']", method), qtype)
    groups, _, outputs = layer.sizes
    scale = np.broadcast_to(params.scale.reshape(-1), (layer.linear.channels,)).reshape(groups, 1, outputs)
    steps = (weight_as_rows(graph, [layer.linear]) / scale).astype(np.float64)
    codes = feedback(steps, hessian, np.ones((1, 1, 1)), whole(qtype.qmax), damp)
    stored = rows_as_weight(graph, layer.linear, codes).astype(np.int8)
    read = np.array([grid.scale for grid in layer.params], np.float32)
    return Rounded(stored, params.scale, read if len(read) > 1 else layer.params[0].scale, qtype.qmax)
