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


def test_a_rule_has_the_last_word() -> None:
    graph = model()
    rule = Rule(ops=("Conv",), quantize=True)
    plan = api.make_plan(graph, Recipe(target="ort-cpu", rules=(rule,)))
    assert all(d.quantized for d in plan.decisions if d.op_type == "Conv")
