"""The oldest ONNX Runtime that reads a model; the versions themselves were seen with wheels, see the module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime  # noqa: TID251  the oracle
import pytest
from graphs import graph_of

from onnxq import ModelError, api, proving, runtime
from onnxq.intake import load
from onnxq.monitor import SILENT
from onnxq.recipe import Recipe
from onnxq.targets.oldest import oldest_runtime

if TYPE_CHECKING:
    from pathlib import Path

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"


@pytest.mark.parametrize(
    ("opset", "oldest"), [(13, (1, 17)), (20, (1, 17)), (21, (1, 18)), (22, (1, 21)), (23, (1, 23)), (25, (1, 24))]
)
def test_the_opset_decides(opset: int, oldest: tuple[int, int]) -> None:
    assert oldest_runtime(graph_of(RELU, opset)) == oldest


def test_tables_in_bytes_decide() -> None:
    table = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    graph = graph_of("(int64[4] i) => (float[4,256] y) { y = Gather(w, i) }", 17, w=table)
    assert oldest_runtime(graph) == (1, 17)
    quantized, _ = api.quantize(graph, None, Recipe(target="ort-cpu", mode="weight-only"), SILENT)
    assert "GatherBlockQuantized" in {n.op_type for n in quantized.nodes}
    assert oldest_runtime(quantized) == (1, 23)


@pytest.mark.parametrize(
    ("weights", "oldest"),
    [("int8/channel", (1, 17)), ("int8/block:32", (1, 19)), ("int4/block:32", (1, 19)), ("nf4/block:64", (1, 23))],
)
def test_codes_in_four_bits_and_blocks_decide(weights: str, oldest: tuple[int, int]) -> None:
    w = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    graph = graph_of("(float[4,256] x) => (float[4,256] y) { y = MatMul(x, w) }", 17, w=w)
    recipe = Recipe(target="ort-cpu", mode="weight-only", weights=weights)
    assert oldest_runtime(api.quantize(graph, None, recipe, SILENT)[0]) == oldest


@pytest.mark.parametrize(
    ("inputs", "heads", "oldest"),
    [("q, k, v", 1, (1, 17)), ("q, k, v, , , m", 1, (1, 20)), ("q, k, v, , , m", 2, (1, 17))],
)
def test_masks_of_attentions_decide(inputs: str, heads: int, oldest: tuple[int, int]) -> None:
    made = f"y = com.microsoft.MultiHeadAttention<num_heads=2>({inputs})"
    text = f"(float[1,3,4] q, float[1,3,4] k, float[1,3,4] v, float[1,{heads},3,3] m) => (float[1,3,4] y) {{ {made} }}"
    assert oldest_runtime(graph_of(text, 17)) == oldest


def test_a_mask_of_unknown_shape_may_be_the_same_for_all_heads() -> None:
    made = "y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, , , n)"
    text = f"(float[1,3,4] q, float[1,3,4] k, float[1,3,4] v, float m) => (float[1,3,4] y) {{ n = Exp(m) {made} }}"
    graph = graph_of(text, 17)
    assert graph.shape(next(n.outputs[0] for n in graph.nodes if n.op_type == "Exp")) is None
    assert oldest_runtime(graph) == (1, 20)


def test_the_installed_one_is_told() -> None:
    assert runtime.version() == tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def test_a_model_that_is_too_new_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "version", lambda: (1, 20))
    with pytest.raises(ModelError, match=r"needs ONNX Runtime 1\.21 or later, and this is 1\.20"):
        proving.prove(graph_of(RELU, 22))
    assert proving.prove(graph_of(RELU, 21)).nodes


@pytest.mark.parametrize("place", ["model", "reference"])
def test_a_file_in_a_format_too_new_is_refused_by_its_name(place: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.onnx" for name in ("model", "reference")}
    for name, path in files.items():
        proto = graph_of(RELU).to_proto()
        proto.ir_version = 99 if name == place else 8
        path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=rf"{place}\.onnx is in version 99 of ONNX's file format"):
        proving.prove(files["model"], reference=files["reference"])
    assert not runtime.reads_format(99)
    assert runtime.reads_format(8)
    assert proving.prove(load(files[place])).nodes  # in memory it has the version that is written


def test_a_file_that_runs_is_not_parsed_for_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "read", lambda path: pytest.fail(f"{path} is parsed once more"))
    for name in ("model", "reference"):
        graph_of(RELU).save(tmp_path / f"{name}.onnx")
    assert proving.prove(tmp_path / "model.onnx", reference=tmp_path / "reference.onnx").nodes
