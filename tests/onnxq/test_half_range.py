"""Factors within float16's normal numbers: what is left alone first, then bounds by hand, then what they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of

from onnxq import api
from onnxq.half_range import within_half
from onnxq.monitor import SILENT
from onnxq.passes.smooth import Smooth
from onnxq.patterns.ranges import MAX, SMALLEST_SCALE
from onnxq.recipe import Recipe
from onnxq.rescaling import find_sites
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from onnxq.graph import Graph

Array = npt.NDArray[Any]
AWQ = Recipe(target="ort-cuda", mode="weight-only", weights="int4/block:32", weight_method="awq")
RNG = np.random.default_rng(0)
C = 8
NORM = "n = LayerNormalization(x, g, h)"
TEXTS = {
    "norm": f"(float[4,{C}] x) => (float[4,5] y) {{ {NORM} y = MatMul(n, w) }}",
    "product": "(float[4,6] x) => (float[4,5] y) { m = MatMul(x, v) n = Relu(m) y = Gemm<transB=1>(n, t) }",
    "explicit": f"(float[4,{C}] x) => (float[4,5] y, float[4,{C}] z) {{ y = MatMul(x, w) z = Sin(x) }}",
    "groups": """(float[1,3,5,5] x) => (float[1,4,1,1] y) {
        n = Conv(x, k) r = Relu(n) y = Conv<group=2>(r, l) }""",
    "turned": """(float[1,4,5,5] x) => (float[1,4,1,1] y) {
        n = ConvTranspose<group=2>(x, u) y = Conv<group=2, kernel_shape=[7,7]>(n, j) }""",
}
SHAPES = {"g": (C,), "h": (C,), "w": (C, 5), "v": (6, C), "t": (5, C), "k": (C, 3, 3, 3), "l": (4, C // 2, 3, 3)}
SHAPES |= {"u": (4, C // 2, 3, 3), "j": (4, C // 2, 7, 7)}


def built(name: str, **given: Array) -> Graph:
    text = TEXTS[name]
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    weights = {n: RNG.uniform(0.5, 1, size=s).astype(np.float32) for n, s in SHAPES.items() if n in words}
    graph = graph_of(text, **{**weights, **given})
    graph.infer_shapes()
    return graph


def bounded(graph: Graph, scale: Array) -> Array:
    (site,) = [s for s in find_sites(graph) if s.channels == C]
    shift = np.zeros(C, np.float32)
    (found,) = within_half(graph, {site: Factor(scale.astype(np.float32), shift)}).values()
    assert np.array_equal(found.shift, shift)
    return found.scale


@pytest.mark.parametrize("name", TEXTS)
def test_factors_that_keep_the_range_are_left_alone(name: str) -> None:
    scale = np.geomspace(2.0**-10, 2.0**10, C).astype(np.float32)
    assert np.array_equal(bounded(built(name), scale), scale)


def test_what_was_outside_before_sets_no_bound() -> None:
    tiny = np.full((C, 5), 1e-6, np.float32)
    scale = np.geomspace(2.0**-10, 2.0**10, C).astype(np.float32)
    assert np.array_equal(bounded(built("norm", w=tiny), scale), scale)
    assert np.array_equal(bounded(built("norm", w=0 * tiny), scale), scale)
    assert np.array_equal(bounded(built("norm", g=1e-7 * np.ones(C, np.float32)), scale), scale)


@pytest.mark.parametrize(
    ("name", "weight", "size", "scale", "bound"),
    [
        ("norm", "w", 2.0**-8, 2.0**-9, 2.0**-6),  # w s: not below 2^-14
        ("explicit", "w", 2.0**-8, 2.0**-9, 2.0**-6),
        ("product", "t", 2.0**-8, 2.0**-9, 2.0**-6),
        ("groups", "l", 2.0**-8, 2.0**-9, 2.0**-6),
        ("norm", "w", 2.0**8, 2.0**10, MAX / 2**8),
        ("norm", "g", 2.0**-8, 2.0**9, 2.0**6),  # g / s
        ("product", "v", 2.0**-8, 2.0**9, 2.0**6),
        ("groups", "k", 2.0**-8, 2.0**9, 2.0**6),
        ("turned", "u", 2.0**-8, 2.0**9, 2.0**6),
        ("norm", "g", 2.0**8, 2.0**-10, 2.0**8 / MAX),
    ],
)
def test_a_channel_is_bounded_by_what_it_holds(name: str, weight: str, size: float, scale: float, bound: float) -> None:
    at = 3  # one channel alone
    held = np.ones(SHAPES[weight], np.float32)
    where = {"norm": (at,), "explicit": (at,), "product": (slice(None), at)}.get(name, (at,))
    if weight == "l":  # two groups: channel 3 is the last that the first one's outputs read
        where = (slice(0, 2), at)
    if weight == "u":  # likewise the last that it makes
        where = (slice(0, 2), at)
    held[where] = size
    found = bounded(built(name, **{weight: held}), np.full(C, scale, np.float32))
    np.testing.assert_allclose(found[at], bound, rtol=1e-6)
    np.testing.assert_array_equal(np.delete(found, at), np.float32(scale))


@pytest.mark.parametrize("name", ["norm", "product", "groups"])
def test_the_smoothed_model_in_float16_computes_what_the_float_model_does(name: str) -> None:
    """Weights of 2^-8 and factors down to 2^-12 and up to 2^12: columns of 2^-20 lose half of their digits."""
    graph = built(name)
    small = {n: np.asarray(graph.const(v)) * np.float32(2.0**-8) for n, v in graph.weights.items()}
    graph = built(name, **small)
    (site,) = [s for s in find_sites(graph) if s.channels == C]
    factor = Factor(np.geomspace(2.0**-12, 2.0**12, C).astype(np.float32), np.zeros(C, np.float32))
    off = []
    for found in ({site: factor}, within_half(graph, {site: factor})):
        smoothed = built(name, **small)
        Smooth({s.name: f for s, f in found.items()})(smoothed)
        arrays = [np.asarray(smoothed.const(v), np.float64) for v in smoothed.weights.values()]
        off.append(max(float(np.abs(a.astype(np.float16) / a - 1).max()) for a in arrays if a.size > 1))
    assert off[0] > 0.01
    assert off[1] < 2.0**-10


def test_the_numbers_are_those_of_float16() -> None:
    assert np.finfo(np.float16).smallest_normal == SMALLEST_SCALE
    assert np.finfo(np.float16).max == MAX


@pytest.mark.parametrize("recipe", [AWQ, Recipe(effort="best")])
def test_models_in_float16_have_bounded_factors_and_those_in_float32_do_not(recipe: Recipe) -> None:
    rng = np.random.default_rng(0)
    gains = np.geomspace(1e-3, 4, 64).astype(np.float32)
    weight = (rng.normal(size=(64, 32)) * 1e-4).astype(np.float32)
    text = "(float[64,64] x) => (float[64,32] y) { n = LayerNormalization(x, g) y = MatMul(n, w) }"
    feeds = [{"x": rng.normal(size=(64, 64)).astype(np.float32)} for _ in range(64)]
    least = {}
    for kind in ("fp16", "fp32"):
        model = graph_of(text, g=gains, w=weight)
        found = api.calibrate(model, feeds, replace(recipe, high_precision=kind), SILENT)
        (factor,) = found.smoothing.values()
        least[kind] = float(np.min(np.sqrt(np.square(weight.astype(np.float64)).mean(axis=1)) * factor.scale))
    assert least["fp32"] < 0.9 * SMALLEST_SCALE
    assert least["fp16"] == pytest.approx(SMALLEST_SCALE, rel=1e-5)
