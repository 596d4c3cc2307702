"""Inputs and outputs as codes: what stays as it is, and the function, which does not change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of, lines, random_feeds, run
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import ModelError
from onnxq.interface import Port, ports, with_float_ends
from onnxq.passes.integer_interface import integer_interface

S, Z = np.float32(0.05), np.int8(0)
Array = npt.NDArray[np.generic]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("(float[4] x) => (float[4] y) { y = Relu(x) }", id="nothing is quantized"),
        pytest.param(
            "(float[4,2] x) => (float[4,2] y) { q = QuantizeLinear<axis=0>(x, v, v0) "
            "d = DequantizeLinear<axis=0>(q, v, v0) y = Relu(d) }",
            id="a scale per channel",
        ),
        pytest.param(
            "(float[4] x, float t) => (float[4] y) { q = QuantizeLinear(x, t, z) d = DequantizeLinear(q, t, z) "
            "y = Relu(d) }",
            id="a scale that the model gets",
        ),
        pytest.param(
            "(int8[4] x) => (float[4] y) { d = DequantizeLinear(x, s, z) y = Relu(d) }", id="integers already"
        ),
        pytest.param("(int64[4] x) => (int64[4] y) { y = Abs(x) }", id="whole numbers"),
        pytest.param("(float[4] x) => (float[4] y) { d = DequantizeLinear(w, s, z) y = Add(x, d) }", id="a weight"),
        pytest.param("(float[4] x) => (float[4] x) { }", id="nothing at all"),
    ],
)
def test_leaves_alone(text: str) -> None:
    weights: dict[str, npt.ArrayLike] = {
        "s": S,
        "z": Z,
        "v": np.full(4, S),
        "v0": np.zeros(4, np.int8),
        "w": np.ones(4, np.int8),
    }
    graph = graph_of(text, 17, **{name: array for name, array in weights.items() if name in text.split("{")[1]})
    before, types = lines(graph), [graph.dtype(v) for v in (*graph.inputs, *graph.outputs)]
    assert integer_interface(graph) == 0
    assert lines(graph) == before
    assert [graph.dtype(v) for v in (*graph.inputs, *graph.outputs)] == types
    assert not ports(graph)


def codes(x: Array, port: Port) -> Array:
    """By the formula of the metadata, in float64."""
    info = np.iinfo(port.dtype)
    q = np.rint(np.asarray(x, np.float64) / port.scale) + port.zero_point
    return np.asarray(np.clip(q, info.min, info.max), port.dtype)


def value(q: Array, port: Port) -> Array:
    return np.asarray((q.astype(np.float32) - np.float32(port.zero_point)) * np.float32(port.scale))


MODELS = {
    "plain": "(float[2,8] x) => (float[2,8] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
    "r = Relu(d) p = QuantizeLinear(r, t, z) y = DequantizeLinear(p, t, z) }",
    "an input with a float reader": "(float[2,8] x) => (float[2,8] y) { q = QuantizeLinear(x, s, z) "
    "d = DequantizeLinear(q, s, z) a = Add(d, x) p = QuantizeLinear(a, t, z) y = DequantizeLinear(p, t, z) }",
    "two pairs of one input": "(float[2,8] x) => (float[2,8] y) { q = QuantizeLinear(x, s, z) "
    "d = DequantizeLinear(q, s, z) q2 = QuantizeLinear(x, s, z) d2 = DequantizeLinear(q2, s, z) a = Mul(d, d2) "
    "p = QuantizeLinear(a, t, z) y = DequantizeLinear(p, t, z) }",
    "an output that is read": "(float[2,8] x) => (float[2,8] y, float[2,8] u) { q = QuantizeLinear(x, s, z) "
    "d = DequantizeLinear(q, s, z) r = Neg(d) p = QuantizeLinear(r, t, z) y = DequantizeLinear(p, t, z) "
    "h = Abs(y) k = QuantizeLinear(h, t, z) u = DequantizeLinear(k, t, z) }",
    "two outputs of the same codes": "(float[2,8] x) => (float[2,8] y, float[2,8] u) { q = QuantizeLinear(x, s, z) "
    "y = DequantizeLinear(q, s, z) u = DequantizeLinear(q, s, z) }",
    "an input whose size is read": "(float[2,8] x) => (float[2,8] y) { q = QuantizeLinear(x, s, z) "
    "d = DequantizeLinear(q, s, z) h = Shape(x) r = Reshape(d, h) p = QuantizeLinear(r, t, z) "
    "y = DequantizeLinear(p, t, z) }",
}


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("name", MODELS)
def test_the_codes_mean_what_the_floats_were(name: str, kind: str) -> None:
    zero_point = np.asarray(3 if kind == "int8" else 128, kind)
    graph = graph_of(MODELS[name], 17, s=S, t=np.float32(0.04), z=zero_point)
    feeds = random_feeds(graph)
    # The oracle: what a float reader of x sees is x rounded to the grid.
    scale = np.float32(S)
    port = Port("input", "x", kind, float(S), int(zero_point))
    rounded = (codes(feeds["x"], port).astype(np.float32) - np.float32(zero_point)) * scale
    expected = run(graph, {"x": rounded})
    shapes = [graph.shape(v) for v in graph.outputs]
    assert integer_interface(graph) == 1 + len(expected)
    assert graph.problem() is None
    found = ports(graph)
    assert found[0] == port
    assert {graph.dtype(v) for v in (*graph.inputs, *graph.outputs)} == {kind}
    assert [graph.shape(v) for v in graph.outputs] == shapes
    for got, wanted, end in zip(run(graph, {"x": codes(feeds["x"], port)}), expected, found[1:], strict=True):
        assert got.dtype == kind
        np.testing.assert_array_equal(value(got, end), wanted)
    again = with_float_ends(graph)
    assert {again.dtype(v) for v in (*again.inputs, *again.outputs)} == {"float32"}
    for got, wanted in zip(run(again, feeds), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@given(st.floats(2.0**-13, 10, width=32), st.integers(-128, 127), st.lists(st.floats(-50, 50, width=32), min_size=1))
def test_every_step_and_zero_point(scale: float, zero_point: int, numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    s, z = np.float32(scale), np.int8(zero_point)
    text = (
        "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Neg(d) "
        "p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z) }"
    )
    graph = graph_of(text, 17, s=s, z=z)
    (expected,) = run(graph, {"x": x})
    # ONNX Runtime divides in float32: where float64 sees no exact half the two may differ, so its own codes go in.
    first = graph_of("(float[N] x) => (int8[N] q) { q = QuantizeLinear(x, s, z) }", 17, s=s, z=z)
    (q,) = run(first, {"x": x})
    assert integer_interface(graph) == 2
    _, end = ports(graph)
    (got,) = run(graph, {"x": q})
    np.testing.assert_array_equal(value(got, end), expected)


def test_a_body_that_reads_the_input_reads_its_value() -> None:
    text = (
        "(float[4] x, bool c) => (float[4] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "b = If (c) <then_branch = one () => (float[4] o) { o = Neg(x) }, "
        "else_branch = two () => (float[4] o2) { o2 = Abs(x) }> a = Add(b, d) "
        "p = QuantizeLinear(a, s, z) y = DequantizeLinear(p, s, z) }"
    )
    graph = graph_of(text, 17, s=S, z=Z)
    q = np.array([-20, -1, 0, 77], np.int8)
    expected = run(graph, {"x": q * S, "c": np.array(False)})[0]
    assert integer_interface(graph) == 2
    np.testing.assert_array_equal(run(graph, {"x": q, "c": np.array(False)})[0] * S, expected)


def test_half_precision_is_quantized_without_a_cast() -> None:
    text = (
        "(float16[4] x) => (float[4] y) { r = Relu(x) c = Cast<to=1>(r) "
        "p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z) }"
    )
    graph = graph_of(text, 19, s=np.float32(0.0625), z=Z)
    graph.infer_shapes()
    assert integer_interface(graph) == 1
    assert [node.op_type for node in graph.nodes] == ["Relu", "QuantizeLinear"]
    odd = graph_of(text, 19, s=np.float32(0.05), z=Z)  # a scale that float16 has not
    odd.infer_shapes()
    assert integer_interface(odd) == 1
    assert [node.op_type for node in odd.nodes] == ["Relu", "Cast", "QuantizeLinear"]


def test_metadata_that_is_no_number_is_told() -> None:
    graph = graph_of("(int8[4] x) => (float[4] y) { y = DequantizeLinear(x, s, z) }", 17, s=S, z=Z)
    graph.model.metadata_props["onnxq.input.x.scale"] = "wide"
    with pytest.raises(ModelError, match=r"onnxq\.input\.x"):
        ports(graph)


@pytest.mark.parametrize("half", [False, True])
def test_the_type_of_the_scale_is_told_and_not_guessed_from_a_scale_that_both_types_hold(half: bool) -> None:
    pair = "q = QuantizeLinear({}, s, z) {} = DequantizeLinear(q, s, z)"
    wide = f"a = Cast<to=1>(x) {pair.format('a', 'd')} y = Cast<to=10>(d)"
    text = f"(float16[4] x) => (float16[4] y) {{ {pair.format('x', 'y') if half else wide} }}"
    kind = np.float16 if half else np.float32
    graph = graph_of(text, 19, s=np.array(0.5, kind), z=np.array(3, np.uint8))
    graph.infer_shapes()
    assert integer_interface(graph) == 2
    assert [(p.float_type, p.scale_type) for p in ports(graph)] == [("float16", kind.__name__)] * 2
    told = {k.rpartition(".")[2] for k in graph.model.metadata_props}
    assert ("scale_type" in told) is not half
    again = with_float_ends(graph)
    assert {again.dtype(v) for v in (*again.inputs, *again.outputs)} == {"float16"}
    assert [n.op_type for n in again.nodes].count("Cast") == (0 if half else 2)
    x = np.array([-1.3, 0.2, 0.7, 60000], np.float16)
    np.testing.assert_array_equal(run(again, {"x": x})[0], np.array([-1.5, 0, 0.5, 126], np.float16))
