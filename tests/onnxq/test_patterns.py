"""Each text graph is run too, so that what counts as a GELU here is one by its numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.graph import Graph
from onnxq.patterns import OPERATORS, PATTERNS, Pattern, find_patterns, labels
from onnxq.patterns.polynomial import Polynomial

Array = Any  # numpy arrays; their arithmetic is typed too loosely to be checked in strict mode

CONSTANTS = """
    float half = {0.5}, float one = {1}, float two = {2}, float three = {3}, float six = {6}, float zero = {0},
    float sixth = {0.16666667}, float fifth = {0.2}, float root2 = {1.4142135}, float iroot2 = {0.70710678},
    float cube = {0.044715}, float root2pi = {0.7978846}, float k1702 = {1.702}, float eps = {0.00001},
    float third = {0.33333333}, float mhalf = {-0.5}, float k14 = {1.4}, float big = {0.5}, float ninf = {-10000},
    float[4] w = {1, 2, 3, 4}, float[4] b = {1, -1, 2, 0}, float[4, 4] m = {1,0,0,1,0,1,2,0,1,0,1,0,0,0,0,1},
    float[4, 4, 1, 1] kernel = {1,0,0,1,0,1,2,0,1,0,1,0,0,0,0,1}"""


def model(body: str, header: str = "float[2,3,4] x", opset: int = 17) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>
    g ({header}) => (float[D, E, F] y) <{CONSTANTS}> {{ {body} }}"""
    parsed = onnx.parser.parse_model(text)
    del parsed.graph.output[0].type.tensor_type.shape.dim[:]
    return parsed


def found(body: str, header: str = "float[2,3,4] x", opset: int = 17) -> tuple[Pattern, ...]:
    return find_patterns(Graph.from_proto(model(body, header, opset)))


def kinds(body: str, header: str = "float[2,3,4] x", opset: int = 17) -> list[str]:
    return [p.kind for p in found(body, header, opset)]


ERF_GATE = "d = Div(x, root2) e = Erf(d) a = Add(e, one)"
NORM = "u = ReduceMean<axes=[-1]>(x) d = Sub(x, u)"
SPREAD = "p = Mul(d, d) v = ReduceMean<axes=[-1]>(p)"
ROOT = "v = ReduceMean<axes=[-1]>(p) t = Add(v, eps) s = Sqrt(t)"

LOOK_ALIKES = {
    "sigmoid gate of another tensor": "h = Relu(x) s = Sigmoid(h) y = Mul(x, s)",
    "sigmoid alone": "y = Sigmoid(x)",
    "sigmoid squared": "s = Sigmoid(x) q = Mul(s, s) y = Mul(x, q)",
    "sigmoid of another slope": "t = Mul(x, two) s = Sigmoid(t) y = Mul(x, s)",
    "relu6": "y = Clip(x, zero, six)",
    "relu6 gate without shift": "c = Clip(x, zero, six) p = Mul(x, c) y = Div(p, six)",
    "clip to the unit interval": "y = Clip(x, zero, one)",
    "shifted relu6, not divided": "a = Add(x, three) c = Clip(a, zero, six) y = Mul(x, c)",
    "relu6 of another bound": "a = Add(x, three) c = Clip(a, zero, three) p = Mul(x, c) y = Div(p, six)",
    "erf of x": "e = Erf(x) a = Add(e, one) p = Mul(x, a) y = Mul(p, half)",
    "erf with 1.4": "d = Div(x, k14) e = Erf(d) a = Add(e, one) p = Mul(x, a) y = Mul(p, half)",
    "erf without one half": f"{ERF_GATE} y = Mul(x, a)",
    "erf minus one": "d = Div(x, root2) e = Erf(d) a = Sub(e, one) p = Mul(x, a) y = Mul(p, half)",
    "erf gate of another tensor": f"{ERF_GATE} h = Relu(x) p = Mul(h, a) y = Mul(p, half)",
    "tanh without the cube": "t = Mul(x, root2pi) h = Tanh(t) a = Add(h, one) p = Mul(x, a) y = Mul(p, half)",
    "tanh of softplus of another": "h = Relu(x) s = Softplus(h) t = Tanh(s) y = Mul(x, t)",
    "norm with a large epsilon": f"{NORM} {SPREAD} t = Add(v, big) s = Sqrt(t) y = Div(d, s)",
    "norm without epsilon": f"{NORM} {SPREAD} s = Sqrt(v) y = Div(d, s)",
    "norm with a negative epsilon": f"{NORM} {SPREAD} t = Sub(v, eps) s = Sqrt(t) y = Div(d, s)",
    "norm over the batch": "p = Mul(x, x) v = ReduceMean<axes=[0]>(p) t = Add(v, eps) s = Sqrt(t) y = Div(x, s)",
    "norm of another tensor": f"h = Relu(x) p = Mul(h, h) {ROOT} y = Div(x, s)",
    "mean of cubes": f"p = Pow(x, three) {ROOT} y = Div(x, s)",
    "exp over a sum of others": "e = Exp(x) s = ReduceSum<keepdims=1>(x) y = Div(e, s)",
    "classifier": "l = MatMul(x, m) y = Softmax(l)",
    "softmax before a constant": "k = Transpose<perm=[0,2,1]>(x) q = MatMul(x, k) s = Softmax(q) y = MatMul(m, s)",
    "attention pooling, weight moved": (
        "i = Transpose(m) q = MatMul(x, i) s = Softmax(q) k = Transpose<perm=[0,2,1]>(x) y = MatMul(s, k)"
    ),
    "attention pooling": "q = MatMul(x, m) s = Softmax(q) k = Transpose<perm=[0,2,1]>(x) y = MatMul(s, k)",
}


