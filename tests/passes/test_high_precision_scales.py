"""Scales below float16's least normal number, 2^-14: what stands for them stays what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run

from onnxq import Recipe, api
from onnxq.passes.high_precision import HighPrecision
from onnxq.passes.remove_unused import remove_unused

LEAST = 2.0**-14
FLOAT16, BFLOAT16 = HighPrecision("float16", frozenset()), HighPrecision("bfloat16", frozenset())
RNG = np.random.default_rng(4)
CODES = RNG.integers(-127, 128, (32, 8)).astype(np.int8)
STORED = "(float[4,32] x) => (float[4,8] y) { d = DequantizeLinear<axis=1>(c, s, z) r = Relu(x) y = MatMul(r, d) }"
X = RNG.normal(size=(4, 32)).astype(np.float32)


def stored(scale: Array, zero: int = 0) -> dict[str, Any]:
    return {"c": CODES, "s": scale.astype(np.float32), "z": np.full(scale.shape, zero, np.int8)}


def test_codes_of_scales_that_the_type_holds_stay() -> None:
    scale = LEAST * np.geomspace(1, 128, 8)
    graph = graph_of(STORED, 19, **stored(scale))
    graph.infer_shapes()
    FLOAT16(graph)
    remove_unused(graph)
    np.testing.assert_array_equal(graph.const(graph.weights["c"]), CODES)


def test_bfloat16_has_them() -> None:
    graph = graph_of(STORED, 19, **stored(np.full(8, LEAST / 1000)))
    graph.infer_shapes()
    BFLOAT16(graph)
    remove_unused(graph)
    np.testing.assert_array_equal(graph.const(graph.weights["c"]), CODES)


@pytest.mark.parametrize("zero", [0, 5])
def test_stored_codes_are_of_the_scale_that_stands_there(zero: int) -> None:
    scale = LEAST * np.array([4, 1, 0.5, 0.3, 0.1, 0.01, 1e-3, 1e-9])
    graph = graph_of(STORED, 19, **stored(scale, zero))
    graph.infer_shapes()
    assert FLOAT16(graph) > 0
    remove_unused(graph)
    node = next(n for n in graph.nodes if n.op_type == "DequantizeLinear")
    codes, written = (graph.const(v) for v in node.inputs[:2])
    assert codes is not None
    assert written is not None
    assert written.dtype == np.float16
    meant = (CODES.astype(np.float64) - zero) * scale
    held = (codes.astype(np.float64) - zero) * written.astype(np.float64)
    assert (np.abs(held - meant) <= 0.5 * written * (1 + 1e-3) + np.abs(meant) * 2.0**-11).all()


def test_a_pair_of_such_a_scale_stays_in_float32() -> None:
    text = """(float[4,8] x) => (float[4,8] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Relu(d) y = Mul(r, k) }"""
    graph = graph_of(text, 19, s=np.float32(LEAST / 3), z=np.int8(0), k=np.float32(4096))
    graph.infer_shapes()
    x = X[:, :8] * np.float32(20 * LEAST)
    (before,) = run(graph, {"x": x})
    assert FLOAT16(graph) > 0
    assert any(line.startswith("r = Relu(d_float16)") for line in lines(graph))
    (after,) = run(graph, {"x": x})
    np.testing.assert_allclose(after, before, rtol=2e-3)


# -- whole models ----------------------------------------------------------------------------------------------


def near(graph: Any, recipe: Recipe, data: list[dict[str, Array]]) -> float:  # noqa: ANN401  a Graph
    quantized, _ = api.quantize(graph, data, recipe)
    found = api.compare(graph, quantized, data)
    return float(found.outputs[0].sqnr_db)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@10", "ort-cuda"])
@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_pairs_that_a_model_came_with(target: str, factor: float) -> None:
    """Scales of a column as another tool wrote them: all small, or small beside others."""
    text = """(float[N,32] x) => (float[N,8] y) {
        q = QuantizeLinear(x, t, o) b = DequantizeLinear(q, t, o)
        d = DequantizeLinear<axis=1>(c, s, z) a = MatMul(b, d) r = Relu(a) y = MatMul(r, w) }"""
    scale = np.where(np.arange(8) % 2, 1, factor) * LEAST / 4
    more: dict[str, Any] = {"t": np.float32(0.03), "o": np.int8(0), "w": np.eye(8, dtype=np.float32) * np.float32(200)}
    graph = graph_of(text, 19, **stored(scale), **more)
    assert near(graph, Recipe(target=target), [{"x": x} for x in RNG.normal(size=(24, 4, 32)).astype(np.float32)]) > 30


def test_a_factor_beside_codes_at_the_ends() -> None:
    text = """(float[N,32] x) => (float[N,32] y) {
        m = Mul(x, k) z = Relu(m) a = MatMul(m, w) b = MatMul(z, w) s = Sub(a, b) y = Div(s, k) }"""
    graph = graph_of(text, 17, w=RNG.normal(size=(32, 32)).astype(np.float32) / 4, k=np.float32(1e-3))
    data = [{"x": x} for x in RNG.normal(size=(24, 4, 32)).astype(np.float32)]
    assert near(graph, Recipe(io_types="int8"), data) > 30
