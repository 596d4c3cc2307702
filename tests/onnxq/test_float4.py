"""NVFP4 for TensorRT: ONNX's float4 behind two levels of DequantizeLinear, and where it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import random_feeds, run
from onnx.reference import ReferenceEvaluator
from placing import net

from onnxq import api
from onnxq.errors import RecipeError
from onnxq.formats import Format
from onnxq.formats.families import decode, encode
from onnxq.recipe import Recipe, Rule

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph


def two_products() -> Graph:
    return net(
        "float[N,256] x", "h = MatMul(x, w) r = Relu(h) y = Gemm<transB=1>(r, v, c)", w=(256, 128), v=(64, 128), c=(64,)
    )


def recipe(**choices: Any) -> Recipe:  # noqa: ANN401  fields by name
    return Recipe(**{"target": "tensorrt@11", "weights": "nvfp4", "high_precision": "fp32", **choices})


def test_left_in_float() -> None:
    graph = net(
        "float[N,64] x",
        "h = MatMul(x, k) r = Relu(h) i = MatMul(r, w) j = MatMul(i, v) y = MatMul(u, j)",
        k=(64, 64),
        w=(64, 40),
        v=(40, 64),
        u=(16, 16),
    )
    quantized, plan = api.quantize(graph, None, recipe())
    assert [w.tensor for w in plan.weights] == ["k"]
    reasons = {d.node.rpartition(":")[2]: d.reason for d in plan.decisions}
    assert "40 columns: TensorRT wants both sides" in reasons["i"]
    assert "40 rows are no multiple of a block of 16" in reasons["j"]
    assert "constant comes first" in reasons["y"]
    for name in ("w", "v", "u"):
        np.testing.assert_array_equal(quantized.const(quantized.weights[name]), graph.const(graph.weights[name]))


@pytest.mark.parametrize("target", ["tensorrt@8", "ort-cuda", "tensorrt@8+dla"])
def test_refused(target: str) -> None:
    with pytest.raises(RecipeError, match=r"10\.8|MatMulNBits|DLA"):
        api.make_plan(two_products(), recipe(target=target))


def test_mxfp4_is_refused_for_tensorrt_with_what_it_has() -> None:
    with pytest.raises(RecipeError, match="blocks of 16") as caught:
        api.make_plan(two_products(), recipe(weights="mxfp4"))
    assert "nvfp4" in str(caught.value.hint)


@pytest.mark.parametrize("target", ["tensorrt@10", "tensorrt@11"])
def test_the_form_and_its_numbers(target: str) -> None:
    graph = two_products()
    quantized, _ = api.quantize(graph, None, recipe(target=target))
    proto = quantized.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert quantized.opset == 23
    assert [n.op_type for n in proto.graph.node][:3] == ["DequantizeLinear", "DequantizeLinear", "Transpose"]
    kinds = {i.name: (i.data_type, tuple(i.dims)) for i in proto.graph.initializer}
    tensor = onnx.TensorProto
    assert kinds["w_quantized"] == (tensor.FLOAT4E2M1, (128, 256))  # as the weight of a Linear layer lies
    assert kinds["w_scale"] == (tensor.FLOAT8E4M3FN, (128, 16))
    assert kinds["w_global"] == (tensor.FLOAT, ())
    weight = graph.const(graph.weights["w"])
    assert weight is not None
    model: Any = ReferenceEvaluator(proto)
    feeds = random_feeds(graph, N=5)
    by_tables, _ = api.quantize(graph, None, Recipe(target="ort-cpu", weights="nvfp4", activations="float"))
    np.testing.assert_allclose(model.run(None, feeds)[0], run(by_tables, feeds)[0], rtol=1e-4, atol=1e-5)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("w_dequantized", tensor.FLOAT, None))
    found = np.asarray(ReferenceEvaluator(proto).run(["w_dequantized"], feeds)[0])  # type: ignore[index]  # arrays
    np.testing.assert_allclose(found, decode(encode(weight, Format.parse("nvfp4"))), rtol=1e-6)


def test_scales_stay_out_of_half_precision() -> None:
    """The global scale is amax / 2688: for usual weights less than float16's least normal number."""
    graph = two_products()
    quantized, _ = api.quantize(graph, None, recipe(high_precision="fp16"))
    scale = quantized.weights["w_global"]
    assert quantized.dtype(scale) == "float32"
    weight, products = graph.const(graph.weights["w"]), [n for n in quantized.nodes if n.op_type in ("MatMul", "Gemm")]
    assert weight is not None
    np.testing.assert_allclose(np.asarray(quantized.const(scale)), np.abs(weight).max() / 2688, rtol=1e-6)
    assert [quantized.dtype(n.inputs[1]) for n in products] == ["float16", "float16"]
    model: Any = ReferenceEvaluator(quantized.to_proto())
    feeds = random_feeds(graph, N=5)
    exact, _ = api.quantize(graph, None, recipe())
    full: Any = ReferenceEvaluator(exact.to_proto())
    np.testing.assert_allclose(model.run(None, feeds)[0], full.run(None, feeds)[0], rtol=2e-2, atol=2e-2)


def test_the_checks_take_it_and_refuse_other_computed_scales(tmp_path: Path) -> None:
    quantized, _ = api.quantize(two_products(), None, recipe(high_precision="fp16"))
    path = tmp_path / "q.onnx"
    api.export(quantized, path)
    assert path.stat().st_size < (256 * 128 + 64 * 128) * (4.5 / 8) + 3000  # 4 bits and 8 for each 16; names and nodes
    assert {f.id for f in api.check(path, "tensorrt@11").findings} == {"P35"}
    assert {f.message for f in api.check(path, "tensorrt@10").findings if f.id == "P5"} == {
        "FLOAT4E2M1 needs TensorRT 10.8"
    }
    assert "P5" in {f.id for f in api.check(path, "tensorrt@8").findings if f.severity == "E"}
    proto = quantized.to_proto()
    inner = next(n for n in proto.graph.node if n.output[0] == "w_scales")
    inner.op_type = "Mul"
    assert "P2" in {f.id for f in api.check(proto, "tensorrt@11").findings}


def test_beside_int8_by_a_rule() -> None:
    graph = two_products()
    rule = Rule("*:y", weights="nvfp4")
    feeds = [random_feeds(graph, seed, N=4) for seed in range(9)]
    quantized, plan = api.quantize(graph, feeds, recipe(weights=None, rules=(rule,), effort="fast"))
    assert {str(w.format) for w in plan.weights} == {"int8/channel", "nvfp4/block:16"}
    findings = api.check(quantized, "tensorrt@11").findings
    assert not [f for f in findings if f.severity == "E" or f.id == "P22"]
    model: Any = ReferenceEvaluator(quantized.to_proto())
    found, exact = model.run(None, feeds[0])[0], run(graph, feeds[0])[0]
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98