@pytest.mark.parametrize("body", LOOK_ALIKES.values(), ids=LOOK_ALIKES.keys())
def test_look_alikes_are_left_alone(body: str) -> None:
    assert kinds(body) == []


IMAGE = "float[1,4,5,5] x, float[1,4,1,1] other"


@pytest.mark.parametrize(
    "body",
    [
        "p = GlobalAveragePool(x) r = Conv(p, kernel) s = Sigmoid(r) h = Relu(x) y = Mul(h, s)",
        "p = GlobalAveragePool(x) r = Conv(p, kernel) s = Relu(r) y = Mul(x, s)",
        "p = GlobalAveragePool(x) s = Sigmoid(p) y = Mul(x, s)",
        "p = GlobalAveragePool(x) r = Conv(p, kernel) a = Add(r, other) s = Sigmoid(a) y = Mul(x, s)",
        "p = GlobalAveragePool(x) r = Conv(p, kernel) s = Clip(r, zero, six) y = Mul(x, s)",
        "p = ReduceMean<axes=[1]>(x) r = Conv(p, kernel) s = Sigmoid(r) y = Mul(x, s)",
        "p = ReduceMean<axes=[0,2,3]>(x) r = Conv(p, kernel) s = Sigmoid(r) y = Mul(x, s)",
        (
            "p = GlobalAveragePool(x) h = Relu(x) n = GlobalMaxPool(h) a = Add(p, n) r = Conv(a, kernel) s = Sigmoid(r)"
            "y = Mul(x, s)"
        ),
    ],
    ids=[
        "gates another tensor",
        "no sigmoid",
        "no layer",
        "second source",
        "relu6 gate",
        "over channels",
        "over the batch",
        "other pool",
    ],
)
def test_what_is_no_squeeze_excite(body: str) -> None:
    assert kinds(body, IMAGE) == []


HALF_LIKE = {
    "hard sigmoid of another slope": ("s = HardSigmoid(x) y = Mul(x, s)", "HardSigmoid", "x"),
    "hard sigmoid of another offset": (
        "s = HardSigmoid<alpha=0.16666667, beta=0.4>(x) y = Mul(x, s)",
        "HardSigmoid",
        "x",
    ),
    "mean and variance over other axes": (
        f"u = ReduceMean<axes=[1]>(x) d = Sub(x, u) {SPREAD} t = Add(v, eps) s = Sqrt(t) y = Div(d, s)",
        "RMSNorm",
        "d",
    ),
    "maximum and sum over other axes": (
        (
            "n = ReduceMax<axes=[1]>(x) d = Sub(x, n) e = Exp(d) i = Constant<value_ints=[-1]>() s = ReduceSum(e, i)"
            "y = Div(e, s)"
        ),
        "Softmax",
        "d",
    ),
}


