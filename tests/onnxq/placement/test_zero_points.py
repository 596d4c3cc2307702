"""Where a point may have a zero point on a symmetric target, and what that costs."""

from __future__ import annotations

import pytest
from placing import TENSORRT, Given, net

from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.placement import placed
from onnxq.placement.zero_points import candidates, with_zero_points
from onnxq.recipe import Recipe

X = "float[1,16,8,8] x"
W: dict[str, Given] = {"a": (32, 16, 3, 3), "b": (32,), "w": (32, 32, 3, 3), "u": (32, 32, 1, 1)}
HEAD = "c = Conv<pads = [1,1,1,1]>(x, a, b) r = Relu(c) "


def costs(body: str, **weights: Given) -> dict[str, str]:
    graph = net(X, body, **{**W, **weights})
    found = candidates(graph, placed(graph, TENSORRT, Recipe()))
    return {name: c.cost for c in found for name in c.tensors}


# -- what has none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = ConvTranspose(r, t, v)", "a transposed convolution's border sums fewer terms"),
        ('y = Conv<auto_pad = "SAME_UPPER">(r, w)', "the border is not written as numbers"),
        ("k = Relu(x) bias = ReduceMean<axes = [0,2,3], keepdims = 0>(r) y = Conv(r, u, bias)", "its bias is computed"),
    ],
)
def test_what_has_no_zero_point(body: str, why: str) -> None:
    given: dict[str, Given] = {"t": (32, 32, 3, 3), "v": (32,)} if "ConvTranspose" in body else {}
    assert "r" not in costs(HEAD + body, **given), why


def test_no_tensors_leave_the_plan_as_it_is() -> None:
    graph = net(X, HEAD + "y = Conv(r, u)", **{k: v for k, v in W.items() if k != "w"})
    plan = placed(graph, TENSORRT, Recipe())
    assert with_zero_points(graph, plan, ()) is plan
    assert with_zero_points(graph, plan, ("none of it",)) == plan


# -- what has one, and what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ("y = Conv(r, u)", "free"),
        ("y = Conv<pads = [1,1,1,1]>(r, w)", "pad"),
        ("m = MaxPool<kernel_shape = [2,2]>(r) y = Conv(m, u)", "free"),
        ("t = Tanh(r) k = Conv(r, u) y = Add(k, t)", "pointwise"),
        ("k = Conv(r, u) y = Add(k, r)", "free"),
    ],
)
def test_costs(body: str, cost: str) -> None:
    found = costs(HEAD + body)
    assert found.get("r", found.get("m")) == cost


def test_what_an_activation_makes_needs_an_addition() -> None:
    found = costs("c = Conv<pads = [1,1,1,1]>(x, a, b) s = Sigmoid(c) r = Mul(c, s) y = Conv(r, u)")
    assert found["r"] == "pointwise"


def test_the_plan_says_what_was_added() -> None:
    graph = net(X, HEAD + "y = Conv<pads = [1,1,1,1]>(r, w)", **{k: v for k, v in W.items() if k != "u"})
    plan = placed(graph, TENSORRT, Recipe())
    moved = with_zero_points(graph, plan, tuple(plan.points))
    assert {p.qtype for p in moved.points.values()} == {INT8_ASYMMETRIC}
    assert any("as x - c" in note and "Pad" in note for note in moved.remarks)
    reasons = {d.node: d.reason for d in moved.decisions if "Pad" in d.reason}
    assert len(reasons) == 2  # the first convolution reads the image around its middle too
