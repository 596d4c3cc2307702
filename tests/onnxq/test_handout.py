from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph_of

from onnxq import Recipe, api
from onnxq.errors import ModelError
from onnxq.handout import scales
from onnxq.intake import load

TORCH = Path(__file__).parents[1] / "data" / "qat_torch.onnx"


def test_what_training_left() -> None:
    found = scales(load(TORCH))["tensors"]
    learned = {str(i.name): onnx.numpy_helper.to_array(i) for i in onnx.load(TORCH).graph.initializer}
    weight = found["c1.weight"]
    assert (weight["kind"], weight["axis"], weight["dtype"]) == ("weight", 0, "int8")
    np.testing.assert_array_equal(np.float32(weight["scale"]), learned["w.0.scale"])
    image = found["image"]
    assert (image["kind"], image["axis"], image["dtype"]) == ("activation", None, "uint8")
    assert np.float32(image["scale"][0]) == learned["a.0.scale"][0]
    reach = max(image["zero_point"][0], 255 - image["zero_point"][0]) * image["scale"][0]
    assert image["amax"] == [pytest.approx(reach)]


def test_what_onnxq_wrote(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    graph = graph_of("(float[4,32] x) => (float[4,32] y) { y = MatMul(x, w) }", 17, w=w)
    quantized, plan = api.quantize(graph, [{"x": w[:4]}], Recipe(effort="fast"))
    quantized.save(tmp_path / "q.onnx")
    command = [sys.executable, "-m", "onnxq.cli", "export-scales", str(tmp_path / "q.onnx"), "-o", str(tmp_path / "s")]
    code = "import sys; from onnxq.cli import main; sys.argv = sys.argv[1:]; main()"
    done = subprocess.run([sys.executable, "-c", code, *command[2:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s").read_text())["tensors"]
    assert sorted(found) == ["w", "x"]
    np.testing.assert_allclose(found["w"]["amax"], np.abs(w).max(axis=0), rtol=2e-3)  # scales in float16
    params = plan.points["x"].params
    assert params is not None
    np.testing.assert_allclose(found["x"]["scale"], params.scale, rtol=1e-3)


@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_factors_between_dequantizers_are_taken_back(form: str) -> None:
    """A weight too small for float16's scales lends from its input's, and a factor behind a pair goes into its DQ."""
    rng = np.random.default_rng(0)
    w = (1e-4 * rng.normal(size=(32, 32))).astype(np.float16)
    apart = "s = SequenceConstruct(x) n = SequenceLength(s)"  # keeps the model in float16 meanwhile
    graph = graph_of(f"(float16[4,32] x) => (float16[4,32] y, int64 n) {{ y = MatMul(x, w) {apart} }}", 17, w=w)
    x = rng.normal(size=(4, 32)).astype(np.float16)
    quantized, _ = api.quantize(graph, [{"x": x}], Recipe(effort="fast", calibrator="minmax", weight_form=form))
    found = scales(quantized)["tensors"]
    assert sorted(found) == ["w", "x"]
    np.testing.assert_allclose(found["w"]["amax"], np.abs(w).max(axis=0).astype(float), rtol=2e-3)
    np.testing.assert_allclose(found["x"]["amax"], [float(np.abs(x).max())], rtol=2e-3)
    text = """(float[4,32] x) => (float[4,32] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, half, z) v = DequantizeLinear(c, s, z) y = MatMul(d, v) }"""
    steps: dict[str, Any] = {
        "s": np.float32(0.5),
        "half": np.float32(0.25),
        "z": np.int8(0),
        "c": np.ones((32, 32), np.int8),
    }
    found = scales(graph_of(text, 17, **steps))["tensors"]
    assert {name: said["scale"] for name, said in found.items()} == {"c": [0.5], "x": [0.5]}


def test_a_float_model_has_none() -> None:
    graph = graph_of("(float[4] x) => (float[4] y) { y = Relu(x) }", 17)
    with pytest.raises(ModelError, match="no Q/DQ pairs"):
        scales(graph)
