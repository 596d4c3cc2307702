"""Integer operators in place of pairs: what is left alone first, then pairs that leave their zero point out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph_of, lines, run

from onnxq.passes.to_operators import ToOperators

RNG = np.random.default_rng(0)
STEP = 0.05
ARRAYS: dict[str, Any] = {
    "s": np.float32(STEP),
    "w": RNG.integers(-127, 128, (16, 16)).astype(np.int8),
    "k": RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
    "sw": np.float32(0.002),
    "sk": RNG.uniform(0.0005, 0.001, 16).astype(np.float32),
    "b": RNG.normal(size=16).astype(np.float32),
}
PAIR = "q = QuantizeLinear(x, s) d = DequantizeLinear(q, s)"
ENDS = "p = QuantizeLinear(c, s) y = DequantizeLinear(p, s)"
WEIGHT = "e = DequantizeLinear(w, sw)"


def weights(text: str) -> dict[str, Any]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in ARRAYS.items() if name in words}


@pytest.mark.parametrize(
    "nodes",
    [
        f"{PAIR} c = Sigmoid(d) y = Relu(c)",
        "c = Sigmoid(x) p = QuantizeLinear(c, s) y = DequantizeLinear(p, s)",
        f"{PAIR} y = MatMul(d, x)",
    ],
)
def test_left_alone(nodes: str) -> None:
    graph = graph_of(f"(float[16,16] x) => (float[16,16] y) {{ {nodes} }}", **weights(nodes))
    before = lines(graph)
    assert ToOperators(frozenset({"Transpose"}))(graph) == 0
    assert lines(graph) == before


def test_zero_points_that_are_there_are_taken() -> None:
    nodes = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Sigmoid(d)
               p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z)"""
    graph = graph_of(f"(float[16,16] x) => (float[16,16] y) {{ {nodes} }}", z=np.uint8(7), **weights(nodes))
    assert ToOperators(frozenset())(graph) == 1
    assert set(graph.weights) == {"s", "z"}


@pytest.mark.parametrize(
    ("nodes", "becomes"),
    [
        (f"{PAIR} {WEIGHT} c = MatMul(d, e) {ENDS}", "QLinearMatMul"),
        (f"{PAIR} {WEIGHT} y = MatMul(d, e)", "MatMulIntegerToFloat"),
        (f"{PAIR} {WEIGHT} c = Gemm(d, e, b) {ENDS}", "QGemm"),
        (f"{PAIR} {WEIGHT} y = Gemm(d, e, b)", "QGemm"),
        (f"{PAIR} c = Add(d, d) {ENDS}", "QLinearAdd"),
        (f"{PAIR} c = Sigmoid(d) {ENDS}", "QLinearSigmoid"),
        (f"{PAIR} c = Concat<axis=0>(d, d) {ENDS}", "QLinearConcat"),
        (f"{PAIR} e = DequantizeLinear<axis=0>(k, sk) c = Conv<pads=[1,1,1,1]>(d, e, b) {ENDS}", "QLinearConv"),
        (f"{PAIR} c = Transpose(d) {ENDS}", "Transpose"),
    ],
)
def test_zero_points_that_are_left_out_are_written(nodes: str, becomes: str) -> None:
    shape = "2,16,8,8" if "Conv<" in nodes else "16,16"
    sizes = "A,B,C,D" if "Conv<" in nodes else "A,B"
    text = f"(float[{shape}] x) => (float[{sizes}] y) {{ {nodes} }}"
    before, after = (graph_of(text, **weights(nodes)) for _ in range(2))
    after.infer_shapes()
    assert ToOperators(frozenset({"Transpose"}))(after) == 1
    after.remove_unused()
    assert becomes in {n.op_type for n in after.nodes}
    if becomes == "QLinearConv":  # of ONNX itself, whose checker knows it
        onnx.checker.check_model(after.to_proto(), full_check=True)
    feeds = {"x": RNG.normal(2, 2, size=[int(d) for d in shape.split(",")]).astype(np.float32)}
    one, two = (run(graph, feeds)[0] for graph in (before, after))
    assert np.abs(one).max() > 10 * STEP
    np.testing.assert_allclose(two, one, atol=1.001 * STEP)


OTHERS: dict[str, Any] = {
    "s": np.float32(STEP),
    "t": np.float32(STEP / 2),
    "i": np.int8(3),
    "u": np.uint8(131),
    "sw": np.float32(0.002),
    "wi": RNG.integers(-127, 128, (16, 16)).astype(np.int8),
    "wu": RNG.integers(0, 255, (16, 16)).astype(np.uint8),
    "k": RNG.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8),
}
SAME = "p = QuantizeLinear(c, s, FIRST) y = DequantizeLinear(p, s, FIRST)"
CHANGED = "p = QuantizeLinear(c, s, OTHER) y = DequantizeLinear(p, s, OTHER)"


@pytest.mark.parametrize("first", ["i", "u"])
@pytest.mark.parametrize(
    ("nodes", "becomes"),
    [
        ("c = Transpose(d) p = QuantizeLinear(c, t, FIRST) y = DequantizeLinear(p, t, FIRST)", ["Transpose"]),
        (f"c = Transpose(d) {CHANGED}", ["Transpose"]),
        (f"c = Sigmoid(d) {CHANGED}", ["Sigmoid"]),
        (f"o = QuantizeLinear(x, s, OTHER) e = DequantizeLinear(o, s, OTHER) c = Add(d, e) {SAME}", ["Add"]),
        (f"e = DequantizeLinear(wi, sw) c = MatMul(d, e) {CHANGED}", ["MatMulIntegerToFloat"]),
        (f"e = DequantizeLinear(wi, sw) c = Gemm(d, e) {CHANGED}", ["QGemm"]),
        ("e = DequantizeLinear(wu, sw, u) y = MatMul(d, e)", ["MatMul", "MatMulIntegerToFloat"]),
        (f"e = DequantizeLinear(k, sw) c = Conv(d, e) {CHANGED}", ["Conv"]),
    ],
)
def test_types_and_scales_that_change_between_pairs(nodes: str, becomes: list[str], first: str) -> None:
    """Values stay, and ONNX Runtime has kernels for all: it has none that turns one type of codes into the other."""
    nodes = nodes.replace("FIRST", first).replace("OTHER", "u" if first == "i" else "i")
    sizes, names = ([1, 16, 4, 4], "A,B,C,D") if "Conv" in nodes else ([16, 16], "A,B")
    head = f"q = QuantizeLinear(x, s, {first}) d = DequantizeLinear(q, s, {first})"
    text = f"(float{sizes} x) => (float[{names}] y) {{ {head} {nodes} }}"
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    given = {name: array for name, array in OTHERS.items() if name in words}
    before, after = (graph_of(text, **given) for _ in range(2))
    after.infer_shapes()
    ToOperators(frozenset({"Transpose"}))(after)
    after.remove_unused()
    assert {n.op_type for n in after.nodes} & set(becomes)
    feed = {"x": RNG.normal(size=sizes).astype(np.float32)}
    one, two = (run(graph, feed)[0] for graph in (before, after))
    assert np.abs(one).max() > 5 * STEP
    np.testing.assert_allclose(two, one, atol=1.001 * STEP)
