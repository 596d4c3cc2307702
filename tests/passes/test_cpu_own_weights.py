"""A model's own quantized weights for ONNX Runtime's CPU provider: what stays first, then zero points, then axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph_of, lines, named_in, run, words

from onnxq import Recipe, api
from onnxq.numerics import sqnr_db
from onnxq.passes.cpu_own_weights import own_weights
from onnxq.runtime import Session

RNG = np.random.default_rng(0)
SIZE = 32
HELD: dict[str, Any] = {
    "w": RNG.integers(-127, 128, (SIZE, SIZE)).astype(np.int8),
    "k": RNG.integers(-127, 128, (SIZE, SIZE, 1, 1)).astype(np.int8),
    "many": np.exp(RNG.normal(size=SIZE) - 5).astype(np.float32),
    "zeros": np.zeros(SIZE, np.int8),
    "some": RNG.integers(-9, 9, SIZE).astype(np.int8),
    "blocks": np.exp(RNG.normal(size=(2, SIZE)) - 5).astype(np.float32),
    "one": np.float32(0.01),
    "s": np.float32(0.03),
    "z": np.uint8(128),
    "v": RNG.normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE,
}
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


def model(nodes: str) -> Any:  # noqa: ANN401
    text = f"{PAIR} {nodes}" if "d" in words(nodes) else nodes
    sizes, names = (f"1,{SIZE},4,4", "A,B,C,D") if "Conv" in nodes else (f"4,{SIZE}", "A,B")
    graph = graph_of(f"(float[{sizes}] x) => (float[{names}] y) {{ {text} }}", 21, **named_in(text, HELD))
    graph.infer_shapes()
    return graph


def feed(graph: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"x": RNG.normal(size=graph.shape(graph.inputs[0])).astype(np.float32)}


@pytest.mark.parametrize(
    "nodes",
    [
        "e = DequantizeLinear(w, one) y = MatMul(d, e)",
        "e = DequantizeLinear<axis=1>(w, many, zeros) y = MatMul(d, e)",
        "e = DequantizeLinear<axis=-1>(w, many, zeros) y = MatMul(d, e)",
        "e = DequantizeLinear<axis=0>(w, many, zeros) y = Gemm<transB=1>(d, e)",
        "e = DequantizeLinear<axis=0>(w, many, zeros) t = Transpose<perm=[1,0]>(e) y = MatMul(d, t)",
        "e = DequantizeLinear<axis=0>(k, many, zeros) y = Conv(d, e)",
        "e = DequantizeLinear<axis=0>(w, many, zeros) y = MatMul(x, e)",
    ],
)
def test_left_alone(nodes: str) -> None:
    graph = model(nodes)
    before = graph.digest()
    assert own_weights(graph) == 0
    assert graph.digest() == before


@pytest.mark.parametrize(
    "nodes",
    [
        "e = DequantizeLinear<axis=0>(w, many) y = Gemm<transB=1>(d, e)",
        "e = DequantizeLinear<axis=0>(k, many) y = Conv(d, e)",
        "e = DequantizeLinear<axis=0>(w, many) y = MatMul(x, e)",
        "e = DequantizeLinear<axis=0, block_size=16>(w, blocks) y = MatMul(x, e)",
    ],
)
def test_zero_points_are_written(nodes: str) -> None:
    graph = model(nodes)
    data, codes = feed(graph), "k" if "Conv" in nodes else "w"
    scale = "blocks" if "blocks" in nodes else "many"
    (before,) = run(graph, data)
    assert own_weights(graph) == 1
    assert f"e = DequantizeLinear({codes}, {scale}, {scale}_zero_point)" in lines(graph)
    np.testing.assert_array_equal(run(graph, data)[0], before)
    (fused,) = Session(graph.to_proto().SerializeToString()).run(data)
    assert sqnr_db(before, fused) > 30  # MatMulNBits rounds what it multiplies to 8 bits


WRONG = {
    "rows": "e = DequantizeLinear<axis=0>(w, many, some) m = MatMul(d, e)",
    "rows without zero points": "e = DequantizeLinear<axis=0>(w, many) m = Gemm(d, e)",
    "columns of a transposed weight": "e = DequantizeLinear<axis=1>(w, many, some) m = Gemm<transB=1>(d, e)",
    "behind a Transpose": "e = DequantizeLinear<axis=1>(w, many) t = Transpose<perm=[1,0]>(e) m = MatMul(d, t)",
    "blocks": "e = DequantizeLinear<axis=0, block_size=16>(w, blocks) m = MatMul(d, e)",
    "input channels": "e = DequantizeLinear<axis=1>(k, many, some) m = Conv(d, e)",
}


@pytest.mark.parametrize("case", WRONG)
def test_scales_along_another_axis_become_float(case: str) -> None:
    graph = model(f"{WRONG[case]} y = Identity(m)")
    data = feed(graph)
    (before,) = run(graph, data)
    assert own_weights(graph) == 1
    assert "e" not in {str(v.name) for v in graph.values()}
    np.testing.assert_allclose(run(graph, data)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("case", WRONG)
def test_the_written_file_is_near(case: str, form: str) -> None:
    """ONNX Runtime had none of the numbers right, or failed."""
    graph = model(f"{WRONG[case]} y = Abs(m)")
    feeds = [feed(graph) for _ in range(16)]
    made, _ = api.quantize(graph, feeds, Recipe(target="ort-cpu", effort="fast", format=form))
    session = Session(made.to_proto().SerializeToString())
    pairs = [(run(graph, data)[0], session.run(data)[0]) for data in feeds]
    assert sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True))) > 30
