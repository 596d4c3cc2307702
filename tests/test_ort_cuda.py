"""Target ort-cuda, and the modes dynamic and weight-only, on real models: kernels by the table, numbers by the CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of
from optimized import operators
from real_models import DIGITS, cached

import onnxq
from onnxq import api
from onnxq.blocks import stored_bytes
from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.numerics import sqnr_db
from onnxq.runtime import Session

if TYPE_CHECKING:
    import numpy.typing as npt


CUDA = onnxq.Recipe(target="ort-cuda", effort="fast")
BERT = "input_ids:1x16,attention_mask:1x16,token_type_ids:1x16"


def has_kernels(graph: Graph) -> float:
    """Assert that the table has a CUDA kernel for every node; the share of MACs on integers or narrow weights."""
    report = api.check(graph, "ort-cuda")
    assert [f for f in report.findings if f.severity != "I"] == []
    assert all(f.id == "C7" or "integers of shapes" in f.message for f in report.findings)
    summary = report.summary
    return sum(summary.share(kind) for kind in summary.macs if kind == "int8" or "narrow" in kind)


def counts(graph: Graph) -> Counter[str]:
    return Counter(n.op_type for n in graph.nodes)


@pytest.mark.parametrize("opset", [17, 19, 20, 21, 23, 25])
def test_products_are_integers_in_every_opset(opset: int) -> None:
    rng = np.random.default_rng(opset)
    weights = {name: (rng.normal(size=(64, 64)) / 8).astype(np.float32) for name in ("v", "w")}
    text = "(float[8,64] x) => (float[8,64] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }"
    model = graph_of(text, opset, **weights)
    feeds = [{"x": rng.normal(size=(8, 64)).astype(np.float32)} for _ in range(16)]
    graph, _ = onnxq.quantize(model, feeds, CUDA)
    assert counts(graph)["MatMulInteger"] == 2
    assert counts(graph)["DequantizeLinear"] == 0
    (error,) = onnxq.compare(model, graph, feeds).errors
    assert error.sqnr_db > 30


LOSING = {
    "Pad": "x = Pad(r, p) z = Slice(x, from, to, axis)",
    "Flatten": "x = Flatten<axis=2>(r) z = Reshape(x, shape)",
    "MaxPool": "z = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r)",
    "GlobalAveragePool": "x = GlobalAveragePool(r) z = Sub(r, x)",
    "ReduceMax": "x = ReduceMax(r, axis) z = Sub(r, x)",
    "ConstantOfShape": "s = Shape(r) x = ConstantOfShape(s) z = Add(r, x)",
    "Softplus": "z = Softplus(r)",
    "If": """c = ReduceSum<keepdims=0>(r) d = Greater(c, limit)
        z = If(d) <then_branch = t () => (b) { b = Sin(r) }, else_branch = e () => (b) { b = Flatten(r) }>""",
}
"""Operators that lose their kernels at some opset from 19 to 25, between products."""


@pytest.mark.parametrize(
    ("mode", "bits"), [("static", None), ("weight-only", None), ("weight-only", 4), ("float", None)]
)
@pytest.mark.parametrize("opset", [18, 19, 22, 23, 25])
@pytest.mark.parametrize("op", LOSING)
def test_every_node_has_a_kernel_in_every_opset(op: str, opset: int, mode: str, bits: int | None) -> None:
    graph, quality = between_products(LOSING[op], opset, mode, bits)
    assert has_kernels(graph) == (0 if mode == "float" else 1)
    assert graph.opset <= (21 if bits else 19)  # blocks are as of 21 where every node has a kernel there
    assert quality > (10 if bits else 25)


def test_what_keeps_a_late_opset_has_pairs_of_onnx_runtime() -> None:
    """RMSNormalization came with opset 23, from which on ONNX's pairs have no kernel."""
    graph, quality = between_products("z = RMSNormalization(r, ones)", 25, "weight-only")
    has_kernels(graph)
    assert graph.opset == 23
    assert quality > 25
    assert {n.domain for n in graph.nodes if n.op_type == "DequantizeLinear"} == {"com.microsoft"}


