"""How near a written model is told to be: by samples that had no part in its ranges, where samples are few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api, improving
from onnxq.histogram import Histogram
from onnxq.improvement.written import folds
from onnxq.monitor import SILENT

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.statistics import Statistics

RECIPE = Recipe(high_precision="fp32", float_share=0.0)


def network(seed: int) -> Graph:
    """Gemms and Clips, as of the model that this was found on."""
    rng = np.random.default_rng(seed)
    w = [(rng.normal(size=size) / size[0] ** 0.5).astype(np.float32) for size in ((32, 64), (64, 64), (64, 16))]
    b = [rng.normal(0, 0.3, size=array.shape[1]).astype(np.float32) for array in w]
    nodes = """a = Gemm(x, w, b) c = Clip(a, lo, hi) d = Gemm(c, v, e) f = Clip(d, lo, hi) y = Gemm(f, u, g)"""
    ends = {"lo": np.float32(0), "hi": np.float32(6)}
    held = {"w": w[0], "v": w[1], "u": w[2], "b": b[0], "e": b[1], "g": b[2], **ends}
    return graph_of(f"(float[N,32] x) => (float[N,16] y) {{ {nodes} }}", 17, **held)


def feeds(count: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 32)).astype(np.float32)} for _ in range(count)]


def test_parts_only_where_samples_are_few() -> None:
    judging = feeds(16, 0)
    assert folds(judging, 33) == ()
    parts = folds(judging, 32)
    assert sorted(feed["x"].tobytes() for part in parts for feed in part) == sorted(f["x"].tobytes() for f in judging)
    assert {len(part) for part in parts} == {4}


def test_ranges_are_those_without_the_samples_that_judge() -> None:
    """Oracle: the histograms of the other samples, counted by themselves."""
    graph, data = network(0), feeds(32, 1)
    statistics, kept = improving.improved(api.prepared(graph, RECIPE), data)
    assert kept is not None
    seen: list[dict[str, Histogram]] = []

    def lowered(apart: Statistics) -> Graph:
        seen.append(dict(apart.tensors))
        return api.lowered(api.prepared(graph, RECIPE), apart, SILENT)[0]

    kept.sqnr_db(lowered, statistics)
    assert len(seen) == 4
    for first, tensors in enumerate(seen):
        mine = {feed["x"].tobytes() for feed in kept.feeds[first::4]}
        others = Histogram.of(np.concatenate([f["x"] for f in data if f["x"].tobytes() not in mine]))
        assert (tensors["x"].zeros, int(tensors["x"].count)) == (others.zeros, int(others.count))
        assert tensors["x"].max == pytest.approx(others.max, abs=2 * tensors["x"].bin_width)


def test_what_is_told_of_few_samples_is_not_too_high() -> None:
    """Noise over signal, in the mean of models, is what new samples show; it was a third of that."""
    told, got = [], []
    for seed in range(16):
        graph = network(seed)
        made, plan = api.quantize(graph, feeds(32, 100 + seed), RECIPE, SILENT)
        assert plan.judged is not None
        told.append(10 ** (-plan.judged[0] / 10))
        got.append(10 ** (-api.compare(graph, made, feeds(200, 500 + seed)).outputs[0].sqnr_db / 10))
    assert 0.55 < np.mean(told) / np.mean(got) < 1.8
