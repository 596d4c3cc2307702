"""What errors of a product weigh behind a normalization, against the normalization itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.improvement import rounding
from onnxq.improvement.normalized import normalized
from onnxq.improvement.sampling import rows
from onnxq.improvement.smoothing import Allowed, Reading, choose
from onnxq.numerics import INT8, dequantize, params_from_range, quantize, sqnr_db, weight_params
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.data import Feed
    from onnxq.improvement import Inspected
    from onnxq.improvement.normalized import Normalized

RNG = np.random.default_rng(0)
W = RNG.normal(size=(8, 8)).astype(np.float32)
B, G = RNG.normal(size=(2, 8)).astype(np.float32)

POST = """(float[N,8] x, float[N,8] r) => (float[N,8] y) {
          a = MatMul(x, w) b = Add(bias, a) z = Add(b, r) y = LayerNormalization <axis = -1> (z, gain, bias) }"""
STREAM = """(float[N,8] x, float[N,8] r) => (float[N,8] y) {
            a = MatMul(x, w) z = Add(a, r) n = LayerNormalization <axis = -1> (z, gain, bias) y = Add(z, n) }"""
GEMM = """(float[N,8] x) => (float[N,8] y) {
          z = Gemm(x, w, bias) y = LayerNormalization <axis = -1> (z, gain, bias) }"""
RMS = """(float[N,8] x, float[N,8] r) => (float[N,8] y) {
         a = MatMul(x, w) z = Add(a, r) s = Mul(z, z) m = ReduceMean <axes = [-1], keepdims = 1> (s)
         e = Add(m, eps) q = Sqrt(e) d = Div(z, q) y = Mul(gain, d) }"""


def only(text: str) -> Normalized:
    (one,) = normalized(graph_of(text, 17, w=W, bias=B, gain=G, eps=np.float32(1e-12))).values()
    return one


def weighed(one: Normalized, z: Array) -> Array:
    found = one.weighs(z, len(z))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "text",
    [
        # an activation, a product with an activation, and a Transpose between
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) z = Relu(a) y = LayerNormalization(z, gain, bias) }",
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) z = Mul(a, x) y = LayerNormalization(z, gain, bias) }",
        "(float[8,8] x) => (float[8,8] y) { a = MatMul(x, w) z = Transpose(a) y = LayerNormalization(z, gain, bias) }",
        # over two axes
        "(float[N,8,8] x) => (float[N,8,8] y) { z = MatMul(x, w) y = LayerNormalization <axis = 1> (z, w) }",
        """(float[N,8,8] x) => (float[N,8,8] y) {
           z = MatMul(x, w) s = Mul(z, z) m = ReduceMean <axes = [1], keepdims = 1> (s)
           e = Add(m, eps) q = Sqrt(e) d = Div(z, q) y = Mul(gain, d) }""",
        # a sum that is normalized, of which this is a part
        """(float[N,8] x) => (float[N,8] y) {
           z = MatMul(x, w) y = com.microsoft.SkipLayerNormalization(z, x, gain, bias) }""",
        # something else reads the product
        """(float[N,8] x) => (float[N,8] y, float[N,8] t) {
           a = MatMul(x, w) z = Add(a, x) y = LayerNormalization(z, gain, bias) t = Tanh(a) }""",
        # nothing is normalized; and a product of two activations
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Add(a, x) }",
        "(float[8,8] x) => (float[8,8] y) { a = MatMul(x, x) y = LayerNormalization(a, gain, bias) }",
        # a convolution, whose channels are elsewhere
        "(float[1,8,4,8] x) => (float[1,8,4,8] y) { a = Conv(x, k) y = LayerNormalization(a, gain, bias) }",
    ],
)
def test_left_alone(text: str) -> None:
    graph = graph_of(text, 17, w=W, bias=B, gain=G, k=W[:, :, None, None], eps=np.float32(1e-6))
    assert normalized(graph) == {}


@pytest.mark.parametrize(("text", "alone"), [(POST, True), (STREAM, False), (GEMM, True), (RMS, False)])
def test_what_is_normalized(text: str, alone: bool) -> None:
    one = only(text)
    assert one.tensor == "z"
    assert one.centred == (text != RMS)
    assert (one.gain is not None) == alone
    if one.gain is not None:
        np.testing.assert_array_equal(one.gain, np.abs(G))


@pytest.mark.parametrize("text", [POST, RMS])
def test_as_the_normalization_divides_errors(text: str) -> None:
    """A small error that changes neither mean nor size of a row comes out as it weighs."""
    one = only(text)
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20, 8)) * np.geomspace(0.1, 30, 20)[:, None] + 0.5
    parts = np.stack([np.ones_like(z), z], axis=-1)  # errors along these change mean and size
    base, _ = np.linalg.qr(parts)
    error = rng.normal(size=z.shape)
    error -= np.einsum("rck,rdk,rd->rc", base, base, error)

    def behind(rows: Array) -> Array:
        if one.centred:
            rows = rows - rows.mean(axis=1, keepdims=True)
        normal: Array = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True)) * G
        return normal

    step = 1e-6
    expected = np.abs(behind(z + step * error) - behind(z)) / step
    weighs = weighed(one, z) if one.gain is not None else weighed(one, z) * np.abs(G)
    np.testing.assert_allclose(np.abs(error) * weighs, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_rows_that_hold_no_numbers_weigh_nothing() -> None:
    z = np.random.default_rng(4).normal(size=(4, 8)).astype(np.float32)
    z[1, 3], z[2, 5] = np.nan, np.inf
    found = weighed(only(POST), z)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found.any(axis=1), [True, False, False, True])


def test_an_empty_row_weighs_nothing() -> None:
    one = only(POST)
    assert np.isfinite(weighed(one, np.zeros((3, 8), np.float32))).all()
    assert not weighed(one, np.ones((3, 8), np.float32)).any()


def test_numbers_of_the_rows_that_are_picked() -> None:
    x = np.random.default_rng(2).normal(size=(4, 9, 6)).astype(np.float32)
    each = x.reshape(-1, 6).sum(axis=1)
    taken, which = rows(x, 2, 10, 3)
    np.testing.assert_array_equal(each[which], taken[:, 0].sum(axis=1))


def test_a_tensor_of_other_rows_tells_nothing() -> None:
    """It was broadcast, or reshaped."""
    z = np.ones((3, 8), np.float32)
    assert only(POST).weighs(z, 3) is not None
    assert only(POST).weighs(z, 4) is None


def massive(seed: int) -> tuple[Array, Array, Array]:
    """Rows of which some hold one huge value, which goes into one output; the size of what they are added to."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 64)).astype(np.float32)
    w = (rng.normal(size=(64, 32)) * 0.1).astype(np.float32)
    x[::14, 5] = 60 + rng.normal(size=len(x[::14]))
    w[5], w[5, 3] = 0.001, 3.0
    return x, w, np.sqrt(np.square(x @ w).mean(axis=1) + 1)


