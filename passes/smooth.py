"""Exchange tensors for x' = (x - c) / s per channel and make up for it in the constants beside them.

SmoothQuant (Xiao et al., 2023, arXiv 2211.10438, eq. 3 and 4) with a shift (as in Outlier Suppression+, Wei et al.,
2023, arXiv 2304.09145): the model computes what it did, up to rounding, but its tensors fit an int8 grid better.
`onnxq.rescaling` says where this is possible and how it is made up for.

One exception is allowed: a Clip to [0, 6] between a convolution and the next has one limit for all channels, and
becomes a Clip to [0, 6 / max s]. Channel j then saturates at 6 s_j / max s, which is not below its largest value seen:
there the pair behind it saturates anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import PassError, StatisticsError
from onnxq.linear import Linear, add_bias, renewed, scale_outputs
from onnxq.rescaling import clip_limit, find_sites, maker_of, mixed_from, reader_at, tie_making
from onnxq.smoothed import Smoothed, record, smoothed_tensors
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.rescaling import Site

    Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Exchanged:
    """What nodes got in place of their weights, so that those that share one go on sharing one.

    Attributes:
        weights: weight -> what stands for it.
        linears: the nodes that got one.
        others: nodes beside them whose constants have changed too.
        added: what stands for a weight -> W c of it, and the name under which that is told.
    """

    weights: dict[Value, Value] = field(default_factory=dict)
    linears: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)
    added: dict[Value, tuple[Array, str]] = field(default_factory=dict)

    def exchange(self, graph: Graph, linear: Linear, new: Value) -> None:
        """Give a node the weight that stands for its own."""
        graph.set_input(linear.node, 1, new)
        self.weights[linear.weight] = new
        self.linears.append(linear.node)

    @property
    def shared(self) -> bool:
        """Whether nodes have one in common."""
        return len(self.weights) < len(self.linears)


def _share_vectors(graph: Graph, nodes: Iterable[Node]) -> None:
    """Let nodes hold one copy of vectors that are equal."""
    held: dict[tuple[str, str, bytes], Value] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            array = graph.const(value)
            if value is not None and array is not None and array.ndim and array.size == max(array.shape):
                key = (str(array.dtype), str(array.shape), array.tobytes())
                graph.set_input(node, index, held.setdefault(key, value))


@dataclass(frozen=True)
class Smooth:
    """Rescale the sites that have factors.

    Attributes:
        factors: site name -> its scales s > 0 and shifts c, float32 of shape (channels,).
    """

    factors: Mapping[str, Factor]

    def __call__(self, graph: Graph) -> int:
        """Return how many sites were rescaled.

        Raises:
            StatisticsError: the factors do not belong to this graph.
        """
        sites = {site.name: site for site in find_sites(graph)} if self.factors else {}
        known = {str(v.name) for v in graph.values()}
        nodes = {str(n.name): n for n in graph.nodes}
        for name, factor in self.factors.items():
            site = sites.get(name)
            if site is None or factor.scale.shape != (site.channels,):
                raise StatisticsError(
                    f"tensor {name!r} cannot be smoothed with {factor.scale.size} factors",
                    "The statistics belong to another model, or to another target. Run `onnxq calibrate` again.",
                )
        for name in (n for n in sites if n in self.factors):  # the graph's order, whatever that of the factors
            _apply(graph, sites[name], self.factors[name], known, nodes)
        return len(self.factors)


def _apply(graph: Graph, site: Site, factor: Factor, known: Collection[str], nodes: dict[str, Node]) -> None:
    scale, shift = factor.scale.astype(np.float64), factor.shift.astype(np.float64)
    readers = [nodes[name] for _, name in site.readers]
    values = {str(v.name): v for v in graph.values()}  # as they are now: a product may have got a bias
    moved: list[Smoothed] = []
    made, read = _Exchanged(), _Exchanged()
    if site.explicit:
        for name in site.tensors:
            read_by = [nodes[node] for tensor, node in site.readers if tensor == name]
            new = _compute(graph, site, values[name], (scale, shift), read_by)
            made.others.extend(_makers(graph, new, values[name]))
            moved.append(Smoothed(name, str(new.name), site.axis - (graph.rank(new) or 0)))
    else:
        members = [values[name] for name in site.tensors]
        for value in members:
            if tie_making(graph, value) is None:
                moved += _make(graph, value, (1 / scale, -shift / scale), made)
        for name in site.clips:
            limit = clip_limit(graph, nodes[name]) or 0.0
            lower = np.asarray(limit / scale.max(), np.float32)
            graph.set_input(nodes[name], 2, graph.constant(f"{name}/limit", lower))
        moved += [_renamed(graph, value, site.axis) for value in members]
    # A product whose bias another site added is no tensor of the float model, nor told to stand for one.
    told = {*known, *(one.tensor for one in smoothed_tensors(graph.model.metadata_props))}
    record(graph, [one for one in moved if one.name in told], site.name, factor)
    for node in readers:
        _read(graph, node, (scale, shift), read)
    if made.shared or read.shared:
        _share_vectors(graph, [*made.linears, *made.others, *read.linears, *read.others])


def _renamed(graph: Graph, value: Value, axis: int, *, scaled: bool = False) -> Smoothed:
    """Give a tensor that stands for other values another name."""
    name = str(value.name)
    graph.rename(value, f"{name}/smoothed")
    return Smoothed(name, str(value.name), axis - (graph.rank(value) or 0), scaled)


def _make(graph: Graph, value: Value, by: tuple[Array, Array], made: _Exchanged) -> list[Smoothed]:
    """Let the maker of a tensor give y * factor + shift; return what has other values then, beside it."""
    (factor, shift), maker = by, maker_of(graph, value)
    moved: list[Smoothed] = []
    if isinstance(maker, Linear):
        inner, last = maker.node.outputs[0], (graph.rank(maker.node.outputs[0]) or 0) - 1
        for between in mixed_from(graph, value):
            renamed = _renamed(graph, between, last)
            moved += [renamed] if not moved else []  # V itself; what it is turned into has its channels elsewhere
        new = made.weights.get(maker.weight)
        if not scale_outputs(graph, maker, factor, shift, bias_only=new is not None):
            raise PassError(f"node {maker.node.name!r} cannot take a factor", "This is a fault in onnxq.")
        stands = maker.node.inputs[1] if new is None else new
        assert stands is not None  # noqa: S101  it is the weight
        made.exchange(graph, maker, stands)
        if maker.bias_add is not None:
            made.others.append(maker.bias_add)
            moved.append(_renamed(graph, inner, last, scaled=True))
        return moved
    assert maker is not None  # noqa: S101  find_sites saw to it
    made.others.append(maker)
    for index, constant in ((1, 0.0), (2, shift)):
        old = maker.inputs[index] if index < len(maker.inputs) else None
        if old is None and not np.any(shift):
            continue
        array = np.zeros_like(factor) if old is None else np.asarray(graph.const(old), np.float64)
        name = f"{maker.name}/bias" if old is None else renewed(old)
        graph.set_input(maker, index, graph.constant(name, (array * factor + constant).astype(np.float32)))
    return moved


def _compute(graph: Graph, site: Site, value: Value, factor: tuple[Array, Array], readers: list[Node]) -> Value:
    """Put x' = x (1 / s) - c / s in front of the linear readers, and return it."""
    scale, shift = factor
    shape = [-1] + [1] * ((graph.rank(value) or 0) - 1 - site.axis)
    made = value
    for op, constant, neutral in (("Mul", 1 / scale, 1.0), ("Add", -shift / scale, 0.0)):
        if np.all(constant == neutral):
            continue
        array = graph.constant(f"{value.name}/{op.lower()}", constant.astype(np.float32).reshape(shape))
        made = graph.add(op, [made, array], name=f"{value.name}/smoothed", like=value)
    graph.replace_uses(value, made, [(node, 0) for node in readers])
    return made


