from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.fold_scales import fold_scales

S = np.array(0.5, np.float32)
ZERO = np.array(0, np.int8)
Q, DQ = "q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)", "q = QuantizeLinear(x, s, z)"
D = "d = DequantizeLinear(q, s, z)"
IN = "(float[2,4] x, float c) => (float[2,4] y"

LEFT_ALONE = {
    "no factor": f"{IN}) {{ m = Relu(x) {Q} }}",
    "a factor on no pair": f"{IN}) {{ m = Mul(x, two) y = Relu(m) }}",
    "a computed factor": f"{IN}) {{ m = Mul(x, c) {Q} }}",
    "a factor per channel": f"{IN}) {{ m = Mul(x, four) {Q} }}",
    "zero": f"{IN}) {{ m = Mul(x, zero) {Q} }}",
    "a negative factor": f"{IN}) {{ m = Mul(x, minus) {Q} }}",
    "an infinite factor": f"{IN}) {{ m = Mul(x, inf) {Q} }}",
    "no number": f"{IN}) {{ m = Mul(x, nan) {Q} }}",
    "a division by zero": f"{IN}) {{ m = Div(x, zero) {Q} }}",
    "a constant divided": f"{IN}) {{ m = Div(two, x) {Q} }}",
    "a square": f"{IN}) {{ m = Mul(x, x) {Q} }}",
    "another user": f"{IN}, float[2,4] u) {{ m = Mul(x, two) u = Relu(m) {Q} }}",
    "an output": f"{IN}, float[2,4] m) {{ m = Mul(x, two) {Q} }}",
    "a scale that would overflow": f"{IN}) {{ m = Mul(x, small) {Q.replace('s,', 'big,')} }}",
    "a scale that would vanish": f"{IN}) {{ m = Div(x, small) {Q.replace('s,', 'least,')} }}",
    "a rank that the factor adds": "(float[4] x) => (float[1,4] y) { m = Mul(x, deep) " + Q + " }",
    "a rank that the factor adds from the front": "(float[4] x) => (float[1,4] y) { m = Mul(deep, x) " + Q + " }",
    "behind a pair with another user": f"{IN}) {{ {DQ} {D} u = Relu(d) m = Mul(d, two) y = Add(m, u) }}",
    "an output behind a pair": f"{IN}) {{ {DQ} {D} y = Mul(d, two) }}",
    "a dequantized output": f"{IN}, float[2,4] d) {{ {DQ} {D} m = Mul(d, two) y = Relu(m) }}",
    "per channel": f"{IN}) {{ {(DQ + D).replace('s, z)', 'each, zeros) ')} m = Mul(d, two) y = Relu(m) }}",
    "integers": "(int32[2,4] x) => (float[2,4] y) { m = Div(x, three) " + Q + " }",
}
NUMBERS: dict[str, Array] = {
    "s": S,
    "z": ZERO,
    "two": np.array(2, np.float32),
    "four": np.array([1, 2, 3, 4], np.float32),
    "zero": np.array(0, np.float32),
    "minus": np.array(-1, np.float32),
    "inf": np.array(np.inf, np.float32),
    "nan": np.array(np.nan, np.float32),
    "big": np.array(1e30, np.float32),
    "small": np.array(1e-30, np.float32),
    "least": np.array(1e-30, np.float32),
    "deep": np.array([[2]], np.float32),
    "each": np.full(4, 0.5, np.float32),
    "zeros": np.zeros(4, np.int8),
    "three": np.array(3, np.int32),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_alone(case: str) -> None:
    graph = graph_of(LEFT_ALONE[case], **NUMBERS)
    graph.infer_shapes()
    before = graph.digest()
    assert fold_scales(graph) == 0
    assert graph.digest() == before


def scales(text: str, **given: Array) -> tuple[list[str], list[float]]:
    """The nodes after folding, and the scales of Q and DQ nodes in order."""
    graph = graph_of(text, **{**NUMBERS, **given})
    graph.infer_shapes()
    fold_scales(graph)
    assert graph.problem() is None
    stored = [graph.const(n.inputs[1]) for n in graph.nodes if "quantize" in n.op_type.lower()]
    return [line.split("(")[0] for line in lines(graph)], [float(s) for s in stored if s is not None]


BEFORE = ["q = QuantizeLinear", "y = DequantizeLinear"]
BEHIND = ["q = QuantizeLinear", "d = DequantizeLinear", "y = Relu"]


@pytest.mark.parametrize(
    ("step", "scale"), [("Mul(x, two)", 0.25), ("Mul(two, x)", 0.25), ("Div(x, two)", 1.0), ("Mul(x, part)", 2.0)]
)
def test_a_factor_before_a_pair(step: str, scale: float) -> None:
    found = scales(f"{IN}) {{ m = {step} {Q} }}", part=np.array([0.25], np.float32))
    assert found == (BEFORE, [scale, 0.5])


@pytest.mark.parametrize(("step", "scale"), [("Mul(d, two)", 1.0), ("Mul(two, d)", 1.0), ("Div(d, two)", 0.25)])
def test_a_factor_behind_a_pair(step: str, scale: float) -> None:
    found = scales(f"{IN}) {{ {DQ} {D} m = {step} y = Relu(m) }}")
    assert found == (BEHIND, [0.5, scale])


def test_factors_in_a_row() -> None:
    assert scales(
        f"{IN}) {{ a = Mul(x, two) b = Div(a, four1) m = Mul(b, two) {Q} }}", four1=np.array(4, np.float32)
    ) == (
        BEFORE,
        [0.5, 0.5],
    )
    text = f"{IN}) {{ {DQ} {D} a = Mul(d, two) m = Mul(a, two) y = Relu(m) }}"
    assert scales(text) == (BEHIND, [0.5, 2.0])


def test_a_factor_between_two_pairs_folds_once() -> None:
    text = f"{IN}) {{ {DQ} {D} m = Mul(d, two) p = QuantizeLinear(m, s, z) y = DequantizeLinear(p, s, z) }}"
    nodes, found = scales(text)
    assert nodes == ["q = QuantizeLinear", "d = DequantizeLinear", "p = QuantizeLinear", "y = DequantizeLinear"]
    assert found == [0.5, 1.0, 0.5, 0.5]


def test_a_scale_that_others_share_stays_theirs() -> None:
    text = f"{IN}, float[2,4] v) {{ m = Mul(x, two) {Q} p = QuantizeLinear(x, s, z) v = DequantizeLinear(p, s, z) }}"
    assert sorted(scales(text)[1]) == [0.25, 0.5, 0.5, 0.5]


POWERS = st.integers(-8, 8).map(lambda e: 2.0**e)
VALUES = st.lists(st.floats(-1000, 1000, width=32), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(values=VALUES, factor=POWERS, scale=POWERS, zero=st.integers(-128, 127), divided=st.booleans())
def test_powers_of_two_keep_every_bit(
    values: list[float], factor: float, scale: float, zero: int, divided: bool
) -> None:
    """Multiplying and dividing by a power of two is exact, so the codes are the same ones."""
    step = "Div" if divided else "Mul"
    text = f"""{IN}) {{ m = {step}(x, k) q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z)
        n = {step}(d, k) y = Relu(n) }}"""
    numbers: dict[str, Array] = {
        "k": np.array(factor, np.float32),
        "s": np.array(scale, np.float32),
        "z": np.array(zero, np.int8),
    }
    check(text, np.array(values, np.float32).reshape(2, 4), numbers, 0.0)


@settings(max_examples=60, deadline=None)
@given(values=VALUES, factor=st.floats(2**-7, 128, width=32), scale=st.floats(2**-7, 128, width=32))
def test_any_factor_keeps_codes_up_to_one(values: list[float], factor: float, scale: float) -> None:
    """A value in the middle between two codes may round either way once the factor is inside the scale."""
    text = f"{IN}) {{ m = Mul(x, k) {Q} }}"
    numbers: dict[str, Array] = {"k": np.array(factor, np.float32), "s": np.array(scale, np.float32), "z": ZERO}
    check(text, np.array(values, np.float32).reshape(2, 4), numbers, float(np.float32(scale)))


def check(text: str, x: Array, numbers: dict[str, Array], tolerance: float) -> None:
    graph = graph_of(text, **numbers)
    graph.infer_shapes()
    before = graph.copy()
    assert fold_scales(graph) > 0
    feeds = {"x": x, "c": np.array(1, np.float32)}
    expected, got = run(before, feeds)[0], run(graph, feeds)[0]
    assert (np.abs(got.astype(np.float64) - expected) <= tolerance * (1 + 1e-6)).all()
    # and codes differ only where the quotient lies in the middle
    if tolerance:
        quotient = np.abs(x.astype(np.float64) * float(numbers["k"]) / float(numbers["s"]))
        middle = np.abs(quotient % 1 - 0.5) < 1e-4 * (1 + quotient)
        assert (middle | (np.abs(got - expected) <= 1e-5 * np.abs(expected))).all()
