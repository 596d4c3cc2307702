"""Weights in blocks become MatMulNBits where their opset costs kernels: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of, random_feeds, run

from onnxq import api
from onnxq.packed import is_packable
from onnxq.passes.lower_opset import lower_opset
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from onnxq.graph import Graph

TYPES = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int8": np.int8, "uint8": np.uint8}


def blocked(kind: str, k: int, size: int, *, zero: bool, text: str = "d = Pad(x, p) y = MatMul(d, w)") -> Graph:
    """A product with codes [k, 24] in blocks of `size` rows, and what else the text says."""
    rng = np.random.default_rng(k)
    bits, shape = 4 if "4" in kind else 8, (-(-k // size), 24)
    low = 0 if kind.startswith("u") else -(2 ** (bits - 1))
    codes = rng.integers(low, low + 2**bits, (k, 24)).astype(TYPES[kind])
    zeros = (rng.integers(low, low + 2**bits, shape) if zero else np.zeros(shape)).astype(TYPES[kind])
    graph = graph_of(
        f"(float[3,{k}] x) => (float[3,24] y) {{ w = DequantizeLinear<axis=0,block_size={size}>(c, s, z) {text} }}",
        21,
        c=codes,
        z=zeros,
        s=rng.uniform(0.01, 0.1, shape).astype(np.float32),
        **({"p": np.zeros(4, np.int64)} if "Pad" in text else {}),
        **({"bias": rng.normal(size=24).astype(np.float32)} if "bias" in text else {}),
    )
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    "text",
    [
        "y = MatMul(x, w)",  # has kernels as it is
        "d = Pad(x, p) t = Transpose(w) u = Transpose(t) y = MatMul(d, u)",
        "d = Pad(x, p) y = Gemm<alpha=0.5>(d, w)",
        "d = Pad(x, p) t = Transpose(d) y = Gemm<transA=1>(t, w)",
        "d = Pad(x, p) e = MatMul(d, w) f = ReduceSum(w) y = Add(e, f)",
    ],
)
def test_left_alone(text: str) -> None:
    graph = blocked("int8", 32, 16, zero=False, text=text)
    assert lower_opset(graph) == 0
    assert graph.opset == 21
    assert [n.op_type for n in graph.nodes if n.domain] == []


@pytest.mark.parametrize("attributes", ["axis=1,block_size=16", "axis=0,block_size=8"])
def test_other_blocks(attributes: str) -> None:
    weights: dict[str, Any] = {"c": np.ones((32, 32), np.int8), "s": np.ones((4, 32), np.float32)}
    weights["s"] = np.ones((32, 2) if "axis=1" in attributes else (4, 32), np.float32)
    text = f"(float[3,32] x) => (float[3,32] y) {{ w = DequantizeLinear<{attributes}>(c, s) y = MatMul(x, w) }}"
    graph = graph_of(text, 21, **weights)
    assert not is_packable(graph, graph.nodes[0])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("k", "size"), [(64, 32), (32, 16), (96, 32), (80, 32)])
@pytest.mark.parametrize("zero", [False, True])
def test_the_same_product(kind: str, k: int, size: int, zero: bool) -> None:
    before, after = (blocked(kind, k, size, zero=zero) for _ in range(2))
    lower_opset(after)
    assert after.opset == 18
    (node,) = (n for n in after.nodes if n.domain)
    assert node.op_type == "MatMulNBits"
    assert (len(node.inputs) == 4) is (zero or kind.startswith("u"))
    feeds = random_feeds(before)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], rtol=1e-4, atol=1e-4)
    report = api.check(after, "ort-cuda")
    assert not report.findings
    assert report.summary.macs == {"float32, narrow weights": 3 * k * 24}


@pytest.mark.parametrize("gemm", ["Gemm(d, w)", "Gemm(d, w, bias)", "Gemm<beta=1.0>(d, w, x)"])
def test_a_plain_gemm(gemm: str) -> None:
    before, after = (blocked("int8", 24, 16, zero=False, text=f"d = Pad(x, p) y = {gemm}") for _ in range(2))
    lower_opset(after)
    assert after.opset == 18
    assert [n.op_type for n in after.nodes][1:] == ["MatMulNBits", *(["Add"] if gemm.count(",") > 1 else [])]
    feeds = random_feeds(before)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], rtol=1e-4, atol=1e-4)


def test_a_weight_of_two_products_is_packed_once() -> None:
    text = "d = Pad(x, p) a = MatMul(d, w) b = MatMul(x, w) y = Add(a, b)"
    before, after = (blocked("int4", 64, 32, zero=True, text=text) for _ in range(2))
    lower_opset(after)
    one, two = (n for n in after.nodes if n.domain)
    assert one.inputs[1:] == two.inputs[1:]
    feeds = random_feeds(before)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], rtol=1e-4, atol=1e-4)


def test_a_written_file_holds_a_packed_weight_once() -> None:
    w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    text = "(float[4,62] x) => (float[4,32] y) { d = Pad(x, p) y = MatMul(d, w) }"
    model = graph_of(text, 23, w=w, p=np.array([0, 1, 0, 1])).to_proto()
    recipe = Recipe(target="ort-cuda", mode="weight-only", weights="int4/block:32")
    graph, _ = api.quantize(model, None, recipe)
    assert "MatMulNBits" in [n.op_type for n in graph.nodes]
    proto = graph.to_proto().graph
    read = {name for node in proto.node for name in node.input}
    assert {tensor.name for tensor in proto.initializer} <= read
