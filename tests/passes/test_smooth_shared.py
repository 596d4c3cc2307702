"""Sites of weights that several layers share: one factor for all that they read or make, and one copy of everything."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, random_feeds, run, same_function
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import built, factors_of

from onnxq.graph import Graph
from onnxq.passes.remove_unused import remove_unused
from onnxq.passes.smooth import Smooth
from onnxq.rescaling import find_sites
from onnxq.smoothed import with_float_tensors

RNG = np.random.default_rng(6)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


MILD = {"low": np.exp(-1), "high": np.exp(1)}


# --- what must be left alone -------------------------------------------------------------------------------

TWO = "(float[5,8] x, float[5,8] z) => (float[5,N] a, float[5,M] b"
ALONE = {
    "both ways": (TWO + ") { t = Tanh(x) a = MatMul(t, w) b = Gemm<transB = 1>(z, w) }", (8, 8), {}),
    "either axis": (TWO + ") { t = Tanh(x) a = Gemm(t, w) b = Gemm<transB = 1>(z, w) }", (8, 8), {}),
    "a table": (
        TWO + ", float[2,8] c) { t = Tanh(x) a = MatMul(t, w) b = MatMul(z, w) c = Gather(w, i) }",
        (8, 8),
        {"i": np.array([1, 3])},
    ),
    "an addition": (TWO + ") { t = Tanh(x) a = MatMul(t, w) b = Add(z, w) }", (5, 8), {}),
    "the first operand": (TWO + ") { t = Tanh(x) a = MatMul(t, w) b = MatMul(w, z) }", (8, 5), {}),
    "a transposed input": (
        ("(float[8,8] x, float[8,8] z) => (float[8,N] a, float[8,M] b) "
        "{ t = Tanh(x) a = Gemm(t, w) b = Gemm<transA = 1>(z, w) }"),
        (8, 6),
        {},
    ),
    "a constant input": (TWO + ") { t = Tanh(x) a = MatMul(t, w) k = MatMul(o, w) b = Add(k, z) }", (8, 8),
                         {"o": floats(5, 8)}),
    "groups": (
        ("(float[1,8,5,5] x, float[1,16,5,5] z) => (float[1,4,5,5] a, float[1,4,5,5] b) "
        "{ t = Tanh(x) a = Conv(t, w) b = Conv<group = 2>(z, w) }"),
        (4, 8, 1, 1),
        {},
    ),
    "transposed convolutions": (
        ("(float[1,8,5,5] x, float[1,8,5,5] z) => (float a, float b) "
        "{ t = Tanh(x) a = ConvTranspose(t, w) b = ConvTranspose(z, w) }"),
        (8, 4, 3, 3),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_a_weight_that_is_read_in_another_way(name: str) -> None:
    text, shape, others = ALONE[name]
    graph = built(text, w=floats(*shape), **others)
    assert [site for site in find_sites(graph) if {"t", "z"} & set(site.tensors)] == []


def test_a_body_reads_it_too() -> None:
    text = """(float[5,8] x, bool c) => (float[5,8] a, float[5,8] b, float[5,8] d) {
              t = Tanh(x) a = MatMul(t, w) b = MatMul(x, w)
              d = If(c) <then_branch = g () => (float[5,8] p) { p = MatMul(x, w) },
                         else_branch = h () => (float[5,8] q) { q = Identity(x) }> }"""
    assert find_sites(built(text, w=floats(8, 8))) == ()


def test_what_reads_another_weight_beside_it_is_smoothed_for_that() -> None:
    """One use of the shared weight is in another way; the tensor's other reader gets x' as if that were not there."""
    text = """(float[5,8] x, float[5,8] z) => (float[5,8] a, float[5,8] b, float[5,4] d) {
              t = Tanh(x) a = MatMul(t, w) b = Gemm<transB = 1>(z, w) d = MatMul(t, v) }"""
    graph = built(text, w=floats(8, 8), v=floats(8, 4))
    (site,) = find_sites(graph)
    assert (site.tensors, [n for _, n in site.readers]) == (("t",), [str(n.name) for n in graph.nodes][3:])


def test_channels_along_unlike_axes() -> None:
    """(N, C) and (N, L, C) have their channels along axes of unlike number: not one site, but others' are left."""
    text = """(float[5,8] x, float[2,5,8] z) => (float[5,8] a, float[2,5,8] b, float[5,4] d) {
              t = Tanh(x) a = MatMul(t, w) b = MatMul(z, w) d = MatMul(t, v) }"""
    (site,) = find_sites(built(text, w=floats(8, 8), v=floats(8, 4)))
    assert site.tensors == ("t",)
    assert len(site.readers) == 1


