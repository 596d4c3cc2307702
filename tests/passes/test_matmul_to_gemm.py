"""MatMul + Add of plain matrices becomes a Gemm: what is left alone first."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function

from onnxq.passes.matmul_to_gemm import matmul_to_gemm

RNG = np.random.default_rng(1)
W, B = RNG.normal(size=(4, 8)).astype(np.float32), RNG.normal(size=8).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "out", "bias"),
    [
        ("2,3,4", "2,3,8", B),  # no plain matrices
        ("3,4", "3,8", np.ones((3, 8), np.float32)),  # a bias of its own for each row
        ("1,4", "3,8", np.ones((3, 1), np.float32)),  # it makes more rows of one
    ],
)
def test_other_additions_are_left_alone(shape: str, out: str, bias: np.ndarray) -> None:
    graph = graph_of(f"(float[{shape}] x) => (float[{out}] y) {{ h = MatMul(x, w) y = Add(h, b) }}", w=W, b=bias)
    assert matmul_to_gemm(graph) == 0


def test_a_product_that_others_read_is_left_alone() -> None:
    graph = graph_of("(float[3,4] x) => (float[3,8] y, float[3,8] h) { h = MatMul(x, w) y = Add(h, b) }", w=W, b=B)
    assert matmul_to_gemm(graph) == 0


@pytest.mark.parametrize("order", ["h, b", "b, h"])
@pytest.mark.parametrize("shape", [(8,), (1, 8)])
def test_it_becomes_a_gemm_of_the_same_numbers(order: str, shape: tuple[int, ...]) -> None:
    text = f"(float[N,4] x) => (float[N,8] y) {{ h = MatMul(x, w) y = Add({order}) }}"
    graph = graph_of(text, w=W, b=B.reshape(shape))
    before = graph.copy()
    assert matmul_to_gemm(graph) == 1
    assert lines(graph) == ["y = Gemm(x, w, b)"]
    same_function(before, graph, random_feeds(graph, N=5), 1e-6)
