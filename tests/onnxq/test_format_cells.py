"""Every cell of the table that a runtime was seen to run: numpy's values, ONNX Runtime's, onnx's reference; sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph_of, random_feeds, run
from onnx.reference import ReferenceEvaluator
from placing import net

from onnxq import api, files
from onnxq.cli import main
from onnxq.comparison import compare_graphs
from onnxq.data import input_specs, open_source
from onnxq.errors import OnnxqError
from onnxq.formats import KINDS, Cell, Format, cells
from onnxq.formats.families import FAMILIES, decode, encode
from onnxq.passes.narrow_weights import NarrowWeights
from onnxq.plan import Plan, WeightPoint
from onnxq.recipe import Recipe, Rule

STORED = [c for c in cells() if c.role == "weights" and not c.reason and c.format.type in FAMILIES]
WEIGHTS = [c for c in STORED if c.target == "ort-cpu"]
MORE = [Format.parse(t) for t in ("nf4+double", "fp4/block:16+double", "int4/block:16+pow2", "int8/channel+pow2")]


@pytest.mark.parametrize("rows", [64, 44])
@pytest.mark.parametrize("format_", [*(c.format for c in WEIGHTS), *MORE], ids=str)
def test_runtimes_compute_what_numpy_does(format_: Format, rows: int) -> None:
    w = np.random.default_rng(rows).normal(size=(rows, 24)).astype(np.float32)
    graph = graph_of(f"(float[{rows}, {rows}] x) => (float[{rows}, 24] y) {{ y = MatMul(x, w) }}", 25, w=w)
    point = WeightPoint("w", ((str(graph.nodes[0].name), 1),), 1, format_)
    assert NarrowWeights(Plan("ort-cpu", {}, (point,), ()))(graph) == 1
    graph.remove_unused()
    expected = decode(encode(w, format_))
    proto = graph.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    identity = np.eye(rows, dtype=np.float32)
    np.testing.assert_allclose(run(graph, {"x": identity})[0], expected, rtol=2e-6, atol=1e-7)
    reference: Any = ReferenceEvaluator(proto).run(None, {"x": identity})
    np.testing.assert_allclose(reference[0], expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("cell", [c for c in STORED if c.target != "tensorrt@8"], ids=str)  # it keeps float weights
def test_the_file_has_the_promised_size_and_runs(cell: Cell, tmp_path: Path) -> None:
    graph = net("float[N,256] x", "h = MatMul(x, w) r = Relu(h) y = Gemm<transB=1>(r, v)", w=(256, 128), v=(64, 128))
    recipe = Recipe(target=cell.target, weights=str(cell.format), activations="float", high_precision="fp32")
    quantized, plan = api.quantize(graph, None, recipe)
    assert [str(w.format) for w in plan.weights] == [str(cell.format)] * 2
    assert quantized.opset == max(17, cell.opset)
    path = tmp_path / "q.onnx"
    api.export(quantized, path)
    promised = sum(
        encode(m, cell.format).bits_per_weight() * m.size / 8
        for m in (graph.const(graph.weights["w"]), np.asarray(graph.const(graph.weights["v"])).T)
        if m is not None
    )
    assert promised <= path.stat().st_size <= promised + 6000  # names and nodes
    feeds = random_feeds(graph, N=5)
    if cell.opset == 23:  # float4, which ONNX Runtime does not read
        (found,) = np.asarray(ReferenceEvaluator(str(path)).run(None, feeds))
    else:
        (found,) = run(files.load(path), feeds)
    assert np.isfinite(found).all()
    noise = float(np.square(found - run(graph, feeds)[0]).mean() / np.square(found).mean())
    assert noise < {1: 1.5, 2: 0.6, 4: 0.15}.get(KINDS[cell.format.type].bits, 0.01)


@pytest.mark.parametrize("text", ["int2/block:32", "int2/channel", "ternary/block:16", "ternary/channel"])
def test_two_bits_keep_to_columns_that_runtimes_read_rightly(text: str) -> None:
    graph = net("float[N,64] x", "h = MatMul(x, w) y = Gemm<transB=1>(h, v)", w=(64, 36), v=(10, 36))
    quantized, plan = api.quantize(graph, None, Recipe(target="ort-cpu", weights=text))
    first, second = plan.decisions
    assert first.quantized
    assert "10 columns" in second.reason
    feeds = random_feeds(graph, N=5)
    expected: Any = ReferenceEvaluator(quantized.to_proto()).run(None, feeds)
    found, real = run(quantized, feeds)[0], expected[0]
    assert np.square(found - real).mean() < 1e-3 * np.square(real).mean()  # MatMulNBits rounds its input to 8 bits


@pytest.mark.parametrize("text", ["nf4/block:32", "binary", "mxfp8", "log4/channel"])
def test_convolutions_too_where_the_runtime_computes_the_weight_once(text: str) -> None:
    graph = net(
        "float[N,16,8,8] x",
        "h = Conv(x, w, b) r = Relu(h) y = Conv<group=4>(r, v)",
        w=(24, 16, 3, 3),
        b=(24,),
        v=(8, 6, 1, 1),
    )
    quantized, plan = api.quantize(graph, None, Recipe(target="ort-cpu", weights=text))
    assert [d.quantized for d in plan.decisions] == [True, False, True]
    held = {name: graph.const(graph.weights[name]) for name in "wv"}
    for name, array in held.items():
        assert array is not None
        matrix = decode(encode(array.reshape(len(array), -1).T, Format.parse(text)))
        graph.replace_uses(
            graph.weights[name], graph.constant(f"{name}_back", matrix.T.reshape(array.shape).astype(np.float32))
        )
    feeds = random_feeds(graph, N=2)
    np.testing.assert_allclose(run(quantized, feeds)[0], run(graph, feeds)[0], rtol=1e-4, atol=1e-4)


def test_convolutions_in_integers_only_where_a_rule_asks() -> None:
    graph = net("float[N,16,8,8] x", "y = Conv(x, w)", w=(24, 16, 3, 3))
    with pytest.raises(OnnxqError, match="nothing to quantize"):
        api.quantize(graph, None, Recipe(target="ort-cpu", weights="int4/block:16"))
    rules = (Rule(ops=("Conv",), quantize=True),)
    quantized, plan = api.quantize(graph, None, Recipe(target="ort-cpu", weights="int4/block:16", rules=rules))
    assert str(plan.weights[0].format) == "int4/block:16"
    feeds = random_feeds(graph, N=2)
    assert np.corrcoef(run(quantized, feeds)[0].ravel(), run(graph, feeds)[0].ravel())[0, 1] > 0.98
    with pytest.raises(OnnxqError, match="nothing to quantize"):
        api.quantize(graph, None, Recipe(target="tensorrt", weights="int4/block:16"))


DIGITS = Path(__file__).parents[2] / "models" / "digits"


@pytest.mark.parametrize("text", ["nf4/block:64+double", "uint4/block:32", "binary", "mxfp4", "fp8e4m3/channel"])
def test_from_the_command_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "q.onnx"
    command = f"quantize {DIGITS}/digits.onnx -q --target ort-cpu --weights {text} --activations float -o {output}"
    monkeypatch.setattr("sys.argv", ["onnxq", *command.split()])
    main()
    float_model, quantized = files.load(DIGITS / "digits.onnx"), files.load(output)
    data = open_source(DIGITS / "calib.npz", input_specs(float_model), max_samples=16)
    assert compare_graphs(float_model, quantized, data).outputs[0].sqnr_db > (-1 if text == "binary" else 15)


@pytest.mark.parametrize("text", ["nf4/block:32", "fp4/block:64", "nf4/block:64+double"])
def test_operators_compute_the_same(text: str) -> None:
    graph = net(
        "float[N,64] x", "h = MatMul(x, w) r = Relu(h) y = Gemm<transB=1>(r, v, c)", w=(64, 96), v=(32, 96), c=(32,)
    )
    plain, _ = api.quantize(graph, None, Recipe(target="ort-cpu", weights=text))
    fused, _ = api.quantize(graph, None, Recipe(target="ort-cpu", weights=text, format="qoperator"))
    # 96 rows are no multiple of 64, and blocks of MatMulBnb4 would run on into the next column
    whole = 2 if "32" in text else 1
    assert sum(n.op_type == "MatMulBnb4" for n in fused.nodes) == whole
    feeds = random_feeds(graph, N=3)
    np.testing.assert_allclose(run(fused, feeds)[0], run(plain, feeds)[0], rtol=1e-4, atol=1e-5)


def test_a_rule_mixes_formats() -> None:
    graph = net("float[N,64] x", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", w=(64, 128), v=(128, 32))
    recipe = Recipe(target="ort-cpu", weights="nf4", rules=(Rule("*:y", weights="int8/channel"),))
    quantized, _ = api.quantize(graph, None, recipe)
    kinds = {quantized.dtype(v) for v in quantized.weights.values()}
    assert {"uint4", "int8"} <= kinds
    feeds = random_feeds(graph, N=3)
    assert np.corrcoef(run(quantized, feeds)[0].ravel(), run(graph, feeds)[0].ravel())[0, 1] > 0.98
