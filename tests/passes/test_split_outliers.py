from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import StatisticsError
from onnxq.passes import SplitOutliers

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(3)


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(w, x)",  # reads it as columns
        "t = Transpose(x) y = MatMul(x, t)",  # no weight
        "y = Gemm<transA=1>(x, w)",
        "y = Gemm<alpha=0.5>(x, w)",
        "y = Mul(x, x)",
    ],
)
def test_left_alone(body: str) -> None:
    text = f"(float[16,16] x) => (float[16,16] y) {{ {body} }}"
    held = weights(w=(16, 16)) if "w" in body else {}
    graph = graph_of(text, 17, **held)
    assert SplitOutliers({"x": (1,)})(graph) == 0
    assert graph.digest() == graph_of(text, 17, **held).digest()


@given(st.sets(st.integers(0, 15), min_size=1, max_size=5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_same_function(columns: set[int], outputs_product: bool) -> None:
    held = weights(a=(16, 8), b=(8, 16), c=(8,))
    tail = "y = Identity(p)" if not outputs_product else "y = Add(p, p)"
    text = f"(float[N,16] x) => (float[N,8] y, float[N,8] q) {{ p = MatMul(x, a) q = Gemm<transB=1>(x, b, c) {tail} }}"
    graph, plain = graph_of(text, 17, **held), graph_of(text, 17, **held)
    assert SplitOutliers({"x": tuple(sorted(columns))})(graph) == 2
    feed = {"x": (RNG.normal(size=(5, 16)) * 10).astype(np.float32)}
    for exact, found in zip(run(plain, feed), run(graph, feed), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-3)
    assert ops(graph).count("Gather") == ops(graph).count("Mul") == 1  # both products read the same
    assert graph.problem() is None
    rest = {str(getattr(n.inputs[0], "name", "")) for n in graph.nodes if n.op_type == "Gemm"}
    assert rest == {"x/rest"}


def test_the_rest_is_zero_where_the_outliers_are() -> None:
    graph = graph_of("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", 17, **weights(w=(8, 4)))
    SplitOutliers({"x": (2, 5)})(graph)
    rest, few = graph.const(graph.weights["w/rest"]), graph.const(graph.weights["w/outliers"])
    assert rest is not None
    assert few is not None
    assert not rest[[2, 5]].any()
    assert few.shape == (2, 4)
    assert [str(v.name) for v in graph.outputs] == ["y"]


def test_of_another_model() -> None:
    graph = graph_of("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", 17, **weights(w=(8, 4)))
    with pytest.raises(StatisticsError, match="'z'"):
        SplitOutliers({"z": (1,)})(graph)
