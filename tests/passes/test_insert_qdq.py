from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run, same_function

from onnxq.errors import PassError
from onnxq.numerics import INT8, params_from_range
from onnxq.passes.insert_qdq import InsertQDQ
from onnxq.plan import Plan, Point

RNG = np.random.default_rng(5)
STEP = 2.0**-4  # a power of two divides exactly, so the oracle may use float64
EYE = np.eye(4, dtype=np.float32)


def point(tensor: str, *uses: tuple[str, int], amax: float = 127 * STEP, dtype: str = "float32") -> Point:
    params = params_from_range(-amax, amax, INT8)
    return Point(tensor, uses, tensor, tensor, dtype=dtype, range=(-amax, amax), params=params)


def plan(*points: Point, joins: tuple[tuple[str, int, str], ...] = ()) -> Plan:
    return Plan("tensorrt", {p.tensor: p for p in points}, (), (), joins=joins)


def fake_quantized(x: Array, step: float = STEP) -> Array:
    """The oracle, in float64: round half to even, saturate, scale."""
    return np.clip(np.rint(x.astype(np.float64) / step), -128, 127) * step


def test_an_empty_plan_leaves_the_graph_alone() -> None:
    graph = graph_of("(float[2,4] x) => (float[2,4] y) { r = Relu(x) y = MatMul(r, w) }", w=EYE)
    before = graph.digest()
    assert InsertQDQ(plan())(graph) == 0
    assert graph.digest() == before


def test_other_uses_and_outputs_keep_the_float_tensor() -> None:
    text = """(float[2,4] x, bool b) => (float[2,4] y, float[2,4] r, float[2,4] z, float[2,4] u) {
        r = Relu(x) y = MatMul(r, w) u = Add(r, r)
        z = If(b) <then_branch = t () => (float[2,4] p) { p = Sin(r) },
                   else_branch = e () => (float[2,4] q) { q = Cos(r) }>
    }"""
    graph = graph_of(text, w=EYE)
    assert InsertQDQ(plan(point("r", ("MatMul:y", 0))))(graph) == 1
    assert [line for line in lines(graph) if "If" not in line] == [
        "r = Relu(x)",
        "r_quantized = QuantizeLinear(r, r_scale, r_zero_point)",
        "r_dequantized = DequantizeLinear(r_quantized, r_scale, r_zero_point)",
        "y = MatMul(r_dequantized, w)",
        "u = Add(r, r)",
    ]
    assert [node.inputs[0].name for node in graph.bodies(graph.nodes[-1]) if node.inputs[0] is not None] == ["r", "r"]
    assert [v.name for v in graph.outputs] == ["y", "r", "z", "u"]
    assert graph.problem() is None


def test_one_pair_serves_all_uses() -> None:
    text = "(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w) b = Add(x, x) y = Add(a, b) }"
    graph = graph_of(text, w=EYE)
    InsertQDQ(plan(point("x", ("MatMul:a", 0), ("Add:b", 1))))(graph)
    assert lines(graph) == [
        "x_quantized = QuantizeLinear(x, x_scale, x_zero_point)",
        "x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)",
        "a = MatMul(x_dequantized, w)",
        "b = Add(x, x_dequantized)",
        "y = Add(a, b)",
    ]


