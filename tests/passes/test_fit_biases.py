"""Scales for which half precision holds a bias, against float64 written another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.centre_codes import centre_codes
from onnxq.passes.fit_biases import FitBiases, fitted_scales
from onnxq.passes.infer_shapes import infer_shapes

if TYPE_CHECKING:
    from onnxq.graph import Graph

HALF = FitBiases("float16", frozenset())
RNG = np.random.default_rng(5)
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
WEIGHT = "w = DequantizeLinear<axis = 0>(wq, ws, wz) "
IMAGE = "(float[2,6,7,7] x) => (float[2,32,7,7] y"
CONV = "y = Conv<pads = [1,1,1,1]>(d, w, v) }"


def held(*shape: int) -> Array:
    """Scales that float16 holds."""
    return RNG.uniform(0.001, 0.01, shape).astype(np.float16).astype(np.float32)


def built(text: str, zero: int = -115, /, **others: Array) -> Graph:
    codes = RNG.integers(-127, 128, (32, 6, 3, 3)).astype(np.int8)
    codes[:4] = np.abs(codes[:4])  # rows whose sum is large
    weights: dict[str, Array] = {
        "wq": codes,
        "ws": held(32),
        "wz": np.zeros(32, np.int8),
        "v": RNG.normal(size=32).astype(np.float32),
    }
    pair: dict[str, Array] = {"s": np.array(2.0**-5, np.float32), "z": np.array(zero, np.int8)}
    graph = graph_of(text, **{**weights, **pair, **others})
    infer_shapes(graph)
    centre_codes(graph)
    return graph


def numbers(graph: Graph) -> tuple[Array, Array]:
    """Scales and biases of the last layer."""
    node = next(n for n in graph.nodes if n.op_type in ("Conv", "Gemm"))
    stored = graph.producer(node.inputs[1], "DequantizeLinear")
    assert stored is not None
    return np.asarray(graph.const(stored.inputs[1])), np.asarray(graph.const(node.inputs[2]))


def rounded_off(bias: Array) -> float:
    """The error (rms) of float16."""
    return float(np.sqrt(np.mean(np.square(bias.astype(np.float16).astype(np.float64) - bias))))


LEFT_ALONE: dict[str, tuple[str, dict[str, Array]]] = {
    "nothing shifted": (f"{IMAGE}) {{ {PAIR}{WEIGHT}{CONV}", {"z": np.array(0, np.int8)}),
    "one scale for all channels": (
        f"{IMAGE}) {{ {PAIR} w = DequantizeLinear(wq, ws, wz) {CONV}",
        {"ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8)},
    ),
    "weights of two layers": (
        f"{IMAGE}, float[2,32,7,7] u) {{ {PAIR}{WEIGHT} u = Conv<pads = [1,1,1,1]>(d, w) {CONV}",
        {},
    ),
    "weights in float": (f"{IMAGE}) {{ {PAIR} y = Conv<pads = [1,1,1,1]>(d, w, v) }}", {"w": held(32, 6, 3, 3)}),
    "a weight that is rounded when the model runs": (
        f"{IMAGE}) {{ {PAIR} wi = QuantizeLinear<axis = 0>(wf, ws, wz) {WEIGHT.replace('wq', 'wi')} {CONV}",
        {"wf": held(32, 6, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str) -> None:
    text, others = LEFT_ALONE[name]
    graph = built(text, **others)
    before = lines(graph)
    assert HALF(graph) == 0
    assert lines(graph) == before


def test_layers_that_stay_in_float32_are_left_alone() -> None:
    graph = built(f"{IMAGE}) {{ {PAIR}{WEIGHT}{CONV}")
    name = next(str(n.name) for n in graph.nodes if n.op_type == "Conv")
    assert FitBiases("float16", frozenset({name}))(graph) == 0


FITTED: dict[str, tuple[str, dict[str, Array]]] = {
    "a padded convolution": (f"{IMAGE}) {{ {PAIR}{WEIGHT}{CONV}", {}),
    "a convolution": (f"(float[2,6,7,7] x) => (float[2,32,5,5] y) {{ {PAIR}{WEIGHT} y = Conv(d, w, v) }}", {}),
    "a Gemm": (
        f"(float[3,54] x) => (float[3,32] y) {{ {PAIR}{WEIGHT.replace('0', '1')} y = Gemm<alpha = 0.5>(d, w, v) }}",
        {"wq": RNG.integers(-40, 128, (54, 32)).astype(np.int8)},
    ),
    "a factor folded into the pair": (
        f"{IMAGE}) {{ {PAIR.replace('q, s', 'q, t')}{WEIGHT}{CONV}",
        {"t": np.array(2.0**-7, np.float32)},
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_biases_lose_less_and_the_function_stays(name: str) -> None:
    text, others = FITTED[name]
    graph = built(text, **others)
    after = graph.copy()
    assert HALF(after) == 1
    (scale, bias), (fitted, moved) = numbers(graph), numbers(after)
    assert np.array_equal(fitted.astype(np.float16), fitted)
    assert 0 < np.abs(fitted / scale - 1).max() <= 2.0**-8
    assert rounded_off(moved) < 0.9 * rounded_off(bias)
    same_function(graph, after, random_feeds(graph, 3), rtol=2.0**-8)  # scales moved by as much, codes did not
    flat = {
        str(v.name): np.zeros([d for d in graph.shape(v) or () if isinstance(d, int)], np.float32) for v in graph.inputs
    }
    same_function(graph, after, flat, rtol=1e-5)  # x of 0, which the pair holds, gives the layer's own bias


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**16), dtype=st.sampled_from(["float16", "bfloat16"]), size=st.floats(0, 1000))
def test_the_best_of_the_numbers_around(seed: int, dtype: str, size: float) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    scale = rng.uniform(0.001, 0.01, 6).astype(kind).astype(np.float32)
    slope, bias = rng.normal(size=6) * 4000, rng.normal(size=6) * 20
    found = fitted_scales(scale, (slope, np.full(6, size)), bias, dtype)
    for i, one in enumerate(scale.astype(np.float64)):
        bits = int(scale[i].astype(kind).view(np.uint16))
        near = np.arange(bits - 4, bits + 5, dtype=np.uint16).view(kind).astype(np.float64)

        def cost(s: float, i: int = i, one: float = one) -> float:
            b = bias[i] + slope[i] * (s - one)
            return float((float(np.float64(b).astype(kind)) - b) ** 2 + (size * (s - one)) ** 2)

        assert float(found[i]) in near
        assert cost(float(found[i])) <= min(map(cost, near)) * (1 + 1e-9)


def test_a_scale_that_the_type_does_not_hold_stays() -> None:
    scale = np.array([1e-6, 0.00301], np.float32)
    slopes = np.full(2, 5000.0), np.zeros(2)
    np.testing.assert_array_equal(fitted_scales(scale, slopes, np.full(2, 10.0), "float16")[0], scale[0])
