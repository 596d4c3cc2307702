from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from architectures import transformer
from placing import net, reason, uses

from onnxq.placement import ort_cuda as module
from onnxq.placement import placed
from onnxq.recipe import Recipe, Rule
from onnxq.targets import get_target

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.plan import Plan

TARGET = get_target("ort-cuda")


def planned(graph: Graph, *rules: Rule) -> Plan:
    return placed(graph, TARGET, Recipe(target="ort-cuda", rules=rules))


def of(plan: Plan, output: str) -> str:
    return next(d.reason for d in plan.decisions if d.node.endswith(f":{output}"))


@pytest.mark.parametrize(
    ("inputs", "body", "shapes", "why"),
    [
        ("float[N,64] x", "y = MatMul(w, x)", {"w": (32, 16)}, "constant comes first"),
        ("float[4,64] x", "t = Transpose(x) y = MatMul(x, t)", {}, "product of two activations"),
        ("float[2,8,64] x", "y = MatMul(x, w)", {"w": (2, 64, 32)}, "rank 3"),
        ("float[1,64] x", "y = MatMul(x, w)", {"w": (64, 64)}, "one row"),
        ("float[N,64] x", "y = MatMul(x, w)", {"w": (64, 16)}, "smaller than 32"),
        ("float[N,40] x", "y = MatMul(x, w)", {"w": (40, 64)}, "K is 40, no multiple of 32"),
        ("float[N,40] x", "y = Gemm<transB=1>(x, w)", {"w": (64, 40)}, "K is 40, no multiple of 32"),
        ("float[1,64,8,8] x", "y = Conv(x, w)", {"w": (64, 64, 3, 3)}, "no integer convolution"),
        ("float[1,64,8,8] x", "y = Conv(x, w)", {"w": (64, 64, 1, 1)}, "as MatMulInteger unmeasured"),
        ("float[1,64,8,8] x", "y = ConvTranspose(x, w)", {"w": (64, 64, 2, 2)}, "no integer convolution"),
        ("float[N,64] x", "y = Relu(x)", {}, "no integer kernel"),
    ],
)
def test_stays_in_float(inputs: str, body: str, shapes: dict[str, tuple[int, ...]], why: str) -> None:
    plan = planned(net(inputs, body, **shapes))
    assert not plan.points
    assert not plan.weights
    assert why in of(plan, "y")


def test_one_pair_for_all_products_of_a_tensor() -> None:
    graph = net("float[N,64] x", "a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)", w=(64, 96), v=(64, 96))
    plan = planned(graph)
    assert uses(plan) == {"x": {"MatMul:a@0", "MatMul:b@0"}} or set(plan.points) == {"x"}
    assert {(w.tensor, w.axis) for w in plan.weights} == {("w", 1), ("v", 1)}


def test_a_transformer_has_its_products_in_int8_and_its_attention_in_float() -> None:
    plan = planned(transformer(), Rule(ops=("MatMul",), quantize=True))
    attention = [d for d in plan.decisions if d.op_type == "MatMul" and "two activations" in d.reason]
    assert attention
    assert not any(d.quantized for d in attention)
    assert any(d.quantized for d in plan.decisions if d.op_type == "MatMul")


def test_rules() -> None:
    graph = net("float[1,64,8,8] x", "c = Conv(x, w) y = Conv(c, v)", w=(64, 64, 1, 1), v=(64, 64, 3, 3))
    plan = planned(graph, Rule(ops=("Conv",), quantize=True))
    assert set(plan.points) == {"x"}
    assert of(plan, "y") == "the provider has no integer convolution"  # no rule makes a kernel
    graph = net("float[N,40] x", "h = MatMul(x, w) y = MatMul(h, v)", w=(40, 64), v=(64, 64))
    plan = planned(graph, Rule(nodes="*:h", quantize=True, per_channel=False), Rule(nodes="*:y", quantize=False))
    assert [(w.tensor, w.axis) for w in plan.weights] == [("w", None)]
    assert of(plan, "y") == "excluded by a rule"


def test_tables() -> None:
    table = np.ones((1024, 128), np.float32)
    body = "y = Gather(t, i)"
    plan = planned(net("int64[N] i", body, t=table))
    assert [(w.tensor, w.bits, w.block_size) for w in plan.weights] == [("t", 8, 128)]
    for small, text in (
        (net("int64[N] i", body, t=table[:100]), "fewer than 65536"),
        (net("int64[N] i", "y = Gather<axis=1>(t, i)", t=table), "no table of rows"),
        (net("float[9,128] t, int64[N] i", body), "moves data"),
    ):
        assert not planned(small).weights
        assert text in of(planned(small), "y")


def test_pointwise() -> None:
    for body, expected in (
        ("y = Conv(x, w)", True),
        ("y = Conv<strides=[2,2]>(x, w)", False),
        ("y = Conv<pads=[1,1,1,1]>(x, w)", False),
    ):
        graph = net("float[1,64,8,8] x", body, w=(64, 64, 1, 1))
        assert module.is_pointwise(graph, graph.nodes[0]) is expected
    graph = net("float[1,64,8,8] x", "y = Conv<group=2>(x, w)", w=(64, 32, 1, 1))
    assert not module.is_pointwise(graph, graph.nodes[0])


def test_a_pair_of_the_model_is_joined() -> None:
    body = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Relu(d) m = MatMul(x, w) y = Add(m, r)"""
    graph = net("float[N,64] x", body, w=(64, 64), s=np.array(0.1, np.float32), z=np.array(0, np.int8))
    plan = planned(graph)
    assert not plan.points
    assert [(index, tensor) for _, index, tensor in plan.joins] == [(0, "d")]
    assert reason(plan, plan.joins[0][0]).startswith("int8")