@pytest.mark.parametrize(("body", "kind", "source"), HALF_LIKE.values(), ids=HALF_LIKE.keys())
def test_only_the_part_that_fits_is_found(body: str, kind: str, source: str) -> None:
    (pattern,) = found(body)
    assert (pattern.kind, pattern.input) == (kind, source)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: Array) -> Array:
    return np.minimum(np.maximum(x + 3, 0), 6) / 6


def layer_norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def rms_norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


GAIN, BIAS = np.array([1, 2, 3, 4.0]), np.array([1, -1, 2, 0.0])
INNER = "q = Mul(x, x) c = Mul(x, q) k = Mul(cube, c) a = Add(x, k) n = Mul(root2pi, a) t = Tanh(n)"
RELU6 = "a = Add(x, three) c = Clip(a, zero, six)"
SQUARED = f"p = Mul(x, x) {ROOT}"

# name: (kind, graph, formula)
FORMS: dict[str, tuple[str, str, Any]] = {
    "half last": ("GELU", f"{ERF_GATE} p = Mul(x, a) y = Mul(p, half)", gelu),
    "half at the gate": ("GELU", f"{ERF_GATE} p = Mul(half, a) y = Mul(x, p)", gelu),
    "half first": ("GELU", f"h = Mul(x, half) {ERF_GATE} y = Mul(h, a)", gelu),
    "multiplied by 1/sqrt 2": (
        "GELU",
        "d = Mul(iroot2, x) e = Erf(d) a = Add(one, e) h = Mul(x, a) y = Div(h, two)",
        gelu,
    ),
    "half given out": ("GELU", "d = Mul(iroot2, x) e = Erf(d) h = Mul(e, half) a = Add(h, half) y = Mul(a, x)", gelu),
    "casts inside": ("GELU", f"{ERF_GATE} f = Cast<to=1>(a) p = Mul(x, f) y = Mul(p, half)", gelu),
    "tanh, cube as products": ("GELU", f"{INNER} o = Add(one, t) p = Mul(x, o) y = Mul(half, p)", gelu),
    "tanh, cube as power": (
        "GELU",
        (
            "c = Pow(x, three) k = Mul(c, cube) a = Add(k, x) n = Mul(a, root2pi) t = Tanh(n) o = Add(t, one)"
            "p = Mul(o, half) y = Mul(p, x)"
        ),
        gelu,
    ),
    "tanh, x taken out": (
        "GELU",
        (
            "q = Mul(x, x) k = Mul(q, cube) a = Add(k, one) g = Mul(x, root2pi) n = Mul(g, a) t = Tanh(n)"
            "o = Add(t, one) h = Mul(x, half) y = Mul(h, o)"
        ),
        gelu,
    ),
    "sigmoid of 1.702 x": ("GELU", "d = Mul(x, k1702) s = Sigmoid(d) y = Mul(x, s)", lambda x: x * sigmoid(1.702 * x)),
    "silu": ("SiLU", "s = Sigmoid(x) y = Mul(s, x)", lambda x: x * sigmoid(x)),
    "mish": ("Mish", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "mish, log exp": (
        "Mish",
        "e = Exp(x) o = Add(e, one) s = Log(o) t = Tanh(s) y = Mul(x, t)",
        lambda x: x * np.tanh(np.log1p(np.exp(x))),
    ),
    "x * relu6 / 6": ("HardSwish", f"{RELU6} p = Mul(x, c) y = Div(p, six)", lambda x: x * hard_sigmoid(x)),
    "x * (relu6 / 6)": ("HardSwish", f"{RELU6} p = Div(c, six) y = Mul(p, x)", lambda x: x * hard_sigmoid(x)),
    "x / 6 * relu6": ("HardSwish", f"h = Mul(x, sixth) {RELU6} y = Mul(h, c)", lambda x: x * hard_sigmoid(x)),
    "x * hard sigmoid": (
        "HardSwish",
        "s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, s)",
        lambda x: x * hard_sigmoid(x),
    ),
    "x * clip to one": (
        "HardSwish",
        "n = Mul(x, sixth) a = Add(n, half) c = Clip(a, zero, one) y = Mul(x, c)",
        lambda x: x * hard_sigmoid(x),
    ),
    "min of max": (
        "HardSwish",
        "a = Add(x, three) l = Max(zero, a) c = Min(l, six) p = Mul(x, c) y = Mul(p, sixth)",
        lambda x: x * hard_sigmoid(x),
    ),
    "relu6 / 6": ("HardSigmoid", f"{RELU6} y = Div(c, six)", hard_sigmoid),
    "min of relu": ("HardSigmoid", "a = Add(three, x) r = Relu(a) c = Min(six, r) y = Mul(c, sixth)", hard_sigmoid),
    "clip to one": (
        "HardSigmoid",
        "n = Mul(x, fifth) a = Add(n, half) y = Clip(a, zero, one)",
        lambda x: np.clip(x / 5 + 0.5, 0, 1),
    ),
    "layer norm": (
        "LayerNorm",
        f"{NORM} p = Pow(d, two) {ROOT} n = Div(d, s) g = Mul(n, w) y = Add(g, b)",
        lambda x: layer_norm(x) * GAIN + BIAS,
    ),
    "no gain": ("LayerNorm", f"{NORM} p = Mul(d, d) {ROOT} y = Div(d, s)", layer_norm),
    "no bias": (
        "LayerNorm",
        f"{NORM} p = Mul(d, d) {ROOT} n = Div(d, s) y = Mul(w, n)",
        lambda x: layer_norm(x) * GAIN,
    ),
    "difference twice": (
        "LayerNorm",
        f"{NORM} d2 = Sub(x, u) p = Pow(d2, two) {ROOT} n = Div(d, s) g = Mul(n, w) y = Add(b, g)",
        lambda x: layer_norm(x) * GAIN + BIAS,
    ),
    "reciprocal": ("LayerNorm", f"{NORM} p = Mul(d, d) {ROOT} r = Reciprocal(s) y = Mul(d, r)", layer_norm),
    "one over the root": ("LayerNorm", f"{NORM} p = Mul(d, d) {ROOT} r = Div(one, s) y = Mul(d, r)", layer_norm),
    "power 1/2": (
        "LayerNorm",
        f"{NORM} p = Mul(d, d) v = ReduceMean<axes=[-1]>(p) t = Add(eps, v) s = Pow(t, half) y = Div(d, s)",
        layer_norm,
    ),
    "power -1/2": (
        "LayerNorm",
        f"{NORM} p = Mul(d, d) v = ReduceMean<axes=[2]>(p) t = Add(eps, v) s = Pow(t, mhalf) y = Mul(d, s)",
        layer_norm,
    ),
    "as a batch normalization": (
        "LayerNorm",
        (
            f"{NORM} p = Mul(d, d) {ROOT} r = Reciprocal(s) k = Mul(r, w) z = Mul(u, k) o = Sub(b, z) n = Mul(x, k)"
            "y = Add(n, o)"
        ),
        lambda x: layer_norm(x) * GAIN + BIAS,
    ),
    "mean of squares less squared mean": (
        "LayerNorm",
        (
            "u = ReduceMean<axes=[-1]>(x) p = Mul(x, x) q = ReduceMean<axes=[-1]>(p) z = Mul(u, u) v = Sub(q, z)"
            "t = Add(v, eps) s = Sqrt(t) d = Sub(x, u) y = Div(d, s)"
        ),
        layer_norm,
    ),
    "casts around": (
        "LayerNorm",
        (
            f"f = Cast<to=1>(x) u = ReduceMean<axes=[-1]>(f) d = Sub(f, u) p = Pow(d, two) {ROOT} n = Div(d, s)"
            "h = Cast<to=1>(n) y = Mul(h, w)"
        ),
        lambda x: layer_norm(x) * GAIN,
    ),
    "rms norm": ("RMSNorm", f"{SQUARED} r = Reciprocal(s) n = Mul(x, r) y = Mul(n, w)", lambda x: rms_norm(x) * GAIN),
    "rms by division": ("RMSNorm", f"p = Pow(x, two) {ROOT} y = Div(x, s)", rms_norm),
    "rms, gain plus one": (
        "RMSNorm",
        f"{SQUARED} n = Div(x, s) g = Add(w, one) y = Mul(g, n)",
        lambda x: rms_norm(x) * (1 + GAIN),
    ),
    "stable softmax": (
        "Softmax",
        (
            "n = ReduceMax<axes=[-1]>(x) d = Sub(x, n) e = Exp(d) axis = Constant<value_ints=[-1]>()"
            "s = ReduceSum(e, axis) y = Div(e, s)"
        ),
        softmax,
    ),
    "plain softmax": (
        "Softmax",
        "e = Exp(x) axis = Constant<value_ints=[-1]>() s = ReduceSum(e, axis) r = Reciprocal(s) y = Mul(r, e)",
        softmax,
    ),
}


@pytest.mark.parametrize(("kind", "body", "formula"), FORMS.values(), ids=FORMS.keys())
def test_written_out_forms_are_found_whole(kind: str, body: str, formula: Any) -> None:  # noqa: ANN401  callable of arrays
    proto = model(body)
    (pattern,) = find_patterns(graph := Graph.from_proto(proto))
    assert (pattern.kind, pattern.input, pattern.output) == (kind, "x", "y")
    assert pattern.nodes == tuple(n.name for n in graph.nodes)
    x = np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 3, 4) ** 3 / 8
    (y,) = list(ReferenceEvaluator(proto).run(None, {"x": x}))
    # The tanh form of GELU differs from the exact one by up to 5e-4.
    np.testing.assert_allclose(y, formula(x.astype(np.float64)), atol=1e-3)


