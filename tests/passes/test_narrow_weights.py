from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, run
from optimized import operators
from placing import net

from onnxq.blocks import stored_bytes
from onnxq.formats import Format
from onnxq.passes.narrow_weights import NarrowWeights
from onnxq.passes.quantize_tables import QuantizeTables
from onnxq.placement import placed
from onnxq.plan import Plan, WeightPoint
from onnxq.recipe import Recipe, Rule
from onnxq.targets import get_target

RNG = np.random.default_rng(5)


def plan_of(*weights: WeightPoint) -> Plan:
    return Plan("ort-cuda", {}, weights, ())


def stored(bits: int, size: int | None) -> Format:
    return Format(f"int{bits}", "block" if size else "channel", size)


def recipe(**choices: object) -> Recipe:
    return Recipe(**{"target": "ort-cuda", "mode": "weight-only", **choices})  # type: ignore[arg-type]  # fields by name


# -- placement: what stays in float first -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "body", "shapes", "why"),
    [
        ("float[N,64] x", "y = MatMul(w, x)", {"w": (32, 16)}, "constant comes first"),
        ("float[N,64] x", "t = Transpose(x) y = MatMul(x, t)", {}, "product of two activations"),
        ("float[2,8,64] x", "y = MatMul(x, w)", {"w": (2, 64, 32)}, "rank 3"),
        ("float[1,16,8,8] x", "y = Conv(x, w)", {"w": (16, 16, 3, 3)}, "on every call"),
        ("float[N,64] x", "y = Gemm<alpha=2.0>(x, w)", {"w": (64, 32)}, "MatMulNBits has none"),
        ("float[64,N] x", "y = Gemm<transA=1>(x, w)", {"w": (64, 32)}, "MatMulNBits has none"),
    ],
)
def test_stays_in_float(inputs: str, body: str, shapes: dict[str, tuple[int, ...]], why: str) -> None:
    graph = net(inputs, body, **shapes)
    plan = placed(graph, get_target("ort-cuda"), recipe())
    assert not plan.weights
    assert any(why in d.reason for d in plan.decisions)


def test_rules_and_tensorrt() -> None:
    graph = net("float[N,72] x", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", w=(72, 128), v=(128, 32))
    plan = placed(graph, get_target("ort-cuda"), recipe(rules=(Rule(nodes="*:h", quantize=False),)))
    assert [w.tensor for w in plan.weights] == ["v"]
    four = recipe(target="tensorrt@10", weight_bits=4)
    plan = placed(graph, get_target("tensorrt@10"), four)
    assert [(w.tensor, w.bits, w.block_size) for w in plan.weights] == [("v", 4, 128)]  # whole blocks only
    assert "72 rows are no multiple of a block of 128" in next(
        d.reason for d in plan.decisions if d.node.endswith(":h")
    )
    graph = net("float[1,16,8,8] x", "y = Conv(x, w)", w=(16, 16, 3, 3))
    eight = recipe(target="tensorrt@10")
    assert placed(graph, get_target("tensorrt@10"), eight).weights  # a DequantizeLinear on any weight


# -- numbers ------------------------------------------------------------------------------------------------------


def oracle(w: Array, size: int | None, bits: int) -> Array:
    """w quantized and back, block by block in float64, with scales as float32 stores them."""
    largest, back = {8: 127, 4: 7}[bits], np.empty(w.shape)
    for start in range(0, len(w), size or len(w)):
        part = w[start : start + (size or len(w))].astype(np.float64)
        s = (np.abs(part).max(0) / largest).astype(np.float32).astype(np.float64)
        back[start : start + len(part)] = np.clip(np.rint(part / s), -largest, largest) * s
    return back


@pytest.mark.parametrize("size", [None, 16, 32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [64, 72])
@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm<transB=1>(x, w, c)"])
def test_products(size: int | None, bits: int, rows: int, op: str) -> None:
    w, c = RNG.normal(size=(rows, 48)).astype(np.float32), RNG.normal(size=48).astype(np.float32)
    transposed = "transB" in op
    text = f"(float[5, {rows}] x) => (float[5, 48] y) {{ y = {op} }}"
    graph = graph_of(text, 21, w=w.T if transposed else w, **({"c": c} if transposed else {}))
    node = graph.nodes[0]
    point = WeightPoint("w", ((str(node.name), 1),), 0 if transposed else 1, stored(bits, size))
    assert NarrowWeights(plan_of(point))(graph) == 1
    graph.remove_unused()
    feeds = random_feeds(graph)
    (found,) = run(graph, feeds)
    expected = feeds["x"].astype(np.float64) @ oracle(w, size, bits) + (c if transposed else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert set(operators(graph)) == {"MatMulNBits"}  # the provider fuses it, a Gemm's constant C with it
    codes, scale, zero = (graph.weights[f"w_{what}"] for what in ("quantized", "scale", "zero_point"))
    assert graph.dtype(codes) == f"int{bits}"
    total = sum(v.const_value.nbytes for v in (codes, scale, zero) if v.const_value is not None)
    assert total == stored_bytes(rows, 48, bits, size, 4)


def test_a_weight_read_both_ways_is_stored_twice_and_float_where_it_must() -> None:
    text = "(float[5, 64] x) => (float[5, 64] y, float[5, 64] t, float[64, 64] u) {"
    text += " y = MatMul(x, w) t = Gemm<transB=1>(x, w) u = Add(w, w) }"
    graph = graph_of(text, 21, w=RNG.normal(size=(64, 64)).astype(np.float32))
    uses = tuple((str(n.name), 1) for n in graph.nodes[:2])
    assert NarrowWeights(plan_of(WeightPoint("w", uses, 1)))(graph) == 2
    assert sum("DequantizeLinear" in line for line in lines(graph)) == 2
    assert lines(graph)[-1] == "u = Add(w, w)"


@pytest.mark.parametrize("width", [128, 96, 200])
def test_tables(width: int) -> None:
    table = RNG.normal(size=(50, width)).astype(np.float32)
    graph = graph_of(f"(int64[3] i) => (float[3, {width}] y) {{ y = Gather(t, i) }}", t=table)
    point = WeightPoint("t", ((str(graph.nodes[0].name), 0),), None, stored(8, 128))
    assert QuantizeTables(plan_of(point))(graph) == 1
    graph.remove_unused()
    assert graph.domains["com.microsoft"] == 1
    index = np.array([0, 7, 49])
    (found,) = run(graph, {"i": index})
    np.testing.assert_allclose(found, oracle(table.T, 128, 8).T[index], rtol=1e-6, atol=1e-7)


def test_a_plan_without_tables_changes_nothing() -> None:
    graph = graph_of("(int64[3] i) => (float[3, 8] y) { y = Gather(t, i) }", t=np.ones((4, 8), np.float32))
    before = lines(graph)
    assert QuantizeTables(plan_of(WeightPoint("t", ((str(graph.nodes[0].name), 0),), None)))(graph) == 0
    assert lines(graph) == before
