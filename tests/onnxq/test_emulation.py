"""bfloat16 computed in float32: what must be left alone, and numbers, against ml_dtypes' own bfloat16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, run

from onnxq import Recipe, api
from onnxq.emulation import emulate_bfloat16
from onnxq.monitor import SILENT

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 16)).astype(ml_dtypes.bfloat16)


def held(array: Array) -> Array:
    """float32 rounded to bfloat16."""
    return np.asarray(array.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,16] x) => (float[N,16] y) { a = MatMul(x, w) y = Exp(a) }",
        "(float16[N,16] x) => (float16[N,16] y) { a = Exp(x) y = Relu(a) }",
        "(bfloat16[N,16] x, seq(bfloat16[N,16]) s) => (bfloat16[N,16] y, int64 l) { l = SequenceLength(s) y = Exp(x) }",
    ],
)
def test_leaves_alone(text: str) -> None:
    graph = graph_of(text, 19, **({"w": W.astype(np.float32)} if "w)" in text else {}))
    before = graph.to_proto().SerializeToString()
    assert emulate_bfloat16(graph) == 0
    assert graph.to_proto().SerializeToString() == before


def test_every_result_is_rounded() -> None:
    text = """(bfloat16[N,16] x, float[N,16] z) => (bfloat16[N,16] y, float[N,16] f) {
        a = MatMul(x, w) b = Relu(a) c = Mul(b, b) d = Reshape(c, s) e = Exp(z) g = Cast<to = 16>(e)
        y = Add(d, g) f = Cast<to = 1>(y)
    }"""
    graph = graph_of(text, 19, w=W, s=np.array([0, 16]))
    assert emulate_bfloat16(graph) == 4  # not what Relu and Reshape hand on, nor Exp in float32
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    assert [graph.dtype(v) for v in (*graph.inputs, *graph.outputs)] == ["bfloat16", "float32", "bfloat16", "float32"]
    x, z = (RNG.normal(size=(5, 16)).astype(np.float32) for _ in "xz")
    b = np.maximum(held(held(x) @ W.astype(np.float32)), 0)
    exact = held(held(b * b) + held(np.exp(z)))
    for got in run(graph, {"x": x, "z": z}):
        np.testing.assert_allclose(got, exact, rtol=2**-7)  # where a sum in another order is rounded the other way
        assert (got == exact).mean() > 0.95
        np.testing.assert_array_equal(got, held(got))


def test_a_tensor_keeps_its_name() -> None:
    graph = graph_of("(bfloat16[N,16] x) => (bfloat16[N,16] y) { a = MatMul(x, w) y = Exp(a) }", 19, w=W)
    emulate_bfloat16(graph)
    value = graph.find("a")
    assert value is not None
    graph.set_outputs([value])
    x = RNG.normal(size=(5, 16)).astype(np.float32)
    (got,) = run(graph, {"x": x})
    np.testing.assert_array_equal(got, held(got))
    np.testing.assert_allclose(got, held(x) @ W.astype(np.float32), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("branch", [True, False])
def test_bodies(branch: bool) -> None:
    text = """(bool c, bfloat16[N,16] x) => (float[N,16] y) {
        e = If (c) <then_branch = t () => (bfloat16[N,16] g) { g = Mul(x, x) },
                    else_branch = o () => (bfloat16[N,16] k) { j = Add(x, x) k = Exp(j) }>
        y = Cast<to=1>(e)
    }"""
    graph = graph_of(text, 19)
    assert emulate_bfloat16(graph) >= 3
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    x = held(RNG.normal(size=(5, 16)).astype(np.float32))
    (got,) = run(graph, {"c": np.array(branch), "x": x})
    np.testing.assert_allclose(got, held(x * x) if branch else held(np.exp(x + x)), rtol=2**-7)
    np.testing.assert_array_equal(got, held(got))


def test_pairs_with_scales_in_bfloat16() -> None:
    text = """(bfloat16[N,16] x) => (bfloat16[N,16] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w)
    }"""
    scale = np.array(0.03, ml_dtypes.bfloat16)
    graph = graph_of(text, 22, w=W, s=scale, z=np.array(0, np.int8))
    assert emulate_bfloat16(graph) == 2
    x = held(RNG.normal(size=(5, 16)).astype(np.float32))
    step = scale.astype(np.float32)
    codes = np.clip(np.rint(x / step), -128, 127).astype(np.float32)
    exact = held(held(codes * step) @ W.astype(np.float32))
    (got,) = run(graph, {"x": x})
    np.testing.assert_allclose(got, exact, rtol=2**-7, atol=1e-6)


def test_models_that_come_in_bfloat16_are_compared() -> None:
    """By outputs and by layers; a model with itself is equal."""
    text = "(bfloat16[N,16] x) => (bfloat16[N,16] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }"
    graph, data = graph_of(text, 19, w=W), [{"x": RNG.normal(size=(4, 16)).astype(np.float32)} for _ in range(20)]
    assert {e.sqnr_db for e in api.compare(graph, graph, data, layers=True).errors} == {float("inf")}
    made, _ = api.quantize(graph, data, Recipe(effort="fast", high_precision="fp32"), SILENT)
    wide = api.compare(graph, made, data).worst[0].sqnr_db
    made, _ = api.quantize(graph, data, Recipe(effort="fast"), SILENT)
    narrow = api.compare(graph, made, data, layers=True)
    assert {"a", "b", "y"} <= {e.tensor for e in narrow.errors}
    assert 25 < narrow.outputs[0].sqnr_db < wide + 1
