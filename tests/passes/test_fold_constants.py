from __future__ import annotations

import time

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.fold_constants import fold_constants

W = np.arange(6, dtype=np.float32).reshape(2, 3)
IF_OF_WEIGHTS = (
    "r = If(t) <then_branch = g () => (float[2,3] a) { a = Neg(w) },"
    "else_branch = h () => (float[2,3] b) { b = Abs(w) }> y = Mul(x, r)"
)


@pytest.mark.parametrize("inferred", [False, True])
@pytest.mark.parametrize(
    "nodes",
    [
        "y = Mul(x, w)",
        "q = QuantizeLinear(w, s) d = DequantizeLinear(q, s) y = Mul(x, d)",
        "q, k, z = DynamicQuantizeLinear(w) d = DequantizeLinear(q, k, z) y = Mul(x, d)",
        "r = RandomNormalLike(w) y = Mul(x, r)",
        "r = RandomUniform<shape = [2, 3]>() y = Mul(x, r)",
        "r = Bernoulli(p) y = Mul(x, r)",
        "r, m = Dropout(w, s, t) y = Mul(x, r)",
        "r = com.microsoft.Gelu(w) y = Mul(x, r)",
        IF_OF_WEIGHTS,
        "y = Neg(w)",
        "r = Shape(u) f = Cast<to = 1>(r) y = Mul(x, f)",
        "r = SequenceConstruct(w) c = SequenceAt(r, i) y = Mul(x, c)",
        "r = Expand(w, big) m = ReduceMean<axes = [0]>(r) y = Mul(x, r)",
        "r = ConstantOfShape(big) y = Mul(x, r)",
    ],
)
def test_leaves_alone(nodes: str, *, inferred: bool) -> None:
    graph = graph_of(
        "(float[2,3] x, float[N] u) => (float y) {" + nodes + "}",
        w=W,
        s=np.float32(0.1),
        p=W / 6,
        t=np.array(True),
        i=np.int64(0),
        big=np.array([1 << 18, 2, 3], np.int64),
    )
    if inferred:
        graph.infer_shapes()
    before = lines(graph)
    assert fold_constants(graph) == 0
    assert lines(graph) == before


def test_folds_the_inputs_of_an_output_but_not_the_output() -> None:
    graph = graph_of("(float[1] x) => (float[2,3] y, float[1] z) { a = Neg(w) b = Abs(a) y = Exp(b) z = Relu(x) }", w=W)
    before = graph.copy()
    assert fold_constants(graph) == 1
    assert lines(graph) == ["y = Exp(b/folded)", "z = Relu(x)"]
    same_function(before, graph, random_feeds(graph))


def test_numbers() -> None:
    graph = graph_of(
        "(float[2,2] x) => (float[2,3] y) { a = Transpose(w) b = Mul(a, two) y = MatMul(x, b) }",
        w=W.reshape(3, 2),
        two=np.float32(2),
    )
    assert fold_constants(graph) == 1
    assert lines(graph) == ["y = MatMul(x, b/folded)"]
    assert set(graph.weights) == {"b/folded"}
    np.testing.assert_array_equal(graph.const(graph.weights["b/folded"]), [[0, 4, 8], [2, 6, 10]])


def test_reads_shapes_that_are_static_where_they_are_asked_for() -> None:
    graph = graph_of(
        "(float[N,3,4] x, float[2,5] u) => (int64[2] y, int64 z, int64[2] v, int64[3] full) {"
        "a = Shape<start = 1>(x) y = Neg(a) b = Size(u) z = Neg(b) c = Shape<start = -9, end = 9>(u) v = Neg(c)"
        "d = Shape(x) full = Neg(d) }"
    )
    assert fold_constants(graph) == 3
    found = {name: np.asarray(graph.const(value)).tolist() for name, value in graph.weights.items()}
    assert found == {"a/folded": [3, 4], "b/folded": 10, "c/folded": [2, 5]}
    assert "d = Shape(x)" in lines(graph)