# --- what is tied -------------------------------------------------------------------------------------------

BLOCK = """q{i} = MatMul(x{i}, wq) qb{i} = Add(q{i}, bq) k{i} = MatMul(x{i}, wk) kb{i} = Add(k{i}, bk)
v{i} = MatMul(x{i}, wv) vb{i} = Add(bv, v{i}) kt{i} = Transpose<perm = [0,2,1]>(kb{i})
s{i} = MatMul(qb{i}, kt{i}) vc{i} = Reshape(vb{i}, cut) vt{i} = Transpose<perm = [0,2,1,3]>(vc{i})
su{i} = Unsqueeze(s{i}, one) p{i} = Softmax<axis = -1>(su{i}) m{i} = MatMul(p{i}, vt{i})
mt{i} = Transpose<perm = [0,2,1,3]>(m{i}) c{i} = Reshape(mt{i}, whole) o{i} = MatMul(c{i}, wo)
r{i} = Add(o{i}, x{i}) n{i} = LayerNormalization(r{i}, ga, ba) h{i} = MatMul(n{i}, wi) hb{i} = Add(h{i}, bi)
u{i} = Tanh(hb{i}) d{i} = MatMul(u{i}, wd) e{i} = Add(d{i}, n{i}) x{j} = LayerNormalization(e{i}, gb, bb)
"""
ALBERT = {
    **{f"w{k}": floats(8, 8) for k in "qkvo"}, **{f"b{k}": floats(8) for k in "qkv"}, "wi": floats(8, 12),
    "bi": floats(12), "wd": floats(12, 8), **{f"{k}{n}": floats(8) for k in "gb" for n in "ab"},
    "cut": np.array([2, 5, 2, 4]), "whole": np.array([2, 5, 8]), "one": np.array([1]),
}  # fmt: skip
PRE = """n{i} = LayerNormalization(x{i}, g, h) a{i} = MatMul(n{i}, w) b{i} = Relu(a{i}) c{i} = MatMul(b{i}, v)
x{j} = Add(x{i}, c{i}) """
STEP = "a{i} = MatMul(h{i}, w) h{j} = Relu(a{i}) "
HEAD = """c{i} = Conv<pads = [1,1,1,1]>(p{i}, w, b) r{i} = Relu(c{i}) d{i} = Conv<pads = [1,1,1,1]>(r{i}, v, a)
l{i} = LeakyRelu(d{i}) y{i} = Conv(l{i}, u) z{i} = Conv<pads = [1,1,1,1]>(p{i}, t) """
LEVELS = (
    "(float[1,3,9,9] x0, float[1,3,5,5] x1) => (float[1,2,9,9] y0, float[1,2,5,5] y1, float[1,7,9,9] z0, "
    "float[1,7,5,5] z1) {{ p0 = Conv(x0, f) p1 = Conv(x1, e, g) {head} }}"
)


def times(block: str, count: int) -> str:
    return "".join(block.format(i=i, j=i + 1) for i in range(count))


