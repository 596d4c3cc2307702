"""Whole runs over small graphs in the shapes of real networks: legal, loadable, close, and int8 where it should be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES
from graphs import random_feeds, run
from legality import assert_legal, findings
from placing import Array, Given, groups, int8, net, uses

from onnxq.api import quantize
from onnxq.graph import Graph
from onnxq.numerics import sqnr_db
from onnxq.recipe import Recipe, Rule
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.plan import Plan

EACH = pytest.mark.parametrize("name", ARCHITECTURES)
LENGTHS = {"N": 4}
# What is not quantized stays in float32, and effort adds no zero points: placement alone is looked at.
FP32 = Recipe(target="tensorrt@10", effort="fast")

# Readers of int8 other than layers with weights, as NVIDIA's guide places them; nothing else may be quantized.
INT8_READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "AveragePool"})
INT8_READERS |= {"GlobalAveragePool", "Resize", "Pad", "LayerNormalization", "Mul"}

PLACEMENT = frozenset({"P23", "P24", "P25", "P26", "P27", "P28"})  # advice about where pairs go

# (advice, the node it is about) that may be given and is not taken.
ADVISED = {
    "shufflenet": {("P26", "t2_quantized/QuantizeLinear")},  # the shuffle lies between two Q of one scale
    "inception": {("P26", "m_quantized/QuantizeLinear")},  # so does the pool
}


@cache
def quantized(name: str, form: str = "dq") -> tuple[Graph, Graph, Plan]:
    graph = ARCHITECTURES[name]()
    feeds = [random_feeds(graph, seed, **LENGTHS) for seed in range(4)]
    return graph, *quantize(graph, feeds, replace(FP32, weight_form=form))


@EACH
def test_is_legal(name: str) -> None:
    proto = quantized(name)[1].to_proto()
    assert_legal(proto)
    advice = {(f.id, f.where) for f in findings(proto) if f.severity != "I" and f.id in PLACEMENT}
    assert advice <= ADVISED.get(name, set())


@EACH
def test_passes_the_checker_and_loads(name: str) -> None:
    proto = quantized(name)[1].to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert Session(proto.SerializeToString()).outputs == tuple(str(v.name) for v in quantized(name)[0].outputs)


@EACH
def test_comes_close(name: str) -> None:
    graph, lowered, _ = quantized(name)
    feeds = random_feeds(graph, 9, **LENGTHS)
    expected = run(graph, feeds)
    for got in (run(lowered, feeds), Session(lowered.to_proto().SerializeToString()).run(feeds)):
        for one, other in zip(expected, got, strict=True):
            assert one.shape == other.shape
            assert sqnr_db(one, other) > 20
            assert not np.array_equal(one, other)  # it is quantized


@EACH
def test_only_what_may_be_is_quantized(name: str) -> None:
    _, lowered, plan = quantized(name)
    ops = {d.node: d.op_type for d in plan.decisions}
    assert {ops[node] for p in plan.points.values() for node, _ in p.uses} <= INT8_READERS
    outputs = {str(v.name) for v in lowered.outputs}
    assert all(lowered.producer(v, "DequantizeLinear") is None for v in lowered.outputs)
    assert outputs == {str(v.name) for v in quantized(name)[0].outputs}
    for node in lowered.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert all(lowered.is_const(v) for v in node.inputs[2:])  # biases
    possible = [d for d in plan.decisions if d.op_type != "LSTM"]
    assert sum(d.macs for d in possible if d.quantized) > 0.6 * sum(d.macs for d in possible)


@EACH
def test_one_pair_a_tensor_and_one_scale_a_group(name: str) -> None:
    _, lowered, plan = quantized(name)
    quantizers = [n for n in lowered.nodes if n.op_type == "QuantizeLinear"]
    assert len(quantizers) == len({id(n.inputs[0]) for n in quantizers}) == len(plan.points)
    scales = {str(n.inputs[0].name): lowered.const(n.inputs[1]) for n in quantizers if n.inputs[0] is not None}
    for members in groups(plan):
        assert len({np.asarray(scales[name]).tobytes() for name in members}) == 1


@EACH
def test_float_weights_with_q_and_dq_compute_the_same(name: str) -> None:
    graph, stored, _ = quantized(name)
    computed = quantized(name, "qdq")[1]
    assert_legal(computed.to_proto())
    feeds = random_feeds(graph, 9, **LENGTHS)
    for one, other in zip(run(stored, feeds), run(computed, feeds), strict=True):
        np.testing.assert_array_equal(one, other)


LAYERS = {  # node -> whether it is in int8, where that is not plain from the rules
    "resnet": {"Add:a2": True, "Add:a4": True, "GlobalAveragePool:g": True, "Gemm:y": True, "MaxPool:p0": False},
    "mobilenet": {"Conv:d1": True, "Add:y0": True, "GlobalAveragePool:g": True, "Mul:m": True},
    "unet": {"ConvTranspose:u1": True, "Resize:u0": True, "Concat:k0": True, "Concat:k1": True},
    "yolo": {"Add:a3": True, "Concat:k": True, "Concat:s": True, "Resize:up": True, "Mul:m3": False},
    "transformer": {"MatMul:l": False, "MatMul:o": False, "Add:m": False, "Add:h": False, "MatMul:z0": True},
    "inception": {"Concat:k": True, "Concat:k2": True, "AveragePool:p": True, "GlobalAveragePool:g": True},
    "densenet": {"Concat:k1": False, "Concat:k2": False, "AveragePool:y": False, "Conv:c3": True},
    "shufflenet": {"Concat:k1": True, "Conv:d0": True, "Split:a0": False, "Transpose:g1": False},
    "convnext": {"Conv:d": True, "Add:a": False, "LayerNormalization:n": False, "MatMul:v0": True},
    "signal": {"Conv:c0": True, "Pad:q": False, "Add:a": True, "MatMul:y": True},
    "volume": {"Conv:c0": True, "AveragePool:p": True, "ConvTranspose:t": True, "Concat:k": True},
    "recurrent": {"Conv:c": True, "LSTM:o": False, "MatMul:y": True},
    "pyramid": {"Resize:u2": True, "Add:a1": True, "Concat:k": True},
    "generator": {"MatMul:p": True, "ConvTranspose:t1": True, "ConvTranspose:t2": False},
}


@EACH
def test_the_layers_in_int8(name: str) -> None:
    plan = quantized(name)[2]
    assert {node: node in int8(plan) for node in LAYERS[name]} == LAYERS[name]


def test_a_pooling_pyramid_has_one_scale() -> None:
    assert frozenset({"m5", "p1", "p2", "p3", "s"}) in groups(quantized("yolo")[2])


# --- whole runs of what a single rule cannot show -------------------------------------------------------


def lowered(graph: Graph, recipe: Recipe | None = None) -> tuple[Graph, Plan]:
    """Quantized, legal up to what the caller's model brought along, and close."""
    feeds = [random_feeds(graph, seed, **LENGTHS) for seed in range(4)]
    found, plan = quantize(graph, feeds, recipe or FP32)
    onnx.checker.check_model(found.to_proto(), full_check=True)
    for one, other in zip(run(graph, feeds[0]), run(found, feeds[0]), strict=True):
        assert sqnr_db(one, other) > 20
    return found, plan


