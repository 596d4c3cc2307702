"""Target ort-cpu, carried out: every operator of the table runs on integers, and gives what its Q/DQ pairs say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES
from graphs import random_feeds, run
from optimized import SATURATES
from placing import Array, int8, net
from real_models import DIGITS, cached

import onnxq
from onnxq.api import quantize
from onnxq.errors import RecipeError
from onnxq.numerics import sqnr_db
from onnxq.proving import prove
from onnxq.recipe import Recipe
from onnxq.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph
    from onnxq.plan import Plan

FORMATS = ("qdq", "qoperator")
INTEGER_PRODUCTS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
W = (16, 16, 3, 3)
PADS = "<pads=[1,1,1,1]>"

# What makes m of c between two convolutions -> the operator that must be there afterwards, and the one that must not.
TABLE: dict[str, tuple[str, str, str]] = {
    "Relu": ("m = Relu(c)", "QLinearConv", "Relu"),
    "Clip": ("m = Clip(c, zero, six)", "QLinearConv", "Clip"),
    "Add": ("m = Add(c, d)", "QLinearAdd", "Add"),
    "Add, Relu": ("a = Add(c, d) m = Relu(a)", "QLinearAdd", "Relu"),
    "Mul": ("m = Mul(c, d)", "QLinearMul", "Mul"),
    "Mul by a scalar": ("r = Relu(c) s = Mul(r, half) m = MaxPool<kernel_shape=[1,1]>(s)", "QLinearMul", "Mul"),
    "Add a negative scalar": ("r = Relu(c) m = Add(r, less)", "QLinearAdd", "Add"),
    "Concat": ("e = Concat<axis=2>(c, d) m = Slice(e, [from], [to], [axis])", "QLinearConcat", "Concat"),
    "Concat of a Relu": ("r = Relu(c) m = Concat<axis=2>(r, d)", "QLinearConcat", "Relu"),
    "AveragePool": ("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)", "QLinearAveragePool", "AveragePool"),
    "GlobalAveragePool": ("p = GlobalAveragePool(c) m = Mul(c, p)", "QLinearGlobalAveragePool", "GlobalAveragePool"),
    "LeakyRelu": ("m = LeakyRelu<alpha=0.1>(c)", "QLinearLeakyRelu", "LeakyRelu"),
    "Sigmoid": ("m = Sigmoid(c)", "QLinearSigmoid", "Sigmoid"),
    "SiLU": ("s = Sigmoid(c) m = Mul(c, s)", "QLinearMul", "Sigmoid"),
    "Sigmoid, moved": (
        "s = Sigmoid(c) m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(s)",
        "QLinearSigmoid",
        "Sigmoid",
    ),
    "Softmax": ("m = Softmax<axis=3>(c)", "QLinearSoftmax", "Softmax"),
    "MaxPool": ("m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)", "NhwcMaxPool", "DequantizeLinear before MaxPool"),
    "Transpose": ("m = Transpose<perm=[0,1,3,2]>(c)", "Transpose", ""),
    "Reshape": ("m = Reshape(c, shape)", "Reshape", ""),
    "Resize": ("m = Resize(c, , twice)", "Resize", ""),
    "Split": ("l, r = Split<axis=2>(c) m = Add(l, r)", "Split", "Add"),
    "Gather": ("m = Gather<axis=2>(c, order)", "Gather", ""),
    "DepthToSpace": ("e = DepthToSpace<blocksize=2>(c) m = Concat<axis=1>(e, e, e, e)", "DepthToSpace", "Concat"),
}


def one_op(op: str) -> Graph:
    op = op.replace("[from]", "start").replace("[to]", "end").replace("[axis]", "axis")
    second = f"d = Conv{PADS}(x, w1)" if "d)" in op or "(d" in op else ""
    body = f"c = Conv{PADS}(x, w0, b) {second} {op} y = Conv{PADS}(m, w2)"
    numbers = {"zero": 0.0, "six": 6.0, "half": 0.5, "less": -1.5}
    lists = {"start": [4], "end": [12], "axis": [2], "shape": [1, 16, 4, 16], "order": [3, 1, 2]}
    weights: dict[str, Array | tuple[int, ...]] = {"w0": W, "b": (16,), "w2": W}
    weights |= {"w1": W} if second else {}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    weights |= {name: np.array(number, np.float32) for name, number in numbers.items() if name in words}
    weights |= {name: np.array(number, np.int64) for name, number in lists.items() if name in words}
    if "twice" in words:
        weights["twice"] = np.array([1, 1, 2, 2], np.float32)
    return net("float[1, 16, 8, 8] x", body, "y", 17, **weights)


def made(graph: Graph, recipe: Recipe) -> tuple[Graph, Plan, list[dict[str, Array]]]:
    feeds = [random_feeds(graph, seed, N=4) for seed in range(4)]
    return *quantize(graph, feeds, recipe), feeds


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", TABLE)
def test_every_operator_of_the_table_runs_on_integers(case: str, form: str) -> None:
    op, wanted, gone = TABLE[case]
    graph, plan, feeds = made(one_op(op), Recipe(target="ort-cpu", format=form))
    proof = prove(graph, data=feeds[:1])
    assert not proof.lost
    assert {n.runs for n in proof.nodes} <= {"integer", "moves int8", "conversion", "other"}
    found = {n.op_type for n in proof.nodes}
    assert wanted in found
    assert gone not in found
    assert len(int8(plan)) >= 2
    assert [n.op_type for n in proof.nodes].count("QuantizeLinear") == 1  # at the input: no float in between
    assert proof.mac_share() == 1.0


@pytest.mark.parametrize("case", TABLE)
def test_the_numbers_are_those_of_the_pairs(case: str) -> None:
    graph, plan, feeds = made(one_op(TABLE[case][0]), Recipe(target="ort-cpu"))
    other, _, _ = made(one_op(TABLE[case][0]), Recipe(target="ort-cpu", format="qoperator"))
    oracle = run(graph, feeds[0])[0]  # Q, float operators and DQ as they stand
    step = float(plan.points["y"].params.scale)  # type: ignore[union-attr]  # the plan is resolved
    fused = Session(graph.to_proto().SerializeToString()).run(feeds[0])[0]
    operators = Session(other.to_proto().SerializeToString()).run(feeds[0])[0]
    for found in (fused, operators):
        difference = np.abs(found - oracle) / step
        # A code between two layers may round the other way; what it weighs in the last layer is a few steps at most.
        assert np.quantile(difference, 0.9) <= 1.001
        assert sqnr_db(oracle, found) > 28
    assert np.abs(fused - operators).max() <= 1.001 * step


def test_one_layer_agrees_within_one_step() -> None:
    graph, plan, feeds = made(
        net("float[1,16,8,8] x", f"y = Conv{PADS}(x, w, b)", w=W, b=(16,)), Recipe(target="ort-cpu")
    )
    exact, fused = run(graph, feeds[0])[0], Session(graph.to_proto().SerializeToString()).run(feeds[0])[0]
    assert np.abs(exact - fused).max() <= 1.001 * float(plan.points["y"].params.scale)  # type: ignore[union-attr]  # resolved


PRODUCTS = {
    "MatMul": ("float[2, 32, 64] x", "y = MatMul(x, w)", "MatMulIntegerToFloat"),
    "MatMul, bias": ("float[2, 32, 64] x", "h = MatMul(x, w) y = Add(h, b)", "MatMulIntegerToFloat"),
    "MatMul, bias, GELU": (
        "float[2, 32, 64] x",
        "h = MatMul(x, w) a = Add(b, h) d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) y = Mul(g, half)",
        "MatMulIntegerToFloat",
    ),
    "MatMul, unknown rows": ("float[N, 32, 64] x", "h = MatMul(x, w) y = Add(h, b)", "MatMulIntegerToFloat"),
    "MatMul, plain matrices": ("float[32, 64] x", "h = MatMul(x, w) y = Add(h, b)", "QGemm"),
    "MatMul, plain matrices, Relu": (
        "float[32, 64] x",
        "h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, w)",
        "QGemm",
    ),
    "Gemm": ("float[32, 64] x", "y = Gemm(x, w, b)", "QGemm"),
    "Gemm, no bias": ("float[32, 64] x", "y = Gemm(x, w)", "QGemm"),
    "Gemm, transposed": ("float[32, 64] x", "y = Gemm<transB=1>(x, w, b)", "QGemm"),
    "Gemm, Gemm": ("float[32, 64] x", "h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, w, b)", "QGemm"),
    "MatMul, MatMul": ("float[2, 32, 64] x", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)", "QLinearMatMul"),
    "MatMul, read in float too": (
        "float[2, 32, 64] x",
        "h = MatMul(x, w) t = Tanh(h) m = MatMul(h, w) y = Sub(m, t)",
        "QLinearMatMul",
    ),
    "MatMul, read in float too, Relu": (
        "float[2, 32, 64] x",
        "h = MatMul(x, w) t = Tanh(h) r = Relu(h) m = MatMul(r, w) y = Sub(m, t)",
        "QLinearMatMul",
    ),
    "Gemm, Relu read in float too": (
        "float[32, 64] x",
        "h = Gemm(x, w, b) r = Relu(h) t = Tanh(r) m = Gemm(r, w, b) y = Sub(m, t)",
        "QGemm",
    ),
    "MatMul, bias, residual, LayerNorm": (
        "float[2, 32, 64] x",
        "h = MatMul(x, w) a = Add(h, b) s = Add(a, x) y = LayerNormalization(s, b)",
        "MatMulIntegerToFloat",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_run_on_integers(case: str, form: str) -> None:
    inputs, body, wanted = PRODUCTS[case]
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    weights: dict[str, Array | tuple[int, ...]] = {
        name: np.array(n, np.float32) for name, n in numbers.items() if name in words
    }
    weights |= {"w": (64, 64)} | ({"b": (64,)} if "b" in words else {})
    source = net(inputs, body, **weights)
    graph, _, feeds = made(source, Recipe(target="ort-cpu", format=form))
    proof = prove(graph, data=feeds[:1])
    kinds = [n.op_type for n in proof.nodes]
    assert not proof.lost
    assert wanted in kinds
    assert not {"MatMul", "Gemm", "FusedGemm", "SkipLayerNormalization"} & set(kinds)
    assert proof.mac_share() == 1.0
    if SATURATES and words.count("w") > 1:
        return
    exact, found = (Session(g.to_proto().SerializeToString()).run(feeds[0])[0] for g in (source, graph))
    assert sqnr_db(exact, found) > 30
    # As operators that are not optimized they would saturate on a CPU without VNNI; pairs computed in float do not.
    pairs, _, _ = made(source, Recipe(target="ort-cpu"))
    written = Session(pairs.to_proto().SerializeToString(), as_written=True).run(feeds[0])[0]
    np.testing.assert_allclose(found, written, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_run_as_planned(name: str, form: str) -> None:
    source = ARCHITECTURES[name]()
    graph, plan, feeds = made(source, Recipe(target="ort-cpu", format=form))
    proof = prove(graph, data=feeds[:1])
    assert not proof.lost
    planned = [d for d in plan.decisions if d.quantized and d.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(planned) == sum(n.op_type in INTEGER_PRODUCTS for n in proof.nodes)
    exact, found = (Session(g.to_proto().SerializeToString()).run(feeds[0]) for g in (source, graph))
    assert all(sqnr_db(a, b) > 25 for a, b in zip(exact, found, strict=True))


@pytest.mark.parametrize("float_share", [0.0, None])
@pytest.mark.parametrize("form", FORMATS)
def test_digits_keeps_its_accuracy(form: str, float_share: float | None, tmp_path: Path) -> None:
    recipe = Recipe(target="ort-cpu", format=form, float_share=float_share)
    graph, plan = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", recipe)
    graph.save(tmp_path / "out.onnx")
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    before, after = (
        float((Session(model).run({"image": images})[0].argmax(1) == labels).mean())
        for model in (DIGITS / "digits.onnx", tmp_path / "out.onnx")
    )
    assert after >= before - 0.005
    proof = prove(tmp_path / "out.onnx")
    assert not proof.lost
    assert proof.mac_share() == pytest.approx(plan.int8_share(), abs=1e-3)
    if float_share == 0.0:
        assert proof.mac_share() == plan.int8_share() == 1.0
    assert plan.int8_share() >= 0.95  # by default a few cheap layers stay in float


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("name", "layers"), [("resnet_small", 12), ("mobilenet_small", 52)])
def test_convolutional_networks_run_in_integers_from_end_to_end(
    name: str, layers: int, form: str, tmp_path: Path
) -> None:
    graph, _ = onnxq.quantize(cached(f"{name}.onnx"), "random:4", Recipe(target="ort-cpu", format=form))
    graph.save(tmp_path / "out.onnx")
    proof = prove(tmp_path / "out.onnx")
    kinds = [n.op_type for n in proof.nodes]
    assert kinds.count("QLinearConv") == layers
    assert kinds.count("QuantizeLinear") == 1
    assert {n.op_type for n in proof.nodes if n.runs not in ("integer", "moves int8", "conversion")} <= {"SpaceToDepth"}


@pytest.mark.parametrize("form", FORMATS)
def test_minilm_runs_as_planned(form: str, tmp_path: Path) -> None:
    model = cached("minilm/minilm.onnx")
    feeds = [dict(np.load(path)) for path in sorted((model.parent / "calib").glob("*.npz"))[:8]]
    graph, _ = onnxq.quantize(model, feeds, Recipe(target="ort-cpu", format=form, effort="fast"))
    graph.save(tmp_path / "out.onnx")
    assert {i.domain for i in onnx.load(tmp_path / "out.onnx").opset_import} >= {""}
    proof = prove(tmp_path / "out.onnx", data=feeds[:1])
    assert not proof.lost
    kinds = [n.op_type for n in proof.nodes if n.runs == "integer"]
    attentions = kinds.count("QAttention")  # with three products each
    assert attentions == (6 if form == "qoperator" else 0)
    assert kinds.count("MatMulIntegerToFloat") == 36 - 3 * attentions
    assert onnxq.compare(model, graph, feeds[:2]).worst[0].sqnr_db > 12


def test_reduced_weights_have_seven_bits() -> None:
    graph, _, feeds = made(net("float[1,16,8,8] x", "y = Conv(x, w)", w=W), Recipe(target="ort-cpu", reduce_range=True))
    codes = graph.const(graph.weights["w_quantized"])
    assert codes is not None
    assert np.abs(codes).max() == 64
    assert 30 < sqnr_db(run(net("float[1,16,8,8] x", "y = Conv(x, w)", w=W), feeds[0])[0], run(graph, feeds[0])[0]) < 45


@pytest.mark.parametrize(
    "options", [{"reduce_range": True}, {"format": "qoperator"}, {"target": "ort-cpu", "high_precision": "fp16"}]
)
def test_what_only_one_target_has_is_refused_elsewhere(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="ort-cpu"):
        Recipe(**options)  # type: ignore[arg-type]  # the fields differ
