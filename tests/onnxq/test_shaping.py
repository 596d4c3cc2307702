"""Layers that a shape is computed from: a predictor of durations in front of what makes as many frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run

from onnxq import api
from onnxq.monitor import Monitor
from onnxq.patterns.shaping import SHAPE, shaping
from onnxq.recipe import Recipe, Rule

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(4)
QUIET = Monitor(warn=lambda _: None)


def conv(outputs: int = 16) -> Array:
    return (RNG.normal(size=(outputs, 16, 3)) / 6).astype(np.float32)


def model() -> Graph:
    """Each sample has as many frames as its predicted durations add up to."""
    text = """(float[1,16,T] x) => (float[1,16,M] y) {
        a = Conv(x, w) b = Relu(a) s = Conv(b, v) e = Exp(s) n = ReduceSum<keepdims=0>(e) k = Cast<to=7>(n)
        r = Range(zero, k, one) f = Cast<to=1>(r) p = Unsqueeze(f, axes) q = Sin(p) h = ReduceMean<keepdims=1>(b)
        m = Mul(q, h) t = Tile(m, times) z = Conv(t, u) o = Relu(z) y = Conv(o, u)
    }"""
    given: dict[str, Array] = {"axes": np.array([0, 1]), "times": np.array([1, 16, 1])}
    given |= {name: np.array(number) for name, number in (("zero", 0), ("one", 1))}
    return graph_of(text, w=conv(), v=conv(1), u=conv(), **given)


FEEDS = [{"x": RNG.normal(size=(1, 16, 40)).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize(
    "nodes",
    [
        "n = Shape(a) y = Expand(one, n)",  # the shape of what a layer makes is no result of the layer
        "b = Relu(x) n = ReduceMax<keepdims=0>(b) k = Cast<to=7>(n) i = Unsqueeze(k, z) y = Expand(one, i)",  # no layer
        "b = Softmax(a) y = Slice(b, z, two)",  # constants
    ],
)
def test_what_it_leaves_alone(nodes: str) -> None:
    given = {"one": np.ones(1, np.float32), "z": np.array([0]), "two": np.array([2]), "w": conv()}
    text = f"(float[1,16,9] x) => (float y) {{ a = Conv(x, w) {nodes} }}"
    assert (
        shaping(graph_of(text, **{name: array for name, array in given.items() if name in nodes or name == "w"})) == {}
    )


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_lengths_are_those_of_the_float_model(target: str) -> None:
    graph = model()
    made, plan = api.quantize(graph, FEEDS, Recipe(target=target, effort="fast"), QUIET)
    decided = {d.node: d for d in plan.decisions if d.op_type == "Conv"}
    assert [d.quantized for d in decided.values()] == [False, False, True, True]
    assert [d.reason.split(";")[0] for d in decided.values()][:2] == [SHAPE.split(";")[0]] * 2
    lengths = {run(graph, feed)[0].shape[2] for feed in FEEDS}
    assert len(lengths) > 1
    assert [run(made, feed)[0].shape for feed in FEEDS] == [run(graph, feed)[0].shape for feed in FEEDS]
    if target == "tensorrt":
        assert not [f for f in api.check(made).findings if f.id == "P33"]


def test_weights_above_a_shape_stay_for_tensorrt_in_mode_weight_only() -> None:
    made, plan = api.quantize(model(), None, Recipe(mode="weight-only", high_precision="fp32"), QUIET)
    assert [d.quantized for d in plan.decisions if d.op_type == "Conv"] == [False, False, True, True]
    assert not [f for f in api.check(made).findings if f.id == "P33"]


IN_A_BRANCH = {"zero": np.array(0), "one": np.array(1), "w": RNG.normal(size=(64, 64)).astype(np.float32) / 3}


def branching(outside: str, inside: str) -> Graph:
    """As many numbers as `n`, which the branch or what is around it computes of the layer's largest result."""
    text = f"""(float[64,64] x, bool q) => (int64[N] y, float[64,64] z) {{
        r = Relu(x) a = MatMul(r, w) {outside} z = MatMul(x, w)
        y = If (q) <then_branch = t () => (int64[N] g) {{ {inside} g = Range(zero, n, one) }},
                    else_branch = o () => (int64[N] k) {{ k = Range(zero, one, one) }}>
    }}"""
    return graph_of(text, 17, **IN_A_BRANCH)


