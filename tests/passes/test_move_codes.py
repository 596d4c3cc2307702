"""Quantization in front of data movement: what stays first, then that nothing is computed differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from architectures import transformer
from graphs import graph_of, lines, random_feeds, run
from hypothesis import given
from hypothesis import strategies as st

import onnxq
from onnxq import Recipe, checks
from onnxq.passes.move_codes import move_codes

SCALE: dict[str, Any] = {"s": np.float32(0.05), "z": np.int8(0)}
TAIL = "q = QuantizeLinear({}, s, z) y = DequantizeLinear(q, s, z)"
INDEX: dict[str, Any] = {"first": np.array([0]), "twice": np.array([0, 1, 2, 3, 0])}


STAY = {
    "nothing moves": "t = Relu(x)",
    "no bytes are copied": "t = Reshape(x, shape2)",
    "somebody reads floats": "t = Transpose(x) u = Relu(t)",
    "rows are thrown away": "t = Gather(x, first)",
    "a constant is joined": "t = Concat<axis=0>(x, c)",
}


@pytest.mark.parametrize("case", STAY)
def test_stays(case: str) -> None:
    graph = graph_of(
        f"(float[4,6] x) => (float[?,?] y, float[?,?] u) {{ {STAY[case]} {TAIL.format('t')} "
        + ("}" if "u =" in STAY[case] else "u = Neg(x) }"),
        **SCALE,
        **INDEX,
        shape2=np.array([6, 4]),
        c=np.ones((1, 6), np.float32),
    )
    graph.infer_shapes()
    before = lines(graph)
    assert move_codes(graph) == 0
    assert lines(graph) == before


def test_a_scale_per_channel_stays() -> None:
    graph = graph_of(
        f"(float[4,6] x) => (float[6,4] y) {{ t = Transpose(x) {TAIL.format('t')} }}",
        s=np.full(4, 0.05, np.float32),
        z=np.zeros(4, np.int8),
    )
    graph.infer_shapes()
    assert move_codes(graph) == 0


MOVED = {
    "a Transpose": ("t = Transpose(x)", "t"),
    "on the way behind a Reshape": ("t = Transpose(x) r = Reshape(t, flat)", "r"),
    "two of them": ("t = Transpose(x) r = Reshape(t, flat2) u = Transpose(r)", "u"),
    "a Gather that repeats": ("t = Gather(x, twice)", "t"),
    "an Expand": ("k = Unsqueeze(x, axis) t = Expand(k, grown)", "t"),
}


@pytest.mark.parametrize("case", MOVED)
def test_codes_are_moved_and_nothing_changes(case: str) -> None:
    body, last = MOVED[case]
    graph = graph_of(
        f"(float[4,6] x) => (float[Q] y) {{ {body} {TAIL.format(last)} }}",
        **SCALE,
        **INDEX,
        flat=np.array([-1]),
        flat2=np.array([3, 8]),
        axis=np.array([1]),
        grown=np.array([4, 5, 6]),
    )
    graph.outputs[0].shape = None
    graph.infer_shapes()
    feed = random_feeds(graph)
    before = run(graph, feed)[0]
    assert move_codes(graph) == 1
    assert graph.problem() is None
    first = next(n for n in graph.nodes if n.op_type != "Unsqueeze")
    assert first.op_type == "QuantizeLinear"
    assert all(graph.dtype(n.outputs[0]) == "int8" for n in graph.nodes if n.op_type in ("Transpose", "Gather"))
    np.testing.assert_array_equal(run(graph, feed)[0], before)


@given(st.permutations(range(3)), st.integers(0, 2))
def test_a_concat_of_anything_is_joined_in_codes(order: list[int], axis: int) -> None:
    graph = graph_of(
        f"(float[2,3,4] a, float[2,3,4] b) => (float[?,?,?] y) {{ t = Transpose<perm={order}>(a) "
        f"u = Transpose<perm={order}>(b) k = Concat<axis={axis}>(t, u) {TAIL.format('k')} }}",
        **SCALE,
    )
    graph.infer_shapes()
    feed = random_feeds(graph)
    before = run(graph, feed)[0]
    assert move_codes(graph) == 3  # in front of the Concat, then of both transposes
    assert [n.op_type for n in graph.nodes[:2]] != ["Transpose", "Transpose"]
    assert sum(n.op_type == "QuantizeLinear" for n in graph.nodes) == 2
    np.testing.assert_array_equal(run(graph, feed)[0], before)


def test_the_output_of_an_attention_is_transposed_in_codes() -> None:
    graph = transformer()
    feeds = [random_feeds(graph, seed, N=2, L=8) for seed in range(2)]
    made, _ = onnxq.quantize(graph, feeds, Recipe(target="ort-cuda"))
    moved = [n for n in made.nodes if n.op_type == "Transpose" and made.dtype(n.outputs[0]) == "int8"]
    assert moved
    report = checks.check(made.to_proto(), "ort-cuda")
    assert not [f for f in report.findings if f.severity == "E"]
