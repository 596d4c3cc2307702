"""A normalization gives the smoothed tensor itself: what is left alone first."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.cpu_norms import smooth_in_norms

RNG = np.random.default_rng(0)
NAMES = {name: RNG.normal(size=8).astype(np.float32) for name in ("g", "h", "m", "a", "b")}
HEAD = "(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y, float[2,3,8] z) { n = LayerNormalization(x, g, h) "


@pytest.mark.parametrize(
    "body",
    [
        "y = Sigmoid(n) z = Sum(n, r)",
        "p = Mul(n, m) y = Add(p, a) z = Add(n, r)",  # no Sum: no such residual
        "p = Mul(n, m) q = Add(p, a) y = Sigmoid(q) z = Tanh(n)",
        "p = Mul(n, r) q = Add(p, a) y = Sigmoid(q) z = Sum(n, r)",
        "p = Mul(n, m) y = Sigmoid(p) k = Mul(n, b) l = Tanh(k) z = Sum(n, r, l)",
        "y = Mul(n, m) z = Sum(n, r)",  # a model output keeps its name
    ],
)
def test_others_are_left_alone(body: str) -> None:
    used = {k: v for k, v in NAMES.items() if f" {k})" in HEAD + body or f" {k}," in HEAD + body}
    assert smooth_in_norms(graph_of(HEAD + body + " }", **used)) == 0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["Sum(n, r)", "Sum(b, r, n)", "Sum(n, n)"]), st.booleans())
def test_the_norm_takes_factor_and_shift(seed: int, total: str, shifted: bool) -> None:
    add = "q = Add(a, p)" if shifted else "q = Identity(p)"
    used = {
        k: v for k, v in NAMES.items() if k in ("g", "h", "m") or (k == "a" and shifted) or k in total.split("(")[1]
    }
    rng = np.random.default_rng(seed)
    used["m"] = np.exp2(rng.uniform(-3, 3, 8)).astype(np.float32)
    used = {k: v for k, v in used.items() if k not in ("r", "n")}
    graph = graph_of(f"{HEAD} p = Mul(n, m) {add} y = Sigmoid(q) z = {total} }}", **used)
    before = graph.copy()
    assert smooth_in_norms(graph) == 1
    assert graph.problem() is None
    ops = [line.split(" = ")[1].split("(")[0] for line in lines(graph)]
    assert ops.count("Mul") == 1
    assert "Add" not in ops
    assert len(graph.nodes) == len(before.nodes) - shifted
    same_function(before, graph, random_feeds(graph, seed), 1e-5)
    assert smooth_in_norms(graph) == 0