def test_an_embedding_tied_to_the_output_layer_stays_whole() -> None:
    table = np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32)
    body = "e = Gather(w, i) h = Add(e, x) t = Transpose(w) p = MatMul(h, t) y = Relu(p)"
    graph = net("float[8,32] x", body, w=table, i=np.arange(8))
    found, plan = lowered(graph)
    assert int8(plan) == {"MatMul:p"}
    gathered = next(n for n in found.nodes if n.op_type in ("Gather", "Add"))
    assert all(found.producer(v, "DequantizeLinear") is None for v in gathered.inputs)
    assert_legal(found.to_proto())


def test_half_precision() -> None:
    rng = np.random.default_rng(2)
    weight = (0.1 * rng.normal(size=(16, 16, 3, 3))).astype(np.float16)
    body = "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w) y = Add(d, r)"
    graph = net("float16[1,16,8,8] x", body, w=weight)
    graph.outputs[0].type = graph.inputs[0].type
    feeds = [{"x": rng.normal(size=(1, 16, 8, 8)).astype(np.float16)} for _ in range(4)]
    found, plan = quantize(graph, feeds, FP32)
    assert_legal(found.to_proto())
    onnx.checker.check_model(found.to_proto(), full_check=True)
    assert uses(plan)["r"] == {"Conv:d@0", "Add:y@1"}
    expected, got = (run(g, feeds[0])[0].astype(np.float64) for g in (graph, found))
    assert sqnr_db(expected, got) > 20


