from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, run

from onnxq.passes.integer_products import integer_products

RNG = np.random.default_rng(3)
SX = np.array(0.02, np.float32)
ZERO = np.array(0, np.int8)
UNSIGNED = np.array(0, np.uint8)


def weight(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def pair(inputs: str, product: str, axis: int | None, out: str = "float[A, B] y") -> str:
    said = "" if axis is None else f"<axis={axis}>"
    return f"""({inputs}) => ({out}) {{
        q = QuantizeLinear(x, sx, z) a = DequantizeLinear(q, sx, z)
        b = DequantizeLinear{said}(w, sw, zw) {product} }}"""


def scales(count: int) -> dict[str, Array]:
    steps = RNG.uniform(0.001, 0.01, count).astype(np.float32)
    return {"sx": SX, "z": ZERO, "sw": steps, "zw": np.zeros(count, np.int8)}


def codes(x: Array) -> Array:
    """QuantizeLinear in float64, an oracle of its own."""
    found: Array = np.clip(np.rint(x.astype(np.float32) / SX), -128, 127).astype(np.float64)
    return found


# -- what stays as it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (pair("float[N, 64] x", "y = MatMul(x, b)", 1), {"w": weight(64, 32), **scales(32)}),  # input in float
        (pair("float[N, 64] x", "y = MatMul(a, b)", 0), {"w": weight(64, 32), **scales(64)}),  # scales along K
        (pair("float[N, 64] x", "y = MatMul(a, b)", 1), {"w": weight(64, 32), **scales(32), "z": np.array(3, np.int8)}),
        (
            pair("float[N, 64] x", "y = MatMul(a, b)", 1),
            {"w": weight(64, 32), **scales(32), "z": np.array(0, np.uint8)},
        ),
        (pair("float[2, N, 64] x", "y = MatMul(a, b)", 2, "float[A, B, C] y"), {"w": weight(2, 64, 32), **scales(32)}),
        (
            pair("float[1, 64, 4, 4] x", "y = Conv<kernel_shape=[3,3]>(a, b)", 0, "float[A, B, C, D] y"),
            {"w": weight(32, 64, 3, 3), **scales(32)},
        ),
        (
            pair("float[1, 64, 4, 4] x", "y = Conv<strides=[2,2]>(a, b)", 0, "float[A, B, C, D] y"),
            {"w": weight(32, 64, 1, 1), **scales(32)},
        ),
    ],
)
def test_left_alone(text: str, constants: dict[str, Array]) -> None:
    graph = graph_of(text, **constants)
    before = lines(graph)
    assert integer_products(graph) == 0
    assert lines(graph) == before


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [32, 40, 1])
@pytest.mark.parametrize("shape", ["5, 64", "2, 5, 64"])
def test_matmul(columns: int, shape: str) -> None:
    w, extra = weight(64, columns), scales(columns)
    out = "float[A, B] y" if shape.count(",") == 1 else "float[A, B, C] y"
    graph = graph_of(pair(f"float[{shape}] x", "y = MatMul(a, b)", 1, out), w=w, **extra)
    feeds = random_feeds(graph)
    assert integer_products(graph) == 1
    graph.remove_unused()
    ops = [line.split(" = ")[1].split("(")[0] for line in lines(graph)]
    assert ops == ["QuantizeLinear", "MatMulInteger", "Cast", "Mul", *(["Slice"] if columns % 32 else [])]
    (found,) = run(graph, feeds)
    expected = codes(feeds["x"]) @ w.astype(np.float64) * (float(SX) * extra["sw"].astype(np.float64))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=0)  # two roundings to float32


def test_the_weight_is_padded_to_what_the_kernel_takes() -> None:
    graph = graph_of(pair("float[N, 64] x", "y = MatMul(a, b)", 1), w=weight(64, 40), **scales(40))
    integer_products(graph)
    product = next(n for n in graph.nodes if n.op_type == "MatMulInteger")
    stored = graph.const(product.inputs[1])
    assert stored is not None
    assert stored.shape == (64, 64)
    assert not stored[:, 40:].any()


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_gemm(trans_a: int, trans_b: int, beta: float) -> None:
    w, extra = weight(*((40, 64) if trans_b else (64, 40))), scales(40)
    c = RNG.normal(size=40).astype(np.float32)
    text = f"y = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta={beta}>(a, b, c)"
    rows = "float[64, 7] x" if trans_a else "float[7, 64] x"
    graph = graph_of(pair(rows, text, 0 if trans_b else 1), w=w, c=c, **extra)
    feeds = random_feeds(graph)
    assert integer_products(graph) == 1
    (found,) = run(graph, feeds)
    a = codes(feeds["x"]).T if trans_a else codes(feeds["x"])
    b = w.astype(np.float64).T if trans_b else w.astype(np.float64)
    expected = 0.5 * (a @ b) * float(SX) * extra["sw"].astype(np.float64) + beta * c.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_pointwise_convolution() -> None:
    w, extra, c = weight(48, 64, 1, 1), scales(48), RNG.normal(size=48).astype(np.float32)
    text = pair("float[2, 64, 3, 5] x", "y = Conv(a, b, c)", 0, "float[A, B, C, D] y")
    graph = graph_of(text, w=w, c=c, **extra)
    feeds = random_feeds(graph)
    assert integer_products(graph) == 1
    graph.remove_unused()
    assert "DequantizeLinear" not in "".join(lines(graph))
    (found,) = run(graph, feeds)
    product = np.einsum("nchw,oc->nohw", codes(feeds["x"]), w[:, :, 0, 0].astype(np.float64))
    factors = float(SX) * extra["sw"].astype(np.float64)
    expected = product * factors[:, None, None] + c[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_accumulators_beyond_float16() -> None:
    """A product of 2048 largest codes is 33 million; in float16 it would be infinite."""
    text = """(float16[1, 2048] x) => (float16[1, 32] y) {
        q = QuantizeLinear(x, sx, z) a = DequantizeLinear(q, sx, z)
        b = DequantizeLinear(w, sw, zw) y = MatMul(a, b) }"""
    half = np.array(2**-10, np.float16)
    w = np.full((2048, 32), 127, np.int8)
    graph = graph_of(text, 19, w=w, sx=half, z=ZERO, sw=half, zw=ZERO)
    assert integer_products(graph) == 1
    (found,) = run(graph, {"x": np.full((1, 2048), 1.0, np.float16)})
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), 127 * 127 * 2048 / 2**20, rtol=1e-3)


def test_one_input_and_one_weight_for_two_products() -> None:
    text = pair("float[4, 64] x", "y = MatMul(a, b) t = MatMul(a, b)", 1, "float[A, B] y, float[C, D] t")
    graph = graph_of(text, w=weight(64, 40), **scales(40))
    feeds = random_feeds(graph)
    assert integer_products(graph) == 2
    weights = {id(n.inputs[1]) for n in graph.nodes if n.op_type == "MatMulInteger"}
    assert len(weights) == 1
    one, other = run(graph, feeds)
    np.testing.assert_array_equal(one, other)
