from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, run, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.centre_codes import centre_codes
from onnxq.passes.infer_shapes import infer_shapes
from onnxq.shifted import shifted_tensors, with_float_tensors

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(11)
STEP = 2.0**-5
WEIGHT = "w = DequantizeLinear<axis = 0>(wq, ws, wz) "


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def codes(*shape: int, axis: int = 0) -> dict[str, Array]:
    """A weight in int8 with a scale per channel."""
    return {
        "wq": RNG.integers(-127, 128, shape).astype(np.int8),
        "ws": RNG.uniform(0.001, 0.01, shape[axis]).astype(np.float32),
        "wz": np.zeros(shape[axis], np.int8),
    }


def pair(source: str, name: str, zero: str = "z") -> str:
    return f"{name}q = QuantizeLinear({source}, s, {zero}) {name} = DequantizeLinear({name}q, s, {zero}) "


def built(text: str, zero: int = -128, step: float = STEP, /, **weights: Array) -> Graph:
    numbers: dict[str, Array] = {"s": np.array(step, np.float32), "z": np.array(zero, np.int8)}
    graph = graph_of(text, **{**numbers, **weights})
    infer_shapes(graph)
    return graph


def ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]


def zero_points(graph: Graph) -> set[int]:
    pairs = [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {int(z) for n in pairs for z in np.unique(np.asarray(graph.const(n.inputs[2])))}


# -- what it leaves alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zeros", "why"),
    [
        ({"z": np.int8(0)}, "no zero point"),
        ({"z": np.uint8(3)}, "uint8, which the target refuses anyway"),
        ({"z": np.int8(-5), "y0": np.int8(4)}, "two zero points: the pair does more than to round"),
    ],
)
def test_pairs_that_it_leaves_alone(zeros: dict[str, Array], why: str) -> None:
    second = "y0" if "y0" in zeros else "z"
    text = f"(float[2,4] x) => (float[2,4] y) {{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, {second}) }}"
    graph = graph_of(text, s=np.float32(STEP), **zeros)
    before = lines(graph)
    assert centre_codes(graph) == 0, why
    assert lines(graph) == before


def test_pairs_with_a_scale_per_channel_are_left_alone() -> None:
    text = "(float[2,4] x) => (float[2,4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    graph = graph_of(text, s=np.full(4, STEP, np.float32), z=np.full(4, -3, np.int8))
    before = lines(graph)
    assert centre_codes(graph) == 0
    assert lines(graph) == before


def test_codes_that_something_else_reads_are_left_alone() -> None:
    text = "(float[2,4] x) => (float[2,4] y, int8[2,4] q) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    graph = built(text)
    before = lines(graph)
    assert centre_codes(graph) == 0
    assert lines(graph) == before


# -- what it makes -------------------------------------------------------------------------------------------------

