"""Maps of which peaks are found by comparing: what is none first, then the spellings, and what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Array, run
from placing import net

import onnxq
from onnxq import Recipe, Rule
from onnxq.patterns.peaks import COMPARED, peaks

IMAGE = "float[1,16,32,32] x"
W: dict[str, Any] = {"w": (16, 16, 3, 3), "k": (8, 16, 1, 1)}
BODY = "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) m = Conv(r, k) "
POOL = "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>"
KEPT = "f = Cast<to=1>(e) y = Mul({}, f)"
HALF, ONE = np.array(0.5, np.float32), np.array(1, np.float32)


@pytest.mark.parametrize(
    "body",
    [
        f"p = {POOL}(m) y = Sub(m, p)",
        f"p = {POOL}(m) e = Equal(p, half) {KEPT.format('m')}",
        f"n = Conv(r, k) p = {POOL}(n) e = Equal(m, p) {KEPT.format('m')}",
        f"s = Sigmoid(m) e = Equal(m, s) {KEPT.format('m')}",
        f"p = {POOL}(m) i = Cast<to=6>(m) j = Cast<to=6>(p) e = Equal(i, j) {KEPT.format('m')}",
        f"n = Mul(m, m) p = {POOL}(n) e = Equal(m, p) {KEPT.format('m')}",
        f"p = {POOL}(m) d = Sub(p, m) y = Relu(d)",
    ],
    ids=["not compared", "with a constant", "another layer's", "no maximum", "integers", "no value by value", "edges"],
)
def test_no_peaks(body: str) -> None:
    assert peaks(net(IMAGE, BODY + body, **W, **({"half": HALF} if "half" in body else {}))) == {}


SPELLINGS = {
    "logits": (f"p = {POOL}(m) e = Equal(m, p) {KEPT.format('m')}", {"MaxPool:p"}),
    "the other way about": (f"p = {POOL}(m) e = Equal(p, m) {KEPT.format('m')}", {"MaxPool:p"}),
    "not less": (f"p = {POOL}(m) e = GreaterOrEqual(m, p) {KEPT.format('m')}", {"MaxPool:p"}),
    "less, at opset 11": (f"p = {POOL}(m) l = Less(m, p) e = Not(l) {KEPT.format('m')}", {"MaxPool:p"}),
    "a difference rounded up": (
        f"p = {POOL}(m) d = Sub(p, m) u = Ceil(d) v = Sub(one, u) y = Mul(m, v)",
        {"MaxPool:p", "Sub:d"},
    ),
    "probabilities": (
        f"s = Sigmoid(m) p = {POOL}(s) e = Equal(s, p) {KEPT.format('s')}",
        {"MaxPool:p", "Sigmoid:s"},
    ),
    "scaled and moved": (
        f"h = Mul(m, half) t = Identity(h) p = {POOL}(h) e = Equal(p, t) {KEPT.format('m')}",
        {"MaxPool:p", "Mul:h", "Identity:t"},
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_from_the_layer_to_the_comparison(spelling: str) -> None:
    body, between = SPELLINGS[spelling]
    given = {name: array for name, array in (("half", HALF), ("one", ONE)) if name in body}
    graph = net(IMAGE, BODY + body, **W, **given)
    assert peaks(graph) == dict.fromkeys({"Conv:m", *between}, COMPARED)


def _samples(count: int, start: int = 0) -> list[dict[str, Array]]:
    made = []
    for seed in range(start, start + count):
        coarse = np.random.default_rng(seed).normal(size=(1, 16, 8, 8)).repeat(4, 2).repeat(4, 3)
        for axis in (2, 3):  # neighbours are alike, as in pictures
            coarse = np.mean([np.roll(coarse, step, axis) for step in (-2, -1, 0, 1, 2)], axis=0)
        made.append({"x": coarse.astype(np.float32)})
    return made


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_there_are_no_more_peaks_than_in_float(target: str) -> None:
    graph = net(IMAGE, f"{BODY} s = Sigmoid(m) p = {POOL}(s) e = Equal(s, p) {KEPT.format('s')}", **W)
    made, plan = onnxq.quantize(graph, _samples(8), Recipe(target=target, effort="fast"))
    assert plan.skipped["Conv:m"].startswith(COMPARED)
    assert {d.node for d in plan.decisions if d.quantized} >= {"Conv:c"}
    for feed in _samples(4, 100):
        exact, found = (np.count_nonzero(run(g, feed)[0]) for g in (graph, made))
        assert found <= 1.05 * exact


def test_a_rule_may_ask_for_int8_and_gets_more_peaks() -> None:
    graph = net(IMAGE, f"{BODY} s = Sigmoid(m) p = {POOL}(s) e = Equal(s, p) {KEPT.format('s')}", **W)
    asked = Recipe(target="ort-cpu", effort="fast", rules=(Rule("Conv:m", quantize=True),))
    made, plan = onnxq.quantize(graph, _samples(8), asked)
    assert "Conv:m" not in plan.skipped
    exact, found = (np.count_nonzero(run(g, _samples(1, 100)[0])[0]) for g in (graph, made))
    assert found > 1.2 * exact


def test_the_comparison_is_of_float32_where_the_rest_is_float16() -> None:
    graph = net(IMAGE, f"{BODY} s = Sigmoid(m) p = {POOL}(s) e = Equal(s, p) {KEPT.format('s')}", **W)
    _, plan = onnxq.quantize(graph, _samples(4), Recipe(target="tensorrt", effort="fast"))
    assert {"Conv:m", "Sigmoid:s", "MaxPool:p"} <= plan.float32.keys()
    assert "Conv:c" not in plan.float32
