"""Replace what depends on weights alone by weights.

A node folds when all its inputs are weights or come from nodes that fold; Shape and Size also where the dimensions they
tell are static. All of it is computed in one run of ONNX Runtime, on a model that holds only those nodes.

What stays: quantization (its place in the graph is its meaning), random operators, nodes with bodies, other domains,
nodes that make an output of the model, and element types that numpy lacks. A node whose result is more than 1 MiB
larger than its inputs stays too, for the file's sake, unless the result is the weight of an operator that onnxq
quantizes or folds into, at once or behind nodes that only move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.operators import RANDOM
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
MOVES = frozenset({"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
NUMPY_TYPES = frozenset(
    ["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
IR_VERSION = 10
"""Of the model that is run: ONNX Runtime refuses versions newer than itself, and these nodes need no newer one."""

GROWTH = 1 << 20
"""Bytes by which a folded node may enlarge the file."""


def fold_constants(graph: Graph) -> int:
    """Fold every constant part of the graph; return the number of values that became weights."""
    shapes = sum(_fold_shape(graph, node) for node in graph.nodes)
    folding = _folding(graph)
    frontier = [v for node in folding.values() for v in node.outputs if _needed_outside(graph, v, folding)]
    named = {str(v.name): v for node in folding.values() for v in node.outputs}
    found = ((named[name], array) for name, array in _evaluate(graph, frontier, set()))
    arrays = {value: array for value, array in found if _may_store(graph, value, array)}
    for value, array in arrays.items():
        graph.replace_uses(value, graph.constant(f"{value.name}/folded", array))
    if shapes or arrays:
        graph.remove_unused()
    return shapes + len(arrays)


def _fold_shape(graph: Graph, node: Node) -> bool:
    """Replace a Shape or Size of static dimensions; needs no evaluation, and its input need not be a weight."""
    if node.op_type not in ("Shape", "Size") or not _is_standard(node) or node.outputs[0].is_graph_output():
        return False
    shape = graph.shape(node.inputs[0])
    if shape is None:
        return False
    # The operator clamps start and end, and counts negative ones from the end, as slices do.
    told = shape[graph.attribute(node, "start", 0) : graph.attribute(node, "end", None)]
    dims = [d for d in told if isinstance(d, int)]
    if len(dims) != len(told):
        return False
    array = np.array(dims, np.int64) if node.op_type == "Shape" else np.prod(dims, dtype=np.int64)
    output = node.outputs[0]
    graph.replace_uses(output, graph.constant(f"{output.name}/folded", np.asarray(array)))
    graph.remove(node)
    return True


def _folding(graph: Graph) -> dict[int, Node]:
    """The nodes that fold, by id, in the graph's order."""
    folding: dict[int, Node] = {}
    for node in graph.nodes:
        ready = all(v is None or graph.is_const(v) or id(v.producer()) in folding for v in node.inputs)
        if ready and _may_fold(graph, node):
            folding[id(node)] = node
    return folding


def _may_fold(graph: Graph, node: Node) -> bool:
    if not _is_standard(node) or node.op_type in QUANTIZATION | RANDOM or node.op_type.startswith("Sequence"):
        return False
    if any(True for _ in graph.bodies(node)):
        return False
    if any(v.is_graph_output() or graph.dtype(v) not in {None, *NUMPY_TYPES} for v in node.outputs):
        return False
    return _growth(graph, node) <= GROWTH or any(_is_weight(graph, v) for v in node.outputs)


def _is_standard(node: Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _growth(graph: Graph, node: Node) -> int:
    """Bytes that the outputs have more than the inputs, as far as shapes are known."""
    return sum(_bytes(graph, v) for v in node.outputs) - sum(_bytes(graph, v) for v in node.inputs)


def _bytes(graph: Graph, value: Value | None) -> int:
    dtype = graph.dtype(value)
    return (graph.size(value) or 0) * np.dtype(dtype).itemsize if dtype in NUMPY_TYPES else 0


def _is_weight(graph: Graph, value: Value) -> bool:
    """Whether a linear node or batch norm reads the value as a parameter, directly or behind moves."""
    values, seen = [value], {id(value)}
    while values:
        for user, index in graph.users(values.pop()):
            if user.op_type in WEIGHTED and index > 0:
                return True
            if user.op_type in MOVES and index == 0 and id(user.outputs[0]) not in seen:
                seen.add(id(user.outputs[0]))
                values.append(user.outputs[0])
    return False


def _needed_outside(graph: Graph, value: Value, folding: Mapping[int, Node]) -> bool:
    return any(id(user) not in folding for user, _ in graph.users(value))


def _may_store(graph: Graph, value: Value, array: Array) -> bool:
    """The limit on growth again, for shapes that were not known before."""
    node = value.producer()
    before = 0 if node is None else sum(_bytes(graph, v) for v in node.inputs)
    return array.dtype.name in NUMPY_TYPES and (
        array.nbytes - before <= GROWTH or graph.size(value) is not None or _is_weight(graph, value)
    )


def _evaluate(graph: Graph, values: Sequence[Value], tried: set[str]) -> Iterator[tuple[str, Array]]:
    """Each value's name and array, all in one run.

    Where ONNX Runtime lacks an operator, each half by itself; where a single value cannot be computed at all, the
    values that it is computed from in its place.
    """
    values = [v for v in values if v.name not in tried]
    if not values:
        return
    part = graph.extract(values)  # the parts of this part are then quick to cut out
    proto = part.to_proto()
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    try:
        results = Session(proto.SerializeToString(), optimize=False).run({})
    except (OnnxqError, ValueError):  # ValueError: more than protobuf's 2 GiB
        if len(values) > 1:
            half = len(values) // 2
            yield from _evaluate(part, part.outputs[:half], tried)
            yield from _evaluate(part, part.outputs[half:], tried)
            return
        results = _reference(proto)
    if results and isinstance(results[0], np.ndarray):
        yield from ((str(v.name), a) for v, a in zip(values, results, strict=True) if isinstance(a, np.ndarray))
    elif (node := part.outputs[0].producer()) is not None:
        tried.add(str(values[0].name))
        yield from _evaluate(part, [v for v in node.inputs if v is not None and not part.is_const(v)], tried)


def _reference(proto: Any) -> list[Any]:  # noqa: ANN401  onnx is not imported here
    """The outputs by onnx's own evaluator, or none when it fails too."""
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, {}))
    except Exception:  # noqa: BLE001  the evaluator raises every type; the node then stays as it is
        return []