LARGEST, WHOLE = "s = ReduceMax<keepdims=0>(a)", "n = Cast<to=7>(s)"


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
@pytest.mark.parametrize(
    ("outside", "inside"), [(f"{LARGEST} {WHOLE}", ""), (LARGEST, WHOLE), ("", f"{LARGEST} {WHOLE}")]
)
def test_a_shape_that_only_a_branch_needs(target: str, outside: str, inside: str) -> None:
    graph = branching(outside, inside)
    feeds = [{"x": RNG.normal(size=(64, 64)).astype(np.float32), "q": np.array(i % 4 > 0)} for i in range(8)]
    made, plan = api.quantize(graph, feeds, Recipe(target=target, effort="fast"), QUIET)
    decided = {d.node: d for d in plan.decisions if d.op_type == "MatMul"}
    assert {node: d.quantized for node, d in decided.items()} == {"MatMul:a": False, "MatMul:z": True}
    assert decided["MatMul:a"].reason == SHAPE
    assert [run(made, feed)[0].shape for feed in feeds] == [run(graph, feed)[0].shape for feed in feeds]
    if target == "tensorrt":
        assert not [f for f in api.check(made).findings if f.id == "P33"]


def test_each_part_names_its_own_nodes() -> None:
    graph = branching(LARGEST, "e = Exp(s) n = Cast<to=7>(e)")
    graph.infer_shapes()
    main, branch, other = graph.parts()
    assert sorted(shaping(main)) == ["MatMul:a", "ReduceMax:s", "Relu:r"]
    assert sorted(shaping(branch)) == ["Exp:e"]  # its layer lies around it
    assert shaping(other) == {}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_layers(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    text = f"""(float[7,1,32] x) => (int64[N] y, float[1,1,16] z) {{
        a, h = {op}<hidden_size=16>(x, w, r) d = Mul(h, h) s = ReduceMax<keepdims=0>(d) n = Cast<to=7>(s)
        y = Range(zero, n, one) b, g = {op}<hidden_size=16>(x, w, r) z = Mul(g, g)
    }}"""
    w, r = (RNG.normal(size=(1, 16 * gates, inputs)).astype(np.float32) for inputs in (32, 16))
    graph = graph_of(text, 17, zero=np.array(0), one=np.array(1), w=w, r=r)
    decided = {d.node: d for d in api.make_plan(graph, Recipe(target="ort-cpu")).decisions}
    assert {decided[node].reason for node in (f"{op}:a", "Mul:d", "ReduceMax:s")} == {SHAPE}
    assert decided["Mul:z"].reason != SHAPE
    assert decided[f"{op}:b"].reason != SHAPE


def test_a_rule_has_the_last_word() -> None:
    graph = model()
    rule = Rule(ops=("Conv",), quantize=True)
    plan = api.make_plan(graph, Recipe(target="ort-cpu", rules=(rule,)))
    assert all(d.quantized for d in plan.decisions if d.op_type == "Conv")


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda"])
@pytest.mark.parametrize(
    ("outside", "inside"), [(f"{LARGEST} {WHOLE}", ""), (LARGEST, WHOLE), ("", f"{LARGEST} {WHOLE}")]
)
def test_weights_of_what_decides_a_shape_stay_as_they_are_in_mode_weight_only(
    target: str, outside: str, inside: str
) -> None:
    graph = branching(outside, inside)
    feeds = [{"x": RNG.normal(size=(64, 64)).astype(np.float32), "q": np.array(i % 4 > 0)} for i in range(8)]
    recipe = Recipe(target=target, mode="weight-only", weight_bits=4, block_size=32, high_precision="fp32")
    made, plan = api.quantize(graph, None, recipe, QUIET)
    decided = {d.node: d for d in plan.decisions if d.op_type == "MatMul"}
    assert {node: d.quantized for node, d in decided.items()} == {"MatMul:a": False, "MatMul:z": True}
    assert decided["MatMul:a"].reason == SHAPE
    assert [run(made, feed)[0].shape for feed in feeds] == [run(graph, feed)[0].shape for feed in feeds]
    asked = Recipe(target=target, mode="weight-only", rules=(Rule(ops=("MatMul",), quantize=True),))
    assert all(d.quantized for d in api.make_plan(graph, asked).decisions if d.op_type == "MatMul")


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_modes_that_quantize_activations_leave_what_decides_a_shape(mode: str) -> None:
    text = """(float[7,1,32] x) => (int64[N] y, float[1,1,16] z) {
        a, h = LSTM<hidden_size=16>(x, w, r) s = ReduceMax<keepdims=0>(h) n = Cast<to=7>(s)
        y = Range(zero, n, one) b, z = LSTM<hidden_size=16>(x, w, r)
    }"""
    w, r = (RNG.normal(size=(1, 64, inputs)).astype(np.float32) for inputs in (32, 16))
    graph = graph_of(text, 17, zero=np.array(0), one=np.array(1), w=w, r=r)
    decided = {d.node: d for d in api.make_plan(graph, Recipe(target="ort-cpu", mode=mode)).decisions}
    assert not decided["LSTM:a"].quantized
    assert decided["LSTM:a"].reason == SHAPE
    assert decided["LSTM:b"].quantized is (mode == "dynamic")
