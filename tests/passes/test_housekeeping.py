"""infer_shapes and remove_unused."""

from __future__ import annotations

import numpy as np
from graphs import graph_of, lines

from onnxq.passes.infer_shapes import infer_shapes
from onnxq.passes.remove_unused import remove_unused

W = np.ones((3, 4), np.float32)


def test_infers_what_can_be_inferred_and_counts_it() -> None:
    graph = graph_of("(float[N,3] x) => (float[N,4] y) { a = MatMul(x, w) b = Relu(a) y = Neg(b) }", w=W)
    assert infer_shapes(graph) == 2
    assert [graph.shape(v) for v in graph.values()] == [("N", 3), ("N", 4), ("N", 4), ("N", 4)]
    assert infer_shapes(graph) == 0


def test_reads_shapes_from_small_weights() -> None:
    graph = graph_of("(float[2,6] x) => (float y) { a = Reshape(x, s) y = Neg(a) }", s=np.array([3, 4]))
    infer_shapes(graph)
    assert graph.shape(graph.nodes[0].outputs[0]) == (3, 4)


def test_tolerates_unknown_operators_and_contradictions() -> None:
    graph = graph_of("(float[2,3] x) => (float[2,3] y) { a = NoSuchOperator(x) b = MatMul(x, x) y = Add(a, b) }")
    assert infer_shapes(graph) == 0
    assert graph.dtype(graph.nodes[0].outputs[0]) is None


def test_a_sequence_does_not_become_a_tensor() -> None:
    graph = graph_of("(float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) y = SequenceAt(s, i) }", i=np.int64(0))
    infer_shapes(graph)
    assert "Sequence" in str(graph.nodes[0].outputs[0].type)


def test_removes_nothing_that_an_output_or_a_body_needs() -> None:
    graph = graph_of(
        "(float[3] x, bool t) => (float y) { n = Neg(w) y = If(t) <"
        "then_branch = g () => (float a) { a = MatMul(x, n) },"
        "else_branch = h () => (float b) { b = Abs(w) }> }",
        w=W,
    )
    assert remove_unused(graph) == 0
    assert set(graph.weights) == {"w"}


def test_removes_dead_chains_and_weights_but_no_inputs() -> None:
    graph = graph_of("(float[3] x, float[3] z) => (float[3] y) { a = MatMul(z, w) b = Neg(a) y = Neg(x) }", w=W)
    assert remove_unused(graph) == 3
    assert lines(graph) == ["y = Neg(x)"]
    assert [v.name for v in graph.inputs] == ["x", "z"]
    assert not graph.weights
