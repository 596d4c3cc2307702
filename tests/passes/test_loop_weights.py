"""States of a Loop that never change: first which ones stay, then that the function is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Array, graph_of, run

import onnxq
from onnxq import Recipe
from onnxq.passes import prepare
from onnxq.passes.loop_weights import loop_weights
from onnxq.pipeline import run as run_passes
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph

W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) / 6


def looped(body: str, last: str = "k", outputs: str = "y", inputs: str = "float[4,32] x", **weights: Array) -> Graph:
    """A Loop of three rounds over x and w."""
    shapes = {"y": "float[4,32] y", "v": "float[32,32] v"}
    text = f"""({inputs}) => ({", ".join(shapes[name] for name in outputs.split())}) {{
      y, v = Loop(n, c, x, w) <body = b (int64 i, bool go, float[4,32] h, float[32,32] k) =>
        (bool on, float[4,32] next, float[32,32] {last}) {{ on = Identity(go) {body} }}>
    }}"""
    return graph_of(text, n=np.int64(3), c=np.bool_(True), **weights)


def body_of(graph: Graph) -> Graph:
    return next(part for part in graph.parts() if part.body is not None)


def feeds(count: int = 1) -> list[dict[str, Array]]:
    return [{"x": np.random.default_rng(i).normal(size=(4, 32)).astype(np.float32)} for i in range(count)]


LAYER = "p = MatMul(h, k) next = Tanh(p)"


@pytest.mark.parametrize(
    ("body", "last", "more"),
    [
        pytest.param(f"{LAYER} twice = Add(k, k)", "twice", {"w": W}, id="it changes"),
        pytest.param(LAYER, "k", {"inputs": "float[4,32] x, float[32,32] w"}, id="it begins as an input"),
        pytest.param("next = Tanh(h)", "k", {"w": W}, id="nothing reads it"),
    ],
)
def test_states_that_stay(body: str, last: str, more: dict[str, Any]) -> None:
    graph = looped(body, last, **more)
    assert loop_weights(graph) == 0


@pytest.mark.parametrize(("body", "last"), [(LAYER, "k"), (f"{LAYER} same = Identity(k)", "same")])
@pytest.mark.parametrize("outputs", ["y", "y v"])
def test_a_state_that_never_changes_is_a_weight_of_the_body(body: str, last: str, outputs: str) -> None:
    graph = looped(body, last, outputs, w=W)
    made = graph.copy()
    assert loop_weights(made) == 1
    inner = body_of(made)
    product = next(node for node in inner.nodes if node.op_type == "MatMul")
    held = inner.const(product.inputs[1])
    assert held is not None
    assert np.array_equal(held, W)
    for expected, got in zip(run(graph, feeds()[0]), run(made, feeds()[0]), strict=True):
        assert np.array_equal(expected, got)


@pytest.mark.parametrize("opset", [17, 21])
def test_preparing_and_quantizing_it(opset: int) -> None:
    graph = looped(LAYER, w=W)
    made = graph.copy()
    run_passes(made, prepare(opset, "ort-cpu"))
    assert "w" not in {str(name) for name in made.weights}  # of the float weight nothing is left around the body
    data = feeds(16)
    quantized, plan = onnxq.quantize(graph, data, Recipe(target="ort-cpu", effort="fast"))
    assert [d.op_type for d in plan.decisions if d.quantized] == ["MatMul"]
    (expected,), (got,) = run(graph, data[0]), Session(quantized.to_proto().SerializeToString()).run(data[0])
    assert np.abs(expected - got).max() < 0.05
