"""Flatten becomes Reshape from opset 21 on: what is left alone first."""

from __future__ import annotations

import pytest
from graphs import graph_of, random_feeds, same_function

from onnxq.passes.flatten_to_reshape import flatten_to_reshape


@pytest.mark.parametrize(("axis", "opset"), [(1, 20), (2, 21), (0, 21)])
def test_left_alone(axis: int, opset: int) -> None:
    graph = graph_of(f"(float[N,3,4,5] x) => (float[A,B] y) {{ y = Flatten<axis={axis}>(x) }}", opset)
    before = graph.digest()
    assert flatten_to_reshape(graph) == 0
    assert graph.digest() == before


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("shape", ["N,3,4,5", "N,3,H,5", "2,3,4,5"])
def test_the_same_function(shape: str, axis: int) -> None:
    text = f"(float[{shape}] x) => (float[A,B] y) {{ r = Relu(x) y = Flatten<axis={axis}>(r) }}"
    graph, plain = graph_of(text, 21), graph_of(text, 21)
    for one in (graph, plain):
        one.infer_shapes()
    assert flatten_to_reshape(graph) == 1
    assert [n.op_type for n in graph.nodes] == ["Relu", "Reshape"]
    same_function(plain, graph, random_feeds(plain, N=3, H=4))
