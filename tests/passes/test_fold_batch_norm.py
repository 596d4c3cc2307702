from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.fold_batch_norm import fold_batch_norm

RNG = np.random.default_rng(7)
CONV = "(float[2,3,8,8] x) => (float[2,4,6,6] y) {"


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def norm(channels: int) -> dict[str, Array]:
    return {
        "s": floats(channels),
        "b": floats(channels),
        "m": floats(channels),
        "v": np.abs(floats(channels)) + np.float32(0.1),
    }


NORM = "BatchNormalization(c, s, b, m, v)"
LEFT_ALONE = {
    "another user": f"c = Conv(x, w) n = {NORM} r = Relu(c) y = Add(n, r)",
    "batch statistics": f"c = Conv(x, w) y, rm, rv = {NORM.replace('(', '<training_mode = 1>(', 1)}",
    "old batch statistics": f"c = Conv(x, w) n, rm, rv = {NORM} r = Add(n, n) y = Where(t, r, rm)",
    "a computed bias": f"c = Conv(x, w, z) y = {NORM}",
    "a computed scale": f"c = Conv(x, w) y = {NORM.replace('s', 'z')}",
    "a computed weight": f"u = Relu(w) c = Conv(x, u) y = {NORM}",
    "something in between": f"d = Conv(x, w) c = Relu(d) y = {NORM}",
    "a user in a body": f"c = Conv(x, w) n = {NORM} y = If(t) <"
    "then_branch = g () => (float[2,4,6,6] a) { a = Add(c, n) },"
    "else_branch = h () => (float[2,4,6,6] e) { e = Identity(n) }>",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    head = "(float[2,3,8,8] x, float[4] z, bool t) => (float[2,4,6,6] y) {"
    graph = graph_of(head + LEFT_ALONE[reason] + "}", w=floats(4, 3, 3, 3), **norm(4))
    before = lines(graph)
    assert fold_batch_norm(graph) == 0
    assert lines(graph) == before


def test_leaves_a_model_output_alone() -> None:
    text = "(float[2,3,8,8] x) => (float[2,4,6,6] y, float[2,4,6,6] c) { c = Conv(x, w) y = " + NORM + "}"
    assert fold_batch_norm(graph_of(text, w=floats(4, 3, 3, 3), **norm(4))) == 0


def test_leaves_quantized_and_overflowing_weights() -> None:
    text = CONV + "d = DequantizeLinear(q, k) c = Conv(x, d) y = BatchNormalization(c, s, b, m, v) }"
    quantized = graph_of(text, q=np.ones((4, 3, 3, 3), np.int8), k=np.float32(0.1), **norm(4))
    assert fold_batch_norm(quantized) == 0
    text = CONV + "c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }"
    huge = graph_of(text, w=np.full((4, 3, 3, 3), 1e38, np.float32), **norm(4) | {"s": np.full(4, 1e3, np.float32)})
    assert fold_batch_norm(huge) == 0
    negative = graph_of(text, w=floats(4, 3, 3, 3), **norm(4) | {"v": np.full(4, -1, np.float32)})
    assert fold_batch_norm(negative) == 0


def test_a_product_with_a_third_axis_has_its_channels_elsewhere() -> None:
    text = "(float[2,4,5] x) => (float[2,4,4] y) { p = MatMul(x, w) y = BatchNormalization(p, s, b, m, v) }"
    assert fold_batch_norm(graph_of(text, w=floats(5, 4), **norm(4))) == 0


def test_conv() -> None:
    graph = graph_of(CONV + "c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }", w=floats(4, 3, 3, 3), **norm(4))
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    assert lines(graph) == ["y = Conv(x, w/folded, Conv:c/bias)"]
    same_function(before, graph, random_feeds(graph))


def test_numbers_of_one_channel() -> None:
    """By hand: f = 3 / sqrt(3.75 + 0.25) = 1.5, s = 1 - 2 * 1.5 = -2; weight 2 f = 3, bias 5 f + s = 5.5."""
    graph = graph_of(
        "(float[1,1,1] x) => (float[1,1,1] y) {"
        "c = Conv(x, w, o) y = BatchNormalization<epsilon = 0.25>(c, s, b, m, v) }",
        w=np.full((1, 1, 1), 2, np.float32),
        o=np.array([5], np.float32),
        s=np.array([3], np.float32),
        b=np.array([1], np.float32),
        m=np.array([2], np.float32),
        v=np.array([3.75], np.float32),
    )
    fold_batch_norm(graph)
    weight, bias = (graph.const(v) for v in graph.nodes[0].inputs[1:])
    assert weight is not None
    assert bias is not None
    assert (weight.item(), bias.item()) == (3.0, 5.5)


def test_shared_weights_are_not_changed_in_place() -> None:
    weights = {"w": floats(4, 3, 3, 3), "o": floats(4), **norm(4)}
    graph = graph_of(
        CONV + "c = Conv(x, w, o) n = BatchNormalization(c, s, b, m, v) d = Conv(x, w, o) y = Add(n, d) }", **weights
    )
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    assert lines(graph) == ["n = Conv(x, w/folded, o/folded)", "d = Conv(x, w, o)", "y = Add(n, d)"]
    same_function(before, graph, random_feeds(graph))


def test_a_shared_weight_stays_one_for_equal_batch_norms_and_has_a_copy_for_another() -> None:
    weights = {"w": floats(3, 3, 3, 3), "k": floats(3), **norm(3), **{f"{n}2": a for n, a in norm(3).items()}}
    same = {f"{n}3": weights[n].copy() for n in "sbmv"}
    graph = graph_of(
        """(float[2,3,8,8] x) => (float[2,3,2,2] y) {
            c = Conv(x, w) d = BatchNormalization(c, s, b, m, v)
            e = Conv(d, w, k) f = BatchNormalization(e, s2, b2, m2, v2)
            g = Conv(f, w) y = BatchNormalization(g, s3, b3, m3, v3)
        }""",
        **weights,
        **same,
    )
    before = graph.copy()
    assert fold_batch_norm(graph) == 3
    graph.remove_unused()
    first, second, third = (node.inputs[1] for node in graph.nodes)
    assert first is third
    assert first is not second
    assert sum(graph.rank(value) == 4 for value in graph.weights.values()) == 2
    same_function(before, graph, random_feeds(graph))


def test_matmul_gets_an_add_for_the_shift() -> None:
    text = "(float[2,5] x) => (float[2,4] y) { c = MatMul(x, w) n = " + NORM + " y = Relu(n) }"
    graph = graph_of(text, w=floats(5, 4), **norm(4))
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    assert lines(graph) == ["c/scaled = MatMul(x, w/folded)", "n = Add(c/scaled, b/folded)", "y = Relu(n)"]
    same_function(before, graph, random_feeds(graph))


@pytest.mark.parametrize("order", ["o, p", "p, o"])
def test_matmul_with_bias(order: str) -> None:
    text = f"(float[2,5] x) => (float[2,4] y) {{ p = MatMul(x, w) c = Add({order}) y = {NORM} }}"
    graph = graph_of(text, w=floats(5, 4), o=floats(1, 4), **norm(4))
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    assert lines(graph) == [
        "p/scaled = MatMul(x, w/folded)",
        f"y = Add({order.replace('o', 'o/folded').replace('p', 'p/scaled')})",
    ]
    same_function(before, graph, random_feeds(graph))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    transposed = data.draw(st.booleans())
    groups, per_in, per_out = (data.draw(st.integers(1, 3)) for _ in range(3))
    spatial = data.draw(st.integers(1, 2))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(spatial)]
    pads = [data.draw(st.integers(0, 1)) for _ in range(2 * spatial)] if not transposed else [0] * (2 * spatial)
    strides = [data.draw(st.integers(1, 2)) for _ in range(spatial)]
    out = groups * per_out
    weight = floats(groups * per_in, per_out, *kernel) if transposed else floats(out, per_in, *kernel)
    bias = {"o": floats(out)} if data.draw(st.booleans()) else {}
    dims = ",".join(["2", str(groups * per_in)] + ["5"] * spatial)
    op = "ConvTranspose" if transposed else "Conv"
    graph = graph_of(
        f"(float[{dims}] x) => (float[{','.join(f'd{i}' for i in range(spatial + 2))}] y) {{"
        f"c = {op}<group = {groups}, pads = {pads}, strides = {strides}>(x, w{', o' if bias else ''})"
        "y = BatchNormalization<epsilon = 0.01>(c, s, b, m, v) }",
        w=weight,
        **norm(out),
        **bias,
    )
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    same_function(before, graph, random_feeds(graph))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([(), (1,), (4,), (1, 4), (1, 1), (3, 1), (3, 4), None]),
    st.floats(-2, 2, width=16),
    st.floats(-2, 2, width=16),
)
def test_any_gemm(trans_a: int, trans_b: int, shape: tuple[int, ...] | None, alpha: float, beta: float) -> None:
    bias = {} if shape is None else {"o": floats(*shape)}
    graph = graph_of(
        f"(float[{'5,3' if trans_a else '3,5'}] x) => (float[3,4] y) {{"
        f"g = Gemm<transA = {trans_a}, transB = {trans_b}, alpha = {alpha:f}, beta = {beta:f}>"
        f"(x, w{', o' if bias else ''}) y = BatchNormalization(g, s, b, m, v) }}",
        w=floats(4, 5) if trans_b else floats(5, 4),
        **norm(4),
        **bias,
    )
    before = graph.copy()
    assert fold_batch_norm(graph) == 1
    assert len(graph.nodes) == 1
    same_function(before, graph, random_feeds(graph))
