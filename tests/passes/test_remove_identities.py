from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.remove_identities import remove_identities

ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)
HEAD = "(float[N,3,4] x, bool t) => (float y) "


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("node", "c"),
    [
        ("Cast<to = 10>(x)", ONE),
        ("Transpose(x)", ONE),
        ("Transpose<perm = [0, 2, 1]>(x)", ONE),
        ("Reshape(x, c)", ints(0, 4, 3)),
        ("Reshape(x, c)", ints(-1, 12)),
        ("Reshape(x, c)", ints(-1, 3, -1)),
        ("Reshape<allowzero = 1>(x, c)", ints(0, 3, 4)),
        ("Reshape(x, c)", ints(1, 3, 4)),
        ("Expand(x, c)", ints(2, 1, 1, 1)),
        ("Expand(x, c)", ints(5, 1, 1)),
        ("Flatten(x)", ONE),
        ("Concat<axis = 0>(x, x)", ONE),
        ("Sum(x, x)", ONE),
        ("Pad(x, c)", ints(0, 0, 0, 0, 0, 1)),
        ("Mul(x, c)", ZERO),
        ("Mul(x, c)", np.ones(4, np.float32)),
        ("Mul(x, c)", np.ones((1, 1, 1, 1), np.float32)),
        ("Add(x, c)", ONE),
        ("Div(c, x)", ONE),
        ("Sub(c, x)", ZERO),
        ("Slice(x, c, d)", ints(1)),
        ("Slice(x, c, e)", ints(0)),
        ("Slice(x, c, d, c, e)", ints(0)),
        ("Dropout(x, z, t)", ONE),
        ("QuantizeLinear(x, s)", ONE),
        ("com.microsoft.Gelu(x)", ONE),
    ],
)
def test_leaves_alone(node: str, c: Array) -> None:
    graph = graph_of(
        HEAD + "{ r = " + node + " y = Relu(r) }", c=c, d=ints(2**40), e=ints(2), z=np.float32(0.5), s=np.float32(1)
    )
    before = lines(graph)
    assert remove_identities(graph) == 0
    assert lines(graph) == before


def test_leaves_dropout_whose_mask_is_used_and_one_of_unknown_rank() -> None:
    assert remove_identities(graph_of("(float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout(x) }")) == 0
    assert (
        remove_identities(
            graph_of("(float x) => (float y) { r = NonZero(x) f = Cast<to = 1>(r) y = Mul(f, c) }", c=ONE)
        )
        == 0
    )


def test_an_input_that_is_an_output_keeps_its_identity() -> None:
    graph = graph_of("(float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Identity(x) }")
    assert remove_identities(graph) == 0
    weight = graph_of("(float[1] x) => (float[1] y, float[1] z) { y = Relu(x) z = Identity(c) }", c=ONE)
    assert remove_identities(weight) == 0


def test_two_outputs_of_one_value_keep_theirs() -> None:
    graph = graph_of("(float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }")
    before = graph.copy()
    assert remove_identities(graph) == 0
    same_function(before, graph, random_feeds(graph))


def test_another_no_op_between_input_and_output_becomes_an_identity() -> None:
    graph = graph_of("(float[2] x) => (float[2] y) { y = Mul(x, c) }", c=ONE)
    before = graph.copy()
    assert remove_identities(graph) == 1
    assert lines(graph) == ["y = Identity(x)"]
    assert remove_identities(graph) == 0
    same_function(before, graph, random_feeds(graph))


@pytest.mark.parametrize(
    ("node", "c"),
    [
        ("Identity(h)", ONE),
        ("Dropout(h)", ONE),
        ("Dropout(h, c, f)", np.float32(0.5)),
        ("Cast<to = 1>(h)", ONE),
        ("Transpose<perm = [0, 1, 2]>(h)", ONE),
        ("Reshape(h, c)", ints(0, 0, 0)),
        ("Reshape(h, c)", ints(-1, 3, 4)),
        ("Reshape(h, c)", ints(0, -1, 4)),
        ("Expand(h, c)", ints(1, 4)),
        ("Expand(h, c)", ints(1, 1, 1)),
        ("Concat<axis = 1>(h)", ONE),
        ("Max(h)", ONE),
        ("Pad(h, c)", ints(0, 0, 0, 0, 0, 0)),
        ("Mul(h, c)", ONE),
        ("Mul(c, h)", np.float32(1)),
        ("Div(h, c)", np.ones((1, 1, 1), np.float32)),
        ("Add(c, h)", ZERO),
        ("Sub(h, c)", ZERO),
        ("Slice(h, c, d)", ints(0)),
        ("Slice(h, c, g, e)", ints(0)),
    ],
)
def test_removes(node: str, c: Array) -> None:
    graph = graph_of(
        "(float[N,3,4] x) => (float[N,3,4] y) { h = Relu(x) r = " + node + " y = Neg(r) }",
        c=c,
        d=ints(2**62),
        e=ints(2),
        f=np.array(False),
        g=ints(4),
    )
    graph.infer_shapes()
    before = graph.copy()
    assert remove_identities(graph) == 1
    assert lines(graph) == ["h = Relu(x)", "y = Neg(h)"]
    same_function(before, graph, random_feeds(graph, N=2))


def test_flatten_of_a_matrix_and_the_models_output_name() -> None:
    graph = graph_of("(float[2,3] x) => (float[2,3] y) { r = Relu(x) y = Flatten(r) }")
    graph.infer_shapes()
    assert remove_identities(graph) == 1
    assert lines(graph) == ["y = Relu(x)"]


def test_bodies_read_what_lies_before_and_keep_their_own() -> None:
    graph = graph_of(
        "(float[2] x, bool t) => (float[2] y) { h = Relu(x) i = Identity(h) y = If(t) <"
        "then_branch = g () => (float[2] a) { a = Neg(i) },"
        "else_branch = k () => (float[2] e) { e = Identity(i) }> }"
    )
    before = graph.copy()
    assert remove_identities(graph) == 1
    assert [n.op_type for n in graph.bodies(graph.nodes[-1])] == ["Neg", "Identity"]
    for t in (True, False):
        same_function(before, graph, {"x": np.array([-1, 2], np.float32), "t": np.array(t)})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.sampled_from([0, -1, 1, 2, 3]), max_size=3))
def test_any_reshape(shape: list[int], target: list[int]) -> None:
    """Removed exactly when numpy's reshape, an independent oracle, gives the shape back."""
    wanted = [shape[i] if t == 0 and i < len(shape) else t for i, t in enumerate(target)]
    try:
        result = list(np.empty(shape).reshape(wanted).shape)
    except ValueError:
        return
    rank = ",".join(map(str, shape))
    graph = graph_of(f"(float[{rank}] x) => (float y) {{ r = Reshape(x, c) y = Neg(r) }}", c=ints(*target))
    assert remove_identities(graph) == int(result == shape)


@pytest.mark.parametrize(
    ("starts", "ends", "axes"), [([0], [9], [7]), ([0], [9], [-3]), ([0], [9, 9], [0]), ([0] * 3, [9] * 3, None)]
)
def test_a_slice_along_axes_that_are_not_there_stays(
    starts: list[int], ends: list[int], axes: list[int] | None
) -> None:
    more = {} if axes is None else {"a": ints(*axes)}
    text = f"(float[2,3] x) => (float[M,N] y) {{ r = Slice(x, s, e{', a' if more else ''}) y = Relu(r) }}"
    graph = graph_of(text, s=ints(*starts), e=ints(*ends), **more)
    assert remove_identities(graph) == 0
