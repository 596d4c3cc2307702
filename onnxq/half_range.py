"""Factors bounded so that what they are folded into stays among the normal numbers of float16.

A factor s goes into the columns of the weights that read x' = x / s (W s) and into the rows of what makes it (W / s,
see `onnxq.rescaling`). Where these are stored in float16, a product below 2^-14 is subnormal: it is off by up to 2^-25
whatever its size, so a column of 1e-6 by 3 %, while its x / s is as large as ever. What a channel holds counts by its
root mean square, below which single weights matter little, and by its largest for the other end, 65504. Bounds are of
each site by itself; of channels that were outside already there are none at that end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import Linear
from onnxq.patterns.ranges import MAX, SMALLEST_SCALE
from onnxq.rescaling import maker_of, reader_at, tie_making

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from onnxq.graph import Graph, Node
    from onnxq.rescaling import Site
    from onnxq.statistics import Factor

    Array = npt.NDArray[Any]


def within_half(graph: Graph, found: Mapping[Site, Factor]) -> dict[Site, Factor]:
    """The factors with the scales of channels bounded; the graph is the one that they are for, in float32."""
    values = {str(v.name): v for v in graph.values()}
    nodes = {str(n.name): n for n in graph.nodes}

    def columns(site: Site) -> Iterator[Array]:
        for _, name in site.readers:
            if (linear := reader_at(graph, nodes[name])) is not None:
                yield _columns(graph, linear)

    def rows(site: Site) -> Iterator[Array]:
        for value in () if site.explicit else (values[name] for name in site.tensors):
            maker = None if tie_making(graph, value) is not None else maker_of(graph, value)
            if isinstance(maker, Linear):
                yield _rows(graph, maker)
            elif maker is not None:
                yield _of_norm(graph, maker)

    return {s: _bounded(f, tuple(columns(s)), tuple(rows(s))) for s, f in found.items()}


def _bounded(factor: Factor, columns: tuple[Array, ...], rows: tuple[Array, ...]) -> Factor:
    """The factor with `columns` s and `rows` / s, each (channels, values), within the range where they were."""
    lowest, highest = np.zeros(factor.scale.size), np.full(factor.scale.size, np.inf)
    with np.errstate(divide="ignore"):  # of channels that hold nothing
        for typical, largest in map(_sizes, columns):
            lowest = np.maximum(lowest, np.where(typical >= SMALLEST_SCALE, SMALLEST_SCALE / typical, 0.0))
            highest = np.minimum(highest, np.where(largest <= MAX, MAX / largest, np.inf))
        for typical, largest in map(_sizes, rows):
            highest = np.minimum(highest, np.where(typical >= SMALLEST_SCALE, typical / SMALLEST_SCALE, np.inf))
            lowest = np.maximum(lowest, np.where(largest <= MAX, largest / MAX, 0.0))
    scale = np.clip(factor.scale.astype(np.float64), lowest, highest)
    return replace(factor, scale=scale.astype(np.float32))


def _sizes(held: Array) -> tuple[Array, Array]:
    """(root mean square, largest absolute value) of each channel, from (channels, values)."""
    return np.sqrt(np.square(held).mean(axis=1)), np.abs(held).max(axis=1)


def _columns(graph: Graph, linear: Linear) -> Array:
    """What reads each input channel, float64 of shape (input channels, values)."""
    weight = np.asarray(graph.const(linear.weight), np.float64)
    if linear.node.op_type == "Conv":  # (O, C / groups, ...)
        grouped = weight.reshape(linear.groups, linear.channels // linear.groups, weight.shape[1], -1)
        return grouped.swapaxes(1, 2).reshape(linear.groups * weight.shape[1], -1)
    return weight.T if graph.attribute(linear.node, "transB", 0) else weight


def _rows(graph: Graph, linear: Linear) -> Array:
    """What makes each output channel, without its bias, float64 of shape (output channels, values)."""
    weight = np.asarray(graph.const(linear.weight), np.float64)
    if linear.node.op_type == "ConvTranspose":  # (C, O / groups, ...)
        grouped = weight.reshape(linear.groups, weight.shape[0] // linear.groups, weight.shape[1], -1)
        return grouped.swapaxes(1, 2).reshape(linear.channels, -1)
    if linear.node.op_type == "Conv" or graph.attribute(linear.node, "transB", 0):
        return weight.reshape(linear.channels, -1)
    return weight.T


def _of_norm(graph: Graph, node: Node) -> Array:
    """The scale of a normalization, float64 of shape (channels, 1)."""
    return np.asarray(graph.const(node.inputs[1]), np.float64).reshape(-1, 1)
