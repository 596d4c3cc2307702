"""How far tensors can go at most, by what was seen of others: intervals [-b, b] carried along the graph.

A bound of each operator's output follows from those of its inputs (R. E. Moore, Interval Analysis, 1966): a product
with constant weights by the largest sum of |w| over what one output element adds up, a LayerNormalization of n elements
by sqrt(n), since (x - mean) / std is at most sqrt(n - 1) there (P. A. Samuelson, How Deviant Can You Be?, JASA 1968).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from onnxq.patterns.chains import MOVING, POOLING
from onnxq.patterns.ranges import FILL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

_ONE = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sin", "Cos"})
"""Operators whose outputs lie within [-1, 1]."""

_SHRINKING = POOLING | MOVING - {"Concat"} | {"Relu", "Gelu", "HardSwish", "Mish", "Neg", "Abs", "Dropout"}
"""Operators whose outputs go no further than their first input."""

_JOINING = frozenset({"Concat", "Max", "Min"})
_SUMMING = frozenset({"Add", "Sub", "Sum"})
_BLOCK = 1 << 22


def bounds(graph: Graph, seen: Mapping[str, float], masks: AbstractSet[str] = frozenset()) -> dict[str, float]:
    """Name -> the largest |x| that the tensor can have; inf where nothing bounds it.

    Args:
        graph: its nodes in an order in which they can run.
        seen: name -> the largest |x| that was seen; weights are read.
        masks: names of the tensors that are only added to a Softmax's input: what is filled in there is -inf.
    """
    found = dict(seen)
    for node in graph.nodes:
        reach = bound(graph, node, found, masks)
        found |= {name: min(reach, seen.get(name, inf)) for name in (str(v.name) for v in node.outputs)}
    return found


def bound(graph: Graph, node: Node, found: Mapping[str, float], masks: AbstractSet[str] = frozenset()) -> float:
    """The largest |x| that an output of the node can have, by what was `found` for its inputs; see `bounds`."""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain:
        return inf
    result = rule(_Reader(graph, node, found, masks))
    return inf if np.isnan(result) else float(result)


@dataclass(frozen=True)
class _Reader:
    """What a rule asks of its node: bounds of inputs, the arrays of constant ones, attributes."""

    graph: Graph
    node: Node
    found: Mapping[str, float]
    masks: AbstractSet[str]

    def value(self, index: int) -> Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def array(self, index: int) -> npt.NDArray[np.floating] | None:
        value = self.value(index)
        array = self.graph.const(value) if self.graph.is_const(value) else None
        return array if array is not None and array.dtype.kind == "f" else None

    def reach(self, index: int, default: float = inf) -> float:
        """The bound of an input; `default` where there is none."""
        value = self.value(index)
        if value is None:
            return default
        array = self.array(index)
        return _amax(array) if array is not None else self.found.get(str(value.name), inf)

    def reaches(self) -> list[float]:
        return [self.reach(i) for i, value in enumerate(self.node.inputs) if value is not None]

    def number(self, name: str, default: float) -> float:
        return float(self.graph.attribute(self.node, name, default))


def _amax(array: npt.NDArray[np.floating]) -> float:
    amax = float(max(array.max(initial=0.0), -array.min(initial=0.0)))
    return inf if np.isnan(amax) else amax


def _largest_sum(array: npt.NDArray[np.floating], axis: int) -> float:
    """The largest sum of |w| along all axes but one; read in blocks, as weights may be as large as memory."""
    if array.size == 0:
        return 0.0
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    step = max(1, _BLOCK * len(array) // max(array.size, 1))
    sums = [np.abs(array[i : i + step]).sum(axis=others, dtype=np.float64) for i in range(0, len(array), step)]
    whole = sum(sums) if 0 in others else np.concatenate(sums)
    return float(np.max(whole, initial=0.0))


def _by_columns(array: npt.NDArray[np.floating]) -> float:
    """The gain of x @ w, whatever is stacked in front of w's last two axes."""
    if array.ndim < 2:
        return float(np.abs(array).sum(dtype=np.float64))
    return max((_largest_sum(w, 1) for w in array.reshape(prod(array.shape[:-2]), *array.shape[-2:])), default=0.0)


