from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from graphs import graph_of

from onnxq.errors import DataError, ModelError
from onnxq.runtime import Session


def test_integer_products_do_not_saturate() -> None:
    """On x64 CPUs without VNNI ONNX Runtime's default adds two products of codes in 16 bits: 255 * 127 * 2 > 32767."""
    graph = graph_of(
        """(float[1, 8, 4, 4] x) => (float[1, 4, 4, 4] y) {
            xq = QuantizeLinear(x, s, xz)
            xd = DequantizeLinear(xq, s, xz)
            wd = DequantizeLinear(wq, s, wz)
            c = Conv<pads = [0, 0, 0, 0]>(xd, wd)
            yq = QuantizeLinear(c, ys, xz)
            y = DequantizeLinear(yq, ys, xz)
        }""",
        s=np.float32(1),
        xz=np.uint8(0),
        wz=np.int8(0),
        ys=np.float32(255 * 127 * 8 / 255),
        wq=np.full((4, 8, 1, 1), 127, np.int8),
    )
    model = graph.to_proto().SerializeToString()
    feed = {"x": np.full((1, 8, 4, 4), 255, np.float32)}
    (found,), (exact,) = (Session(model, optimize=fast).run(feed) for fast in (True, False))
    np.testing.assert_allclose(exact, 255 * 127 * 8)
    np.testing.assert_array_equal(found, exact)


def test_what_is_tried_again_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    """Two convolutions that share a weight of large codes: ONNX Runtime 1.31 does not load its exact form of them."""
    graph = graph_of(
        """(float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y, float[1, 8, 4, 4] z) {
            xq = QuantizeLinear(x, s, xz)
            xd = DequantizeLinear(xq, s, xz)
            wd = DequantizeLinear<axis = 0>(wq, ws, wz)
            a = Conv(xd, wd)
            aq = QuantizeLinear(a, s, xz)
            y = DequantizeLinear(aq, s, xz)
            vd = DequantizeLinear<axis = 0>(wq, ws, wz)
            b = Conv(y, vd)
            bq = QuantizeLinear(b, s, xz)
            z = DequantizeLinear(bq, s, xz)
        }""",
        s=np.float32(1),
        xz=np.uint8(0),
        ws=np.full(8, 0.25 / 127, np.float32),
        wz=np.zeros(8, np.int8),
        wq=np.full((8, 8, 1, 1), 127, np.int8),
    )
    session = Session(graph.to_proto().SerializeToString())
    y, z = session.run({"x": np.ones((1, 8, 4, 4), np.float32)})
    np.testing.assert_array_equal(y, 2)
    np.testing.assert_array_equal(z, 4)
    assert not any(capfd.readouterr())


def test_bfloat16_goes_in_and_comes_out() -> None:
    """ONNX Runtime's Python takes no such arrays and gives none."""
    text = """(bfloat16[N,3] x, float[N,3] z, int64 k) => (float[N,3] wide, bfloat16[N,3] y, bfloat16 one, int64 k2) {
        wide = Cast<to = 1>(x)
        s = Mul(wide, z)
        y = Cast<to = 16>(s)
        one = Cast<to = 16>(t)
        k2 = Identity(k)
    }"""
    graph = graph_of(text, 17, t=np.float32(1.003))
    session = Session(graph.to_proto().SerializeToString())
    x = np.array([[1.0, -2.5, 3e38], [0.1, 1e-40, np.inf]], np.float32)
    z = np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0]], np.float32)
    held = x.astype(ml_dtypes.bfloat16)
    for given in (x, held, held[:, ::1]):
        wide, y, one, k = session.run({"x": given, "z": z, "k": np.array(7)})
        np.testing.assert_array_equal(wide, held.astype(np.float32))
        np.testing.assert_array_equal(y, (wide * z).astype(ml_dtypes.bfloat16).astype(np.float32))
        assert (one, one.shape, k) == (np.float32(ml_dtypes.bfloat16(1.003)), (), 7)
        assert wide.dtype == y.dtype == one.dtype == np.float32
    assert session.output_types == {"wide": "float32", "y": "bfloat16", "one": "bfloat16", "k2": "int64"}
    (only,) = session.run({"x": held[:0], "z": z[:0], "k": np.array(7)}, ["y"])
    assert only.shape == (0, 3)
    with pytest.raises(DataError, match="failed on the data"):
        session.run({"x": held, "z": z[:, :2], "k": np.array(7)})


def test_what_the_cpu_provider_has_no_kernel_for() -> None:
    graph = graph_of("(bfloat16[2,3] x, bfloat16[3,2] w) => (bfloat16[2,2] y) { y = MatMul(x, w) }", 17)
    with pytest.raises(ModelError, match="NOT_IMPLEMENTED") as raised:
        Session(graph.to_proto().SerializeToString())
    assert "bfloat16" in raised.value.hint


@pytest.mark.parametrize("kind", ["U", "O"])
@pytest.mark.parametrize("texts", [["a", "", "ü ß"], [["x", "y"]], [], "alone"])
def test_strings_go_in_beside_bfloat16(texts: list[str], kind: str) -> None:
    """ONNX Runtime's Python makes no values of strings for the way that bfloat16 takes."""
    given = np.array(texts, object if kind == "O" else "U8")
    rank = ",".join("ABC"[: given.ndim])
    of = f"[{rank}]" if rank else ""
    text = f"(string{of} s, bfloat16[N] x) => (string{of} t, bfloat16[N] y) {{ t = Identity(s) y = Identity(x) }}"
    t, y = Session(graph_of(text, 17).to_proto().SerializeToString()).run({"s": given, "x": np.ones(2, np.float32)})
    np.testing.assert_array_equal(t, given)
    assert t.shape == given.shape
    np.testing.assert_array_equal(y, [1, 1])


def test_a_scalar_stays_one() -> None:
    """An index with an axis would give what is gathered another one."""
    graph = graph_of("(float[4,3] x, int64 k) => (float[3] y) { y = Gather(x, k) }", 17)
    x = np.arange(12, dtype=np.float32).reshape(3, 4).T
    (y,) = Session(graph.to_proto().SerializeToString()).run({"x": x, "k": np.array(2)})
    np.testing.assert_array_equal(y, x[2])
    assert y.shape == (3,)


def test_a_layer_norm_between_casts_runs() -> None:
    """ONNX Runtime 1.31 takes the Cast in front into its LayerNormalization, of two types then, and loads nothing."""
    text = """(float16[2,3,8] h) => (float16[2,3,8] z) {
        x = Cast<to = 1>(h) m = ReduceMean<axes = [-1]>(x) c = Sub(x, m) p = Pow(c, two) v = ReduceMean<axes = [-1]>(p)
        e = Add(v, eps) s = Sqrt(e) d = Div(c, s) y = Mul(d, g) b = Add(y, g) z = Cast<to = 10>(b)
    }"""
    gain = np.linspace(0.5, 2, 8).astype(np.float32)
    graph = graph_of(text, 17, two=np.float32(2), eps=np.float32(1e-5), g=gain)
    h = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float16)
    (got,) = Session(graph.to_proto().SerializeToString()).run({"h": h})
    x = h.astype(np.float64)
    exact = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + gain
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=2e-3, atol=2e-3)
    with pytest.raises(ModelError, match="bound to different types"):
        Session(graph.to_proto().SerializeToString(), as_deployed=True)