def test_a_large_weight_from_a_small_node_folds() -> None:
    text = "(float[1,1024] x) => (float[1,512] y) { r = ConstantOfShape(s) t = Transpose(r) y = MatMul(x, t) }"
    graph = graph_of(text, s=np.array([512, 1024], np.int64))
    graph.infer_shapes()
    before = graph.copy()
    assert fold_constants(graph) == 1
    assert lines(graph) == ["y = MatMul(x, t/folded)"]
    same_function(before, graph, random_feeds(graph))


def test_a_body_reads_the_folded_weight() -> None:
    graph = graph_of(
        "(float[2,3] x, bool t) => (float[2,3] y) { n = Neg(w) y = If(t) <"
        "then_branch = g () => (float[2,3] a) { a = Mul(x, n) },"
        "else_branch = h () => (float[2,3] b) { b = Add(x, n) }> }",
        w=W,
    )
    before = graph.copy()
    assert fold_constants(graph) == 1
    for t in (True, False):
        same_function(before, graph, {"x": W, "t": np.array(t)})


def test_what_the_runtime_lacks_is_computed_otherwise_or_left() -> None:
    """One run is not possible with an unknown operator in it; the rest folds all the same."""
    graph = graph_of(
        "(float[2,3] x) => (float[2,3] y, float z) { n = Neg(w) y = Mul(x, n)"
        "h = Cast<to = 10>(w) a = Abs(h) b = Mul(a, a) u = NoSuchOperator(b) z = Cast<to = 1>(u) }",
        w=W,
    )
    assert fold_constants(graph) == 2
    assert lines(graph) == ["y = Mul(x, n/folded)", "u = NoSuchOperator(b/folded)", "z = Cast(u)"]
    np.testing.assert_array_equal(graph.const(graph.weights["b/folded"]), (W * W).astype(np.float16))


def test_untouched_weights_are_not_read() -> None:
    graph = graph_of("(float[2,3] x) => (float[2,3] y) { n = Neg(c) a = Mul(x, n) y = Add(a, w) }", w=W, c=W)
    kept = graph.weights["w"].const_value
    assert fold_constants(graph) == 1
    assert graph.weights["w"].const_value is kept


CHAINS = st.lists(st.sampled_from(["Neg", "Abs", "Relu", "Exp", "Transpose"]), min_size=1, max_size=5).filter(
    lambda ops: ops.count("Exp") < 3  # four of them overflow
)


@settings(max_examples=25, deadline=None)
@given(CHAINS, st.integers(0, 4))
def test_any_chain(ops: list[str], entry: int) -> None:
    """Only the part before the activation enters folds."""
    names = [f"v{i}" for i in range(len(ops) + 1)]
    entry = min(entry, len(ops))
    nodes = [f"v0 = Identity(w) m{entry} = Mul({names[entry]}, x)"] if entry == 0 else ["v0 = Identity(w)"]
    for i, op in enumerate(ops):
        source = f"m{i}" if i == entry else names[i]
        nodes.append(f"{names[i + 1]} = {op}({source})")
        if i + 1 == entry:
            nodes.append(f"m{entry} = Mul({names[entry]}, x)")
    last = f"m{entry}" if entry == len(ops) else names[-1]
    graph = graph_of("(float[1] x) => (float y) {" + " ".join(nodes) + f" y = Neg({last}) }}", w=W / 6)
    before = graph.copy()
    assert fold_constants(graph) == 1
    assert len(graph.nodes) == len(ops) - entry + 2
    same_function(before, graph, random_feeds(graph))


def test_takes_linear_time() -> None:
    """Quadratic time would be 100 times as long for 10 times the nodes; a margin is left for a busy machine."""

    def seconds(count: int) -> float:
        nodes = "".join(f"v{i + 1} = Neg(v{i}) a{i + 1} = Add(a{i}, v{i + 1}) " for i in range(count))
        graph = graph_of(f"(float[1] a0) => (float y) {{ v0 = Neg(w) {nodes} y = Neg(a{count}) }}", w=W[0, :1])
        start = time.perf_counter()
        assert fold_constants(graph) == count
        return time.perf_counter() - start

    seconds(100)
    assert seconds(3000) < 40 * seconds(300)
