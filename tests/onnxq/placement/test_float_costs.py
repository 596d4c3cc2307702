"""What layers in float cost on the CPU provider: counted by hand, from the shapes of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from placing import net

from onnxq.passes import fold_constants
from onnxq.pipeline import Everywhere
from onnxq.placement.float_costs import cost, sized, work, work_seen
from onnxq.placement.ort_cpu import MACS_PER_ELEMENT, place_cpu
from onnxq.recipe import Recipe, Rule
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.plan import Plan

CPU = TARGETS["ort-cpu"]
FOLD = Everywhere(fold_constants)
PADS = "<pads=[1,1,1,1]>"
LAYERS = {"w0": (8, 8, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3)}


def planned(graph: Graph, *floats: str) -> Plan:
    rules = tuple(Rule(nodes=name, quantize=False) for name in floats)
    return place_cpu(graph, CPU, Recipe(target="ort-cpu", rules=rules))


def chain(sizes: str = "16, 16") -> Graph:
    """Three equal convolutions, a Relu that vanishes behind the first, an addition around the second."""
    body = f"a = Conv{PADS}(x, w0) b = Relu(a) c = Conv{PADS}(b, w1) d = Add(b, c) y = Conv{PADS}(d, w2)"
    return net(f"float[1, 8, {sizes}] x", body, "y", **LAYERS)


VALUES = 8 * 16 * 16
MACS = VALUES * 8 * 9
SHAPES = dict.fromkeys("xabcdy", (1, 8, 16, 16))


def test_nothing_costs_nothing() -> None:
    graph = chain()
    plan = planned(graph)
    assert plan.int8_share() == 1.0
    assert cost(graph, plan, plan, {}) == 0.0


def test_work_is_that_of_the_shapes_of_a_sample() -> None:
    names = [str(n.name) for n in chain().nodes if n.op_type == "Conv"]
    for graph, shapes in ((chain(), {}), (chain("H, W"), SHAPES)):
        assert work(graph, planned(graph), shapes) == dict.fromkeys(names, MACS)
    graph = chain("H, W")
    assert work(graph, planned(graph), {}) == dict.fromkeys(names, 8 * 8 * 9)  # unknown dimensions count as 1


def test_a_layer_at_the_end_moves_the_end_of_integers() -> None:
    """y was dequantized for the caller; now b and c are for the addition, which nothing in integers follows."""
    graph = chain()
    assert cost(graph, planned(graph, "Conv:y"), planned(graph), {}) == MACS + MACS_PER_ELEMENT * VALUES


def test_a_layer_in_the_middle_costs_conversions_too() -> None:
    """Its input is dequantized, and the addition that reads it is float too: what that makes is quantized again."""
    graph = chain()
    whole, cut = planned(graph), planned(graph, "Conv:c")
    assert not next(d for d in cut.decisions if d.node == "Add:d").quantized
    assert cost(graph, cut, whole, {}) == MACS + MACS_PER_ELEMENT * 2 * VALUES
    moving = chain("H, W")
    assert cost(moving, planned(moving, "Conv:c"), planned(moving), SHAPES) == MACS + MACS_PER_ELEMENT * 2 * VALUES


def test_fewer_conversions_are_no_discount() -> None:
    """A pool on integers writes few values; without them the large tensor in front is never quantized."""
    body = f"a = Conv{PADS}(x, w0) b = MaxPool<kernel_shape=[4,4], strides=[4,4]>(a) y = Conv{PADS}(b, w1)"
    graph = net("float[1, 8, 16, 16] x", body, "y", w0=LAYERS["w0"], w1=LAYERS["w1"])
    whole, cut = planned(graph), planned(graph, "Conv:a")
    assert cost(graph, cut, whole, {}) == MACS


def test_the_shapes_that_are_asked_for_are_all_that_it_takes() -> None:
    graph, floats = chain("H, W"), ("Conv:c",)
    names = sized(graph, planned(graph))
    assert names >= {"x", "b", "d", "y"}
    some = {name: shape for name, shape in SHAPES.items() if name in names}
    assert cost(graph, planned(graph, *floats), planned(graph), some) == MACS + MACS_PER_ELEMENT * 2 * VALUES


@pytest.mark.parametrize("opset", [13, 14, 15, 21])
def test_work_is_seen_through_reshapes_to_computed_shapes(opset: int) -> None:
    """onnx computes the values of a Shape from opset 15 on only: before, all behind counted as one position."""
    body = """s = Shape(x) b = Gather(s, zero) h = Gather(s, two) b1 = Unsqueeze(b, axes) h1 = Unsqueeze(h, axes)
              t = Concat<axis=0>(b1, h1, rest) r = Reshape(x, t) y = MatMul(r, w)"""
    given = {"zero": np.array(0), "two": np.array(2), "axes": np.array([0]), "rest": np.array([32])}
    graph = net("float[N, 8, H, 4] x", body, "y", opset, **given, w=(32, 16))
    assert work_seen(graph, CPU, {"x": ((1, 8, 1, 4), (3, 8, 10, 4))}, FOLD) == {"MatMul:y": 3 * 10 * 32 * 16}


@pytest.mark.parametrize("opset", [13, 17])
def test_work_is_seen_through_sizes_that_onnx_does_not_compute(opset: int) -> None:
    """A Where makes a size here, as torch's expand does, and a product of sizes, twice in a row."""
    body = """s = Shape(x) c = Slice(s, zero, two) h = Slice(s, two, four) b = Equal(c, c) e = Where(b, c, one)
              d = Mul(h, h) t = Concat<axis=0>(e, d) r = Resize<mode="nearest">(x, , , t) q = Conv(r, w)
              k = Shape(q) f = ReduceProd<keepdims=1>(k) m = Equal(f, f) n = Where(m, f, one) u = Concat<axis=0>(n, one)
              z = Reshape(q, u) y = MatMul(z, v)"""
    given = {k: np.array([n]) for k, n in (("zero", 0), ("one", 1), ("two", 2), ("four", 4))}
    graph = net("float[N, 8, H, W] x", body, "y", opset, **given, w=(4, 8, 1, 1), v=(1, 16))
    found = work_seen(graph, CPU, {"x": ((1, 8, 1, 2), (2, 8, 3, 5))}, FOLD)
    assert found == {"Conv:q": 2 * 9 * 25 * 8 * 4, "MatMul:y": 2 * 4 * 9 * 25 * 16}


def test_work_seen_is_that_of_the_largest_inputs() -> None:
    names = [str(n.name) for n in chain().nodes if n.op_type == "Conv"]
    seen = {"x": ((1, 8, 4, 16), (1, 8, 16, 16))}
    assert work_seen(chain("H, W"), CPU, seen, FOLD) == dict.fromkeys(names, MACS)
    assert work_seen(chain("H, W"), CPU, {}, FOLD) == dict.fromkeys(names, 8 * 8 * 9)
    assert work_seen(chain(), CPU, seen, FOLD) == {}  # nothing that the graph does not know
