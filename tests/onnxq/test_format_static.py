"""Formats of activations: 16-bit integers, float8, halves; rules that mix; what TensorRT's checks say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from graphs import random_feeds
from hypothesis import given
from hypothesis import strategies as st
from placing import net

from onnxq import api, checks
from onnxq.errors import RecipeError
from onnxq.numerics import QType, dequantize, params_from_range, quantize, sqnr_db, weight_params
from onnxq.recipe import Recipe, Rule
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.plan import Plan

TWO = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)"
E4M3, E5M2 = QType("float8_e4m3fn"), QType("float8_e5m2")


def two(**dims: int) -> Graph:
    n = dims.get("n", 64)
    return net(f"float[N,{n}] x", TWO, w=(n, 96), v=(96, 32))


def made(graph: Graph, **choices: Any) -> tuple[Graph, Plan]:  # noqa: ANN401  the fields by name
    feeds = [random_feeds(graph, seed, N=16) for seed in range(3)]
    return api.quantize(graph, feeds, Recipe(**choices))


def sqnr(graph: Graph, quantized: Graph, *, optimize: bool = True) -> float:
    feeds = random_feeds(graph, 9, N=64)
    before, after = (
        Session(g.to_proto().SerializeToString(), optimize=optimize and g is quantized).run(feeds)[0]
        for g in (graph, quantized)
    )
    return sqnr_db(before, after)


# -- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("qtype", "mantissa", "least"), [(E4M3, 3, -9), (E5M2, 2, -16)])
@given(x=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20))
def test_float8_within_half_an_ulp(qtype: QType, mantissa: int, least: int, x: list[float]) -> None:
    values = np.array(x, np.float32)
    amax = float(np.abs(values).max())
    params = params_from_range(-amax, amax, qtype)
    error = np.abs(dequantize(quantize(values, params), params).astype(np.float64) - values)
    subnormal = float(params.scale) * 2.0 ** (least - 1)
    assert (error <= np.maximum(np.abs(values) * 2.0 ** -(mantissa + 1), subnormal) * (1 + 1e-5)).all()


def test_float8_scale_saturation_and_nan() -> None:
    params = params_from_range(-896.0, 896.0, E4M3)
    assert float(params.scale) == 2.0  # amax / 448
    assert params.zero_point.dtype == ml_dtypes.float8_e4m3fn
    codes = quantize(np.array([1e6, -1e6, 898.0, 1.0], np.float32), params)
    assert codes.astype(float).tolist() == [448, -448, 448, 0.5]  # never NaN, which is what lies above 448
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([np.nan], np.float32), params)
    w = np.array([[448.0, 1.0], [-2.0, 0.5]], np.float32)
    assert weight_params(w, 1, qtype=E4M3).scale.tolist() == pytest.approx([1.0, 1 / 448])


# -- whole models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["int16/tensor", "uint16/tensor"])
def test_w8a16_loses_only_what_the_weights_lose(text: str) -> None:
    graph = two()
    wide, plan = made(graph, target="ort-cpu", activations=text)
    assert wide.opset == 21
    kinds = {str(wide.dtype(n.inputs[2])) for n in wide.nodes if n.op_type == "QuantizeLinear"}
    assert kinds == {text.partition("/")[0]}
    assert {d.precision for d in plan.decisions if d.quantized} == kinds
    weights, _ = made(graph, target="ort-cpu", weights="int8/channel", activations="float")
    narrow, _ = made(graph, target="ort-cpu")
    assert sqnr(graph, wide) > sqnr(graph, weights) - 0.3
    assert sqnr(graph, wide) > sqnr(graph, narrow) + 1


@pytest.mark.parametrize("target", ["tensorrt@10", "tensorrt@11"])
@pytest.mark.parametrize("weights", [None, "fp8e4m3/tensor"])
def test_float8_for_tensorrt(target: str, weights: str | None) -> None:
    graph = two()
    found, plan = made(graph, target=target, activations="fp8e4m3/tensor", weights=weights)
    assert found.opset >= 19
    report = checks.check(found.to_proto(), target)
    assert report.legal, report
    kinds = {str(found.dtype(n.inputs[2])) for n in found.nodes if n.op_type == "QuantizeLinear"}
    assert kinds == {"float8_e4m3fn"}
    assert {p.params.qtype.dtype for p in plan.points.values() if p.params} == {"float8_e4m3fn"}
    assert sqnr(graph, found, optimize=False) > 25  # half an ulp of 3 bits is 30 dB below a number
    for point in plan.points.values():
        assert point.range is not None
        assert point.params is not None
        assert float(point.params.scale) == pytest.approx(point.range[1] / 448, rel=1e-3)
    axes = {w.axis for w in plan.weights}
    assert axes == ({1} if weights is None else {None})


@pytest.mark.parametrize(
    ("target", "activations"),
    [("tensorrt@10", None), ("tensorrt@10", "float"), ("ort-cpu", "uint8/tensor+dynamic"), ("ort-cuda", None)],
)
def test_one_scale_for_a_weight(target: str, activations: str | None) -> None:
    graph = two()
    found, plan = made(graph, target=target, weights="int8/tensor", activations=activations, high_precision="fp32")
    assert {w.axis for w in plan.weights} == {None}
    scales = [v for name, v in found.weights.items() if name.startswith(("w_scale", "v_scale"))]
    assert {found.size(v) for v in scales} <= {1}  # ort-cuda multiplies them into the product's own
    assert sqnr(graph, found) > 25


@pytest.mark.parametrize("text", ["fp8e4m3/channel", "fp8e4m3/tensor"])
def test_float8_weights_alone_for_tensorrt(text: str) -> None:
    graph = two()
    found, _ = api.quantize(graph, None, Recipe(target="tensorrt@10", weights=text))
    kinds = {str(found.dtype(n.inputs[0])) for n in found.nodes if n.op_type == "DequantizeLinear"}
    assert kinds == {"float8_e4m3fn"}
    assert checks.check(found.to_proto(), "tensorrt@10").legal
    assert sqnr(graph, found) > 25


def test_a_scale_per_token() -> None:
    graph = net("float[2,N,64] x", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", w=(64, 96), v=(96, 32))
    found, plan = api.quantize(graph, None, Recipe(target="ort-cpu", activations="int8/token"))
    assert plan.mode == "dynamic"
    assert [n.op_type for n in found.nodes].count("MatMulInteger") == 2
    x = random_feeds(graph, N=8)["x"] * np.logspace(-3, 3, 8, dtype=np.float32)[:, None]
    x[0, 3] = 0
    (result,) = Session(found.to_proto().SerializeToString()).run({"x": x})

    def product(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rows of a and columns of b by their largest magnitude, in float64."""
        rows = np.maximum(np.abs(a).max(axis=-1, keepdims=True) / 127, 1e-37)
        columns = np.abs(b).max(axis=0) / 127
        codes: npt.NDArray[np.float64] = np.rint(a / rows) @ np.rint(b / columns) * rows * columns
        return codes

    w, v = (np.asarray(graph.const(graph.weights[n]), np.float64) for n in "wv")
    expected = product(np.maximum(product(x.astype(np.float64), w), 0), v)
    for got, row in zip(result.reshape(-1, 32), expected.reshape(-1, 32), strict=True):
        # A code at a tie may fall either way in float32; rows of every size are held as well.
        np.testing.assert_allclose(got, row, atol=0.02 * np.abs(row).max() + 1e-30)
    dynamic, _ = api.quantize(graph, None, Recipe(target="ort-cpu", mode="dynamic"))
    (one_scale,) = Session(dynamic.to_proto().SerializeToString()).run({"x": x})
    assert np.abs(one_scale[0, 0] - expected[0, 0]).max() > 0.5 * np.abs(expected[0, 0]).max()  # lost beside large rows
    with pytest.raises(RecipeError, match="one scale only"):
        Recipe(target="ort-cuda", activations="int8/token")


