"""Graphs and plans for the tests of placement and lowering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper, parser

from onnxq.graph import Graph
from onnxq.placement import placed
from onnxq.recipe import Recipe
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from onnxq.plan import Plan

Array = npt.NDArray[Any]
Given = Array | tuple[int, ...]
TENSORRT = TARGETS["tensorrt"]


def net(inputs: str, body: str, outputs: str = "y", opset: int = 17, /, **weights: Given) -> Graph:
    """A graph with its shapes inferred. Weights given as a shape are random, of a size that keeps signals alive.

    Nodes are named `Op:output` by the graph. Outputs are listed with blanks between.
    """
    rng = np.random.default_rng(len(body))
    outs = ", ".join(f"float[Q] {name}" for name in outputs.split())
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> test ({inputs}) => ({outs}) {{ {body} }}'
    model = parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name, given in weights.items():
        array = given if isinstance(given, np.ndarray) else _random(rng, given)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    graph = Graph.from_proto(model)
    graph.infer_shapes()
    return graph


def planned(graph: Graph, recipe: Recipe | None = None) -> Plan:
    """The plan for TensorRT."""
    return placed(graph, TENSORRT, recipe or Recipe())


def uses(plan: Plan) -> dict[str, set[str]]:
    """Tensor -> `node@input` of its quantized uses."""
    return {p.tensor: {f"{node}@{index}" for node, index in p.uses} for p in plan.points.values()}


def groups(plan: Plan) -> set[frozenset[str]]:
    """The sets of two and more tensors that share a scale."""
    found: dict[str, set[str]] = {}
    for point in plan.points.values():
        found.setdefault(point.group, set()).add(point.tensor)
    return {frozenset(members) for members in found.values() if len(members) > 1}


def int8(plan: Plan) -> set[str]:
    """Names of the nodes that run in int8."""
    return {d.node for d in plan.decisions if d.quantized}


def reason(plan: Plan, node: str) -> str:
    """Why the node is, or is not, in int8."""
    return next(d.reason for d in plan.decisions if d.node == node)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    fan = max(1, int(np.prod(shape)) // max(shape[:1] or (1,)))
    return np.asarray(rng.normal(size=shape) * np.sqrt(2 / fan), np.float32)