def test_zero_points_and_scales_are_written() -> None:
    graph = graph_of("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=EYE)
    InsertQDQ(plan(point("x", ("MatMul:y", 0))))(graph)
    for node in graph.nodes[:2]:
        scale, zero = graph.const(node.inputs[1]), graph.const(node.inputs[2])
        assert scale is not None
        assert zero is not None
        assert (scale.dtype, scale.shape, float(scale)) == (np.dtype("float32"), (), STEP)
        assert (zero.dtype, zero.shape, int(zero)) == (np.dtype("int8"), (), 0)


def test_names_that_are_taken() -> None:
    text = "(float[2,4] x, float[2,4] x_scale) => (float[2,4] y) { x_quantized = Add(x, x_scale) y = MatMul(x, w) }"
    graph = graph_of(text, w=EYE)
    InsertQDQ(plan(point("x", ("MatMul:y", 0))))(graph)
    assert graph.problem() is None
    x, other = RNG.normal(size=(2, 2, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, {"x": x, "x_scale": other})[0], fake_quantized(x))


def test_numbers() -> None:
    text = "(float[5,4] x) => (float[5,3] y) { r = Relu(x) p = MatMul(r, w) y = MatMul(p, v) }"
    w, v = RNG.normal(size=(4, 4)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
    graph = graph_of(text, w=w, v=v)
    InsertQDQ(plan(point("r", ("MatMul:p", 0)), point("p", ("MatMul:y", 0), amax=127 * STEP / 8)))(graph)
    x = (10 * RNG.normal(size=(5, 4))).astype(np.float32)  # beyond the range: 7.9
    p = fake_quantized(np.maximum(x, 0)) @ w.astype(np.float64)
    expected = fake_quantized(p, STEP / 8) @ v.astype(np.float64)
    np.testing.assert_allclose(run(graph, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_half_precision() -> None:
    text = "(float16[5,4] x) => (float16[5,4] y) { y = MatMul(x, w) }"
    graph = graph_of(text, 19, w=EYE.astype(np.float16))
    InsertQDQ(plan(point("x", ("MatMul:y", 0), dtype="float16")))(graph)
    scale = graph.const(graph.nodes[0].inputs[1])
    assert scale is not None
    assert scale.dtype == np.float16
    x = RNG.normal(size=(5, 4)).astype(np.float16)
    np.testing.assert_array_equal(run(graph, {"x": x})[0].astype(np.float64), fake_quantized(x))


@pytest.mark.parametrize(("dtype", "opset"), [("float32", 17), ("float16", 19)])
def test_a_scale_is_never_flushed_to_zero(dtype: str, opset: int) -> None:
    onnx_type = {"float32": "float", "float16": "float16"}[dtype]
    text = f"({onnx_type}[5,4] x) => ({onnx_type}[5,4] y) {{ y = Add(x, x) }}"
    graph = graph_of(text, opset)
    InsertQDQ(plan(point("x", ("Add:y", 0), amax=1e-9 if dtype == "float16" else 1e-45, dtype=dtype)))(graph)
    scale = graph.const(graph.nodes[0].inputs[1])
    assert scale is not None
    assert float(scale) == float(np.finfo(dtype).tiny)


def test_an_unresolved_plan_is_refused() -> None:
    graph = graph_of("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=EYE)
    unresolved = replace(point("x", ("MatMul:y", 0)), params=None)
    with pytest.raises(PassError, match="'x' has no parameters"):
        InsertQDQ(plan(unresolved))(graph)


JOIN = """(float[2,4] x) => (float[2,4] y) { a = MatMul(x, w) q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z) b = MatMul(d, w) y = Add(a, b) }"""


def test_a_use_joins_a_pair_that_stands_behind_it() -> None:
    graph = graph_of(JOIN, w=EYE, s=np.array(STEP, np.float32), z=np.array(0, np.int8))
    assert InsertQDQ(plan(joins=(("MatMul:a", 0, "d"),)))(graph) == 1
    assert graph.problem() is None
    found = lines(graph)
    assert "a = MatMul(d, w)" in found
    assert found.index("d = DequantizeLinear(q, s, z)") < found.index("a = MatMul(d, w)")
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, {"x": x})[0], 2 * fake_quantized(x))


def test_a_fine_grid_changes_little() -> None:
    graph = graph_of("(float[2,4] x) => (float[2,4] y) { r = Relu(x) y = MatMul(r, w) }", w=EYE)
    before = graph.copy()
    InsertQDQ(plan(point("r", ("MatMul:y", 0), amax=1.0)))(graph)
    same_function(before, graph, {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}, rtol=0.5 / 127 + 1e-6)
