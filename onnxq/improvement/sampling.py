"""Rows of what linear nodes read, picked by hash: the same ones however the data comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.graph import Graph, Node
    from onnxq.linear import Linear

Array = npt.NDArray[Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def positions(total: int, count: int, seed: int) -> npt.NDArray[np.intp]:
    """Up to `count` of the numbers below `total`, ascending, as the hash of (seed, number) falls.

    The hash is the finalizer of SplitMix64 (Steele et al., 2014, OOPSLA): unlike a generator's, its values are the
    same with every version of numpy.
    """
    if total <= count:
        return np.arange(total)
    with np.errstate(over="ignore"):
        z = (np.arange(1, total + 1, dtype=np.uint64) + np.uint64(seed)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    chosen: npt.NDArray[np.intp] = np.sort(np.argsort(z ^ (z >> np.uint64(31)), kind="stable")[:count])
    return chosen


def rows(x: Array, axis: int, count: int, seed: int) -> tuple[Array, npt.NDArray[np.intp]]:
    """Some of a tensor's channel vectors, the one with the largest value among them, (R, 1, C); and which."""
    vectors = np.moveaxis(x, axis, -1)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    chosen = positions(len(vectors), count, seed)
    if 0 < chosen.size < len(vectors):  # what is rare and large decides more than its share of the rows
        chosen = np.append(chosen, np.abs(vectors).max(axis=1).argmax())
    return vectors[chosen][:, None], chosen


def readable(graph: Graph, node: Node) -> bool:
    """Whether `patches` knows what the node reads: its padding is written as numbers."""
    return node.op_type != "Conv" or graph.attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def patches(graph: Graph, linear: Linear, x: Array, count: int, seed: int) -> Array:
    """Some of the input patches of a convolution, shape (R, k, C), zeros where they reach into the padding."""
    kernel = [int(d) for d in (graph.shape(linear.weight) or ())[2:] if isinstance(d, int)]
    ones = [1] * len(kernel)
    strides = list(graph.attribute(linear.node, "strides", ones))
    dilations = list(graph.attribute(linear.node, "dilations", ones))
    valid = graph.attribute(linear.node, "auto_pad", "NOTSET") == "VALID"
    pads = [0] * (2 * len(kernel)) if valid else list(graph.attribute(linear.node, "pads", [0] * (2 * len(kernel))))
    both = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    padded = np.moveaxis(np.pad(x, [(0, 0), (0, 0), *both]), 1, -1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, strides, strict=True)]
    if min(sizes) < 1:
        return np.zeros((0, int(np.prod(kernel)), x.shape[1]), x.dtype)
    chosen = positions(len(x) * int(np.prod(sizes)), count, seed)
    batch, *corners = np.unravel_index(chosen, (len(x), *sizes))
    index = [batch.reshape(-1, *ones)]
    for axis, (corner, stride, dilation, length) in enumerate(zip(corners, strides, dilations, kernel, strict=True)):
        along = [-1 if other == axis else 1 for other in range(len(kernel))]
        index.append(corner.reshape(-1, *ones) * stride + np.arange(length).reshape(1, *along) * dilation)
    return padded[tuple(index)].reshape(len(chosen), -1, x.shape[1])


def weight_as_rows(graph: Graph, linears: Sequence[Linear]) -> Array:
    """The weights of nodes that read the same patches, (G, k * C / G, N / G), as `smoothing.Reading` has them."""
    return np.concatenate([_one_weight(graph, linear) for linear in linears], axis=2)


def _one_weight(graph: Graph, linear: Linear) -> Array:
    weight = np.asarray(graph.const(linear.weight), np.float32)
    if linear.node.op_type != "Conv":
        transposed = linear.node.op_type == "Gemm" and graph.attribute(linear.node, "transB", 0)
        return (weight.T if transposed else weight)[None]
    groups, reads = linear.groups, weight.shape[1]
    # (O, C / G, k...) -> (G, O / G, C / G, k) -> (G, k, C / G, O / G)
    grouped = weight.reshape(groups, linear.channels // groups, reads, -1).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(grouped.reshape(groups, -1, linear.channels // groups))


def rows_as_weight(graph: Graph, linear: Linear, rows: Array) -> Array:
    """What `weight_as_rows` makes of one node's weight, back in the weight's own shape."""
    if linear.node.op_type != "Conv":
        transposed = linear.node.op_type == "Gemm" and graph.attribute(linear.node, "transB", 0)
        return np.ascontiguousarray(rows[0].T if transposed else rows[0])
    shape = [int(d) for d in graph.shape(linear.weight) or () if isinstance(d, int)]
    groups, _, outputs = rows.shape
    grouped = rows.reshape(groups, -1, shape[1], outputs).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(grouped.reshape(shape))
