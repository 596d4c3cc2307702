from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, lines, random_feeds, run
from onnx import helper, numpy_helper
from optimized import operators
from placing import net

from onnxq.graph import Graph
from onnxq.numerics import INT8_WEIGHT, quantize, sqnr_db, weight_params
from onnxq.passes.dynamic_lstm import DynamicLSTM
from onnxq.passes.dynamic_products import DynamicProducts
from onnxq.placement import placed
from onnxq.recipe import Recipe
from onnxq.runtime import Session
from onnxq.targets import get_target

RNG = np.random.default_rng(11)
RECIPE = Recipe(target="ort-cpu", mode="dynamic")


def lowered(graph: Graph) -> int:
    graph.infer_shapes()
    plan = placed(graph, get_target("ort-cpu"), RECIPE)
    count = DynamicProducts(plan, INT8_WEIGHT)(graph) + DynamicLSTM(plan, INT8_WEIGHT)(graph)
    graph.remove_unused()
    return count


def input_codes(x: Array) -> tuple[Array, float, int]:
    """ONNX DynamicQuantizeLinear: codes, scale, zero point."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = round(min(max(-low / float(scale), 0), 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.float64), float(scale), zero


@pytest.mark.parametrize(
    ("inputs", "body", "shapes", "why"),
    [
        ("float[4,8] x", "t = Transpose(x) y = MatMul(x, t)", {}, "product of two activations"),
        ("float[2,4,8] x", "y = MatMul(x, w)", {"w": (2, 8, 16)}, "rank 3"),
        ("float[8,4] x", "y = Gemm<transA=1>(x, w)", {"w": (8, 16)}, "transA"),
        ("float[1,4,8,8] x", "y = ConvTranspose(x, w)", {"w": (4, 4, 3, 3)}, "no form"),
    ],
)
def test_stays_in_float(inputs: str, body: str, shapes: dict[str, tuple[int, ...]], why: str) -> None:
    graph = net(inputs, body, **shapes)
    plan = placed(graph, get_target("ort-cpu"), RECIPE)
    assert not plan.weights
    assert any(why in d.reason for d in plan.decisions)


@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, c)"])
def test_products(op: str) -> None:
    gemm = "Gemm" in op
    w, c = RNG.normal(size=(64, 24)).astype(np.float32), RNG.normal(size=24).astype(np.float32)
    graph = graph_of(f"(float[5, 64] x) => (float[5, 24] y) {{ y = {op} }}", w=w.T if gemm else w, c=c)
    feeds = random_feeds(graph)
    assert lowered(graph) == 1
    (found,) = Session(graph.to_proto().SerializeToString()).run(feeds)  # optimized: exact on CPUs without VNNI too
    codes, scale, zero = input_codes(feeds["x"])
    params = weight_params(w, 1)
    product = (codes - zero) @ quantize(w, params).astype(np.float64) * scale * params.scale.astype(np.float64)
    expected = 0.5 * product + 2 * c if gemm else product
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_convolution() -> None:
    w, c = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32), RNG.normal(size=8).astype(np.float32)
    text = "(float[1, 4, 6, 6] x) => (float[A, B, C, D] y) { y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, c) }"
    graph = graph_of(text, w=w, c=c)
    feeds = random_feeds(graph)
    (reference,) = run(graph, feeds)
    assert lowered(graph) == 1
    assert "ConvInteger" in "".join(lines(graph))
    (found,) = run(graph, feeds)
    assert found.shape == reference.shape
    assert sqnr_db(reference, found) > 35  # padding is the input's zero point: real zeros


def test_the_provider_fuses_it_and_one_quantizer_serves_all() -> None:
    text = "(float[5, 64] x) => (float[5, 32] y) { a = MatMul(x, w) s = Add(a, c) y = Sin(s) }"
    w, v = (RNG.normal(size=(64, 32)).astype(np.float32) for _ in range(2))
    graph = graph_of(text, w=w, c=np.ones(32, np.float32))
    assert lowered(graph) == 1
    assert operators(graph) == ["DynamicQuantizeMatMul", "Sin"]
    text = "(float[5, 64] x) => (float[5, 32] y) { a = MatMul(x, w) b = MatMul(x, v) y = Mul(a, b) }"
    graph = graph_of(text, w=w, v=v)
    assert lowered(graph) == 2
    assert sum("DynamicQuantizeLinear" in line for line in lines(graph)) == 1
    assert "MatMul" not in operators(graph)


def lstm(direction: str, inputs: int, hidden: int) -> Graph:
    sides = 2 if direction == "bidirectional" else 1
    shapes = {"W": (sides, 4 * hidden, inputs), "R": (sides, 4 * hidden, hidden), "B": (sides, 8 * hidden)}
    weights = [numpy_helper.from_array((RNG.normal(size=s) * 0.3).astype(np.float32), n) for n, s in shapes.items()]
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "", "Yc"], hidden_size=hidden, direction=direction)
    floats = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("X", [7, 2, inputs]), ("Y", None), ("Yc", None))
    ]
    graph = helper.make_graph([node], "lstm", floats[:1], floats[1:], weights)
    return Graph.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str) -> None:
    graph = lstm(direction, 16, 24)
    feeds = {"X": RNG.normal(size=(7, 2, 16)).astype(np.float32)}
    expected = run(graph, feeds)
    assert lowered(graph) == 1
    assert [n.op_type for n in graph.nodes] == ["DynamicQuantizeLSTM"]
    found = Session(graph.to_proto().SerializeToString()).run(feeds)
    for one, other in zip(expected, found, strict=True):
        assert sqnr_db(one, other) > 30


def test_an_lstm_with_computed_weights_stays() -> None:
    graph = lstm("forward", 16, 24)
    node = graph.nodes[0]
    doubled = graph.add("Add", [node.inputs[1], node.inputs[1]], name="W2", before=node)
    graph.set_input(node, 1, doubled)
    assert lowered(graph) == 0
    assert any(n.op_type == "LSTM" for n in graph.nodes)


def test_layers_that_share_a_weight_share_its_codes() -> None:
    """Once for each form they are read in: a Gemm's alpha goes into the scales, transB turns the codes."""
    text = "(float[16, 16] x) => (float[16, 16] y) {{ a = MatMul(x, {}) b = MatMul(a, {}) y = Gemm<transB=1>(b, {}) }}"
    w = (RNG.normal(size=(16, 16)) / 4).astype(np.float32)
    shared, apart = graph_of(text.format("w", "w", "w"), w=w), graph_of(text.format("u", "v", "w"), u=w, v=w, w=w)
    assert lowered(shared) == lowered(apart) == 3
    codes = [
        sum(i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2 for i in g.initializer)
        for g in (shared.to_proto().graph, apart.to_proto().graph)
    ]
    assert codes == [2, 3]
    feed = random_feeds(shared)
    np.testing.assert_array_equal(run(shared, feed)[0], run(apart, feed)[0])
