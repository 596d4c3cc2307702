"""Calibrator minmax keeps bounds alone, and chooses from them what it chooses from histograms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of

import onnxq
from onnxq import Recipe, Rule, api
from onnxq.choose import bounds_only
from onnxq.errors import DataError, StatisticsError
from onnxq.statistics import Statistics, merge

if TYPE_CHECKING:
    from onnxq.graph import Graph

DIGITS = Path(__file__).parents[2] / "models" / "digits"
MINMAX = Recipe(calibrator="minmax", effort="fast")
RNG = np.random.default_rng(3)


def two_layers() -> Graph:
    w = RNG.normal(size=(64, 64)).astype(np.float32)
    text = "(float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    return graph_of(text, w=w, v=w.T.copy())


def feeds(scale: float = 1.0) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{"x": (scale * RNG.normal(size=(1, 64))).astype(np.float32)} for _ in range(12)]


@pytest.mark.parametrize("target", ["tensorrt@8", "tensorrt@11", "ort-cpu", "tensorrt@10+dla"])
def test_the_result_is_that_of_histograms(target: str) -> None:
    recipe = replace(MINMAX, target=target)
    data = np.load(DIGITS / "calib.npz")["image"][:40]
    found = onnxq.calibrate(DIGITS / "digits.onnx", [{"image": row[None]} for row in data], recipe)
    whole = onnxq.calibrate(
        DIGITS / "digits.onnx", [{"image": row[None]} for row in data], replace(recipe, calibrator="mse")
    )
    assert not found.tensors
    assert found.reach == whole.reach
    light, counted = (onnxq.quantize(DIGITS / "digits.onnx", seen, recipe)[0] for seen in (found, whole))
    assert light.to_proto().SerializeToString() == counted.to_proto().SerializeToString()


def test_what_a_rule_calibrates_otherwise_is_counted() -> None:
    graph = two_layers()
    second = [str(n.name) for n in graph.nodes if n.op_type == "MatMul"][1]
    recipe = replace(MINMAX, rules=(Rule(nodes=second, calibrator="entropy"),), high_precision="fp32")
    found = onnxq.calibrate(graph, feeds(), recipe)
    assert set(found.tensors) == {"b"}
    assert set(found.bounds) == {"x"}
    assert onnxq.quantize(graph, found, recipe)[1].resolved


@pytest.mark.parametrize("recipe", [Recipe(effort="fast"), replace(MINMAX, effort="balanced")])
def test_otherwise_everything_is_counted(recipe: Recipe) -> None:
    assert not bounds_only(api.prepared(two_layers(), recipe).plan, recipe)


def test_another_calibrator_is_refused_what_only_has_bounds() -> None:
    graph = two_layers()
    found = onnxq.calibrate(graph, feeds(), MINMAX)
    with pytest.raises(StatisticsError, match="smallest and the largest value only"):
        onnxq.quantize(graph, found, replace(MINMAX, calibrator="entropy"))


def test_shards_add_up_and_files_hold_them(tmp_path: Path) -> None:
    graph, data = two_layers(), feeds()
    whole = onnxq.calibrate(graph, data, MINMAX)
    total = merge([onnxq.calibrate(graph, data[5:], MINMAX), onnxq.calibrate(graph, data[:5], MINMAX)])
    for statistics, name in ((whole, "a"), (total, "b")):
        statistics.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Statistics.load(tmp_path / "a").bounds == whole.bounds


def test_only_zeros_and_nothing_finite_are_told_apart() -> None:
    graph = two_layers()
    silent: list[str] = []
    monitor = onnxq.monitor.Monitor(warn=silent.append)
    onnxq.quantize(graph, feeds(0.0), MINMAX, monitor)
    assert any("only zeros were seen" in text for text in silent)
    broken = [{"x": np.full((1, 64), np.inf, np.float32)} for _ in range(12)]
    with pytest.raises(DataError, match="no finite value"):
        onnxq.quantize(graph, broken, MINMAX, monitor)
