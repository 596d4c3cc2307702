"""Additions before a LayerNormalization become one Sum: what is left alone first."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function

from onnxq.passes.cpu_sums import sum_before_norm

WEIGHTS = {"s": np.ones(8, np.float32), "b": np.linspace(-1, 1, 8).astype(np.float32)}
W = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "body",
    [
        "y = LayerNormalization(x, s)",
        "a = Add(x, b) y = LayerNormalization(a, s)",  # no residual: nothing to join
        "a = Sub(x, r) y = LayerNormalization(a, s)",
    ],
)
def test_what_is_no_residual_addition_is_left_alone(body: str) -> None:
    used = {name: array for name, array in WEIGHTS.items() if f" {name})" in body}
    graph = graph_of(f"(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y) {{ {body} }}", **used)
    assert sum_before_norm(graph) == 0


def test_a_residual_addition_becomes_a_sum_and_takes_the_bias_along() -> None:
    text = """(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y) {
              h = MatMul(x, w) a = Add(h, b) c = Add(a, r) y = LayerNormalization(c, s) }"""
    graph = graph_of(text, w=W, **WEIGHTS)
    before = graph.copy()
    assert sum_before_norm(graph) == 1
    assert lines(graph) == ["h = MatMul(x, w)", "c = Sum(h, b, r)", "y = LayerNormalization(c, s)"]
    same_function(before, graph, random_feeds(graph), 1e-6)


def test_a_biased_product_that_others_read_keeps_its_addition() -> None:
    text = """(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y, float[2,3,8] a) {
              h = MatMul(x, w) a = Add(h, b) c = Add(r, a) y = LayerNormalization(c, s) }"""
    graph = graph_of(text, w=W, **WEIGHTS)
    before = graph.copy()
    assert sum_before_norm(graph) == 1
    assert "c = Sum(r, a)" in lines(graph)
    same_function(before, graph, random_feeds(graph), 1e-6)


def test_readers_of_the_sum_read_it_still() -> None:
    text = """(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] z) {
              c = Add(x, r) y = LayerNormalization(c, s) z = Add(y, c) }"""
    graph = graph_of(text, s=WEIGHTS["s"])
    before = graph.copy()
    assert sum_before_norm(graph) == 1
    assert lines(graph) == ["c = Sum(x, r)", "y = LayerNormalization(c, s)", "z = Add(y, c)"]
    same_function(before, graph, random_feeds(graph), 1e-6)