CASES = {
    "albert": (
        f"(float[2,5,8] x0) => (float[2,5,8] x3) {{ {times(BLOCK, 3)} }}",
        ALBERT,
        {"x0 x1 x2": True, "c0 c1 c2": False, "n0 n1 n2": True, "u0 u1 u2": True},
    ),
    "norms in front": (
        f"(float[2,5,8] x0) => (float[2,5,8] x3) {{ {times(PRE, 3)} }}",
        {"g": floats(8), "h": floats(8), "w": floats(8, 12), "v": floats(12, 8)},
        {"n0 n1 n2": False, "a0 b0 a1 b1 a2 b2": False},
    ),
    "a head for two levels": (
        LEVELS.format(head=times(HEAD, 2)),
        {"f": floats(6, 3, 1, 1), "e": floats(6, 3, 1, 1), "g": floats(6), "w": floats(6, 6, 3, 3), "b": floats(6),
         "v": floats(5, 6, 3, 3), "a": floats(5), "u": floats(2, 5, 1, 1), "t": floats(7, 6, 3, 3)},
        {"x0": True, "x1": True, "p0 p1": False, "c0 r0 c1 r1": False, "d0 l0 d1 l1": False},
    ),
    "unrolled, what starts it is read by others": (
        f"(float[5,8] x) => (float[5,4] y) {{ h0 = Tanh(x) {times(STEP, 3)} y = MatMul(h3, v) }}",
        {"w": floats(8, 8), "v": floats(8, 4)},
        {"h0 h1 h2": True, "h3": True},
    ),
    "unrolled, made as it goes on": (
        f"(float[5,8] x) => (float[5,4] y) {{ a = MatMul(x, u) h0 = Relu(a) {times(STEP, 3)} y = MatMul(h3, v) }}",
        {"u": floats(8, 8), "w": floats(8, 8), "v": floats(8, 4)},
        {"x": True, "a h0 a0 h1 a1 h2 a2 h3": False},
    ),
    "twins": (
        ("(float[5,8] x, float[3,8] z) => (float[5,4] p, float[3,4] q) { a = Gemm(x, w, b) c = Gemm(z, w, b) "
        "d = Relu(a) e = Relu(c) p = Gemm<alpha = 0.5>(d, v, g) q = Gemm<alpha = 2.0>(e, v, g) }"),
        {"w": floats(8, 6), "b": floats(6), "v": floats(6, 4), "g": floats(4)},
        {"x z": True, "a c d e": False},
    ),
    "twins of which one is the model's output": (
        ("(float[5,8] x, float[3,8] z) => (float[5,4] p, float[3,6] c) { "
        "a = MatMul(x, w) c = MatMul(z, w) p = MatMul(a, v) }"),
        {"w": floats(8, 6), "v": floats(6, 4)},
        {"x z": True, "a": True},
    ),
    "one tensor twice": (
        ("(float[5,8] x) => (float[5,4] p, float[5,4] q, float[5,8] t) { "
        "t = Tanh(x) p = MatMul(t, w) q = MatMul(t, w) }"),
        {"w": floats(8, 4)},
        {"t": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sites(name: str) -> None:
    text, weights, wanted = CASES[name]
    assert {" ".join(s.tensors): s.explicit for s in find_sites(built(text, **weights))} == wanted


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_keeps_the_function(name: str, seed: int) -> None:
    text, weights, wanted = CASES[name]
    before = built(text, **weights)
    sites = find_sites(before)
    after = before.copy()
    assert Smooth(factors_of(sites, seed, **MILD))(after) == len(wanted)
    assert after.problem() is None
    same_function(before, after, random_feeds(before, seed), rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_one_copy_of_everything(name: str) -> None:
    """As many matrices as before, and vectors that are alike but once."""
    text, weights, _ = CASES[name]
    graph = built(text, **weights)
    before = {v: graph.rank(v) for v in graph.weights.values()}
    Smooth(factors_of(find_sites(graph), **MILD))(graph)
    remove_unused(graph)
    held = [np.asarray(graph.const(v)) for v in graph.weights.values()]
    assert sum(a.ndim > 1 for a in held if a.size != max(a.shape)) == sum((rank or 0) > 1 for rank in before.values())
    vectors = [a.tobytes() for a in held if a.ndim and a.size == max(a.shape)]
    assert len(set(vectors)) == len(vectors)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_comes_back_under_its_name(name: str) -> None:
    text, weights, _ = CASES[name]
    before = built(text, **weights)
    sites = find_sites(before)
    after = before.copy()
    Smooth(factors_of(sites, **MILD))(after)
    whole = with_float_tensors(Graph.from_proto(after.to_proto()))
    told = {str(v.name) for v in whole.values()}
    assert {t for site in sites for t in site.tensors} <= told
    shared = [str(v.name) for n in before.nodes for v in n.outputs if v.name in told]
    for graph in (whole, before):
        values = {str(v.name): v for v in graph.values()}
        graph.set_outputs([values[tensor] for tensor in shared])
    feeds = random_feeds(before, 3)
    for tensor, found, wanted in zip(shared, run(whole, feeds), run(before, feeds), strict=True):
        assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max(), tensor
