"""Store the planned weights in int8: initializer + DequantizeLinear, or float weight + Q + DQ for old TensorRT.

The float weight stays for uses that read it in float, so a weight shared between the two kinds is split here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from onnxq.lifting import lift_scales
from onnxq.numerics import NEAR, QuantParams, along, dequantize, held_by, params_from_range, quantize, weight_params
from onnxq.patterns.ranges import SMALLEST_SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.numerics import QType
    from onnxq.plan import Plan, WeightPoint
    from onnxq.statistics import Rounded


@dataclass(frozen=True)
class QuantizeWeights:
    """Quantize the plan's weights.

    Attributes:
        plan: which weights, and along which axis.
        qtype: the grid, symmetric.
        method: how the range of a channel is chosen, as `numerics.weight_params` knows it.
        form: "dq" or "qdq".
    """

    plan: Plan
    qtype: QType
    method: str = "absmax"
    form: str = "dq"

    def __call__(self, graph: Graph) -> int:
        """Return how many weights were quantized."""
        nodes = {n.name or "": n for n in graph.nodes}
        weights = graph.weights
        for point in self.plan.weights:
            value, uses = weights[point.tensor], [(nodes[n], i) for n, i in point.uses]
            lifted, weight = self._lifted(graph, point, value, uses)
            graph.replace_uses(value, self._dequantized(graph, lifted, weight), uses)
        return len(self.plan.weights)

    def _lifted(
        self, graph: Graph, point: WeightPoint, value: Value, uses: Sequence[tuple[Node, int]]
    ) -> tuple[WeightPoint, Value]:
        """The weight, times a power of two where float16 would round its scales and what it multiplies can be less."""
        weight = graph.const(value)
        assert weight is not None  # noqa: S101  the plan holds only constants
        by = lift_scales(graph, uses, weight, point.axis) if point.qtype is None else 0
        if not by:
            return point, value
        rounded = point.rounded
        if rounded is not None:
            rounded = replace(rounded, scale=np.ldexp(rounded.scale, by))
        return replace(point, rounded=rounded), graph.constant(f"{point.tensor}_lifted", np.ldexp(weight, by))

    def _dequantized(self, graph: Graph, point: WeightPoint, value: Value) -> Value:
        weight = graph.const(value)
        assert weight is not None  # noqa: S101  it is a constant
        method = cast("Literal['absmax', 'mse']", self.method)  # the recipe has checked it
        chosen = point.rounded
        if chosen is not None:
            zero = np.zeros(chosen.scale.shape, np.int8)
            found = QuantParams(chosen.scale, zero, point.qtype or self.qtype, point.axis)
        elif point.qtype is not None and not point.qtype.symmetric:  # a scalar beside an activation
            found = params_from_range(float(weight.min()), float(weight.max()), point.qtype)
        else:
            found = weight_params(weight, point.axis, method, point.qtype or self.qtype)
        params = _in_dtype(found, weight.dtype)
        if self._becomes_half(point):
            params = replace(params, scale=_as_read(params.scale, self.plan.float_type))
        held = None if chosen is None else _still_chosen(chosen, params, weight)
        name = point.tensor
        attributes = {"axis": point.axis} if point.axis is not None else None
        scale = graph.constant(f"{name}_scale", params.scale.astype(weight.dtype))
        zero_point = graph.constant(f"{name}_zero_point", params.zero_point)
        if self.form == "dq":
            codes = graph.constant(f"{name}_quantized", quantize(weight, params) if held is None else held)
        else:
            source = value
            if held is not None:
                source = graph.constant(f"{name}_rounded", dequantize(held, params))
            elif self.method != "absmax":
                source = graph.constant(f"{name}_clipped", _clipped(weight, params))
            codes = graph.add(
                "QuantizeLinear", [source, scale, zero_point], name=f"{name}_quantized", attributes=attributes
            )
        return graph.add(
            "DequantizeLinear",
            [codes, scale, zero_point],
            name=f"{name}_dequantized",
            attributes=attributes,
            like=value,
        )

    def _becomes_half(self, point: WeightPoint) -> bool:
        """Whether the scale will be in half precision, with the nodes that read the weight."""
        kept = self.plan.float32
        return self.plan.float_type != "float32" and any(node not in kept for node, _ in point.uses)


def _clipped(weight: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[Any]:
    """The weight inside the grid: QuantizeLinear knows no narrow type and would use its lowest code."""
    scale = along(params.scale, weight.ndim, params.axis)
    low, high = ((np.float32(code) * scale).astype(weight.dtype) for code in (params.qtype.qmin, params.qtype.qmax))
    clipped: npt.NDArray[Any] = np.clip(weight, low, high)
    return clipped


def _as_read(scale: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Scales as they are read in half precision; those of its type that would be subnormal become the least normal.

    Codes must be of these: a channel of 1e-6, beside which others are far larger, is 0 and not 100 times too large.
    """
    held = held_by(scale, dtype)
    return np.maximum(held, np.float32(SMALLEST_SCALE)) if dtype == "float16" else held


def _still_chosen(chosen: Rounded, params: QuantParams, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The codes that were chosen, or the nearest where the scale is not what they were chosen for, but far larger."""
    moved = params.scale > chosen.scale * (1 + NEAR)
    if not moved.any():
        return chosen.codes
    return np.where(along(moved, weight.ndim, params.axis), quantize(weight, params), chosen.codes)


def _in_dtype(params: QuantParams, dtype: np.dtype[Any]) -> QuantParams:
    """The parameters as they read back from a scale stored in the weight's type."""
    if dtype == np.float32:
        return params
    stored = np.maximum(params.scale.astype(dtype), np.finfo(dtype).tiny).astype(np.float32)
    return QuantParams(stored, params.zero_point, params.qtype, params.axis)
