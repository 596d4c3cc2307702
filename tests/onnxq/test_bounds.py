"""How far tensors can go, against what ONNX's reference evaluator makes of the worst inputs and of random ones."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from placing import net

from onnxq.patterns.bounds import bounds

if TYPE_CHECKING:
    from graphs import Array

    from onnxq.graph import Graph

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 5)).astype(np.float32)
X = "float[4,6] x"
IMAGE = "float[2,6,5,5] x"
ONES = np.ones(6, np.float32)


def made(inputs: str, body: str, **weights: Array | float) -> Graph:
    arrays = {name: np.asarray(w) for name, w in weights.items()}
    return net(
        inputs, body, "y", 18, **{n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    )


def reached(graph: Graph, x: Array) -> Array:
    (found,) = ReferenceEvaluator(graph.to_proto()).run(["y"], {"x": x.astype(np.float32)})
    return np.asarray(found)


WORST = [
    pytest.param("y = MatMul(x, w)", {"w": W}, np.sign(W[:, np.abs(W).sum(0).argmax()]), id="MatMul"),
    pytest.param("y = Gemm<alpha = 0.5>(x, w, b)", {"w": W, "b": np.full(5, 2.0)}, None, id="Gemm"),
    pytest.param("y = Gemm<transB = 1>(x, w)", {"w": W.T}, np.sign(W[:, np.abs(W).sum(0).argmax()]), id="Gemm, turned"),
    pytest.param("y = Add(x, x)", {}, ONES, id="Add"),
    pytest.param("y = Mul(x, k)", {"k": -3.0}, ONES, id="Mul"),
    pytest.param("y = Div(x, k)", {"k": -0.25}, ONES, id="Div"),
    pytest.param("y = Clip(x, lo, hi)", {"lo": -0.5, "hi": 0.25}, -ONES, id="Clip"),
    pytest.param("y = Clip(x, lo, hi)", {"lo": 0.0, "hi": 60.0}, ONES, id="Clip, beyond the input"),
    pytest.param("y = Clip(x, lo, hi)", {"lo": 5.0, "hi": 7.0}, None, id="Clip, apart from 0"),
    pytest.param("y = LeakyRelu<alpha = 3.0>(x)", {}, -ONES, id="LeakyRelu"),
    pytest.param("y = PRelu(x, k)", {"k": -2.0}, -ONES, id="PRelu"),
    pytest.param("y = Concat<axis = 0>(x, k)", {"k": np.full((1, 6), 9.0)}, ONES, id="Concat"),
    pytest.param("y = Sum(x, x, x)", {}, ONES, id="Sum"),
]


@pytest.mark.parametrize(("body", "weights", "signs"), WORST)
def test_bounds_are_reached_and_not_passed(body: str, weights: dict[str, Array], signs: Array | None) -> None:
    graph = made(X, body, **weights)
    limit = bounds(graph, {"x": 2.0})["y"]
    drawn = np.clip(np.random.default_rng(1).normal(size=(200, 4, 6)), -2, 2)
    assert max(float(np.abs(reached(graph, x)).max()) for x in drawn) <= limit * (1 + 1e-5)
    if signs is not None:
        assert np.isclose(np.abs(reached(graph, np.tile(2 * signs, (4, 1)))).max(), limit, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "body", "weight"),
    [
        ("float[4,0] x", "y = MatMul(x, w)", W[:0]),
        (X, "y = MatMul(x, w)", W[:, :0]),
        ("float[4,0] x", "y = Gemm<transB = 1>(x, w)", W.T[:, :0]),
        (X, "y = Gemm<transB = 1>(x, w)", W.T[:0]),
    ],
)
def test_sums_of_nothing_are_nothing(inputs: str, body: str, weight: Array) -> None:
    assert bounds(made(inputs, body, w=weight), {"x": 2.0})["y"] == 0.0


CONV = RNG.normal(size=(3, 6, 3, 3)).astype(np.float32)
BODIES = [
    pytest.param(IMAGE, "y = Conv(x, w, b)", {"w": CONV, "b": np.full(3, -1.0)}, id="Conv"),
    pytest.param(IMAGE, "y = Conv<group = 6>(x, w)", {"w": RNG.normal(size=(6, 1, 3, 3))}, id="depthwise"),
    pytest.param(IMAGE, "y = ConvTranspose(x, w)", {"w": RNG.normal(size=(6, 2, 3, 3))}, id="ConvTranspose"),
    pytest.param(
        IMAGE,
        "y = BatchNormalization(x, s, b, m, v)",
        {"s": -2 * ONES, "b": ONES, "m": 3 * ONES, "v": 0.1 * ONES},
        id="BatchNormalization",
    ),
    pytest.param(X, "y = LayerNormalization(x, s, b)", {"s": 2 * ONES, "b": -ONES}, id="LayerNormalization"),
    pytest.param(X, "e = Erf(x) p = Add(e, k) h = Mul(x, p) y = Mul(h, z)", {"k": 1.0, "z": 0.5}, id="GELU"),
    pytest.param(X, "s = Softmax(x) y = MatMul(s, w)", {"w": W}, id="a weight behind Softmax"),
    pytest.param(X, "s = Softmax(x) t = Transpose(x) y = MatMul(s, t)", {}, id="means"),
    pytest.param(X, "y = Pad(x, p, k)", {"p": np.array([1, 0, 0, 1]), "k": -7.0}, id="Pad"),
    pytest.param(X, "c = Greater(x, k) y = Where(c, x, f)", {"k": 0.0, "f": -9.0}, id="Where"),
    pytest.param(X, "y = MatMul(w, x)", {"w": W[:, :4]}, id="a weight on the left"),
]


@pytest.mark.parametrize(("inputs", "body", "weights"), BODIES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), size=st.floats(0.01, 100))
def test_bounds_hold(inputs: str, body: str, weights: dict[str, Array], seed: int, size: float) -> None:
    graph = made(inputs, body, **weights)
    shape = (2, 6, 5, 5) if inputs == IMAGE else (4, 6)
    drawn = np.random.default_rng(seed)
    x = size * drawn.choice([-1.0, 0.0, 1.0, 0.5], size=shape)
    assert np.abs(reached(graph, x)).max() <= bounds(graph, {"x": size})["y"] * (1 + 1e-5)


def test_what_was_seen_is_taken_where_it_is_less() -> None:
    graph = made(X, "a = MatMul(x, w) y = Mul(a, k)", w=W, k=2.0)
    assert bounds(graph, {"x": 100.0, "a": 3.0})["y"] == 6.0


@pytest.mark.parametrize(
    "body",
    [
        "y = Exp(x)",
        "y = Reciprocal(x)",
        "y = Div(k, x)",
        "y = MatMul(x, t)",
        "y = Mul(x, u)",
        "y = Resize<mode = 'cubic'>(x)",
    ],
)
def test_what_nothing_bounds(body: str) -> None:
    front = "t = Transpose(x) u = Exp(x) "
    graph = made(X, front + body.replace("'", '"'), k=1.0)
    assert bounds(graph, {"x": 1.0})["y"] == inf


def test_a_tensor_of_which_nothing_is_known() -> None:
    graph = made(X, "a = MatMul(x, w) y = Tanh(a)", w=W)
    found = bounds(graph, {})
    assert (found["a"], found["y"]) == (inf, 1.0)


@pytest.mark.parametrize("fill", [-inf, -3e38])
def test_fills_of_masks_alone_stand_for_nothing(fill: float) -> None:
    graph = made(X, "c = Greater(x, z) m = Where(c, x, f) y = Add(x, m)", z=0.0, f=fill)
    assert bounds(graph, {"x": 2.0}, {"m"})["y"] == 4.0
    assert bounds(graph, {"x": 2.0})["y"] > 1e38


def test_a_weight_that_is_no_number_bounds_nothing() -> None:
    graph = made(X, "y = Add(x, k)", k=np.nan)
    assert bounds(graph, {"x": 2.0})["y"] == inf


def test_large_weights_are_read_in_blocks() -> None:
    weight = RNG.normal(size=(3000, 1500)).astype(np.float32)
    graph = net("float[1,3000] x", "y = MatMul(x, w)", "y", 18, w=weight)
    assert np.isclose(bounds(graph, {"x": 1.0})["y"], np.abs(weight.astype(np.float64)).sum(0).max())