def test_gelu_in_every_order_of_its_product() -> None:
    for factors in itertools.permutations(["x", "half", "a"]):
        one, two, three = factors
        for body in (f"p = Mul({one}, {two}) y = Mul(p, {three})", f"p = Mul({two}, {three}) y = Mul({one}, p)"):
            assert kinds(f"{ERF_GATE} {body}") == ["GELU"], body


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_constants_rounded_to_half_precision_are_recognised(dtype: str) -> None:
    k = {name: round_to(dtype, v) for name, v in (("a", 0.044715), ("b", math.sqrt(2 / math.pi)))}
    body = INNER.replace("cube", "ka").replace("root2pi", "kb") + "o = Add(one, t) p = Mul(x, o) y = Mul(half, p)"
    given = f"ka = Constant<value_float={k['a']!r}>() kb = Constant<value_float={k['b']!r}>()"
    assert kinds(given + body) == ["GELU"]


def round_to(dtype: str, value: float) -> float:
    if dtype == "float16":
        return float(np.float16(value))
    return float(((np.float32(value).view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32))


def test_what_follows_is_not_swallowed() -> None:
    (pattern,) = found(f"{ERF_GATE} p = Mul(x, a) g = Mul(p, half) y = Mul(g, two)")
    assert pattern.output == "g"
    (pattern,) = found(f"{NORM} p = Mul(d, d) {ROOT} n = Div(d, s) g = Mul(n, w) h = Add(g, b) y = Mul(h, w)")
    assert pattern.output == "h"
    (pattern,) = found(f"{NORM} p = Mul(d, d) {ROOT} n = Div(d, s) g = Mul(n, w) h = Mul(n, b) y = Add(g, h)")
    assert pattern.output == "n"


def test_a_pattern_inside_another_is_left_out() -> None:
    body = f"{RELU6} h = Div(c, six) y = Mul(x, h)"
    assert kinds(body) == ["HardSwish"]
    assert kinds(f"{RELU6} h = Div(c, six) q = Relu(x) y = Mul(q, h)") == ["HardSigmoid"]


SCORES = "k = Transpose<perm=[0,2,1]>(x) q = MatMul(x, k)"
# (graph, how many nodes are outside the attention)
ATTENTIONS = {
    "bare": (f"{SCORES} s = Softmax(q) y = MatMul(s, x)", 1),
    "divided and masked": (f"{SCORES} d = Div(q, two) a = Add(d, mask) s = Softmax(a) y = MatMul(s, x)", 1),
    "masked by where": (f"{SCORES} d = Mul(half, q) a = Where(keep, d, ninf) s = Softmax(a) y = MatMul(s, x)", 1),
    "mask first": (f"{SCORES} a = Add(mask, q) s = Softmax(a) y = MatMul(s, x)", 1),
    "masked by subtraction": (
        f"i = Sub(one, mask) n = Mul(i, ninf) {SCORES} d = Mul(q, mask) a = Sub(d, n) s = Softmax(a) y = MatMul(s, x)",
        3,
    ),
    "scaled beforehand": (
        (
            "f = Mul(x, half) k = Transpose<perm=[0,2,1]>(x) h = Mul(k, half) q = MatMul(f, h) s = Softmax(q)"
            "y = MatMul(s, x)"
        ),
        1,
    ),
    "scaled before a transposition": (
        "h = Div(x, two) k = Transpose<perm=[0,2,1]>(h) q = MatMul(x, k) s = Softmax(q) y = MatMul(s, x)",
        0,
    ),
    "scaled by the shape": (
        (
            "n = Shape<start=2>(x) f = Cast<to=1>(n) r = Sqrt(f) i = Div(one, r) h = Mul(x, i)"
            "k = Transpose<perm=[0,2,1]>(x) q = MatMul(h, k) s = Softmax(q) y = MatMul(s, x)"
        ),
        5,
    ),
    "casts and dropout": (
        f"{SCORES} c = Cast<to=1>(q) s = Softmax(c) f = Cast<to=1>(s) o = Dropout(f) y = MatMul(o, x)",
        1,
    ),
    "nan guard": (
        f"{SCORES} a = Add(q, mask) s = Softmax(a) n = IsNaN(s) g = Where(n, zero, s) y = MatMul(g, x)",
        1,
    ),
    "capped scores": (f"{SCORES} c = Tanh(q) d = Mul(c, two) s = Softmax(d) y = MatMul(s, x)", 1),
    "einsum": (
        'q = Einsum<equation="bik,bjk->bij">(x, x) s = Softmax(q) y = Einsum<equation="bij,bjk->bik">(s, x)',
        0,
    ),
    "weights averaged too": (
        f"{SCORES} s = Softmax(q) z = ReduceMean<axes=[0]>(s) t = MatMul(s, x) y = Mul(t, z)",
        3,
    ),
    "softmax written out": (
        f"{SCORES} e = Exp(q) i = Constant<value_ints=[-1]>() n = ReduceSum(e, i) s = Div(e, n) y = MatMul(s, x)",
        1,
    ),
}


@pytest.mark.parametrize(("body", "outside"), ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention(body: str, outside: int) -> None:
    proto = model(body, "float[2,4,4] x, float[4,4] mask, bool[4,4] keep")
    (pattern,) = find_patterns(graph := Graph.from_proto(proto))
    assert (pattern.kind, pattern.input) == ("Softmax attention", "x")
    assert pattern.output in {"y", "t"}
    assert len(graph.nodes) - len(pattern.nodes) == outside


def test_attentions_sharing_a_scaled_query_are_both_found() -> None:
    tail = "s{0} = Softmax(q{0}) y{0} = MatMul(s{0}, x)"
    body = "f = Mul(x, half) q1 = MatMul(f, x) q2 = MatMul(f, o)" + tail.format(1) + tail.format(2) + "y = Add(y1, y2)"
    patterns = found(body, "float[2,4,4] x, float[2,4,4] o")
    assert [len(p.nodes) for p in patterns] == [4, 4]
    assert patterns[0].nodes[0] == patterns[1].nodes[0] == "Mul:f"


SQUEEZES = {
    "convolutions": "p = GlobalAveragePool(x) r = Conv(p, kernel) h = Relu(r) s = Sigmoid(h) y = Mul(x, s)",
    "mean, silu": "p = ReduceMean<axes=[2,3]>(x) r = Conv(p, kernel) i = Sigmoid(r) h = Mul(r, i) q = Conv(h, kernel)"
    "s = Sigmoid(q) y = Mul(s, x)",
    "linear": "p = GlobalAveragePool(x) f = Flatten(p) r = Gemm(f, m) h = Relu(r) s = HardSigmoid(h)"
    "two_more = Constant<value_ints=[2,3]>() u = Unsqueeze(s, two_more) y = Mul(x, u)",
    "hard sigmoid written out": "p = GlobalAveragePool(x) r = Conv(p, kernel) a = Add(r, three) s = Clip(a, zero, six)"
    "d = Div(s, six) y = Mul(x, d)",
    "maximum too": "p = GlobalAveragePool(x) r = Conv(p, kernel) n = GlobalMaxPool(x) z = Conv(n, kernel) a = Add(r, z)"
    "s = Sigmoid(a) y = Mul(x, s)",
}


@pytest.mark.parametrize("body", SQUEEZES.values(), ids=SQUEEZES.keys())
def test_squeeze_excite(body: str) -> None:
    (pattern,) = find_patterns(graph := Graph.from_proto(model(body, "float[1,4,5,5] x")))
    assert (pattern.kind, pattern.input, pattern.output) == ("squeeze-excite", "x", "y")
    assert pattern.nodes == tuple(n.name for n in graph.nodes)


@pytest.mark.parametrize(("domain", "op_type"), OPERATORS, ids=lambda part: part or "onnx")
def test_single_operators(domain: str, op_type: str) -> None:
    call = f"{domain}.{op_type}" if domain else op_type
    (pattern,) = found(f"h = Relu(x) y = {call}(h)", opset=24)
    assert pattern == Pattern(OPERATORS[domain, op_type], (f"{op_type}:y",), "h", "y")


def test_patterns_come_in_graph_order_and_label_their_nodes() -> None:
    body = (
        f"f = Relu(x) i = Sigmoid(f) z = Mul(f, i) q = Relu(z) {ERF_GATE} p = Mul(x, a) g = Mul(p, half) y = Add(g, q)"
    )
    patterns = found(body)
    assert [p.kind for p in patterns] == ["SiLU", "GELU"]
    kinds_of = labels(patterns)
    assert kinds_of["Mul:z"] == "SiLU"
    assert kinds_of["Erf:e"] == "GELU"
    assert not {"Relu:f", "Relu:q", "Add:y"} & kinds_of.keys()


def test_a_node_takes_the_label_of_its_largest_pattern() -> None:
    small, large = Pattern("SiLU", ("a", "b"), "x", "y"), Pattern("GELU", ("b", "c", "d"), "x", "y")
    assert labels((small, large)) == {"a": "SiLU", "b": "GELU", "c": "GELU", "d": "GELU"}


def test_bodies_of_control_flow_are_not_searched() -> None:
    branch = "{} () => (float[2,3,4] {}) {{ s{} = Sigmoid(x) {} = Mul(x, s{}) }}"
    then, other = (branch.format(n, f"o{n}", n, f"o{n}", n) for n in ("yes", "no"))
    assert kinds(f"y = If<then_branch={then}, else_branch={other}>(c)", "float[2,3,4] x, bool c") == []


def test_a_pattern_that_ends_in_a_body_is_none() -> None:
    branch = "{} () => (float[2,3,4] {}) {{ {} = Mul(x, s) }}"
    then, other = (branch.format(n, f"o{n}", f"o{n}") for n in ("yes", "no"))
    body = f"s = Sigmoid(x) y = If<then_branch={then}, else_branch={other}>(c)"
    assert kinds(body, "float[2,3,4] x, bool c") == []


def test_every_kind_is_in_the_tables() -> None:
    assert {row[0] for row in PATTERNS} == {*OPERATORS.values(), "Softmax", "squeeze-excite"}


def test_polynomial_arithmetic_agrees_with_numbers() -> None:
    rng = np.random.default_rng(0)
    symbols = {name: float(v) for name, v in zip("xtw", rng.uniform(0.5, 2, 3), strict=True)}

    def at(p: Polynomial) -> float:
        return sum(c * math.prod(symbols[s] ** e for s, e in m) for m, c in p.terms.items())

    x, t, w = (Polynomial.of(name) for name in "xtw")
    inverse = (3.0 * x * w).inverse()
    assert inverse is not None
    p = (x - 2.0 * t + 1) ** 3 * inverse + 0.5 * w
    assert at(p) == pytest.approx(
        (symbols["x"] - 2 * symbols["t"] + 1) ** 3 / (3 * symbols["x"] * symbols["w"]) + 0.5 * symbols["w"]
    )
    assert (x + 1).inverse() is None
    assert (x * t - t * x).constant == 0
    assert not p.close_to(p + 1)
    assert not p.close_to(1.01 * p)
    assert p.close_to(1.001 * p)
