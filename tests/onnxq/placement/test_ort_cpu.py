"""Placement for ONNX Runtime's CPU provider: what must stay in float first, then what is quantized and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from placing import groups, int8, net, reason, uses

from onnxq.caches import Cache
from onnxq.choose import resolve
from onnxq.placement.ort_cpu import place_cpu
from onnxq.recipe import Recipe, Rule
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.plan import Plan

CPU = TARGETS["ort-cpu"]
IMAGE = "float[1, 8, 16, 16] x"
W = (8, 8, 3, 3)
PADS = "<pads=[1,1,1,1]>"


def planned(graph: Graph, *rules: Rule) -> Plan:
    """The plan for the CPU provider."""
    return place_cpu(graph, CPU, Recipe(target="ort-cpu", rules=rules))


def between(op: str, opset: int = 17) -> Graph:
    """`op` makes m of c, between two convolutions that run in integers."""
    body = f"c = Conv{PADS}(x, w0) {op} y = Conv{PADS}(m, w1)"
    return net(
        IMAGE,
        body,
        "y",
        opset,
        w0=W,
        w1=W,
        v=(8, 1, 1),
        k=np.array(0.5, np.float32),
        sizes=np.array([1, 8, 16, 16], np.int64),
    )


@pytest.mark.parametrize(
    "op",
    [
        "m = Tanh(c)",
        "m = Sub(c, x)",
        "m = Div(c, k)",
        "m = Pow(c, k)",
        "m = Erf(c)",
        "m = Softplus(c)",
        "m = HardSigmoid(c)",
        "m = ReduceMean<axes=[3], keepdims=1>(c)",
        "m = ConvTranspose<pads=[1,1,1,1]>(c, w0)",
        "m = Resize<mode='cubic'>(c, , , sizes)",
        "m = Resize<mode='linear'>(c, , , sizes)",
        "m = LogSoftmax<axis=1>(c)",
    ],
)
def test_what_has_no_integer_kernel_stays_in_float(op: str) -> None:
    graph = between(op.replace("'", '"'))
    plan = planned(graph)
    name = next(n.name or "" for n in graph.nodes if any(v.name == "m" for v in n.outputs))
    assert name not in int8(plan)
    assert reason(plan, name)
    assert int8(plan) == {"Conv:c", "Conv:y"}
    assert uses(plan)["m"] == {"Conv:y@0"}


def test_an_lstm_stays_in_float_and_the_reason_names_the_mode_that_takes_it() -> None:
    graph = net("float[5,1,16] x", "o, h, c = LSTM<hidden_size=16>(x, w, r) y = Relu(o)", w=(1, 64, 16), r=(1, 64, 16))
    assert "--mode dynamic" in reason(planned(graph), "LSTM:o")


def test_a_constant_vector_is_not_rounded_to_8_bits() -> None:
    plan = planned(between("m = Mul(c, v)"))
    assert int8(plan) == {"Conv:c", "Conv:y"}
    assert "rounded" in reason(plan, "Mul:m")


def test_products_of_activations_stay_in_float_unless_a_rule_asks() -> None:
    graph = net("float[1, 64, 64] a, float[1, 64, 64] b", "y = MatMul(a, b)")
    assert not planned(graph).points
    forced = planned(graph, Rule(ops=("MatMul",), quantize=True))
    assert uses(forced) == {"a": {"MatMul:y@0"}, "b": {"MatMul:y@1"}}


def test_a_gelu_and_a_layer_norm_stay_whole() -> None:
    body = """h = MatMul(x, w) d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) i = Mul(g, half)
              z = MatMul(i, w2) y = LayerNormalization(z, scale)"""
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    constants = {name: np.array(number, np.float32) for name, number in numbers.items()}
    graph = net("float[1, 32, 64] x", body, w=(64, 128), w2=(128, 64), scale=np.ones(64, np.float32), **constants)
    assert int8(planned(graph)) == {"MatMul:h", "MatMul:z"}
    assert uses(planned(graph)) == {"x": {"MatMul:h@0"}, "i": {"MatMul:z@0"}}  # products write float


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = Gemm<alpha=0.5>(x, w, b)", "scaled"),
        ("y = Gemm(x, w, wide)", "one value per column"),
        ("t = Relu(x) y = Gemm(x, w, t)", "run time"),
        ("y = MatMul(x, cube)", "no matrices"),
    ],
)
def test_products_in_forms_that_do_not_fuse(body: str, why: str) -> None:
    weights = {"w": (64, 64), "b": (64,), "wide": (64, 64), "cube": (2, 64, 64)}
    used = {
        name: shape
        for name, shape in weights.items()
        if name in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    plan = planned(net("float[64, 64] x", body, **used))
    assert not plan.points
    assert why in reason(plan, next(d.node for d in plan.decisions if d.op_type in ("Gemm", "MatMul")))


def test_half_precision_has_no_integer_kernels() -> None:
    graph = net("float16[64, 64] x", "y = MatMul(x, w)", w=np.ones((64, 64), np.float16))
    assert "float32" in reason(planned(graph), "MatMul:y")


def test_a_small_island_stays_in_float() -> None:
    body = "a = Tanh(x) c = Conv<group=32, pads=[1,1,1,1]>(a, w) y = Tanh(c)"
    plan = planned(net("float[1, 32, 16, 16] x", body, w=(32, 1, 3, 3)))
    assert not plan.points
    assert "4.5 MACs a value" in reason(plan, "Conv:c")  # 9 for each of 32 * 256, over as many in and out
    kept = planned(net("float[1, 32, 16, 16] x", body, w=(32, 1, 3, 3)), Rule(nodes="Conv:c", quantize=True))
    assert int8(kept) == {"Conv:c"}


def test_the_same_layer_in_a_larger_island_runs_in_integers() -> None:
    body = "a = Conv(x, v) c = Conv<group=32, pads=[1,1,1,1]>(a, w) y = Conv(c, v)"
    plan = planned(net("float[1, 32, 16, 16] x", body, w=(32, 1, 3, 3), v=(32, 32, 1, 1)))
    assert int8(plan) == {"Conv:a", "Conv:c", "Conv:y"}


def test_a_rule_keeps_a_node_and_all_about_it_in_float() -> None:
    plan = planned(
        between("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)"), Rule(nodes="Conv:y", quantize=False)
    )
    assert int8(plan) == {"Conv:c"}
    assert "excluded" in reason(plan, "Conv:y")
    assert "nothing int8 follows" in reason(plan, "AveragePool:m")


def test_a_relu_vanishes_and_its_output_is_what_is_quantized() -> None:
    plan = planned(between("m = Relu(c)"))
    assert uses(plan) == {"x": {"Conv:c@0"}, "m": {"Conv:y@0"}, "y": set()}
    assert plan.points["y"].output  # an integer convolution writes integers, before a model output too
    assert "vanishes" in reason(plan, "Relu:m")


def test_a_clip_that_cuts_zero_off_does_not_vanish() -> None:
    body = f"c = Conv{PADS}(x, w0) m = Clip(c, lo, hi) y = Conv{PADS}(m, w1)"
    for low, vanishes in ((0.0, True), (0.5, False)):
        graph = net(IMAGE, body, w0=W, w1=W, lo=np.array(low, np.float32), hi=np.array(6, np.float32))
        assert ("c" not in uses(planned(graph))) == vanishes


def test_all_readers_of_an_integer_layer_read_its_pair() -> None:
    body = f"c = Conv{PADS}(x, w0) t = Tanh(c) y = Conv{PADS}(c, w1)"
    plan = planned(net(IMAGE, body, "y t", w0=W, w1=W))
    assert uses(plan)["c"] == {"Tanh:t@0", "Conv:y@0"}
    assert not plan.points["c"].output


@pytest.mark.parametrize(
    "op",
    [
        "m = Add(c, c)",
        "m = Mul(c, k)",
        "m = Sigmoid(c)",
        "m = LeakyRelu<alpha=0.1>(c)",
        "m = Softmax<axis=1>(c)",
        "m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)",
        "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)",
        "m = Transpose<perm=[0,1,3,2]>(c)",
        "m = Resize(c, , , sizes)",
    ],
)
def test_integers_flow_through(op: str) -> None:
    plan = planned(between(op))
    assert len(int8(plan)) == 3
    assert uses(plan)["m"] == {"Conv:y@0"}


def test_operators_that_move_data_share_a_scale() -> None:
    assert groups(planned(between("m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)"))) == {frozenset({"c", "m"})}
    assert groups(planned(between("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)"))) == set()


def test_a_concat_shares_a_scale_only_where_no_relu_would_be_lost() -> None:
    body = f"c = Conv{PADS}(x, w0) {{}} d = Conv{PADS}(x, w1) m = Concat<axis=1>(r, d) y = Conv{PADS}(m, w2)"
    for op, shared in (("r = Relu(c)", set()), ("r = Identity(c)", {frozenset({"c", "r", "d", "m"})})):
        graph = net(IMAGE, body.format(op), w0=W, w1=W, w2=(8, 16, 3, 3))
        assert groups(planned(graph)) == shared


def test_probabilities_have_their_range_whatever_was_seen() -> None:
    point = planned(between("m = Sigmoid(c)")).points["m"]
    assert (point.range, point.chosen) == ((0.0, 1.0), "sigmoid")


def test_a_chain_of_products_stays_in_integers() -> None:
    body = "h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, w2, b)"
    plan = planned(net("float[64, 64] x", body, w=(64, 64), w2=(64, 64), b=(64,)))
    assert uses(plan) == {"x": {"Gemm:h@0"}, "r": {"Gemm:y@0"}}
    assert not any(point.output for point in plan.points.values())  # the last product writes float


def test_a_range_reaches_no_further_than_the_clip_before_it() -> None:
    body = f"c = Conv{PADS}(x, w0) r = Clip(c, lo, hi) m = MaxPool<kernel_shape=[2,2]>(r) y = Conv{PADS}(m, w1)"
    graph = net(IMAGE, body, w0=W, w1=W, lo=np.array(0, np.float32), hi=np.array(6, np.float32))
    plan = planned(graph)
    assert plan.points["r"].bounds == plan.points["m"].bounds == (0.0, 6.0)
    cache = Cache("A", "1", {name: np.float32(0.1) for name in plan.points})
    resolved = resolve(plan, None, Recipe(target="ort-cpu"), CPU, cache)
    assert resolved.points["r"].range == (0.0, 6.0)  # the cache says -12.7 to 12.7
    assert resolved.points["y"].range == pytest.approx((-12.7, 12.7))
    assert int(resolved.points["r"].params.zero_point) == 0  # type: ignore[union-attr]  # resolved
