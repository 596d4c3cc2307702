from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function

from onnxq.passes.sum_to_add import sum_to_add

TWO = "(float[2,3] a, float[2,3] b) => (float[2,3] y) "


@pytest.mark.parametrize("body", ["y = Add(a, b)", "y = Sum(a, b, a)", "y = Sum(a)", "y = Max(a, b)"])
def test_leaves_alone(body: str) -> None:
    graph = graph_of(f"{TWO} {{ {body} }}")
    before = lines(graph)
    assert sum_to_add(graph) == 0
    assert lines(graph) == before


def test_leaves_a_sum_of_another_domain_alone() -> None:
    graph = graph_of(f"{TWO} {{ y = com.microsoft.Sum(a, b) }}")
    assert sum_to_add(graph) == 0


def test_a_sum_of_two_is_an_add_under_its_name() -> None:
    graph = graph_of(f"{TWO} {{ s = Sum(a, b) r = Relu(s) y = Sum(r, s) }}")
    before = graph.copy()
    assert sum_to_add(graph) == 2
    assert lines(graph) == ["s = Add(a, b)", "r = Relu(s)", "y = Add(r, s)"]
    same_function(before, graph, random_feeds(graph))


def test_broadcasting_stays() -> None:
    graph = graph_of("(float[2,3] a, float[3] b) => (float[2,3] y) { y = Sum(a, b) }")
    feeds = random_feeds(graph)
    before = graph.copy()
    assert sum_to_add(graph) == 1
    same_function(before, graph, feeds)


def test_the_same_tensor_twice() -> None:
    graph = graph_of("(float[2] x) => (float[2] y) { y = Sum(x, x) }")
    before = graph.copy()
    assert sum_to_add(graph) == 1
    assert lines(graph) == ["y = Add(x, x)"]
    same_function(before, graph, {"x": np.array([1, -3], np.float32)})
