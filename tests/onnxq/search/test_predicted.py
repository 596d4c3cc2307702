"""Predicted times in the Pareto list: against sums by hand, and only for targets of the GPU that is meant."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from chains import WIDTH, chain, samples
from graphs import graph_of

import onnxq
from onnxq import Recipe, api, tables
from onnxq.search.predicted import L4, seconds
from onnxq.targets import get_target

if TYPE_CHECKING:
    from onnxq.outcome import Budget

RECIPE = Recipe(effort="fast", calibrator="minmax", min_sqnr=24.0)
TENSORRT = get_target("tensorrt")


def found(recipe: Recipe = RECIPE) -> Budget:
    _, plan = onnxq.quantize(chain(6, hard=(2,)), samples(64), recipe)
    assert plan.budget is not None
    return plan.budget


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt@11+dla"])
def test_nothing_is_predicted_for_other_hardware(target: str) -> None:
    budget = found(replace(RECIPE, target=target, min_sqnr=1.0))
    assert all(t.predicted is None for t in budget.tried)
    assert "predicted" not in "\n".join(tables.budget(budget))


def test_every_choice_on_the_list_is_predicted_and_called_so() -> None:
    """Six products of one row: all take as long as their bytes. Codes are read by all but those that are reverted."""
    budget = found()
    assert len(budget.pareto) > 1
    row, weight = WIDTH, WIDTH * WIDTH
    layer = 2 * (row + weight + row)
    text = "\n".join(tables.budget(budget))
    assert "predicted time / fp16" in text
    assert "predicted, not measured" in text
    for tried in budget.tried:
        assert (tried.predicted is not None) == (tried in budget.pareto)
    for tried in budget.pareto:
        floats = {name.removeprefix("MatMul:m") for name in tried.reverted}
        low = [str(i) not in floats for i in range(5)] + ["MatMul:y" not in tried.reverted]
        read = sum((row + weight) * (1 if one else 2) for one in low)
        written = sum(row * (1 if behind else 2) for behind in [*low[1:], False])  # the model's output is no code
        assert tried.predicted is not None
        assert tried.predicted.ratio == pytest.approx((read + written) / (6 * layer))
        assert tried.to_dict()["predicted"] == {"ratio": tried.predicted.ratio, "gpu": "NVIDIA L4"}
        assert f"{tried.predicted.ratio:.2f}" in text


def test_arithmetic_or_memory_whichever_is_longer() -> None:
    w = np.zeros((512, 512, 3, 3), np.float32)
    u = np.zeros((16, 512, 1, 1), np.float32)
    text = """(float[N,512,H,W] x) => (float[N,16,H,W] y) {
              a = Conv<pads=[1,1,1,1]>(x, w) s = Sigmoid(a) b = Mul(a, s) y = Conv(b, u) }"""
    graph, feed = graph_of(text, 17, w=w, u=u), {"x": np.ones((1, 512, 64, 64), np.float32)}
    pixels, shapes = 64 * 64, {"x": feed["x"].shape}
    first = 2 * pixels * 512 * 512 * 9 / 121e12  # 160 us, its bytes take 44 us
    second = 2 * (pixels * 512 + 512 * 16 + pixels * 16) / 300e9  # 14 us, its arithmetic takes 0.6
    assert seconds(graph, TENSORRT, shapes) == pytest.approx(first + second)
    int8, plan = api.quantize(graph, [feed], Recipe(effort="fast"))
    assert plan.int8_share() == 1.0
    second = (pixels * 512 + 512 * 16 + 2 * pixels * 16) / 300e9
    assert seconds(int8, TENSORRT, shapes) == pytest.approx(first / (242.5 / 121) + second)


def test_narrow_weights_beside_float_are_bytes_only() -> None:
    w = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    graph = graph_of("(float[N,1024] x) => (float[N,1024] y) { y = MatMul(x, w) }", 17, w=w)
    for weights, width in (("int8", 1.0), ("int4/block:32", 0.5)):
        narrow, _ = api.quantize(graph, None, Recipe(mode="weight-only", weights=weights))
        expected = (1024 * 1024 * width + 2 * 1024 * 2) / L4.bandwidth
        assert seconds(narrow, TENSORRT, {"x": (1, 1024)}) == pytest.approx(expected)