def test_a_scale_per_token_beside_a_bias() -> None:
    """What ONNX Runtime 1.31 would fuse, product, scales and bias, it computes wrongly."""
    graph = net(
        "float[N,64] x", "h = Gemm(x, w, b) p = MatMul(h, v) y = Add(p, c)", w=(64, 96), b=(96,), v=(96, 32), c=(32,)
    )
    found, _ = api.quantize(graph, None, Recipe(target="ort-cpu", activations="int8/token"))
    assert [n.op_type for n in found.nodes].count("MatMulInteger") == 2
    feed = random_feeds(graph, N=8)
    expected, result = (Session(g.to_proto().SerializeToString()).run(feed)[0] for g in (graph, found))
    assert sqnr_db(expected, result) > 35


# -- rules ----------------------------------------------------------------------------------------------------


def test_a_rule_gives_finer_activations_here() -> None:
    graph = two()
    _, plan = made(graph, target="ort-cpu", rules=(Rule("*:y", activations="int16/tensor"),))
    kinds = {p.tensor: p.params.qtype.dtype for p in plan.points.values() if p.params is not None}
    assert kinds["x"] == "uint8"
    assert kinds["r"] == "int16"
    assert {d.node: d.precision for d in plan.decisions if d.quantized and d.op_type == "MatMul"} == {
        str(graph.nodes[0].name): "int8",
        str(graph.nodes[2].name): "int16",
    }


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt@10"])
def test_a_rule_gives_narrow_weights_there(target: str) -> None:
    graph = two()
    found, plan = made(graph, target=target, rules=(Rule("*:y", weights="int4/block:32"),))
    assert {w.tensor: str(w.format) for w in plan.weights} == {"w": "int8/channel", "v": "int4/block:32"}
    assert [p for p in plan.points if p == "r"] == []  # its input stays in float
    assert {"int8", "int4"} <= {found.dtype(v) for v in found.weights.values()}
    assert sqnr(graph, found) > 15
    unnamed, plan = made(graph, target=target, rules=(Rule("*:y", activations="float"),))
    assert "r" not in plan.points
    assert len(plan.weights) == 2
    assert sqnr(graph, unnamed) > 25


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"target": "ort-cpu", "activations": "fp8e4m3/tensor"}, "spoils pairs in float8"),
        ({"target": "tensorrt@8", "activations": "fp8e4m3/tensor"}, "float8 from 10 on"),
        ({"target": "tensorrt@11", "activations": "fp8e5m2/tensor"}, "E4M3 only"),
        ({"target": "tensorrt@11", "activations": "int16/tensor"}, "no 16-bit integers"),
        ({"target": "ort-cuda", "activations": "int16/tensor"}, "one scale only"),
        ({"target": "tensorrt@11", "activations": "fp8e4m3/tensor", "weights": "int8/channel"}, "no kernel multiplies"),
        ({"target": "tensorrt@11", "activations": "fp8e4m3/tensor", "calibrator": "entropy"}, "integers of 8 bits"),
        ({"target": "ort-cpu", "activations": "int16/tensor", "calibrator": "mse"}, "integers of 8 bits"),
        ({"target": "tensorrt@11", "rules": (Rule("*", activations="fp8e4m3/tensor"),)}, "float8 and integers"),
        ({"target": "ort-cpu", "weights": "fp16", "high_precision": "bf16"}, "name different types"),
        ({"target": "ort-cpu", "activations": "uint8/tensor", "weights": "int8/channel+pow2"}, "no kernel multiplies"),
        ({"target": "ort-cpu", "rules": (Rule(weights="fp16"),)}, "for whole models"),
        ({"target": "ort-cpu", "mode": "dynamic", "rules": (Rule(weights="int4"),)}, "cannot mix in"),
        ({"target": "ort-cpu", "weights": "fp16", "rules": (Rule(activations="float"),)}, "cannot mix in"),
        ({"target": "ort-cpu", "weights": "nf4", "rules": (Rule(activations="uint8/tensor"),)}, "has float ones"),
        ({"target": "ort-cpu", "weights": "bf16"}, "too few bfloat16 kernels"),
        ({"target": "tensorrt@8", "weights": "bf16"}, "from 9 on"),
        ({"target": "tensorrt@10", "mode": "float"}, "leaves the model as it is"),
    ],
)
def test_refusals(choices: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as error:
        Recipe(**choices)
    assert error.value.hint


# -- halves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "text"), [("ort-cpu", "fp16"), ("tensorrt@11", "fp16"), ("tensorrt@11", "bf16")])
def test_halves_as_a_mode(target: str, text: str) -> None:
    graph = two()
    found, plan = made(graph, target=target, weights=text)
    assert plan.mode == "float"
    assert not plan.points
    kind = {"fp16": "float16", "bf16": "bfloat16"}[text]
    assert {found.dtype(v) for v in found.weights.values()} == {kind}
    assert {d.dtype for d in plan.decisions} == {kind}
    if text == "fp16":
        assert sqnr(graph, found) > 55
    flags, _ = made(graph, target=target, mode="float", high_precision=text)
    assert flags.to_proto() == found.to_proto()


def test_what_overflows_float16_stays_in_float32_and_is_named() -> None:
    graph = two()
    feeds = [{"x": 1e4 * random_feeds(graph, N=16)["x"]}]
    found, plan = api.quantize(graph, feeds, Recipe(target="ort-cpu", weights="fp16"))
    wide = [d for d in plan.decisions if d.dtype == "float32"]
    assert wide
    assert all("float32: " in d.reason for d in wide)
    (result,) = Session(found.to_proto().SerializeToString()).run(feeds[0])
    assert np.isfinite(result).all()
    _, unseen = api.quantize(graph, None, Recipe(target="ort-cpu", weights="fp16"))
    assert any("nothing is known of what overflows" in note for note in unseen.notes)