def between_products(nodes: str, opset: int, mode: str, bits: int | None = None) -> tuple[Graph, float]:
    """A model with the nodes between its two products, quantized in float16, and its SQNR in dB."""
    rng = np.random.default_rng(0)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "p": np.array([0, 0, 1, 0, 0, 0, 0, 0]),
        "from": np.array([1]),
        "to": np.array([17]),
        "axis": np.array([2]),
        "shape": np.array([1, 8, 16, 64]),
        "limit": np.array(0, np.float32),
        "ones": np.ones(64, np.float32),
    }
    used = {name: array for name, array in constants.items() if name in re.findall(r"\w+", nodes)}
    used |= {name: (rng.normal(size=(64, 64)) / 8).astype(np.float32) for name in ("v", "w")}
    text = f"(float[1,8,16,64] i) => (float[1,8,16,64] y) {{ m = MatMul(i, v) r = Relu(m) {nodes} y = MatMul(z, w) }}"
    model = graph_of(text, opset, **used)
    feeds = [{"i": rng.normal(size=(1, 8, 16, 64)).astype(np.float32)} for _ in range(8)]
    recipe = onnxq.Recipe(target="ort-cuda", effort="fast", mode=mode, weight_bits=bits, high_precision="fp16")
    graph, _ = onnxq.quantize(model, feeds if mode == "static" else None, recipe)
    (error,) = onnxq.compare(model, graph, feeds).errors
    return graph, error.sqnr_db


def test_digits() -> None:
    graph, plan = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", CUDA)
    has_kernels(graph)
    assert counts(graph)["MatMulInteger"] == 1  # one Gemm; its convolutions are float there
    assert sum(d.quantized for d in plan.decisions) == 1
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    logits = Session(graph.to_proto().SerializeToString()).run({"image": images})[0]
    assert (logits.argmax(1) == labels).mean() >= 0.98


def test_pointwise_convolutions_by_rule() -> None:
    rules = (onnxq.Rule(ops=("Conv",), quantize=True),)
    recipe = onnxq.Recipe(target="ort-cuda", high_precision="fp32", rules=rules, effort="fast")
    graph, _ = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", recipe)
    assert counts(graph)["MatMulInteger"] > 3
    (error,) = onnxq.compare(DIGITS / "digits.onnx", graph, DIGITS / "calib.npz").errors
    assert error.sqnr_db > 35
    assert {f.id for f in api.check(graph, "ort-cuda").findings} <= {"C4"}  # channels that are no multiple of 32


@pytest.mark.parametrize(
    ("name", "shapes", "share", "products"), [("bert_small", BERT, 0.99, 12), ("vit_small", "", 0.85, 12)]
)
def test_small_transformers(name: str, shapes: str, share: float, products: int) -> None:
    model = cached(f"{name}.onnx")
    recipe = onnxq.Recipe(target="ort-cuda", shapes=shapes, effort="fast")
    graph, _ = onnxq.quantize(model, "random:4", recipe)
    assert has_kernels(graph) >= share
    assert counts(graph)["MatMulInteger"] == products
    assert counts(graph)["DequantizeLinear"] == 0
    again = onnxq.Recipe(target="tensorrt@11", shapes=shapes, effort="fast")
    other, _ = onnxq.quantize(model, "random:4", again)
    ours, theirs = (onnxq.compare(model, g, "random:4", recipe).errors for g in (graph, other))
    for one, two in zip(ours, theirs, strict=True):
        assert one.sqnr_db > two.sqnr_db - 1.0  # the same grids but for attention and the Conv; table rows in int8


def minilm_tokens(model: Path | Graph) -> npt.NDArray[np.float64]:
    """Embeddings of the unmasked tokens of 64 queries."""
    session = Session(model.to_proto().SerializeToString() if isinstance(model, Graph) else model)
    with np.load(cached("minilm/eval/queries.npz")) as queries:
        feed = {name: queries[name][:64] for name in queries.files}
    hidden = session.run({name: feed[name] for name in session.inputs})[0]
    tokens: npt.NDArray[np.float64] = hidden[feed["attention_mask"] > 0].astype(np.float64)
    return tokens


