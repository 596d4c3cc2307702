"""The version of the file format: what keeps its own first, then which it is, then the files that onnxq writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import graph_of
from onnx import TensorProto, helper, parser

from onnxq import api
from onnxq.graph import Graph
from onnxq.monitor import SILENT
from onnxq.passes.lower_ir_version import lower_ir_version
from onnxq.recipe import Recipe
from onnxq.targets.oldest import oldest_runtime

if TYPE_CHECKING:
    from pathlib import Path

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"


def model_of(ir_version: int, remark: str = "") -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17]> g {RELU}')
    holders = {"node": model.graph.node, "input": model.graph.input, "graph": [model.graph], "model": [model]}
    if remark:
        holders[remark][0].metadata_props.add(key="k", value="v")
    return model


@pytest.mark.parametrize(
    ("ir_version", "remark"), [(8, ""), (8, "node"), (8, "graph"), (10, "node"), (10, "input"), (10, "graph")]
)
def test_left_alone(ir_version: int, remark: str) -> None:
    graph = Graph.from_proto(model_of(ir_version, remark))
    assert lower_ir_version(graph) == 0
    assert graph.model.ir_version == ir_version


@pytest.mark.parametrize(("ir_version", "remark"), [(10, ""), (13, ""), (10, "model")])
def test_a_model_that_says_more_than_it_holds(ir_version: int, remark: str) -> None:
    graph = Graph.from_proto(model_of(8, remark))
    graph.model.ir_version = ir_version
    assert lower_ir_version(graph) == 1
    assert graph.model.ir_version == 8


@pytest.mark.parametrize("opset", range(13, 26))
def test_the_opset_needs_what_onnx_says(opset: int) -> None:
    graph = graph_of(RELU, opset)
    graph.model.ir_version = 99
    lower_ir_version(graph)
    assert graph.model.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


NEW = {
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 9),
    **dict.fromkeys(("UINT4", "INT4"), 10),
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    **dict.fromkeys(("UINT2", "INT2"), 13),
}
"""By the comments beside the versions in onnx.proto."""


@pytest.mark.parametrize("name", [n for n in TensorProto.DataType.keys() if n in NEW or not n.startswith("FLOAT6")])  # noqa: SIM118
def test_an_element_type_needs_its_version(name: str) -> None:
    if name in ("UNDEFINED", "COMPLEX64", "COMPLEX128", "STRING"):
        return
    kind = TensorProto.DataType.Value(name)
    tensor = helper.make_tensor("w", kind, [4], np.ones(4))
    x = helper.make_tensor_value_info("x", kind, [4])
    node = helper.make_node("Own", ["x", "w"], ["y"], domain="own")
    ends = [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    model = helper.make_model(
        helper.make_graph([node], "g", *ends, [tensor]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    graph = Graph.from_proto(model)
    lower_ir_version(graph)
    assert graph.model.ir_version == NEW.get(name, 8)


@pytest.mark.parametrize(
    ("recipe", "opset", "ir_version"),
    [
        (Recipe(target="ort-cuda", mode="float"), 25, 8),  # of an opset that is lowered to 18
        (Recipe(target="ort-cpu", mode="weight-only"), 17, 8),
        (Recipe(target="ort-cpu", mode="weight-only", weights="int4/block:32"), 17, 10),
        (Recipe(target="tensorrt@11", mode="weight-only", weights="nvfp4"), 17, 11),
        (Recipe(target="tensorrt@8", mode="weight-only"), 13, 7),
    ],
)
def test_what_is_written(recipe: Recipe, opset: int, ir_version: int, tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    model = graph_of("(float[4,128] x) => (float[4,128] y) { y = MatMul(x, w) }", opset, w=w).to_proto()
    model.ir_version = 13
    graph, _ = api.quantize(model, None, recipe, SILENT)
    api.export(graph, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version == ir_version
    if ir_version < 10:
        assert oldest_runtime(graph) == (1, 17)
