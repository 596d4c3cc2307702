"""What time the choices of a Pareto list would take on a GPU that is not there: a prediction by the roofline, no more.

A layer takes as long as its arithmetic at the peak rate of its precision, or as what it reads and writes at the peak
bandwidth, whichever is longer (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52(4), 2009). Real kernels reach a part of both peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from onnxq.outcome import Prediction
from onnxq.placement.weighted import macs
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.graph import Graph, Node, Value
    from onnxq.outcome import Budget
    from onnxq.search.budget import Search
    from onnxq.targets.target import Target

    Shapes = Mapping[str, Sequence[int]]
    """Input -> its shape in a sample."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU does at most: operations a second in int8 and float16 on dense matrices, and bytes a second."""

    name: str
    int8: float
    float16: float
    bandwidth: float


L4 = Gpu("NVIDIA L4", int8=242.5e12, float16=121e12, bandwidth=300e9)
"""NVIDIA L4 Tensor Core GPU, data sheet of 2023: 485 TOPS in int8 and 242 TFLOPS in float16, both "with sparsity", of
which dense matrices have half, and 300 GB/s."""

_FLOAT = 2.0
"""Bytes of a value that is not quantized: float16."""


_POINTWISE = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max"}
    | {"Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"}
)
"""What joins the kernel of the layer in front of it."""


def predictable(target: Target) -> bool:
    """Whether the target's models run on such a GPU, all of it: TensorRT's but for the DLA."""
    return target.placement == "tensorrt" and not target.every_tensor


def predicted(found: Budget, search: Search, floating: Graph) -> Budget:
    """The budget with what each choice on its Pareto list would take, over the model in float16.

    Args:
        found: what the search has come to.
        search: it made the choices, and has the samples; the first one that judges gives the shapes.
        floating: the float model.
    """
    target, feed = get_target(search.trials.ready.recipe.target), search.judging.feeds[0]
    shapes = {name: array.shape for name, array in feed.items()}
    reference = seconds(floating, target, shapes)
    ratios = {}
    search.monitor.stage("Predicting times of the Pareto list", len(found.pareto))
    for tried, graph in search.shipped(found.pareto):
        if reference:
            ratios[tried] = Prediction(seconds(graph, target, shapes) / reference, L4.name)
        search.monitor.advance()
    return replace(found, tried=tuple(replace(t, predicted=ratios.get(t)) for t in found.tried))


def seconds(graph: Graph, target: Target, shapes: Shapes, gpu: Gpu = L4) -> float:
    """Sum over the layers with multiply-accumulates, of the longer of arithmetic and memory.

    A layer computes in integers where its data and its weight come from DequantizeLinear, else in float16; a
    multiply-accumulate is two operations. It reads its inputs and writes its outputs once. What stands between layers
    is taken as part of them: nothing is counted for it, nor for what starts a kernel.

    Args:
        graph: as it is shipped, with pairs in it; or without any, for the float16 model.
        target: whose weighted operators count.
        shapes: of the inputs.
        gpu: what it runs on.
    """
    sized = graph.copy()
    sized.infer_shapes(dict(shapes))
    total = 0.0
    for part in sized.parts():
        narrow: dict[str, bool] = {}
        for node in part.nodes:
            work = macs(part, node, target)
            if work:
                index = target.weighted.get(node.op_type, 1)
                low = all(_width(part, node.inputs[i]) < _FLOAT for i in (0, index))
                rate = gpu.int8 if low else gpu.float16
                total += max(2 * work / rate, _moved(part, node, narrow) / gpu.bandwidth)
    return total


def _moved(graph: Graph, node: Node, narrow: dict[str, bool]) -> float:
    """Bytes that the layer reads and writes."""
    read = sum(_values(graph, v) * _width(graph, v) for v in node.inputs if v is not None)
    written = (_values(graph, v) * (1.0 if _narrow(graph, v, narrow) else _FLOAT) for v in node.outputs if v.name)
    return read + sum(written)


def _values(graph: Graph, value: Value) -> int:
    """How many there are; unknown dimensions count as 1."""
    return prod(d if isinstance(d, int) else 1 for d in graph.shape(value) or ())


def _width(graph: Graph, value: Value | None) -> float:
    """Bytes that a value is read in: those of its codes behind a DequantizeLinear."""
    node = graph.producer(value, "DequantizeLinear")
    if value is None or node is None:
        return _FLOAT
    dtype = graph.dtype(node.inputs[0]) or "int8"
    return 0.5 if "4" in dtype else 1.0


def _narrow(graph: Graph, value: Value, known: dict[str, bool]) -> bool:
    """Whether all that reads the value, up to the next layers, begins by quantizing it: then it is written as codes."""
    name = str(value.name)
    if name not in known:
        readers = [node for node, _ in graph.users(value)]
        ends = any(value is output for output in graph.outputs)
        known[name] = bool(readers) and not ends and all(_quantizes(graph, node, value, known) for node in readers)
    return known[name]


def _quantizes(graph: Graph, node: Node, value: Value, known: dict[str, bool]) -> bool:
    """Whether the reader is a QuantizeLinear, or of the layer's kernel and its own readers are."""
    if node.op_type == "QuantizeLinear":
        return True
    joins = node.op_type in _POINTWISE and _values(graph, node.outputs[0]) == _values(graph, value)
    return joins and _narrow(graph, node.outputs[0], known)