def _product(reader: _Reader) -> float:
    left, right = reader.array(0), reader.array(1)
    if right is not None:
        return reader.reach(0) * _by_columns(right)
    if left is not None:
        return reader.reach(1) * _by_columns(left.swapaxes(-1, -2) if left.ndim > 1 else left)
    maker = reader.graph.producer(reader.value(0), "Softmax")
    last = maker is not None and reader.graph.attribute(maker, "axis", -1) in (-1, _last(reader, maker))
    return reader.reach(1) if last else inf  # means, whose weights add up to 1


def _last(reader: _Reader, node: Node) -> int | None:
    rank = reader.graph.rank(node.outputs[0])
    return None if rank is None else rank - 1


def _gemm(reader: _Reader) -> float:
    weight = reader.array(1)
    if weight is None:
        return inf
    gain = _largest_sum(weight, 0 if reader.number("transB", 0) else 1)
    bias = abs(reader.number("beta", 1.0)) * reader.reach(2, 0.0)
    return abs(reader.number("alpha", 1.0)) * gain * reader.reach(0) + bias


def _conv(reader: _Reader) -> float:
    weight = reader.array(1)
    axis = 1 if reader.node.op_type == "ConvTranspose" else 0
    return inf if weight is None else _largest_sum(weight, axis) * reader.reach(0) + reader.reach(2, 0.0)


def _normalized(reader: _Reader) -> float:
    scale = reader.array(1)
    return inf if scale is None else sqrt(scale.size) * _amax(scale) + reader.reach(2, 0.0)


def _batch_normalized(reader: _Reader) -> float:
    arrays, reach = [reader.array(i) for i in range(1, 5)], reader.reach(0)
    if reach == inf or any(a is None for a in arrays):
        return inf
    scale, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
    with np.errstate(divide="ignore", invalid="ignore"):  # what is infinite or no number bounds nothing
        gain = scale / np.sqrt(var + reader.number("epsilon", 1e-5))
        return float(np.max(np.abs(gain) * reach + np.abs(bias - gain * mean), initial=0.0))


def _times(reader: _Reader) -> float:
    a, b = reader.reach(0), reader.reach(1)
    return 0.0 if 0.0 in (a, b) else a * b


def _divided(reader: _Reader) -> float:
    divisor = reader.array(1)
    least = 0.0 if divisor is None else float(np.abs(divisor).min(initial=inf))
    return reader.reach(0) / least if least else inf


def _clipped(reader: _Reader) -> float:
    ends = [reader.array(i) for i in (1, 2)]
    if "min" in reader.node.attributes or "max" in reader.node.attributes:  # before opset 11
        return inf
    low, high = (default if a is None else float(a) for a, default in zip(ends, (-inf, inf), strict=True))
    known = all(a is not None or reader.value(i) is None for i, a in enumerate(ends, start=1))
    widest = max(abs(low), abs(high))
    return min(widest, reader.reach(0)) if known and low <= 0 <= high else widest if known else inf


def _padded(reader: _Reader) -> float:
    return max(reader.reach(0), abs(reader.number("value", 0.0)), reader.reach(2, 0.0))


def _resized(reader: _Reader) -> float:
    return inf if reader.graph.attribute(reader.node, "mode", "nearest") == "cubic" else reader.reach(0)


def _chosen(reader: _Reader) -> float:
    if str(reader.node.outputs[0].name) not in reader.masks:
        return max(reader.reach(1), reader.reach(2))
    arrays = (reader.array(1), reader.array(2))
    return max(reader.reach(i) if a is None else _amax(a[a > FILL]) for i, a in enumerate(arrays, start=1))


def _leaky(reader: _Reader) -> float:
    slope = reader.reach(1) if reader.node.op_type == "PRelu" else abs(reader.number("alpha", 0.01))
    return max(1.0, slope) * reader.reach(0)


_RULES: dict[str, Callable[[_Reader], float]] = {
    **dict.fromkeys(_ONE, lambda _: 1.0),
    **dict.fromkeys(_SHRINKING, lambda reader: reader.reach(0)),
    **dict.fromkeys(_JOINING, lambda reader: max(reader.reaches())),
    **dict.fromkeys(_SUMMING, lambda reader: sum(reader.reaches())),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _normalized),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu"), _leaky),
    "BatchNormalization": _batch_normalized,
    "Clip": _clipped,
    "Div": _divided,
    "Gemm": _gemm,
    "MatMul": _product,
    "Mul": _times,
    "Pad": _padded,
    "Resize": _resized,
    "Where": _chosen,
}
