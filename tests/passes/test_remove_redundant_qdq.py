from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.remove_redundant_qdq import remove_redundant_qdq

NUMBERS: dict[str, Array] = {
    "s": np.array(0.5, np.float32),
    "s2": np.array(0.25, np.float32),
    "same": np.array(0.5, np.float32),
    "z": np.array(0, np.int8),
    "z2": np.array(1, np.int8),
    "u": np.array(0, np.uint8),
    "each": np.array([0.5, 0.25], np.float32),
    "zeros": np.array([0, 0], np.int8),
}
HEAD = "(float[2,2] x, float t) => (float[2,2] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
TAIL = " y = DequantizeLinear(r, s, z) }"

LEFT_ALONE = {
    "one pair": "(float[2,2] x) => (float[2,2] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
    "another scale": HEAD + "r = QuantizeLinear(d, s2, z)" + TAIL,
    "another zero point": HEAD + "r = QuantizeLinear(d, s, z2)" + TAIL,
    "another type": HEAD + "r = QuantizeLinear(d, s, u) y = DequantizeLinear(r, s, u) }",
    "a type that is not said": HEAD + "r = QuantizeLinear(d, s) y = DequantizeLinear(r, s) }",
    "a computed scale": "(float[2,2] x, float t) => (float[2,2] y) { q = QuantizeLinear(x, t, z) "
    "d = DequantizeLinear(q, t, z) r = QuantizeLinear(d, t, z) y = DequantizeLinear(r, t, z) }",
    "something in between": HEAD + "e = Relu(d) r = QuantizeLinear(e, s, z)" + TAIL,
    "another axis": "(float[2,2] x) => (float[2,2] y) { q = QuantizeLinear<axis=0>(x, each, zeros) "
    "d = DequantizeLinear<axis=0>(q, each, zeros) r = QuantizeLinear<axis=1>(d, each, zeros) "
    "y = DequantizeLinear<axis=1>(r, each, zeros) }",
    "signed codes that an unsigned Q would clip": "(int8[2,2] x) => (float[2,2] y) { d = DequantizeLinear(x, s) "
    "r = QuantizeLinear(d, s) y = DequantizeLinear(r, s) }",
    "an output": "(float[2,2] x) => (float[2,2] y, int8[2,2] r) { q = QuantizeLinear(x, s, z) "
    "d = DequantizeLinear(q, s, z) r = QuantizeLinear(d, s, z) y = DequantizeLinear(r, s, z) }",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_alone(case: str) -> None:
    graph = graph_of(LEFT_ALONE[case], **NUMBERS)
    graph.infer_shapes()
    before = graph.digest()
    assert remove_redundant_qdq(graph) == 0
    assert graph.digest() == before


def after(text: str, opset: int = 17) -> list[str]:
    graph = graph_of(text, opset, **NUMBERS)
    graph.infer_shapes()
    assert remove_redundant_qdq(graph) > 0
    assert graph.problem() is None
    graph.remove_unused()
    return lines(graph)


def test_a_pair_behind_a_pair() -> None:
    text = HEAD + "r = QuantizeLinear(d, same, z) y = DequantizeLinear(r, same, z) }"
    assert after(text) == ["q = QuantizeLinear(x, s, z)", "y = DequantizeLinear(q, same, z)"]


def test_three_pairs_become_one() -> None:
    text = HEAD + "r = QuantizeLinear(d, s, z) e = DequantizeLinear(r, s, z) v = QuantizeLinear(e, s, z) "
    assert after(text + "y = DequantizeLinear(v, s, z) }") == [
        "q = QuantizeLinear(x, s, z)",
        "y = DequantizeLinear(q, s, z)",
    ]


def test_a_float_reader_keeps_its_dequantizer() -> None:
    text = """(float[2,2] x) => (float[2,2] y, float[2,2] f) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        f = Relu(d) r = QuantizeLinear(d, s, z) y = DequantizeLinear(r, s, z) }"""
    assert sorted(after(text)) == [
        "d = DequantizeLinear(q, s, z)",
        "f = Relu(d)",
        "q = QuantizeLinear(x, s, z)",
        "y = DequantizeLinear(q, s, z)",
    ]


def test_unsaid_types_that_agree() -> None:
    text = "(float[2,2] x) => (float[2,2] y) { q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) "
    text += "r = QuantizeLinear(d, s) y = DequantizeLinear(r, s) }"
    assert after(text) == ["q = QuantizeLinear(x, s)", "y = DequantizeLinear(q, s)"]
    assert after(
        text.replace("QuantizeLinear(", "QuantizeLinear<output_dtype=3>(").replace(
            "DequantizeLinear<output_dtype=3>", "DequantizeLinear"
        ),
        21,
    ) == [
        "q = QuantizeLinear(x, s)",
        "y = DequantizeLinear(q, s)",
    ]


def test_per_channel_pairs() -> None:
    text = """(float[2,2] x) => (float[2,2] y) { q = QuantizeLinear<axis=0>(x, each, zeros)
        d = DequantizeLinear<axis=0>(q, each, zeros) r = QuantizeLinear<axis=0>(d, each, zeros)
        y = DequantizeLinear<axis=0>(r, each, zeros) }"""
    assert after(text) == ["q = QuantizeLinear(x, each, zeros)", "y = DequantizeLinear(q, each, zeros)"]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    scale=st.floats(2**-10, 1024, width=32),
    zero=st.integers(-128, 127),
    unsigned=st.booleans(),
)
def test_the_function_is_kept(values: list[float], scale: float, zero: int, unsigned: bool) -> None:
    text = "(float[2,2] x) => (float[2,2] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
    point = np.array(zero + 128, np.uint8) if unsigned else np.array(zero, np.int8)
    numbers = {"s": np.array(scale, np.float32), "z": point}
    graph = graph_of(text + "r = QuantizeLinear(d, s, z)" + TAIL, **numbers)
    graph.infer_shapes()
    before = graph.copy()
    assert remove_redundant_qdq(graph) == 1
    feeds = {"x": np.array(values, np.float32).reshape(2, 2)}
    np.testing.assert_array_equal(run(graph, feeds)[0], run(before, feeds)[0])
