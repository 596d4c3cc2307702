"""Factors in front of a convolution that go into its QuantizeLinear: what is left alone first."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of, lines, run
from hypothesis import given, settings
from hypothesis import strategies as st
from optimized import SATURATES, operators

from onnxq.passes.cpu_scaled_inputs import ScalesInQuantize
from onnxq.runtime import Session
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph

F32 = np.float32
RNG = np.random.default_rng(6)
PASS = ScalesInQuantize(get_target("ort-cpu").movers)
PAIR = "q = QuantizeLinear(p, s, z) d = DequantizeLinear(q, s, z)"
CONV = "wd = DequantizeLinear<axis=0>(w, ws, wz) c = Conv(d, wd)"
OUT = "cq = QuantizeLinear(c, ys, z) y = DequantizeLinear(cq, ys, z)"
SCALED = "t = Tanh(x) p = Mul(t, m)"
PAIRS = "q = QuantizeLinear<axis=1>(p, sv, zv) d = DequantizeLinear<axis=1>(q, sv, zv)"
BEFORE = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
SUM = OUT.replace("(c,", "(f,")
BODY = f"{SCALED} {PAIR} {CONV} {OUT}"
W = RNG.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
FEED = {"x": RNG.normal(size=(2, 4, 5, 5)).astype(F32)}


def scaled(body: str = BODY, more: Mapping[str, npt.ArrayLike] = MappingProxyType({})) -> Graph:
    """tanh(x), times a factor for each of 4 channels, to a convolution in int8."""
    held: dict[str, npt.ArrayLike] = {
        "m": np.array([0.1, 1, 3, 40], F32).reshape(4, 1, 1),
        "s": F32(0.1),
        "z": np.uint8(120),
        "w": W,
        "ws": np.linspace(0.001, 0.005, 6).astype(F32),
        "wz": np.zeros(6, np.int8),
        "ys": F32(0.5),
    }
    graph = graph_of(f"(float[2,4,5,5] x) => (float[2,Q,Y,X] y) {{ {body} }}", 17, **{**held, **more})
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("body", "more"),
    {
        "one factor": (BODY, {"m": F32(3)}),
        "a factor of a row": (BODY, {"m": np.ones(5, F32)}),
        "a negative factor": (BODY, {"m": np.array([1, 2, -1, 1], F32).reshape(4, 1, 1)}),
        "no factor at all": (BODY, {"m": np.array([1, 2, 0, 1], F32).reshape(4, 1, 1)}),
        "a factor for each sample": (BODY, {"m": np.ones((2, 1, 1, 1), F32)}),
        "two activations": (f"t = Tanh(x) p = Mul(t, x) {PAIR} {CONV} {OUT}", {}),
        "the model's input": (f"p = Mul(x, m) {PAIR} {CONV} {OUT}", {}),
        "a Relu in front": (f"t = Relu(x) p = Mul(t, m) {PAIR} {CONV} {OUT}", {}),
        "a mover in front": (f"t = MaxPool<kernel_shape=[1,1]>(x) p = Mul(t, m) {PAIR} {CONV} {OUT}", {}),
        "an operator between pairs": (f"{BEFORE} t = Sigmoid(xd) p = Mul(t, m) {PAIR} {CONV} {OUT}", {}),
        "read in float beside": (f"{SCALED} {PAIR} {CONV} e = Conv(p, wd) f = Add(c, e) {SUM}", {}),
        "read by an addition": (f"t = Tanh(x) p = Mul(t, m) {PAIR} y = Add(d, t)", {}),
        "scales already": (f"{SCALED} {PAIRS} {CONV} {OUT}", {"sv": np.ones(4, F32), "zv": np.zeros(4, np.uint8)}),
        "steps too small": (BODY, {"m": np.array([1, 2, 1e38, 1], F32).reshape(4, 1, 1)}),
    }.values(),
)  # fmt: skip
def test_left_alone(body: str, more: dict[str, npt.ArrayLike]) -> None:
    graph = scaled(body, more)
    before = lines(graph)
    assert PASS(graph) == 0
    assert lines(graph) == before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), st.booleans(), st.booleans())
def test_the_codes_are_the_same(factors: list[float], first: bool, whole: bool) -> None:
    m = np.array(factors, F32).reshape((1, 4, 1, 1) if whole else (4, 1, 1))
    graph = scaled(BODY.replace("Mul(t, m)", "Mul(m, t)") if first else BODY, {"m": m})
    before = graph.copy()
    assert PASS(graph) == 1
    assert not [n for n in graph.nodes if n.op_type == "Mul"]
    for made in (before, graph):
        made.set_outputs([v for v in made.values() if v.name == "q"])
    (a,), (b,) = run(before, FEED), run(graph, FEED)
    off = np.abs(a.astype(int) - b)
    assert off.max() <= 1  # where a value lies between two codes
    assert (off > 0).mean() < 0.02


def test_the_provider_runs_an_integer_convolution() -> None:
    graph = scaled()
    plain = graph.copy()
    assert PASS(graph) == 1
    found = operators(graph)
    assert "QLinearConv" in found
    assert not {"Mul", "Conv"} & set(found)
    one, other = (Session(g.to_proto().SerializeToString(), as_deployed=True).run(FEED)[0] for g in (plain, graph))
    assert SATURATES or float(np.abs(one - other).max()) <= 1.01