HEAD = "c = Conv(x, a, b) r = Relu(c) "
IMAGE = {"a": floats(6, 3, 3, 3), "b": floats(6)}
CASES: dict[str, tuple[str, dict[str, Array], list[str]]] = {
    "relu, convolution of one pixel": (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y) {" + HEAD + pair("r", "d") + WEIGHT + "y = Conv(d, w, v) }",
        {**IMAGE, **codes(5, 6, 1, 1), "v": floats(5)},
        ["Conv", "Conv"],
    ),
    "relu, padded convolution without a bias": (
        ("(float[N,3,9,9] x) => (float[N,5,7,8] y) {" + HEAD + pair("r", "d") + WEIGHT)
        + "y = Conv<pads = [1,0,1,3]>(d, w) }",
        {**IMAGE, **codes(5, 6, 3, 3)},
        ["Conv", "Pad", "Conv"],
    ),
    "two padded convolutions and one that is not": (
        ("(float[2,3,9,9] x) => (float[2,5,7,7] y, float[2,5,7,7] u, float[2,5,5,5] t) {" + HEAD + pair("r", "d"))
        + WEIGHT
        + "y = Conv<pads = [1,1,1,1]>(d, w, v) u = Conv<pads = [1,1,1,1]>(d, w) t = Conv(d, w, v) }",
        {**IMAGE, **codes(5, 6, 3, 3), "v": floats(5)},
        ["Conv", "Pad", "Conv", "Conv", "Conv"],
    ),
    "clip, depthwise": (
        ("(float[2,3,9,9] x) => (float[2,6,4,4] y) { c = Conv(x, a, b) r = Clip(c, low, high)" + pair("r", "d"))
        + WEIGHT
        + "y = Conv<group = 6, strides = [2,2], pads = [1,1,1,1]>(d, w, v) }",
        {**IMAGE, **codes(6, 1, 3, 3), "v": floats(6), "low": np.array(0, np.float32), "high": np.array(8, np.float32)},
        ["Conv", "Pad", "Conv"],
    ),
    "clip inside the grid": (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y) { c = Conv(x, a, b) r = Clip(c, low, high)"
        + pair("r", "d")
        + WEIGHT
        + "y = Conv(d, w, v) }",
        {**IMAGE, **codes(5, 6, 1, 1), "v": floats(5), "low": np.array(0, np.float32), "high": np.array(3, np.float32)},
        ["Conv", "Clip", "Add", "Conv"],
    ),
    "relu, maximum": (
        "(float[2,3,9,9] x) => (float[2,5,3,3] y) {"
        + HEAD
        + "m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r) "
        + pair("m", "d")
        + WEIGHT
        + "y = Conv(d, w, v) }",
        {**IMAGE, **codes(5, 6, 1, 1), "v": floats(5)},
        ["Conv", "MaxPool", "Conv"],
    ),
    "relu that is read in float as well": (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y, float[2,6,7,7] t) {"
        + HEAD
        + pair("r", "d")
        + WEIGHT
        + "y = Conv(d, w, v) t = Tanh(r) }",
        {**IMAGE, **codes(5, 6, 1, 1), "v": floats(5)},
        ["Conv", "Relu", "Add", "Tanh", "Conv"],
    ),
    "residual": (
        "(float[2,3,9,9] x) => (float[2,6,7,7] y) {"
        + HEAD
        + pair("r", "d")
        + WEIGHT
        + "e = Conv(d, w, v) f = Add(e, d) g = Relu(f) "
        + pair("g", "h")
        + "y = Conv(h, w, v) }",
        {**IMAGE, **codes(6, 6, 1, 1), "v": floats(6)},
        ["Conv", "Conv", "Add", "Conv"],
    ),
    "concat": (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y) {"
        + HEAD
        + "t = HardSwish(c)"
        + pair("r", "d")
        + pair("t", "e")
        + "j = Concat<axis = 1>(d, e) "
        + pair("j", "k")
        + WEIGHT
        + "y = Conv(k, w, v) }",
        {**IMAGE, **codes(5, 12, 1, 1), "v": floats(5)},
        ["Conv", "Relu", "HardSwish", "Add", "Add", "Concat", "Conv"],
    ),
    "pools and a Gemm": (
        "(float[2,3,9,9] x) => (float[2,5] y) {"
        + HEAD
        + pair("r", "d")
        + "m = GlobalAveragePool(d) f = Flatten(m) "
        + pair("f", "e")
        + WEIGHT
        + "y = Gemm<alpha = 0.5, transB = 1>(e, w, v) }",
        {**IMAGE, **codes(5, 6), "v": floats(5)},
        ["Conv", "GlobalAveragePool", "Flatten", "Gemm"],
    ),
    "average over zeros": (
        "(float[2,3,9,9] x) => (float[2,6,7,7] y, float[2,6,7,7] u) {"
        + HEAD
        + pair("r", "d")
        + "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(d) "
        + "u = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(d) }",
        IMAGE,
        ["Conv", "Pad", "AveragePool", "Add", "AveragePool", "Add"],
    ),
    "gate": (
        "(float[2,3,9,9] x) => (float[2,6,7,7] y) {"
        + HEAD
        + pair("r", "d")
        + "m = GlobalAveragePool(d) g = Sigmoid(m) y = Mul(d, g) }",
        IMAGE,
        ["Conv", "GlobalAveragePool", "Add", "Add", "Sigmoid", "Mul"],
    ),
    "products of one tensor": (
        "(float[2,4,6] x) => (float[2,4,5] y, float[2,4,5] u) { t = Exp(x) "
        + pair("t", "d")
        + "w = DequantizeLinear<axis = 1>(wq, ws, wz) p = MatMul(d, w) y = Add(v, p) u = MatMul(d, w) }",
        {**codes(6, 5, axis=1), "v": floats(5)},
        ["Exp", "Add", "MatMul", "Add", "MatMul", "Add"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_form_and_function(name: str) -> None:
    text, weights, left = CASES[name]
    graph = built(text, **weights)
    after = graph.copy()
    assert centre_codes(after) > 0
    assert zero_points(after) == {0}
    assert sorted(ops(after)) == sorted(left)
    assert after.problem() is None
    feeds = random_feeds(graph, 3, N=2)
    same_function(graph, after, feeds)
    assert len(np.unique(run(after, feeds)[0])) > 8  # something is left to compare


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    zero=st.integers(-128, 127),
    step=st.integers(-7, -3),
    seed=st.integers(0, 2**16),
)
def test_any_zero_point_and_scale(name: str, zero: int, step: int, seed: int) -> None:
    text, weights, _ = CASES[name]
    graph = built(text, zero, 2.0**step, **weights)
    after = graph.copy()
    centre_codes(after)
    assert zero_points(after) <= {0}
    feeds = random_feeds(graph, seed, N=1)
    for expected, got in zip(run(graph, feeds), run(after, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=0.05 * 2.0**step)  # one code is worth a step and more


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), zero=st.integers(-128, 127), seed=st.integers(0, 2**16))
def test_the_metadata_tells_what_stands_for_which_tensor(name: str, zero: int, seed: int) -> None:
    text, weights, _ = CASES[name]
    graph = built(text, zero, **weights)
    after = graph.copy()
    centre_codes(after)
    told = {one.name: one for one in shifted_tensors(after.model.metadata_props)}
    there = {str(v.name) for v in with_float_tensors(after).values()}
    before = {str(v.name): v for v in graph.values()}
    ends = {
        str(v.name) for n in graph.nodes if n.op_type in ("Relu", "Clip") for v in n.inputs[:1] if v is not None
    }  # what they read is not told
    others = {str(n.outputs[0].name) for n in graph.nodes if n.op_type in ("DequantizeLinear", "MatMul")}
    assert set(before) - there <= ends | others  # a product is one with its bias
    if told:
        names = sorted(told)
        feeds = random_feeds(graph, seed, N=1)
        for expected, got in zip(outputs(graph, names, feeds), outputs(after, names, feeds), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=0.05 * STEP)