def test_rows_decide_by_what_they_weigh() -> None:
    x, w, size = massive(3)
    allowed = Allowed(shift=False, weights=True, margin=0.3)
    plain = Reading(x[:, None], w[None], x.min(axis=0), x.max(axis=0))
    identity = Factor(np.ones(64, np.float32), np.zeros(64, np.float32))
    large = np.arange(len(x)) % 14 == 0

    def chosen(weighs: Array) -> Factor:
        return (*choose([replace(plain, weighs=weighs.astype(np.float32)[:, None])], allowed), identity)[0]

    np.testing.assert_array_equal(chosen(np.full(300, 7.0)).scale, (*choose([plain], allowed), identity)[0].scale)
    assert quality(x, w, chosen(1 / size), ~large) > quality(x, w, identity, ~large) + 3
    assert quality(x, w, chosen(~large), ~large) > quality(x, w, chosen(large), ~large) + 1


def quality(x: Array, w: Array, factor: Factor, kept: Array) -> float:
    moved, weight = x / factor.scale, factor.scale[:, None] * w
    reach, grid = float(np.abs(moved).max()), weight_params(weight, 1)
    params = params_from_range(-reach, reach, INT8)
    found = dequantize(quantize(moved, params), params) @ dequantize(quantize(weight, grid), grid)
    return sqnr_db((x @ w)[kept], found[kept])


NORMAL = "z = Add(a, r) y = LayerNormalization <axis = -1> (z, gain, bias)"


@pytest.mark.parametrize(
    ("text", "weighed"),
    [
        (f"(float[N,32] x, float[N,32] r) => (float[N,32] y) {{ a = MatMul(x, w) {NORMAL} }}", True),
        (
            f"""(float[N,32] x, float[N,32] r) => (float[N,32] y, float[N,32] t) {{
                a = MatMul(x, w) {NORMAL} t = MatMul(r, w) }}""",
            False,
        ),
    ],
    ids=["alone", "shared with one of which nothing is normalized"],
)
def test_codes_of_weights_are_for_rows_as_they_weigh(text: str, weighed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    w, (gain, bias) = rng.normal(size=(32, 32)).astype(np.float32), rng.normal(size=(2, 32)).astype(np.float32)
    graph = graph_of(text, 17, w=w, gain=gain, bias=bias)
    feeds = [{n: rng.normal(size=(8, 32)).astype(np.float32) for n in "xr"} for _ in range(64)]
    for feed in feeds:
        feed["r"][0] *= 10 if weighed else 1  # what is read is to be no worse than its weight
    told: list[tuple[Array, Array]] = []
    collect = rounding._hessians

    def seen(model: Inspected, layers: Sequence[rounding._Layer], data: Sequence[Feed]) -> list[object]:
        found = collect(model, layers, data)
        for (matrix, _), layer in zip(found, layers, strict=True):
            session = model.session((*layer.tensors, "z"))
            rows = []
            for feed in data:
                of = {**feed, **dict(zip(session.outputs, session.run({n: feed[n] for n in "xr"}), strict=True))}
                for params, tensor in zip(layer.params, layer.tensors, strict=True):
                    x = dequantize(quantize(of[tensor], params), params).astype(np.float64)
                    rows.append(x / of["z"].astype(np.float64).std(axis=1, keepdims=True) if weighed else x)
            x = np.concatenate(rows)
            assert matrix is not None
            told.append((matrix[0], x.T @ x / len(x)))
        return list(found)

    monkeypatch.setattr(rounding, "_hessians", seen)
    api.calibrate(graph, feeds, Recipe(effort="balanced", high_precision="fp32"))
    assert told
    for matrix, expected in told:
        np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-5 * expected.max())
