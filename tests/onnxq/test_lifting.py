from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run

from onnxq import Recipe, api
from onnxq.lifting import lift_scales
from onnxq.numerics import sqnr_db
from onnxq.patterns.ranges import lost_scales
from onnxq.statistics import Rounded

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(3)
LEAST = 2.0**-14
W = RNG.normal(size=(8, 4)).astype(np.float32)
W *= np.float32(127) / np.abs(W).max(axis=0)  # scales of 1 with an axis of 1
W_SMALL = (RNG.normal(size=(64, 64)) * 1e-5).astype(np.float32)
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
IN = "(float16[2,8] x) => (float16[2,4] y) {"


def model(text: str, w: Array, scale: float = 0.03) -> Graph:
    s, z = np.asarray(scale, np.float16), np.zeros((), np.int8)
    return graph_of(text, 19, w=w, s=s, z=z)


def lifted(graph: Graph, axis: int | None = 1) -> int:
    weight = graph.weights["w"]
    array = graph.const(weight)
    assert array is not None
    return lift_scales(graph, graph.users(weight), array, axis)


def small(factor: float, dtype: type = np.float16) -> Array:
    return (W * factor).astype(dtype)


LEFT_ALONE = {
    "scales that float16 holds": (f"{IN} {PAIR} y = MatMul(d, w) }}", small(2 * LEAST), 0.03),
    "zeros": (f"{IN} {PAIR} y = MatMul(d, w) }}", small(0), 0.03),
    "no codes beside it": (f"{IN} y = MatMul(x, w) }}", small(LEAST / 8), 0.03),
    "an input whose scale is as small": (f"{IN} {PAIR} y = MatMul(d, w) }}", small(LEAST / 8), 1.5 * LEAST),
    "another user that has no codes": (
        f"(float16[2,8] x) => (float16[2,4] y, float16[2,4] u) {{ {PAIR} y = MatMul(d, w) u = MatMul(x, w) }}",
        small(LEAST / 8),
        0.03,
    ),
    "not a product": (
        f"(float16[8,4] x) => (float16[8,4] y) {{ {PAIR} y = Add(d, w) }}",
        small(LEAST / 8),
        0.03,
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    text, weight, scale = LEFT_ALONE[case]
    graph = model(text, weight, scale)
    before = graph.digest()
    assert lifted(graph) == 0
    assert graph.digest() == before


def test_other_types_hold_all_scales() -> None:
    text = f"(float[2,8] x) => (float[2,4] y) {{ {PAIR} y = MatMul(d, w) }}"
    graph = graph_of(text, 19, w=small(LEAST / 8, np.float32), s=np.float32(0.03), z=np.int8(0))
    assert lifted(graph) == 0


def test_channels_far_smaller_than_the_largest_do_not_count() -> None:
    weight = small(LEAST)
    weight[:, 1] = weight[:, 1] / 128
    assert lost_scales(weight, 1).size == 0
    weight[:, 2] = weight[:, 2] / 64
    assert lost_scales(weight, 1) == pytest.approx([float(np.abs(weight[:, 2]).max())])


@pytest.mark.parametrize(("factor", "exponent"), [(0.9, 1), (0.3, 2), (1 / 64, 6)])
def test_as_far_as_the_least_scale_wants(factor: float, exponent: int) -> None:
    text = f"(float16[2,8] x) => (float16[2,4] y, float16[2,8] u) {{ {PAIR} y = MatMul(d, w) u = Relu(d) }}"
    graph = model(text, small(LEAST * factor), scale=100)
    x = (3000 * RNG.normal(size=(2, 8))).astype(np.float16)
    before, others = run(graph, {"x": x})
    assert lifted(graph) == exponent
    assert "u = Relu(d)" in lines(graph)
    assert "y = MatMul(d_lent, w)" in lines(graph)
    after, same = run(graph, {"x": x})
    np.testing.assert_array_equal(same, others)
    np.testing.assert_allclose(np.ldexp(after.astype(np.float64), exponent), before, rtol=2e-3)


def test_as_far_as_the_scale_of_the_input_allows() -> None:
    graph = model(f"{IN} {PAIR} y = MatMul(d, w) }}", small(LEAST / 64), 4.5 * LEAST)
    assert lifted(graph) == 2


# -- whole models ----------------------------------------------------------------------------------------------


KEPT_IN_FLOAT16 = "s = SequenceConstruct(x) n = SequenceLength(s) }"
"""A model with sequences is not brought to float32 and back."""


def small_product() -> Graph:
    """A float16 model with a factor of 1e-4 in front of a product, which folding puts into its weight."""
    weight = RNG.normal(size=(64, 64)).astype(np.float16)
    text = "(float16[N,64] x) => (float16[N,64] y, int64 n) { m = Mul(x, k) y = MatMul(m, w) " + KEPT_IN_FLOAT16
    return graph_of(text, 17, w=weight * np.float16(0.2), k=np.float16(1e-4))


def feeds(count: int) -> list[dict[str, Array]]:
    return [{"x": RNG.normal(size=(4, 64)).astype(np.float16)} for _ in range(count)]


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@10", "tensorrt@8", "ort-cuda"])
def test_a_small_factor_in_front_of_a_product(target: str, effort: str) -> None:
    model, data = small_product(), feeds(24)
    quantized, plan = api.quantize(model, data, Recipe(target=target, effort=effort))
    assert [d.quantized for d in plan.decisions if d.op_type == "MatMul"] == [True]
    pairs = [(run(model, feed)[0], run(quantized, feed)[0]) for feed in data]
    assert sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True))) > 37


