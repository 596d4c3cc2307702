"""Attentions between float tensors become one node: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from graphs import graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.executed import executed
from onnxq.passes.cpu_attention import join_attention

if TYPE_CHECKING:
    from onnxq.graph import Graph

SPLIT = "a = Reshape(q, s) d = Reshape(k, s) e = Reshape(v, s) "
TURN = "f = Transpose<perm=[0,2,1,3]>(a) g = Transpose<perm=[0,2,3,1]>(d) h = Transpose<perm=[0,2,1,3]>(e) "
SCORE = "i = MatMul(f, g) j = Mul(i, c) "
MIX = "p = Softmax<axis=-1>(l) n = MatMul(p, h) t = Transpose<perm=[0,2,1,3]>(n) y = Reshape(t, o)"
WHOLE = f"{SPLIT}{TURN}{SCORE}l = Add(j, m) {MIX}"
CONSTANTS: dict[str, npt.ArrayLike] = {"s": np.array([0, 0, 4, 8]), "o": np.array([0, 0, 32]), "c": np.float32(0.3)}


def attention(body: str, mask: str = "B,1,S,L", rest: str = "", **weights: npt.ArrayLike) -> Graph:
    """An attention of four heads of 8 over float[B,S,32] q and float[B,L,32] k and v."""
    head = f"(float[B,S,32] q, float[B,L,32] k, float[B,L,32] v, float[{mask}] m) => (float[B,S,32] y{rest})"
    used = {
        n: a for n, a in {**CONSTANTS, **weights}.items() if any(f in body for f in (f"({n},", f"({n})", f", {n})"))
    }
    graph = graph_of(f"{head} {{ {body} }}", 17, **used)
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("old", "new", "mask"),
    [
        ("Softmax<axis=-1>", "Softmax<axis=2>", "B,1,S,L"),
        ("Softmax<axis=-1>(l)", "Tanh(l)", "B,1,S,L"),
        ("g = Transpose<perm=[0,2,3,1]>(d)", "g = Transpose<perm=[0,2,3,1]>(d) w = Relu(i)", "B,1,S,L"),  # read twice
        ("h = Transpose<perm=[0,2,1,3]>(e)", "u = Transpose<perm=[0,2,1,3]>(e) h = Mul(u, c)", "B,1,S,L"),
        ("h = Transpose<perm=[0,2,1,3]>(e)", "u = Transpose<perm=[0,2,1,3]>(e) h = Relu(u)", "B,1,S,L"),
        ("y = Reshape(t, o)", "u = Relu(t) y = Reshape(u, o)", "B,1,S,L"),
        ("l = Add(j, m)", "l = Mul(j, m)", "B,1,S,L"),
        ("l = Add(j, m)", "r = Add(j, m) l = Add(r, m)", "B,1,S,L"),
        ("l = Add(j, m)", "r = Add(j, m) l = Mul(r, c)", "B,1,S,L"),
        ("", "", "S,L"),  # of another rank
        ("", "", "L"),
    ],
)
def test_others_are_left_alone(old: str, new: str, mask: str) -> None:
    assert join_attention(attention(WHOLE.replace(old, new), mask)) == 0


def test_attention_whose_weights_are_a_result_is_left_alone() -> None:
    assert join_attention(attention(WHOLE, rest=", float[B,4,S,L] p")) == 0


def test_attention_whose_products_are_quantized_is_left_alone() -> None:
    body = WHOLE.replace(
        "f = Transpose<perm=[0,2,1,3]>(a)",
        "a8 = QuantizeLinear(a, c) a9 = DequantizeLinear(a8, c) f = Transpose<perm=[0,2,1,3]>(a9)",
    )
    assert join_attention(attention(body)) == 0


def test_a_reshape_that_mixes_rows_is_left_alone() -> None:
    text = "(float[2,6,32] q, float[2,6,32] k, float[2,6,32] v) => (float[2,6,32] y)"
    body = f"{SPLIT}{TURN}{SCORE}{MIX.replace('(l)', '(j)')}"
    mixed = graph_of(f"{text} {{ {body} }}", s=np.array([6, 2, 4, 8]), o=np.array([2, 6, 32]), c=np.float32(0.3))
    mixed.infer_shapes()
    assert join_attention(mixed) == 0


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["B,1,S,L", "1,1,1,L", "B,1,1,L", "B,4,S,L", "1,1,S,1", "P,U,V,W"]),
    st.booleans(),
    st.sampled_from(["j = Mul(c, i)", "j = Div(i, c)", ""]),
)
def test_it_computes_the_same(seed: int, mask: str, swapped: bool, scaling: str) -> None:
    term = "i" if scaling == "" else "j"
    total = f"Add(m, {term})" if swapped else f"Add({term}, m)"
    body = WHOLE.replace("j = Mul(i, c)", scaling).replace("Add(j, m)", total)
    graph = attention(body, mask)
    before = graph.copy()
    assert join_attention(graph) == 1
    graph.remove_unused()
    assert graph.problem() is None
    ops = [node.op_type for node in graph.nodes]
    assert ops.count("Expand") == (mask not in ("B,1,S,L", "B,4,S,L"))
    feeds = random_feeds(graph, seed, B=2, S=3, L=5, P=1, U=4, V=1, W=5)
    same_function(before, graph, feeds, 1e-5)


def test_one_expanded_mask_serves_all_layers() -> None:
    second = WHOLE
    for name in "adefghijlpnt":
        second = second.replace(f"{name} = ", f"{name}2 = ").replace(f"({name})", f"({name}2)")
        second = second.replace(f"({name},", f"({name}2,").replace(f", {name})", f", {name}2)")
    second = second.replace("Reshape(q,", "Reshape(y,").replace("y = ", "z = ")
    graph = attention(f"{WHOLE} {second}", "B,1,1,L", ", float[B,S,32] z")
    before = graph.copy()
    assert join_attention(graph) == 2
    graph.remove_unused()
    assert [node.op_type for node in graph.nodes].count("Expand") == 1
    same_function(before, graph, random_feeds(graph, B=2, S=3, L=5), 1e-5)


def test_scales_of_both_sides_and_a_second_transpose_are_taken_along() -> None:
    body = WHOLE.replace(
        TURN,
        "a1 = Mul(a, c) f = Transpose<perm=[0,2,1,3]>(a1) d1 = Transpose<perm=[0,2,1,3]>(d) "
        "d2 = Transpose<perm=[0,1,3,2]>(d1) g = Div(d2, c) h = Transpose<perm=[0,2,1,3]>(e) ",
    )
    graph = attention(body)
    before = graph.copy()
    assert join_attention(graph) == 1
    graph.remove_unused()
    assert [node.op_type for node in graph.nodes] == ["MultiHeadAttention"]
    same_function(before, graph, random_feeds(graph, B=2, S=3, L=5), 1e-5)


def test_biases_of_all_three_are_taken_along() -> None:
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=(32, 32)).astype(np.float32) / 6 for n in ("wq", "wk", "wv")}
    weights |= {n: rng.normal(size=(1, 1, 32) if n == "bk" else 32).astype(np.float32) for n in ("bq", "bk", "bv")}
    layers = "".join(f"{n}1 = MatMul({n}, w{n}) {n}2 = Add({n}1, b{n}) " for n in "qkv")
    body = layers + WHOLE.replace("Reshape(q,", "Reshape(q2,").replace("(k,", "(k2,").replace("(v,", "(v2,")
    graph = attention(body, "B,1,S,L", "", **weights)
    before = graph.copy()
    assert join_attention(graph) == 1
    graph.remove_unused()
    assert [node.op_type for node in graph.nodes] == ["MatMul"] * 3 + ["MultiHeadAttention"]
    assert "y = MultiHeadAttention(q1, k1, v1, q2/biases, _, m)" in lines(graph)
    same_function(before, graph, random_feeds(graph, B=2, S=3, L=5), 1e-5)
    twice = attention(body + " w = Relu(k2)", "B,1,S,L", ", float[B,L,32] w", **weights)
    assert join_attention(twice) == 1
    assert [node.op_type for node in twice.nodes].count("Add") == 4  # three biases and the mask: not removed yet


def test_its_products_are_counted() -> None:
    graph = attention(WHOLE)
    assert join_attention(graph) == 1
    graph.remove_unused()
    sizes = {"q": (2, 3, 32), "k": (2, 5, 32), "v": (2, 5, 32), "m": (2, 1, 3, 5), "y": (2, 3, 32)}
    (node,) = executed(graph.to_proto(), {name: ("float", shape) for name, shape in sizes.items()})
    assert node.runs == "float"
    assert node.macs == 2 * 4 * (3 * 5 * 8) * 2  # batch, heads, rows x columns x size, both products