@pytest.mark.parametrize("names", [("", ""), ("n", "n"), ("a b", "c: d"), ("/m/0/conv", "/m/[0]/*?"), ("x", "c")])
def test_any_node_names(names: tuple[str, str]) -> None:
    proto = net("float[1,16,8,8] x", "c = Conv(x, w) y = Conv(c, w)", w=(16, 16, 1, 1)).to_proto()
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    found, plan = lowered(Graph.from_proto(proto))
    assert len(int8(plan)) == 2
    assert_legal(found.to_proto())


PARTLY = """q = QuantizeLinear(x, s, z) h = DequantizeLinear(q, s, z) e = DequantizeLinear<axis=0>(i, t, j)
    c = Conv(h, e) r = Relu(c) d = Conv(r, v) o = Conv(x, v) y = Add(d, o)"""


@pytest.mark.parametrize("zero", [np.array(0, np.int8), np.array(128, np.uint8)])
def test_a_model_that_is_quantized_in_part(zero: Array) -> None:
    rng = np.random.default_rng(4)
    pair: dict[str, Given] = {"s": np.array(0.03, np.float32), "z": zero}
    codes: dict[str, Given] = {"i": rng.integers(-127, 128, (16, 16, 1, 1), dtype=np.int8)}
    codes |= {"t": np.full(16, 0.003, np.float32), "j": np.zeros(16, np.int8)}
    found, plan = lowered(net("float[1,16,8,8] x", PARTLY, v=(16, 16, 1, 1), **pair, **codes))
    assert plan.kept == ("x",)
    assert int8(plan) >= {"Conv:c", "Conv:d", "Conv:o"}
    assert plan.joins[0] == ("Conv:o", 0, "h")
    readers = {n.name for n, _ in found.users(next(v for v in found.values() if v.name == "h"))}
    assert readers >= {"Conv:c", "Conv:o"}
    if zero.dtype == np.int8:
        assert_legal(found.to_proto())
    else:
        assert len(plan.notes) == 1


def test_a_quantized_model_again() -> None:
    once = quantized("resnet")[1]
    feeds = [random_feeds(once, seed, **LENGTHS) for seed in range(2)]
    twice, plan = quantize(once, feeds, FP32)
    assert not plan.points
    assert not plan.weights
    assert_legal(twice.to_proto())
    for one, other in zip(run(once, feeds[0]), run(twice, feeds[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_data_only_the_weights_shrink() -> None:
    graph = ARCHITECTURES["resnet"]()
    found, plan = quantize(graph, recipe=FP32)
    assert not plan.points
    assert len(plan.weights) == 7
    assert not any(n.op_type == "QuantizeLinear" for n in found.nodes)
    assert_legal(found.to_proto(), allow=frozenset({"P20"}))
    feeds = random_feeds(graph, 1, **LENGTHS)
    assert sqnr_db(run(graph, feeds)[0], run(found, feeds)[0]) > 30


def test_a_rule_takes_a_branch_out_of_a_concat_model() -> None:
    rules = (Rule(nodes="Conv:c3", quantize=False), Rule(ops=("Concat",), quantize=False))
    found, plan = lowered(ARCHITECTURES["unet"](), replace(FP32, rules=rules))
    assert not int8(plan) & {"Conv:c3", "Concat:k0", "Concat:k1"}
    assert_legal(found.to_proto())


def test_an_input_scaled_before_its_layer_is_quantized_as_it_comes() -> None:
    body = "n = Mul(x, k) a = Conv(n, w) b = Conv(n, v) y = Add(a, b)"
    graph = net("float[1,16,8,8] x", body, w=(16, 16, 1, 1), v=(16, 16, 1, 1), k=np.array(1 / 255, np.float32))
    found, _ = lowered(graph)
    assert not any(n.op_type == "Mul" for n in found.nodes)
    assert_legal(found.to_proto())
