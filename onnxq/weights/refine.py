"""Weights chosen from data for a plan of mode weight-only: which layers, what they read, and the method's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from onnxq.errors import DataError, StatisticsError
from onnxq.half_range import within_half
from onnxq.linear import Linear, linear_at
from onnxq.monitor import QUIET, Monitor
from onnxq.plan import INT8
from onnxq.rescaling import find_sites
from onnxq.weights.awq import awq_factor
from onnxq.weights.clip import clipped
from onnxq.weights.gptq import quantize_gptq
from onnxq.weights.moments import moments, picked
from onnxq.weights.outliers import outlier_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.formats import Format
    from onnxq.formats.stored import Stored
    from onnxq.graph import Graph
    from onnxq.plan import Plan, WeightPoint
    from onnxq.recipe import Recipe
    from onnxq.rescaling import Site
    from onnxq.statistics import Factor, Statistics
    from onnxq.weights.moments import Moments

    Floats = npt.NDArray[np.float64]
    Method = Callable[[npt.NDArray[Any], Floats, Format], Stored]
    """(w [K, N], Gram matrix of its inputs [K, K], how it is stored) -> codes and scales"""

METHODS: dict[str, Method] = {"gptq": quantize_gptq, "awq": clipped}
"""Weight method of a recipe -> how a layer's codes are found. AWQ's factors are in the model by then."""

CHOSEN = ("weight-only", "dynamic")
"""Modes whose weights a method chooses; with static activations the efforts do (`onnxq.improvement.rounding`)."""

EXPLICIT_DB = 0.5
"""What a factor must gain where x / s needs a node of its own: it reads and writes x once more."""


@dataclass(frozen=True)
class Seen:
    """A prepared model, and the samples it is run on.

    Attributes:
        graph: the prepared graph.
        plan: its plan.
        feeds: the samples, each behind the words that say where it came from.
        providers: where ONNX Runtime runs it.
        custom_ops: libraries with its custom operators.
    """

    graph: Graph
    plan: Plan
    feeds: Sequence[tuple[str, Feed]]
    providers: tuple[str, ...] = ("cpu",)
    custom_ops: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Layer:
    """A weight of the plan and the inputs of all that read it narrow."""

    point: WeightPoint
    tensors: tuple[str, ...]
    transposed: bool
    value: Any

    @property
    def format(self) -> Format:
        """How the codes are stored."""
        return stored_as(self.point)

    def matrix(self, graph: Graph) -> npt.NDArray[Any]:
        """[K, N], for y = x W."""
        array = graph.const(self.value)
        assert array is not None  # noqa: S101  the plan holds only constants
        return array.T if self.transposed else array


def refined(seen: Seen, method: str, monitor: Monitor = QUIET) -> dict[str, Stored]:
    """Weight -> its codes and scales [K, N]. Tables, and weights that are read in two ways, are left to rounding.

    Raises:
        DataError: the samples do not fit the model, or a tensor held NaN or infinity.
    """
    layers = _layers(seen.graph, seen.plan)
    readers: dict[str, list[_Layer]] = {}
    for layer in layers:
        for tensor in layer.tensors:
            readers.setdefault(tensor, []).append(layer)
    channels = {tensor: len(group[0].matrix(seen.graph)) for tensor, group in readers.items()}
    monitor.stage(f"Weights of {len(layers)} layers by {method}", len(channels))
    waiting: dict[str, tuple[Floats, int]] = {}
    found: dict[str, Stored] = {}
    for tensor, now in _moments(seen, channels, monitor):
        for layer in readers[tensor]:
            name = layer.point.tensor
            gram, count = waiting.pop(name, (np.zeros(()), 0))
            gram, count = gram + (now.quantized() if seen.plan.mode == "dynamic" else now.gram), count + 1
            if count < len(layer.tensors):
                waiting[name] = gram, count
                continue
            found[name] = METHODS[method](layer.matrix(seen.graph), gram, layer.format)
    return {layer.point.tensor: found[layer.point.tensor] for layer in layers}


def awq_factors(seen: Seen, monitor: Monitor = QUIET) -> dict[str, Factor]:
    """Site -> the factors that AWQ scales it with; see `onnxq.weights.awq`.

    Raises:
        DataError: the samples do not fit the model, or a tensor held NaN or infinity.
    """
    narrow = {user: layer for layer in _layers(seen.graph, seen.plan) for user, _ in layer.point.uses}
    sites = {
        tensor: site
        for site in find_sites(seen.graph)
        if (len(site.tensors) == 1 or site.explicit)
        and not site.clips
        and all(name in narrow for _, name in site.readers)
        for tensor in site.tensors
    }
    channels = {tensor: site.channels for tensor, site in sites.items()}
    monitor.stage(f"AWQ factors of {len(channels)} tensors", len(channels))
    found: dict[Site, Factor] = {}
    waiting: dict[Site, tuple[Moments, int]] = {}
    for tensor, now in _moments(seen, channels, monitor):
        site = sites[tensor]
        met, count = (waiting[site][0] + now, waiting[site][1] + 1) if site in waiting else (now, 1)
        waiting[site] = met, count
        if count < len(site.tensors):
            continue
        del waiting[site]
        layers = list(dict.fromkeys(narrow[name] for _, name in site.readers))
        matrices = [layer.matrix(seen.graph) for layer in layers]
        margin = EXPLICIT_DB if site.explicit else 0.0
        factor = awq_factor(matrices, met, layers[0].format, margin)
        if factor is not None:
            found[site] = factor
    found = within_half(seen.graph, found) if seen.plan.float_type == "float16" else found
    return {site.name: factor for site, factor in found.items()}


class Model(Protocol):
    """A prepared model, its plan and its recipe."""

    @property
    def graph(self) -> Graph:
        """The prepared graph."""

    @property
    def plan(self) -> Plan:
        """Its plan."""

    @property
    def recipe(self) -> Recipe:
        """Every choice."""


Prepared = TypeVar("Prepared", bound=Model)


def needs_data(recipe: Recipe, mode: str) -> bool:
    """Whether something of the model itself is chosen from the data: codes, or outlier columns."""
    return (recipe.weight_method != "nearest" and mode in CHOSEN) or recipe.outlier_threshold is not None


def from_data(
    ready: Prepared,
    source: Source,
    rewritten: Callable[[Prepared, Mapping[str, Factor], Mapping[str, tuple[int, ...]]], Prepared],
    monitor: Monitor = QUIET,
) -> tuple[Prepared, dict[str, Any]]:
    """(the model with what was found in it, the fields of Statistics that say what that is), by the recipe.

    Raises:
        DataError: the data cannot be read or does not fit, or a tensor held NaN or infinity.
    """
    recipe, where = ready.recipe, (ready.recipe.provider_list, ready.recipe.custom_op_list)
    if recipe.outlier_threshold is not None:
        columns = outlier_columns(ready.graph, ready.plan, source, recipe.outlier_threshold, *where, monitor)
        return rewritten(ready, {}, columns), {"outliers": columns}
    method = recipe.weight_method
    feeds = picked(ready.graph, source, *where)
    factors = awq_factors(Seen(ready.graph, ready.plan, feeds, *where), monitor) if method == "awq" else {}
    better = rewritten(ready, factors, {})
    weights = refined(Seen(better.graph, better.plan, feeds, *where), method, monitor)
    return better, {"smoothing": factors, "weights": weights}


def chosen_weights(plan: Plan, recipe: Recipe, statistics: Statistics | None) -> Mapping[str, Stored]:
    """The weights that the recipe's method found from the data; none where the mode or the method needs none.

    Raises:
        DataError: the recipe needs data, and there is none.
        StatisticsError: they were found for other bits or blocks, or not at all.
    """
    if not needs_data(recipe, plan.mode):
        return {}
    method = recipe.weight_method
    if statistics is None:
        name = "outlier_threshold" if recipe.outlier_threshold is not None else f"weight_method {method}"
        raise DataError(f"{name} needs data: what it chooses depends on what each layer reads", "Give --data.")
    if recipe.outlier_threshold is not None:
        return {}
    forms: dict[str, set[Format]] = {}
    for point in plan.weights:  # a budget may have sent others back to float
        forms.setdefault(point.tensor, set()).add(stored_as(point))
    odd = [n for n, found in statistics.weights.items() if found.format not in forms.get(n, {found.format})]
    if odd and not recipe.fallback:  # with which a budget, whose statistics are its own, stores some otherwise
        raise StatisticsError(
            f"the statistics hold no weights chosen by {method} in this format: {odd[0]!r}",
            "Run `onnxq calibrate` with the same recipe.",
        )
    if not statistics.weights:
        raise StatisticsError(
            f"there is no weight that {method} has chosen codes for: it takes those of plain MatMul and Gemm nodes",
            "Leave weight_method out. If these are statistics of another recipe, run `onnxq calibrate` with this one.",
        )
    return statistics.weights


def stored_as(point: WeightPoint) -> Format:
    """The format of a weight, one scale where it has no axis of channels: int8 beside integers does not say so."""
    return INT8.per("tensor") if point.axis is None and point.format == INT8 else point.format


def _moments(seen: Seen, channels: Mapping[str, int], monitor: Monitor) -> Any:  # noqa: ANN401  as `moments` has it
    return moments(seen.graph, channels, seen.feeds, seen.providers, seen.custom_ops, monitor)


def _layers(graph: Graph, plan: Plan) -> list[_Layer]:
    nodes = {str(n.name): n for n in graph.nodes}
    found = []
    for point in plan.weights:
        linears = [linear_at(graph, nodes[name]) for name, _ in point.uses]
        layer = _layer(graph, point, [linear for linear in linears if linear is not None])
        if layer is not None and len(linears) == len(point.uses) and None not in linears:
            found.append(layer)
    return found


def _layer(graph: Graph, point: WeightPoint, linears: Sequence[Linear]) -> _Layer | None:
    turned = {bool(graph.attribute(linear.node, "transB", 0)) for linear in linears}
    plain = all(linear.node.op_type in ("MatMul", "Gemm") for linear in linears)
    if len(turned) != 1 or not plain or any(graph.attribute(linear.node, "transA", 0) for linear in linears):
        return None
    tensors = tuple(dict.fromkeys(str(linear.node.inputs[0].name) for linear in linears if linear.node.inputs[0]))
    return _Layer(point, tensors, turned.pop(), linears[0].weight)