def _makers(graph: Graph, made: Value, value: Value) -> Iterator[Node]:
    """What computes one value from the other, the last first."""
    while made is not value:
        node = graph.producer(made)
        assert node is not None  # noqa: S101  that is how it was made
        yield node
        made = node.inputs[0] or value


def _read(graph: Graph, node: Node, by: tuple[Array, Array], read: _Exchanged) -> None:
    """Let a linear node compute from x' what it did from x = x' s + c."""
    (scale, shift), linear = by, reader_at(graph, node)
    assert linear is not None  # noqa: S101  find_sites saw to it
    output, before = node.outputs[0], str(node.outputs[0].name)
    new = read.weights.get(linear.weight)
    if new is None:
        weight = np.asarray(graph.const(linear.weight), np.float64)
        stored = (weight * _columns(graph, linear, weight, scale)).astype(np.float32)
        new = graph.constant(renewed(linear.weight), stored)
        read.added[new] = _product(graph, linear, weight, shift), before
    read.exchange(graph, linear, new)
    if np.any(shift):
        gain = graph.attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
        added, told = read.added[new]
        add_bias(graph, linear, gain * added, "smoothed")
        user = graph.only_user(output)
        read.others.extend([] if user is None else [user])
        if output.name != before and user is not None and user.outputs[0].name != before:  # the bias behind it took it
            factor = Factor(np.ones(linear.channels, np.float32), added.astype(np.float32))
            record(graph, [Smoothed(before, str(output.name), -1)], told, factor)


def _columns(graph: Graph, linear: Linear, weight: Array, scale: Array) -> Array:
    """The scale of the input channels in a shape that broadcasts over the weight."""
    if linear.node.op_type == "Conv":  # (O, C / groups, ...): the rows of each group read channels of their own
        spread = np.repeat(scale.reshape(linear.groups, -1), linear.channels // linear.groups, axis=0)
        return spread.reshape(*spread.shape, *(1,) * (weight.ndim - 2))
    return scale if graph.attribute(linear.node, "transB", 0) else scale[:, None]


def _product(graph: Graph, linear: Linear, weight: Array, shift: Array) -> Array:
    """W c, shape (output channels,)."""
    spread = weight * _columns(graph, linear, weight, shift)
    rows_last = linear.node.op_type == "MatMul" or (
        linear.node.op_type == "Gemm" and not graph.attribute(linear.node, "transB", 0)
    )
    product: Array = (spread.T if rows_last else spread).reshape(linear.channels, -1).sum(axis=1)
    return product