def outputs(graph: Graph, names: list[str], feeds: dict[str, Array]) -> list[Array]:
    """These tensors of the float model, in it or in what was made of it."""
    shown = with_float_tensors(graph).copy()
    values = {str(v.name): v for v in shown.values()}
    shown.set_outputs([values[name] for name in names])
    return run(shown, feeds)


def test_every_quantized_tensor_is_told_of() -> None:
    text, weights, _ = CASES["relu, padded convolution without a bias"]
    after = built(text, **weights)
    centre_codes(after)
    told = {one.tensor: one for one in shifted_tensors(after.model.metadata_props)}
    first = next(n for n in after.nodes if n.op_type == "QuantizeLinear")
    assert first.inputs[0] is not None
    one = told[str(first.inputs[0].name)]
    assert (one.name, one.shift, one.high) == ("r", -128 * STEP, np.inf)


def test_a_clip_behind_an_average_stays() -> None:
    text = "(float[2,3,9,9] x) => (float[2,5,1,1] y) {" + HEAD + "m = GlobalAveragePool(r) " + pair("m", "d")
    graph = built(text + WEIGHT + "y = Conv(d, w, v) }", **IMAGE, **codes(5, 6, 1, 1), v=floats(5))
    after = graph.copy()
    assert centre_codes(after) == 1
    assert ops(after) == ["Conv", "Relu", "GlobalAveragePool", "Add", "Conv"]
    same_function(graph, after, random_feeds(graph, 4))


def test_a_tensor_keeps_its_name_only_with_its_values() -> None:
    text, weights, _ = CASES["relu, padded convolution without a bias"]
    graph = built(text, **weights)
    after = graph.copy()
    centre_codes(after)
    names = {str(v.name) for v in after.values()}
    assert not names & {"c", "r", "d"}
    assert {"x", "y", "c/centred", "d/centred"} <= names


def test_weights_behind_two_nodes() -> None:
    text = (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y) {"
        + HEAD
        + pair("r", "d")
        + "wi = QuantizeLinear<axis = 0>(wf, ws, wz) w = DequantizeLinear<axis = 0>(wi, ws, wz) y = Conv(d, w, v) }"
    )
    stored = codes(5, 6, 1, 1)
    graph = built(text, wf=floats(5, 6, 1, 1), ws=stored["ws"] * 4, wz=stored["wz"], v=floats(5), **IMAGE)
    after = graph.copy()
    assert centre_codes(after) == 1
    assert ops(after) == ["Conv", "Conv"]
    same_function(graph, after, random_feeds(graph, 5))
