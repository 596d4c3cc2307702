"""Graphs written as ONNX text, and what the tests of the passes ask of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper, parser

from onnxq.graph import Graph
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]


def graph_of(text: str, opset: int = 17, /, **weights: npt.ArrayLike) -> Graph:
    """A graph from `(inputs) => (outputs) { nodes }`; names that the text leaves open are given as weights."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> test {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return Graph.from_proto(model)


def named_in(text: str, held: Mapping[str, npt.ArrayLike]) -> dict[str, npt.ArrayLike]:
    """Those of the arrays that the text names."""
    return {name: array for name, array in held.items() if name in words(text)}


def words(text: str) -> set[str]:
    """What stands between spaces, commas and brackets."""
    return set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())


def lines(graph: Graph) -> list[str]:
    """The nodes in order, as `y = Op(a, b)`; a left-out input is `_`."""
    return [
        f"{', '.join(str(v.name) for v in node.outputs)} = {node.op_type}"
        f"({', '.join('_' if v is None else str(v.name) for v in node.inputs)})"
        for node in graph.nodes
    ]


def run(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs as ONNX Runtime computes them without optimizing anything."""
    return Session(graph.to_proto().SerializeToString(), optimize=False).run(feeds)


def random_feeds(graph: Graph, seed: int = 0, **dims: int) -> dict[str, Array]:
    """Standard normal numbers for every input; named dimensions get their length from `dims`."""
    rng = np.random.default_rng(seed)
    shapes = {str(v.name): graph.shape(v) or () for v in graph.inputs}
    return {
        name: np.asarray(rng.normal(size=[d if isinstance(d, int) else dims[str(d)] for d in shape]), dtype=np.float32)
        for name, shape in shapes.items()
    }


def same_function(before: Graph, after: Graph, feeds: Mapping[str, Array], rtol: float = 1e-4) -> None:
    """Assert that both compute the same outputs under the same names, up to rounding in float32."""
    assert [v.name for v in before.inputs] == [v.name for v in after.inputs]
    assert [v.name for v in before.outputs] == [v.name for v in after.outputs]
    for expected, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        # Rounding errs relative to the largest terms of a sum, not to a result that happens to cancel.
        scale = float(np.abs(expected).max(initial=0.0)) if expected.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * scale)
