"""Choose scales of int8 weights for which half precision holds the biases that make up for shifted inputs.

A layer that reads x + c in place of x (`onnxq.shifted`) has the bias b' = b - c s sum(q), with the scale s and the
codes q of each output channel. float16 rounds it by up to 2^-11 of itself, the same at every pixel, and c is large.
With one of the four numbers of the type on either side in place of s it is rounded less. The codes stay; taken is that
for which

    (error of b')^2 + ((s' - s) |q| 32 s_x)^2

is least: |q| 32 s_x is what the channel makes of an input of 32 steps (rms) of its grid s_x, which is typical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import quantized_linear_at
from onnxq.numerics import numpy_type
from onnxq.patterns.ranges import SMALLEST_SCALE
from onnxq.shifted import shifted_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Floats = npt.NDArray[np.float64]

_MOVES = sorted(range(-4, 5), key=abs)  # the scale itself first, then the nearest
_TYPICAL = 32.0


@dataclass(frozen=True)
class FitBiases:
    """Move scales of weights.

    Attributes:
        dtype: "float16" or "bfloat16", which scales and biases become.
        keep: names of the nodes that stay in float32.
    """

    dtype: str
    keep: frozenset[str]

    def __call__(self, graph: Graph) -> int:
        """Return of how many layers."""
        shifts = {one.tensor: one.shift for one in shifted_tensors(graph.model.metadata_props)}
        found = [(node, read) for node in graph.nodes if (read := _read(graph, node, shifts)) is not None]
        return sum(self._fit(graph, node, *read) for node, read in found if node.name not in self.keep)

    def _fit(self, graph: Graph, node: Node, shift: float, step: float) -> bool:
        linear = quantized_linear_at(graph, node)
        stored = None if linear is None else graph.producer(linear.weight, "DequantizeLinear")
        bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
        if linear is None or stored is None or bias is None or bias.shape != (linear.channels,):
            return False
        codes, scale = graph.const(stored.inputs[0]), graph.const(stored.inputs[1])
        alone = graph.only_user(linear.weight) is node
        if not alone or codes is None or scale is None or scale.shape != bias.shape or scale.dtype != np.float32:
            return False
        rows = np.moveaxis(codes.astype(np.float64), int(graph.attribute(stored, "axis", 1)), 0).reshape(len(scale), -1)
        gain = float(graph.attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
        slope, size = -shift * gain * rows.sum(axis=1), gain * np.sqrt(np.square(rows).sum(axis=1)) * _TYPICAL * step
        fitted = fitted_scales(scale, (slope, size), bias.astype(np.float64), self.dtype)
        moved = bias + slope * (fitted.astype(np.float64) - scale)
        graph.set_input(stored, 1, graph.constant(f"{linear.weight.name}_scale_fitted", fitted))
        graph.set_input(node, 2, graph.constant(f"{node.name}/fitted_bias", moved.astype(np.float32)))
        return True


def fitted_scales(
    scale: npt.NDArray[Any], slopes: tuple[Floats, Floats], bias: Floats, dtype: str
) -> npt.NDArray[np.float32]:
    """Scales near those given, for which the type rounds biases less; all of shape (channels,).

    Args:
        scale: numbers of the type; others stay.
        slopes: by how much the bias, and the output as such, move with the scale.
        bias: with these scales.
        dtype: "float16" or "bfloat16".
    """
    kind, best, least = numpy_type(dtype), scale, np.full(scale.shape, np.inf)
    held = (scale.astype(kind) == scale) & (scale > 2 * SMALLEST_SCALE)
    for move in _MOVES:
        near = (scale.astype(kind).view(np.uint16) + np.uint16(move % 65536)).view(kind).astype(np.float32)
        by = near.astype(np.float64) - scale
        made = bias + slopes[0] * by
        cost = np.square(made.astype(kind).astype(np.float64) - made) + np.square(slopes[1] * by)
        better = held & (cost < least)
        best, least = np.where(better, near, best), np.where(better, cost, least)
    return np.asarray(best, np.float32)


def _read(graph: Graph, node: Node, shifts: Mapping[str, float]) -> tuple[float, float] | None:
    """(what the tensor that a convolution or Gemm reads as codes has been shifted by, its scale); None: not at all."""
    if node.op_type not in ("Conv", "Gemm") or node.domain:
        return None
    source, step, factor = _source(graph, node.inputs[0])
    pad = graph.producer(source, "Pad")
    if pad is not None:  # between two pairs of one scale
        source, step, factor = _source(graph, pad.inputs[0])
    shift = 0.0 if source is None else factor * shifts.get(str(source.name), 0.0)
    return (shift, step) if shift and step else None


def _source(graph: Graph, value: Value | None) -> tuple[Value | None, float, float]:
    """What a Q/DQ pair rounds, its scale behind, and that by the one in front: a factor may be folded into a pair."""
    after = graph.producer(value, "DequantizeLinear")
    before = None if after is None else graph.producer(after.inputs[0], "QuantizeLinear")
    if after is None or before is None:
        return None, 0.0, 0.0
    front, step = graph.scalar(before.inputs[1]), graph.scalar(after.inputs[1])
    return (before.inputs[0], float(step), float(step) / float(front)) if front and step else (None, 0.0, 0.0)
