"""A Relu or Clip behind an integer product that writes float becomes Max and Min: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, lines, named_in, random_feeds, same_function

import onnxq
from onnxq import Recipe
from onnxq.passes.cpu_clamps import clamps_apart
from onnxq.proving import prove

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.graph import Graph

RNG = np.random.default_rng(0)
PAIRS = "q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) wd = DequantizeLinear<axis = 1>(w, ws) "


def model(body: str, outputs: str = "float[3,8] y") -> Graph:
    held: dict[str, npt.ArrayLike] = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "w": RNG.integers(-127, 128, (4, 8)).astype(np.int8),
        "ws": RNG.uniform(0.01, 0.02, 8).astype(np.float32),
        "f": RNG.normal(size=(4, 8)).astype(np.float32),
        "b": RNG.normal(size=8).astype(np.float32),
        "low": np.float32(-0.5),
        "high": np.float32(0.25),
    }
    graph = graph_of(f"(float[3,4] x) => ({outputs}) {{ {PAIRS} {body} }}", 17, **named_in(PAIRS + body, held))
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("h = MatMul(xd, f) y = Relu(h)", "float[3,8] y"),
        ("h = MatMul(x, wd) y = Relu(h)", "float[3,8] y"),
        ("h = MatMul(xd, wd) y = Sigmoid(h)", "float[3,8] y"),
        ("h = MatMul(xd, wd) y = Relu(h)", "float[3,8] y, float[3,8] h"),
        ("h = MatMul(xd, wd) y = Relu(h) t = Exp(h)", "float[3,8] y, float[3,8] t"),
        ("h = MatMul(xd, wd) y = Clip(h)", "float[3,8] y"),
        ("h = Gemm(xd, wd, b) r = Relu(h) c = QuantizeLinear(r, s, z) y = DequantizeLinear(c, s, z)", "float[3,8] y"),
        ("y = Relu(xd)", "float[3,4] y"),
    ],
    ids=[
        "float weight",
        "float input",
        "no clamp",
        "an output",
        "two readers",
        "no bounds",
        "quantized behind",
        "none",
    ],
)
def test_others_are_left_alone(body: str, outputs: str) -> None:
    assert clamps_apart(model(body, outputs)) == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = Gemm(xd, wd, b) y = Relu(h)", ["y = Max(h, y/zero)"]),
        ("h = MatMul(xd, wd) y = Clip(h, low)", ["y = Max(h, low)"]),
        ("h = MatMul(xd, wd) y = Clip(h, low, high)", ["y/max = Max(h, low)", "y = Min(y/max, high)"]),
        ("h = MatMul(xd, wd) y = Clip(h, , high)", ["y = Min(h, high)"]),
    ],
)
def test_a_clamp_becomes_max_and_min(body: str, expected: list[str]) -> None:
    graph = model(body)
    before = graph.copy()
    assert clamps_apart(graph) == 1
    assert lines(graph)[-len(expected) :] == expected
    same_function(before, graph, random_feeds(graph), 0)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize(
    "body",
    [
        "h = Gemm(x, w, b) r = Relu(h) y = Softmax(r)",
        "h = MatMul(x, w) r = Relu(h) y = Softmax(r)",
        "h = MatMul(x, w) r = Clip(h, low, high) y = Softmax(r)",
    ],
)
def test_the_product_runs_in_integers(body: str, form: str, tmp_path: Path) -> None:
    weights = {"w": RNG.normal(size=(64, 64)), "b": RNG.normal(size=64), "low": -1.0, "high": 1.0}
    used = {k: np.asarray(v, np.float32) for k, v in weights.items() if f" {k}" in body}
    graph = graph_of(f"(float[8,64] x) => (float[8,64] y) {{ {body} }}", 17, **used)
    feeds = [random_feeds(graph, seed) for seed in range(4)]
    made, _ = onnxq.quantize(graph, feeds, Recipe(target="ort-cpu", effort="fast", format=form))
    made.save(tmp_path / "int8.onnx")
    proof = prove(tmp_path / "int8.onnx", data=feeds[:1])
    assert (proof.mac_share(), proof.lost) == (1.0, ())
