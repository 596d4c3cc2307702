from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, lines, random_feeds, run, same_function
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import built, factors_of

from onnxq.errors import StatisticsError
from onnxq.graph import Graph, Node
from onnxq.passes.smooth import Smooth
from onnxq.rescaling import find_sites
from onnxq.smoothed import with_float_tensors
from onnxq.statistics import Factor

RNG = np.random.default_rng(5)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


LN = "n = LayerNormalization(x, g, h) "
ATTENTION = (
    "(float[2,5,8] x, float[2,2,5,5] s) => (float[2,5,6] y) {{"
    "v0 = MatMul(x, w) v = Add(b, v0) c = Reshape(v, cut) t = Transpose<perm = [{perm}]>(c) p = {mixing} {more} "
    "m = MatMul(p, t) u = Transpose<perm = [0,2,1,3]>(m) r = Reshape(u, whole) y = MatMul(r, o) }}"
)
ATTENTION_WEIGHTS = {"w": floats(8, 8), "b": floats(8), "o": floats(8, 6)}
ATTENTION_SHAPES = {"cut": np.array([2, 5, 2, 4]), "whole": np.array([2, 5, 8])}
FREE_SHAPES = {"cut": np.array([0, 0, -1, 4]), "whole": np.array([0, 0, -1])}
CASES = {
    "norm, three products": (
        "(float[2,5,8] x) => (float[2,5,4] q, float[2,5,4] k, float[2,5,4] v) {"
        + LN + "q = MatMul(n, a) k0 = MatMul(n, b) k = Add(k0, kb) v0 = MatMul(n, c) v = Add(vb, v0) }",
        {**{n: floats(8) for n in "gh"}, **{n: floats(8, 4) for n in "abc"}, "kb": floats(4), "vb": floats(4)},
        {"explicit": False, "shifts": True},
    ),
    "norm without a bias": (
        "(float[2,5,8] x) => (float[2,5,4] y) { n = LayerNormalization(x, g) y = MatMul(n, a) }",
        {"g": floats(8), "a": floats(8, 4)},
        {"explicit": False, "shifts": True},
    ),
    "products without a bias": (
        ("(float[2,5,8] x) => (float[2,5,4] y) { n = LayerNormalization(x, g, h) "
        "p = MatMul(n, a) r = Relu(p) q = MatMul(r, b) y = MatMul(q, c) }"),
        {"g": floats(8), "h": floats(8), "a": floats(8, 6), "b": floats(6, 5), "c": floats(5, 4)},
        {"explicit": False, "shifts": False},
    ),
    "a product without a bias, read by others": (
        ("(float[2,5,8] x) => (float[2,5,4] y, float[2,5,6] p) { n = LayerNormalization(x, g) "
        "p = MatMul(n, a) y = MatMul(p, b) }"),
        {"g": floats(8), "a": floats(8, 6), "b": floats(6, 4)},
        {"explicit": True, "shifts": True},
    ),
    "residual stream": (
        "(float[2,5,8] x) => (float[2,5,8] y) {" + LN + "p = MatMul(n, a) b = Add(p, c) y = Add(b, n) }",
        {"g": floats(8), "h": floats(8), "a": floats(8, 8), "c": floats(8)},
        {"explicit": True, "shifts": True},
    ),
    "model output": (
        "(float[2,5,8] x) => (float[2,5,4] y, float[2,5,8] n) {" + LN + "y = MatMul(n, a) }",
        {"g": floats(8), "h": floats(8), "a": floats(8, 4)},
        {"explicit": True, "shifts": True},
    ),
    "conv, relu, conv, padded": (
        ("(float[2,3,9,9] x) => (float[2,5,9,9] y) {"
        "c = Conv<pads = [1,1,1,1]>(x, a, b) r = Relu(c) y = Conv<pads = [1,1,1,1]>(r, w, v) }"),
        {"a": floats(6, 3, 3, 3), "b": floats(6), "w": floats(5, 6, 3, 3), "v": floats(5)},
        {"explicit": False, "shifts": False},
    ),
    "conv, conv of one pixel": (
        "(float[2,3,9,9] x) => (float[2,5,7,7] y) { c = Conv(x, a) y = Conv(c, w) }",
        {"a": floats(6, 3, 3, 3), "w": floats(5, 6, 1, 1)},
        {"explicit": False, "shifts": True},
    ),
    "depthwise chain": (
        ("(float[2,3,9,9] x) => (float[2,5,4,4] y) {"
        "c = Conv(x, a, b) r = Relu(c) d = Conv<group = 6, pads = [1,1,1,1]>(r, w) l = LeakyRelu(d) "
        "m = MaxPool<kernel_shape = [2,2], strides = [2,2], ceil_mode = 1>(l) y = Conv(m, u) }"),
        {"a": floats(6, 3, 3, 3), "b": floats(6), "w": floats(6, 1, 3, 3), "u": floats(5, 6, 1, 1)},
        {"explicit": False, "shifts": False},
    ),
    "grouped": (
        "(float[2,3,9,9] x) => (float[2,8,5,5] y) { c = Conv(x, a) r = Relu(c) y = Conv<group = 2>(r, w) }",
        {"a": floats(6, 3, 3, 3), "w": floats(8, 3, 3, 3)},
        {"explicit": False, "shifts": False},
    ),
    "residual sum of convolutions": (
        ("(float[2,3,9,9] x) => (float[2,4,9,9] y) {"
        "c = Conv(x, a) i = Relu(c) d = Conv<pads = [1,1,1,1]>(i, w) s = Add(d, i) r = Relu(s) y = Conv(r, u) }"),
        {"a": floats(6, 3, 1, 1), "w": floats(6, 6, 3, 3), "u": floats(4, 6, 1, 1)},
        {"explicit": False, "shifts": False},
    ),
    "pooled classifier": (
        ("(float[2,3,9,9] x) => (float[2,4] y) { c = Conv(x, a) r = Relu(c) p = GlobalAveragePool(r) "
        "f = Flatten(p) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w, b) }"),
        {"a": floats(6, 3, 3, 3), "w": floats(4, 6), "b": floats(4)},
        {"explicit": False, "shifts": False},
    ),
    "gemm to gemm": (
        "(float[3,7] x) => (float[3,4] y) { g = Gemm<beta = 0.5>(x, a, b) y = Gemm<alpha = 2.0>(g, w) }",
        {"a": floats(7, 6), "b": floats(6), "w": floats(6, 4)},
        {"explicit": False, "shifts": True},
    ),
    "after a gelu-like": (
        "(float[2,5,8] x) => (float[2,5,4] y) { t = Tanh(x) y = MatMul(t, a) }",
        {"a": floats(8, 4)},
        {"explicit": True, "shifts": True},
    ),
    "attention": (
        ATTENTION.format(perm="0,2,1,3", mixing="Softmax(s)", more=""),
        {**ATTENTION_WEIGHTS, **ATTENTION_SHAPES},
        {"explicit": False, "shifts": True},
    ),
    "attention of free sizes": (
        ATTENTION.replace("[2,5,", "[N,L,").replace("[2,2,5,5]", "[N,2,L,L]").format(
            perm="0,2,1,3", mixing="Softmax(s)", more=""
        ),
        {**ATTENTION_WEIGHTS, **FREE_SHAPES},
        {"explicit": False, "shifts": True},
    ),
    "rows that do not sum to 1": (
        ATTENTION.format(perm="0,2,1,3", mixing="Sigmoid(s)", more=""),
        {**ATTENTION_WEIGHTS, **ATTENTION_SHAPES},
        {"explicit": True, "shifts": True},
    ),
    "softmax over another axis": (
        ATTENTION.format(perm="0,2,1,3", mixing="Softmax<axis = 2>(s)", more=""),
        {**ATTENTION_WEIGHTS, **ATTENTION_SHAPES},
        {"explicit": True, "shifts": True},
    ),
    "values read by others": (
        ATTENTION.format(perm="0,2,1,3", mixing="Softmax(s)", more="k = Sigmoid(c)").replace("y)", "y, float k)", 1),
        {**ATTENTION_WEIGHTS, **ATTENTION_SHAPES},
        {"explicit": True, "shifts": True},
    ),
    "batch norm": (
        "(float[2,6,9,9] x) => (float[2,4,7,7] y) { t = Tanh(x) n = BatchNormalization(t, g, h, m, v) y = Conv(n, w) }",
        {"g": floats(6), "h": floats(6), "m": floats(6), "v": np.abs(floats(6)) + 0.1, "w": floats(4, 6, 3, 3)},
        {"explicit": False, "shifts": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        pytest.param("(float[2,5,8] x) => (float y) { y = MatMul(w, x) }", {"w": floats(2, 4, 5)}, id="weight first"),
        pytest.param("(float[8,5] x) => (float y) { t = Tanh(x) y = Gemm<transA = 1>(t, w) }",
                     {"w": floats(8, 4)}, id="transposed input"),
        pytest.param("(float[2,5,8] x, float[8,4] w) => (float y) { y = MatMul(x, w) }", {}, id="computed weight"),
        pytest.param("(float[2,6,5,5] x) => (float y) { y = ConvTranspose(x, w) }",
                     {"w": floats(6, 4, 3, 3)}, id="transposed convolution"),
        pytest.param("(float[2,8] x) => (float y) { y = Softmax(x) }", {}, id="nothing linear"),
    ],
)  # fmt: skip
def test_no_site(text: str, weights: dict[str, Array]) -> None:
    assert find_sites(built(text, **weights)) == ()


@pytest.mark.parametrize("padding", ["pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"'])
def test_padding_takes_no_shift(padding: str) -> None:
    text = f"(float[2,3,9,9] x) => (float y) {{ c = Conv(x, a) y = Conv<{padding}>(c, w) }}"
    sites = find_sites(built(text, a=floats(6, 3, 1, 1), w=floats(5, 6, 3, 3)))
    assert [site.shifts for site in sites if site.name == "c"] == [False]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_keeps_the_function(name: str, seed: int) -> None:
    text, weights, wanted = CASES[name]
    before = built(text, **weights)
    sites = find_sites(before)
    assert [{key: getattr(s, key) for key in wanted} for s in sites if s.name != "x"][-1] == wanted
    after = before.copy()
    assert Smooth(factors_of(sites, seed))(after) == len(sites)
    assert after.problem() is None
    same_function(before, after, random_feeds(before, seed, N=2, L=5), rtol=3e-4)


def test_each_tensor_is_what_the_formula_says() -> None:
    text, weights, _ = CASES["norm, three products"]
    before = built(text, **weights)
    factor = Factor(np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32))
    after = before.copy()
    assert Smooth({"n": factor})(after) == 1
    assert lines(after)[0] == "n/smoothed = LayerNormalization(x, g/folded, h/folded)"
    feeds = random_feeds(before)
    x = feeds["x"].astype(np.float64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = (normal * weights["g"] + weights["h"] - factor.shift) / factor.scale
    after.set_outputs([v for v in after.values() if v.name == "n/smoothed"])
    np.testing.assert_allclose(run(after, feeds)[0], wanted, rtol=1e-4, atol=1e-4)


def biased(graph: Graph, node: Node) -> bool:
    """Whether a constant is added to what the node makes."""
    user = graph.only_user(node.outputs[0])
    return user is not None and user.op_type == "Add" and any(graph.is_const(v) for v in user.inputs)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_comes_back_under_its_name(name: str) -> None:
    text, weights, _ = CASES[name]
    before = built(text, **weights)
    sites = find_sites(before)
    after = before.copy()
    Smooth(factors_of(sites))(after)
    whole = with_float_tensors(Graph.from_proto(after.to_proto()))  # the metadata is a part of the file
    told = {str(v.name) for v in whole.values()}
    assert {t for site in sites for t in site.tensors} <= told
    assert {str(n.outputs[0].name) for n in before.nodes if n.op_type == "MatMul" and biased(before, n)} <= told
    feeds = random_feeds(before, 3, N=2, L=5)
    shared = [str(v.name) for n in before.nodes for v in n.outputs if v.name in told]
    for graph in (whole, before):
        values = {str(v.name): v for v in graph.values()}
        graph.set_outputs([values[tensor] for tensor in shared])
    for tensor, found, wanted in zip(shared, run(whole, feeds), run(before, feeds), strict=True):
        limit = 3e-4 * np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= limit, tensor


def test_a_fold_adds_no_node() -> None:
    for name, (text, weights, wanted) in CASES.items():
        before = built(text, **weights)
        sites = tuple(s for s in find_sites(before) if not s.explicit and not s.shifts)
        after = before.copy()
        Smooth(factors_of(sites))(after)
        assert [n.op_type for n in after.nodes] == [n.op_type for n in before.nodes], (name, wanted)


def test_weights_that_others_hold_are_not_written() -> None:
    text, weights, _ = CASES["residual sum of convolutions"]
    before = built(text, **weights)
    feeds = random_feeds(before)
    Smooth(factors_of(find_sites(before)))(before.copy())
    same_function(built(text, **weights), before, feeds, rtol=0)


CLIPPED = (
    "(float[2,3,9,9] x) => (float[2,5,9,9] y) {"
    "c = Conv(x, a) l = Clip(c, zero, six) d = Conv<group = 6, pads = [1,1,1,1]>(l, w) y = Conv(d, u) }"
)
SIX = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}


def test_clip_saturates_at_one_number_beyond_what_was_seen() -> None:
    rising = np.geomspace(0.2, 6, 6).astype(np.float32).reshape(6, 1, 1, 1)
    weights = {"a": rising * np.ones((6, 3, 1, 1), np.float32), "w": floats(6, 1, 3, 3), "u": floats(5, 6, 1, 1)}
    before = built(CLIPPED, **weights, **SIX)
    (site,) = (s for s in find_sites(before) if s.clips)
    feeds = random_feeds(before)
    seen = before.copy()
    seen.set_outputs([v for v in seen.values() if v.name == "l"])
    reach = run(seen, feeds)[0].max(axis=(0, 2, 3))
    assert reach.min() < 5.9 < reach.max()  # some channels meet the limit, some do not
    for exponent in (0.5, 1.0):
        factor = Factor((reach**exponent).astype(np.float32), np.zeros(6, np.float32))
        after = before.copy()
        Smooth({site.name: factor})(after)
        same_function(before, after, feeds)
        assert [n.op_type for n in after.nodes] == [n.op_type for n in before.nodes]


def test_factors_of_another_model() -> None:
    graph = built(CASES["gemm to gemm"][0], **CASES["gemm to gemm"][1])
    with pytest.raises(StatisticsError, match="'g' cannot be smoothed with 3 factors"):
        Smooth({"g": Factor(np.ones(3, np.float32), np.zeros(3, np.float32))})(graph)
    with pytest.raises(StatisticsError, match="'elsewhere'"):
        Smooth({"elsewhere": Factor(np.ones(3, np.float32), np.zeros(3, np.float32))})(graph)
