"""Scales per channel behind a convolution in int8: what is left alone first, then that nothing computes otherwise."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of, lines, run, same_function
from hypothesis import given, settings
from hypothesis import strategies as st
from optimized import SATURATES, operators

from onnxq.passes.cpu_bias import round_biases
from onnxq.passes.cpu_channel_scales import channel_scales_in_rows
from onnxq.runtime import Session
from onnxq.smoothed import with_float_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph

F32 = np.float32
RNG = np.random.default_rng(4)
IN = "q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z)"
WEIGHT = "wd = DequantizeLinear<axis=0>(w, ws, wz)"
OUT = "cq = QuantizeLinear<axis=1>(c, ys, yz) cd = DequantizeLinear<axis=1>(cq, ys, yz)"
LAYER = f"{IN} {WEIGHT} c = Conv(xd, wd, b) {OUT} y = HardSwish(cd)"
COMPUTED = "e = ReduceMax<axes=[0,2,3], keepdims=0>(x) f = Concat<axis=0>(e, b2)"
SHAPES = "(float[2,4,5,5] x) => (float[2,6,Y,X] y)"
W = RNG.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
BIAS = RNG.normal(size=6).astype(F32)
FEED = {"x": RNG.normal(size=(2, 4, 5, 5)).astype(F32)}


def layer(body: str = LAYER, more: Mapping[str, npt.ArrayLike] = MappingProxyType({})) -> Graph:
    """A convolution from 4 to 6 channels between pairs, the one behind it with 6 scales."""
    held: dict[str, npt.ArrayLike] = {
        "s": F32(0.02),
        "z": np.uint8(128),
        "w": W,
        "ws": np.linspace(0.001, 0.005, 6).astype(F32),
        "wz": np.zeros(6, np.int8),
        "b": BIAS,
        "ys": np.geomspace(0.001, 0.05, 6).astype(F32),
        "yz": np.array([3, 250, 128, 0, 77, 140], np.uint8),
    }
    graph = graph_of(f"{SHAPES} {{ {body} }}", 17, **{**held, **more})
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (f"{IN} {WEIGHT} c = Conv(xd, wd, b) {OUT} y = HardSwish(cd)", {"ys": F32(0.1), "yz": np.uint8(9)}),
        (f"{WEIGHT} c = Conv(x, wd, b) {OUT} y = HardSwish(cd)", {}),
        (f"{IN} {WEIGHT} c = Conv(xd, wd, b) {OUT} y = Add(c, cd)", {}),
        (f"{IN} {WEIGHT} d = Conv(xd, wd, b) c = Tanh(d) {OUT} y = HardSwish(cd)", {}),
        (f"{IN} {WEIGHT} d = Conv(xd, wd, b) c = Relu(d) {OUT} y = HardSwish(cd)", {}),  # with zero points
        (f"{IN} {WEIGHT} d = Conv(xd, wd, b) c = Relu(d) {OUT} y = Add(d, cd)", {"yz": np.zeros(6, np.uint8)}),
        (f"{IN} {WEIGHT} {COMPUTED} c = Conv(xd, wd, f) {OUT} y = HardSwish(cd)", {"b2": np.ones(2, F32)}),
    ],
    ids=["one scale", "float input", "read in float", "tanh between", "zero points", "relu read", "computed bias"],
)
def test_left_alone(body: str, more: dict[str, npt.ArrayLike]) -> None:
    graph = layer(body, more)
    before = lines(graph)
    assert channel_scales_in_rows(graph) == 0
    assert lines(graph) == before


@settings(max_examples=30, deadline=None)
@given(
    relu=st.booleans(),
    bias=st.booleans(),
    per_row=st.booleans(),
    steps=st.lists(st.floats(1e-4, 1.0), min_size=6, max_size=6),
    zeros=st.lists(st.integers(0, 255), min_size=6, max_size=6),
)
def test_the_function_is_the_same(
    relu: bool, bias: bool, per_row: bool, steps: list[float], zeros: list[int]
) -> None:  # fmt: skip
    made = f"{'d' if relu else 'c'} = Conv(xd, wd{', b' if bias else ''}) {'c = Relu(d)' if relu else ''}"
    weight = WEIGHT if per_row else "wd = DequantizeLinear(w, ws, wz)"
    scales: dict[str, npt.ArrayLike] = {} if per_row else {"ws": F32(0.003), "wz": np.int8(0)}
    zeros = [0] * 6 if relu else zeros
    graph = layer(
        f"{IN} {weight} {made} {OUT} y = HardSwish(cd)",
        {**scales, "ys": np.array(steps, F32), "yz": np.array(zeros, np.uint8)},
    )
    before = graph.copy()
    assert channel_scales_in_rows(graph) == 1
    (quantize,) = [n for n in graph.nodes if n.op_type == "QuantizeLinear" and n.outputs[0].name == "cq"]
    assert graph.rank(quantize.inputs[1]) == 0
    one, two = (g.copy() for g in (before, graph))
    for g in (one, two):  # codes may differ by 1 where a value lies between two of them: by a step, then
        g.set_outputs([v for v in g.values() if v.name == "cd"])
    a, b = _run(one), _run(two)
    off = np.abs(a - b) / np.array(steps, F32).reshape(1, 6, 1, 1)
    assert off.max() < 1.01
    assert (off > 0.5).mean() < 0.02


def _run(graph: Graph) -> npt.NDArray[np.float32]:
    (found,) = run(graph, FEED)
    return found


def test_who_shares_the_weight_keeps_its_scales() -> None:
    both = f"{IN} {WEIGHT} c = Conv(xd, wd, b) {OUT} h = HardSwish(cd) t = Conv(xd, wd) y = Add(h, t)"
    graph = layer(both)
    before = graph.copy()
    assert channel_scales_in_rows(graph) == 1
    (other,) = [n for n in graph.nodes if n.outputs[0].name == "t"]
    assert str(other.inputs[1].name) == "wd"  # type: ignore[union-attr]  # it has one
    same_function(before, graph, FEED, rtol=2e-2)


def test_the_metadata_tells_what_the_float_model_computes() -> None:
    graph = layer()
    expected = layer(f"{IN} {WEIGHT} y = Conv(xd, wd, b)")
    assert channel_scales_in_rows(graph) == 1
    assert "c" not in {v.name for v in graph.values()}
    told = with_float_tensors(graph)
    told.set_outputs([v for v in told.values() if v.name == "c"])
    np.testing.assert_allclose(_run(told), _run(expected), rtol=1e-4, atol=1e-4)


def test_the_provider_runs_an_integer_convolution() -> None:
    graph = layer()
    channel_scales_in_rows(graph)
    round_biases(graph)
    assert "QLinearConv" in operators(graph)
    deployed = Session(graph.to_proto().SerializeToString(), as_deployed=True).run(FEED)[0]
    off = np.abs(deployed - _run(graph)) / np.geomspace(0.001, 0.05, 6).reshape(1, 6, 1, 1)
    assert SATURATES or off.max() < 1.5  # a step and what HardSwish makes of it
