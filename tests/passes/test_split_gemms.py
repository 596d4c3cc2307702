"""A Gemm with a narrow weight and an activation becomes MatMul and Sum: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, lines, named_in, random_feeds, same_function

import onnxq
from onnxq import Recipe
from onnxq.passes.split_gemms import split_gemms
from onnxq.proving import prove

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.graph import Graph

RNG = np.random.default_rng(0)


def model(body: str, weight: str = "w = DequantizeLinear<axis = 1>(q, s)") -> Graph:
    held: dict[str, npt.ArrayLike] = {
        "q": RNG.integers(-127, 128, (8, 8)).astype(np.int8),
        "s": RNG.uniform(0.01, 0.02, 8).astype(np.float32),
        "b": RNG.normal(size=8).astype(np.float32),
        "full": RNG.normal(size=(2, 8)).astype(np.float32),
        "f": RNG.normal(size=(8, 8)).astype(np.float32),
    }
    graph = graph_of(f"(float[2,8] x) => (float[2,8] y) {{ {weight} {body} }}", 17, **named_in(weight + body, held))
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        ("y = Gemm(x, w, b)", "w = DequantizeLinear<axis = 1>(q, s)"),
        ("h = Gemm(x, w, b) y = Exp(h)", "w = DequantizeLinear<axis = 1>(q, s)"),
        ("h = Gemm<alpha = 2.0>(x, w, b) y = Relu(h)", "w = DequantizeLinear<axis = 1>(q, s)"),
        ("h = Gemm<transB = 1>(x, w, b) y = Relu(h)", "w = DequantizeLinear<axis = 1>(q, s)"),
        ("h = Gemm(x, w, full) y = Relu(h)", "w = DequantizeLinear<axis = 1>(q, s)"),
        ("h = Gemm(x, w, b) y = Relu(h)", "w = Identity(f)"),
    ],
    ids=["no activation", "never joined", "alpha", "transposed", "a bias of rows", "float"],
)
def test_others_are_left_alone(body: str, weight: str) -> None:
    assert split_gemms(model(body, weight)) == 0


@pytest.mark.parametrize("body", ["h = Gemm(x, w, b) y = Relu(h)", "h = Gemm(x, w) y = LeakyRelu(h)"])
def test_product_and_bias_part(body: str) -> None:
    graph = model(body)
    before = graph.copy()
    assert split_gemms(graph) == 1
    assert not any("Gemm" in line for line in lines(graph))
    same_function(before, graph, random_feeds(graph), 1e-6)
    assert split_gemms(graph) == 0


def test_such_layers_read_narrow_weights(tmp_path: Path) -> None:
    text = "(float[N,128] x) => (float[N,128] y) { h = Gemm<transB = 1>(x, w, b) r = Relu(h) y = Gemm(r, v, b) }"
    held = {"w": RNG.normal(size=(128, 128)), "v": RNG.normal(size=(128, 128)), "b": RNG.normal(size=128)}
    graph = graph_of(text, 17, **{name: array.astype(np.float32) for name, array in held.items()})
    made, _ = onnxq.quantize(graph, None, Recipe(target="ort-cpu", mode="weight-only"))
    made.save(tmp_path / "narrow.onnx")
    ran = prove(tmp_path / "narrow.onnx", data=[{"x": np.ones((1, 128), np.float32)}])
    assert [n.op_type for n in ran.nodes if n.op_type.startswith(("MatMul", "Fused", "Gemm"))] == ["MatMulNBits"] * 2
