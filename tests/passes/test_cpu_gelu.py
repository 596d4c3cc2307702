"""An exact GELU that is rounded anyway becomes FastGelu: what is left alone first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of, lines, random_feeds, run

from onnxq.passes.cpu_gelu import ERROR, STEPS, fast_gelu

if TYPE_CHECKING:
    from onnxq.graph import Graph

ERF = "a = Div(x, r) b = Erf(a) c = Add(b, o) d = Mul(x, c) g = Mul(d, h) "
NUMBERS = {
    "r": np.float32(math.sqrt(2)),
    "o": np.float32(1),
    "h": np.float32(0.5),
    "s": np.float32(ERROR * STEPS * 1.01),
}
HEAD = "(float[2,3,8] x) => (uint8[2,3,8] y) "


def graph(body: str, head: str = HEAD, opset: int = 17, **weights: npt.ArrayLike) -> Graph:
    """A graph with those of the constants that it reads."""
    used: dict[str, npt.ArrayLike] = {
        n: a for n, a in {**NUMBERS, **weights}.items() if f", {n})" in body or f", {n}," in body
    }
    found = graph_of(f"{head} {{ {body} }}", opset, **used)
    found.infer_shapes()
    return found


@pytest.mark.parametrize(
    ("body", "scale"),
    [
        (f"{ERF} y = QuantizeLinear(g, s)", ERROR * STEPS * 0.99),  # its steps are too fine
        (f"{ERF} k = Mul(g, m) y = QuantizeLinear(k, s)", ERROR * STEPS * 1.9),
        (f"{ERF} k = Relu(g) y = QuantizeLinear(k, s)", 1.0),
        (f"{ERF} z = Relu(g) y = QuantizeLinear(g, s)", 1.0),  # somebody reads it unrounded
        ("a = Mul(x, r) b = Sigmoid(a) g = Mul(x, b) y = QuantizeLinear(g, s)", 1.0),
    ],
)
def test_others_are_left_alone(body: str, scale: float) -> None:
    assert fast_gelu(graph(body, s=np.float32(scale), m=np.full(8, 2, np.float32))) == 0


def test_a_result_of_the_model_is_left_alone() -> None:
    body = f"{ERF} y = QuantizeLinear(g, s)"
    assert fast_gelu(graph(body, "(float[2,3,8] x) => (uint8[2,3,8] y, float[2,3,8] g)", s=np.float32(1))) == 0


def test_the_tanh_form_of_the_operator_is_left_alone() -> None:
    body = 'g = Gelu<approximate="tanh">(x) y = QuantizeLinear(g, s)'
    assert fast_gelu(graph(body, opset=20, s=np.float32(1))) == 0


def test_the_two_formulas_are_as_close_as_it_says() -> None:
    x = np.linspace(-12, 12, 100_001)
    exact = x / 2 * (1 + np.array([math.erf(v) for v in x / math.sqrt(2)]))
    error = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) - exact
    assert 0.99 * ERROR < np.abs(error).max() <= ERROR
    for deviation in np.linspace(0.1, 6, 60):
        weights = np.exp(-((x / deviation) ** 2) / 2)
        power = (error**2 * weights).sum() / weights.sum()
        assert 12 * power / (STEPS * ERROR) ** 2 < 0.04


@pytest.mark.parametrize(
    ("body", "opset"),
    [(f"{ERF} y = QuantizeLinear(g, s)", 17), ("g = Gelu(x) y = QuantizeLinear(g, s)", 20)],
)
def test_what_is_rounded_becomes_fast_gelu(body: str, opset: int) -> None:
    made = graph(body, opset=opset)
    before = made.copy()
    assert fast_gelu(made) == 1
    made.remove_unused()
    assert lines(made) == ["g = FastGelu(x)", "y = QuantizeLinear(g, s)"]
    feeds = random_feeds(made)
    difference = run(before, feeds)[0].astype(int) - run(made, feeds)[0]
    assert np.abs(difference).max() <= 1
    assert fast_gelu(made) == 0


def test_the_bias_of_a_product_and_a_smoothing_behind_are_taken_along() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 8)), "v": rng.normal(size=(1, 1, 8)), "m": np.full(8, 2.0), "t": np.ones(8)}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    body = f"p = MatMul(z, w) x = Add(p, v) {ERF} k = Mul(g, m) l = Add(k, t) y = QuantizeLinear(l, s)"
    made = graph(body, "(float[2,3,8] z) => (uint8[2,3,8] y)", 17, **(arrays | {"s": np.float32(ERROR * STEPS * 2.01)}))
    before = made.copy()
    assert fast_gelu(made) == 1
    made.remove_unused()
    assert lines(made)[1] == "g = FastGelu(p, g/bias)"
    feeds = random_feeds(made)
    difference = run(before, feeds)[0].astype(int) - run(made, feeds)[0]
    assert np.abs(difference).max() <= 1