def test_minilm_is_as_good_as_for_tensorrt() -> None:
    model = cached("minilm/minilm.onnx")
    reference = minilm_tokens(model)
    found = {}
    for target in ("ort-cuda", "tensorrt@10"):
        graph, _ = onnxq.quantize(
            model, cached("minilm/calib"), onnxq.Recipe(target=target, effort="fast", max_samples=24)
        )
        found[target] = sqnr_db(reference, minilm_tokens(graph))
        if target == "ort-cuda":
            assert has_kernels(graph) == pytest.approx(1.0, abs=1e-3)
            assert counts(graph)["MatMulInteger"] == 36
            assert counts(graph)["GatherBlockQuantized"] == 2
    assert found["ort-cuda"] >= found["tensorrt@10"] - 0.3


@pytest.mark.parametrize(
    ("choices", "floor"),
    [
        ({"target": "ort-cuda"}, 25),
        ({"target": "ort-cuda", "block_size": 32}, 27),
        ({"target": "ort-cuda", "weight_bits": 4}, 5),
        ({"target": "ort-cpu", "block_size": 64}, 25),
        ({"target": "tensorrt@10", "weight_bits": 4, "block_size": 32}, 5),
    ],
)
def test_weight_only(choices: dict[str, object], floor: float, tmp_path: Path) -> None:
    model = cached("bert_small.onnx")
    recipe = onnxq.Recipe(mode="weight-only", shapes=BERT, **choices)  # type: ignore[arg-type]  # the fields by name
    graph, plan = onnxq.quantize(model, None, recipe)
    assert len([d for d in plan.decisions if d.quantized and d.op_type == "MatMul"]) == 12
    if recipe.target.startswith("ort"):
        assert operators(graph).count("MatMulNBits") == 12
    if recipe.target == "ort-cuda":
        assert has_kernels(graph) > 0.99
    assert all(e.sqnr_db > floor for e in onnxq.compare(model, graph, "random:4", recipe).errors)
    promised = sum(promise(graph, w.tensor, w.bits, w.block_size) for w in plan.weights if w.axis is not None)
    stored = [v for n, v in graph.weights.items() if n.endswith(("_quantized", "_scale", "_zero_point", "_float16"))]
    narrow = {id(v) for n in graph.nodes if n.op_type == "DequantizeLinear" for v in n.inputs}
    assert sum(v.const_value.nbytes for v in stored if id(v) in narrow and v.const_value is not None) == promised
    api.export(graph, tmp_path / "out.onnx")


def promise(graph: Graph, tensor: str, bits: int, size: int | None) -> int:
    """Bytes that a weight, its scales and its zero points take by the formula."""
    k, n = graph.shape(graph.weights[f"{tensor}_quantized"]) or (0, 0)
    assert isinstance(k, int)
    assert isinstance(n, int)
    node = next(
        n
        for n in graph.nodes
        if n.op_type == "DequantizeLinear" and n.inputs[0] is graph.weights[f"{tensor}_quantized"]
    )
    half = graph.dtype(node.inputs[1]) == "float16"
    return stored_bytes(k, n, bits, size, 2 if half else 4)


def test_dynamic() -> None:
    model = cached("bert_small.onnx")
    recipe = onnxq.Recipe(target="ort-cpu", mode="dynamic", shapes=BERT)
    graph, plan = onnxq.quantize(model, None, recipe)
    assert sum(d.quantized for d in plan.decisions) == counts(graph)["MatMulInteger"] > 0
    fused = Counter(operators(graph))
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == counts(graph)["MatMulInteger"]
    assert all(e.sqnr_db > 20 for e in onnxq.compare(model, graph, "random:4", recipe).errors)


def test_without_data_the_products_read_narrow_weights() -> None:
    graph, _ = onnxq.quantize(cached("bert_small.onnx"), None, CUDA)
    assert has_kernels(graph) > 0.99
    assert counts(graph)["MatMulInteger"] == 0


def test_a_model_of_convolutions_says_why_there_is_nothing_to_do() -> None:
    with pytest.raises(ModelError, match="nothing to quantize") as found:
        onnxq.quantize(cached("resnet_small.onnx"), "random:1", CUDA)
    assert "no integer convolution" in found.value.hint


def test_the_measurement_says_that_there_is_no_gpu() -> None:
    """Here there is none, or the script would take minutes: then it is asked for its options only."""
    script = str(DIGITS.parents[1] / "scripts" / "bench_gpu.py")
    options = ["--help"] if Path("/dev/nvidia0").exists() else []
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert options or done.stdout.startswith("nothing measured: ")
