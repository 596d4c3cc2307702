"""What was asked for happens, or it is said why not: --all-tensors beside a weight method, an effort beside a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of

import onnxq
from onnxq import Recipe
from onnxq.caches import Cache
from onnxq.monitor import Monitor

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(8)
FEEDS = [{"x": RNG.normal(size=(4, 64)).astype(np.float32)} for _ in range(4)]


def graph() -> Graph:
    text = "(float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, v) }"
    return graph_of(text, w=RNG.normal(size=(64, 64)).astype(np.float32), v=np.eye(64, dtype=np.float32) * 2 + 1)


@pytest.mark.parametrize("every", [True, False])
def test_all_tensors_beside_a_weight_method(every: bool) -> None:
    recipe = Recipe(mode="weight-only", weight_bits=4, weight_method="gptq", target="ort-cpu")
    found = onnxq.calibrate(graph(), FEEDS, recipe, Monitor(warn=lambda _: None), all_tensors=every)
    assert found.weights
    assert set(found.tensors) == ({"x", "a", "b", "y"} if every else set())


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_an_effort_beside_a_cache_is_said_to_be_fast(effort: str) -> None:
    cache = Cache("EntropyCalibration2", "8601", {"x": np.float32(0.02), "b": np.float32(0.01)})
    said: list[str] = []
    recipe = Recipe(effort=effort, high_precision="fp32")
    _, plan = onnxq.quantize(graph(), cache, recipe, Monitor(warn=said.append))
    notes = [text for text in plan.notes if text.startswith("effort is fast")]
    assert len(notes) == (effort != "fast")
    assert set(notes) <= set(said)