def test_chosen_codes_stay() -> None:
    model, data, recipe = small_product(), feeds(24), Recipe(effort="fast")
    statistics = api.calibrate(model, data, recipe)
    _, plan = api.quantize(model, statistics, recipe)
    (point,) = plan.points.values()
    graph = api.prepared(model, recipe).graph
    weight = graph.const(graph.weights["w/folded"])
    assert point.params is not None
    assert weight is not None
    scale = np.abs(weight.astype(np.float32)).max(axis=0) / 127
    codes = np.clip(np.rint(weight / scale) + 1, -127, 127).astype(np.int8)
    chosen = replace(statistics, rounding={"w/folded": Rounded(codes, scale, point.params.scale)})
    quantized, _ = api.quantize(model, chosen, recipe)
    held = {name: quantized.const(value) for name, value in quantized.weights.items()}
    np.testing.assert_array_equal(held["w/folded_quantized"], codes)
    stored = held["w/folded_scale"]
    assert stored is not None
    assert stored.min() >= LEAST
    np.testing.assert_allclose(stored / scale, 2.0 ** np.ceil(np.log2(LEAST / scale.min())), rtol=2.0**-10)


@pytest.mark.parametrize(("formats", "size", "db"), [("int4/block:32", 1.2e-4, 15), ("int8", 6e-4, 29)])
def test_narrow_weights_that_are_stored_have_codes_enough(formats: str, size: float, db: float) -> None:
    """Of 4 bits none can be spared: with a quarter of them a product had 5 dB in place of 20."""
    text = "(float16[N,64] x) => (float16[N,64] y) { y = MatMul(x, w) }"
    model = graph_of(text, 17, w=(RNG.normal(size=(64, 64)) * size).astype(np.float16))
    recipe = Recipe(target="ort-cuda", mode="weight-only", weights=formats)
    quantized, _ = api.quantize(model, recipe=recipe)
    pairs = [(run(model, feed)[0], run(quantized, feed)[0]) for feed in feeds(8)]
    assert sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True))) > db
    smaller = graph_of(text, 17, w=(RNG.normal(size=(64, 64)) * size / 2).astype(np.float16))
    assert [d.quantized for d in api.make_plan(smaller, recipe).decisions] == [False]


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu", "ort-cuda"])
def test_narrow_weights_without_codes_beside_them(target: str) -> None:
    """Nothing takes a factor: the small weight stays as it is, and those of one far smaller column do not."""
    weight = (RNG.normal(size=(64, 64)) * 0.2).astype(np.float16)
    weight[:, 0] *= np.float16(0.02)
    text = "(float16[N,64] x) => (float16[N,64] y) { m = MatMul(x, w) k = MatMul(m, v) y = MatMul(k, z) }"
    zeros = np.zeros((64, 64), np.float16)
    model = graph_of(text, 17, w=weight, v=weight * np.float16(1e-4), z=zeros)
    plan = api.make_plan(model, Recipe(target=target, mode="weight-only"))
    assert [d.quantized for d in plan.decisions] == [True, False, True]
    assert "too small for float16" in plan.decisions[1].reason
    wide = graph_of(text.replace("float16", "float"), 17, w=weight.astype(np.float32), v=W_SMALL, z=W_SMALL)
    plan = api.make_plan(wide, Recipe(target=target, mode="weight-only"))
    assert [d.quantized for d in plan.decisions] == [True, True, True]
