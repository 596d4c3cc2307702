"""AveragePools that say that they are not dilated: what is left alone first, then that ONNX Runtime takes them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, run, same_function

from onnxq import Recipe, api
from onnxq.passes.plain_pools import plain_pools


@pytest.mark.parametrize(
    "pool", ["AveragePool<kernel_shape=[2,2], dilations=[1,2]>", "MaxPool<kernel_shape=[2,2], dilations=[1,1]>"]
)
def test_left_alone(pool: str) -> None:
    graph = graph_of(f"(float[1,3,8,8] x) => (float[1,3,P,Q] y) {{ y = {pool}(x) }}", 19)
    before = lines(graph)
    assert plain_pools(graph) == 0
    assert lines(graph) == before


def test_the_default_is_not_said() -> None:
    text = "(float[1,3,8,8] x) => (float[1,3,7,7] y) { y = AveragePool<kernel_shape=[2,2], dilations=[1,1]>(x) }"
    graph, before = graph_of(text, 19), graph_of(text, 19)
    assert plain_pools(graph) == 1
    assert "dilations" not in graph.nodes[0].attributes
    same_function(before, graph, random_feeds(before))


def test_onnx_runtime_runs_what_is_written_for_its_cpu() -> None:
    rng = np.random.default_rng(0)
    text = """(float[1,16,16,16] x) => (float[1,32,P,Q] y) {
        a = Conv<pads=[1,1,1,1]>(x, v) b = AveragePool<kernel_shape=[2,2], dilations=[1,1]>(a) y = Conv(b, w) }"""
    shapes = {"v": (32, 16, 3, 3), "w": (32, 32, 3, 3)}
    graph = graph_of(text, 19, **{n: (rng.normal(size=s) / 12).astype(np.float32) for n, s in shapes.items()})
    data = [{"x": rng.normal(size=(1, 16, 16, 16)).astype(np.float32)} for _ in range(4)]
    quantized, plan = api.quantize(graph, data, Recipe(target="ort-cpu", effort="fast"))
    assert "b" in plan.points  # a pair on either side, which ONNX Runtime joins with it
    exact, found = run(graph, data[0])[0], run(quantized, data[0])[0]
    assert np.square(found - exact).sum() < 1e-2 * np.square(exact).sum()
