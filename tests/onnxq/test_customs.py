"""Custom operators: left alone, quantized around; calibrated with their library, or without where that suffices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of
from onnx import helper, numpy_helper, parser

from onnxq import api, files
from onnxq.checks import check
from onnxq.collect import collect, learn_types
from onnxq.customs import behind_customs, custom_nodes, is_custom, listed, needs_stand_in, stand_in
from onnxq.data import input_specs, open_source
from onnxq.errors import ModelError, RecipeError
from onnxq.graph import Graph
from onnxq.monitor import Monitor
from onnxq.recipe import Recipe
from onnxq.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

extensions = pytest.importorskip("onnxruntime_extensions")
LIBRARY = extensions.get_library_path()
RNG = np.random.default_rng(3)
W = np.asarray(RNG.normal(size=(32, 32)) / 6, np.float32)
FEEDS = [{"x": np.asarray(RNG.normal(size=(4, 32)), np.float32)} for _ in range(4)]
HEAD = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.contrib" : 1, "com.microsoft" : 1]>'

# NegPos parts a tensor into min(x, 0) and max(x, 0): the library's numbers have an oracle in numpy.
BETWEEN = "n = MatMul(x, w) a, b = ai.onnx.contrib.NegPos(n) s = Sub(b, a) y = MatMul(s, w)"
AT_END = "n = MatMul(x, w) r = Relu(n) y = MatMul(r, w) d, e = EfficientNMS_TRT(y, r)"
BOTH = "tensorrt@10", "tensorrt@11"


def model(body: str, outputs: str = "float[4,32] y", head: str = HEAD) -> onnx.ModelProto:
    proto = parser.parse_model(f"{head} g (float[4,32] x) => ({outputs}) {{ {body} }}")
    proto.graph.initializer.append(numpy_helper.from_array(W, "w"))
    return proto


def nms(head: str = HEAD, domain: str = "") -> onnx.ModelProto:
    """A detector as exported for TensorRT: its last node is a plugin, in whatever domain."""
    proto = model(AT_END, "float[4,32] y, int32[n] d, float[n] e", head)
    proto.graph.node[-1].domain = domain
    return proto


def between(x: Array) -> Array:
    n = x @ W
    return np.abs(n) @ W


# --- what is custom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "domain", "custom"),
    [
        ("Conv", "", False),
        ("Conv", "ai.onnx", False),
        ("TreeEnsemble", "ai.onnx.ml", False),
        ("Adam", "ai.onnx.preview.training", False),
        ("Anything", "ai.onnx.training", False),
        ("Gelu", "com.microsoft", False),
        ("Conv", "com.microsoft.nchwc", False),
        ("EfficientNMS_TRT", "", True),
        ("EfficientNMS_TRT", "trt.plugins", True),
        ("NegPos", "ai.onnx.contrib", True),
        ("Conv", "mine", True),
    ],
)
def test_what_is_custom(op: str, domain: str, custom: bool) -> None:
    assert is_custom(op, domain) == custom


def test_local_functions_are_not_custom() -> None:
    head = HEAD.replace('"" : 17', '"" : 17, "own" : 1')
    text = f"""{head} g (float[4,32] x) => (float[4,32] y) {{ y = own.twice(x) }}
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) {{ b = Add(a, a) }}"""
    proto = parser.parse_model(text)
    assert custom_nodes(Graph.from_proto(proto)) == ()
    assert stand_in(proto) == 0
    assert not [f for f in check(proto).findings if f.id == "P34"]


def test_nodes_in_bodies_count() -> None:
    text = """(float[4] x, bool c) => (float[4] y) { z = If(c) <then_branch = t () => (float[4] p) { p = Mystery(x) },
              else_branch = e () => (float[4] q) { q = Relu(x) }> r = Relu(x) y = Add(z, r) }"""
    graph = graph_of(text)
    assert [node.op_type for node in custom_nodes(graph)] == ["Mystery"]
    assert behind_customs(graph) == {"z", "y"}
    assert needs_stand_in(graph)


def test_nodes_are_listed_by_operator_and_domain() -> None:
    graph = graph_of("(float[4] x) => (float[4] y) { a = P(x) b = P(a) c = P(b) d = P(c) y = Q(d) }")
    assert listed(graph.nodes) == "P of the default domain (P:a, P:b, P:c and 1 more); Q of the default domain (Q:y)"


# --- in the middle: the library is needed --------------------------------------------------------------------


@pytest.mark.parametrize("target", BOTH)
def test_a_model_is_quantized_around_them_with_their_library(target: str) -> None:
    recipe = Recipe(target=target, custom_ops=LIBRARY)
    graph, plan = api.quantize(model(BETWEEN), FEEDS, recipe)
    assert {point.tensor for point in plan.points.values()} == {"x", "s"}
    (custom,) = custom_nodes(graph)
    assert graph.producer(custom.inputs[0], "DequantizeLinear") is None
    assert any("NegPos of ai.onnx.contrib" in note for note in plan.notes)
    assert next(d.reason for d in plan.decisions if d.op_type == "NegPos") == "custom operator (ai.onnx.contrib)"
    proto = graph.to_proto()
    assert not [f for f in check(proto, target).findings if f.severity == "E"]
    (got,) = Session(proto.SerializeToString(), as_written=True, custom_ops=(LIBRARY,)).run(FEEDS[0], ("y",))
    want = between(FEEDS[0]["x"])
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()
    found = api.compare(model(BETWEEN), graph, FEEDS, recipe)
    assert 25 < found.worst[0].sqnr_db < 60


def test_what_is_observed_is_what_the_library_computes() -> None:
    seen = api.calibrate(model(BETWEEN), FEEDS, Recipe(target="tensorrt@10", custom_ops=LIBRARY))
    largest = max(float(np.abs(feed["x"] @ W).max()) for feed in FEEDS)
    assert seen.tensors["s"].amax == pytest.approx(largest, rel=1e-5)


def test_libraries_tell_types() -> None:
    graph = Graph.from_proto(model(BETWEEN))
    graph.infer_shapes()
    kinds = {name: graph.dtype(graph.find(name)) for name in "abs"}
    assert kinds == {"a": None, "b": None, "s": None}
    assert learn_types(graph, (LIBRARY,)) == 2
    assert graph.dtype(graph.find("a")) == graph.dtype(graph.find("b")) == "float32"
    assert learn_types(graph, (LIBRARY,)) == 0
    graph.infer_shapes()
    assert graph.dtype(graph.find("s")) == "float32"


def test_half_precision_stops_at_them() -> None:
    graph, _ = api.quantize(model(BETWEEN), FEEDS, Recipe(target="tensorrt@11", custom_ops=LIBRARY))
    (custom,) = custom_nodes(graph)
    assert graph.dtype(custom.inputs[0]) == "float32"
    (sub,) = [node for node in graph.nodes if node.op_type == "Sub"]
    assert {graph.dtype(v) for v in (*sub.inputs, *sub.outputs)} == {"float16"}


def test_without_the_library_the_error_names_what_is_missing() -> None:
    with pytest.raises(ModelError) as error:
        api.quantize(model(BETWEEN), FEEDS)
    assert "NegPos of ai.onnx.contrib (NegPos:a)" in error.value.message
    assert "'s'" in error.value.message
    assert "--custom-ops" in error.value.hint


def test_weights_alone_need_no_library() -> None:
    graph, plan = api.quantize(model(BETWEEN), None)
    assert len(plan.weights) == 1
    assert [node.op_type for node in custom_nodes(graph)] == ["NegPos"]


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "no.so").write_text("no library")
    with pytest.raises(RecipeError, match=r"no\.so cannot be loaded"):
        api.quantize(model(BETWEEN), FEEDS, Recipe(custom_ops=str(tmp_path / "no.so")))


def test_a_library_in_this_folder_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libops.so").symlink_to(LIBRARY)
    monkeypatch.chdir(tmp_path)
    _, plan = api.quantize(model(BETWEEN), FEEDS, Recipe(custom_ops="libops.so"))
    assert {point.tensor for point in plan.points.values()} == {"x", "s"}


def test_several_libraries_are_named_in_one_text() -> None:
    assert Recipe(custom_ops="a.so, b.so,").custom_op_list == ("a.so", "b.so")
    assert Recipe().custom_op_list == ()


# --- at the end: the library is not needed -------------------------------------------------------------------

IMPORTED = HEAD.replace('"" : 17', '"" : 17, "trt.plugins" : 1')
PLUGINS = pytest.mark.parametrize(
    ("head", "domain"), [(HEAD, ""), (IMPORTED, "trt.plugins"), (HEAD, "trt.plugins"), (HEAD.replace("17", "11"), "")]
)


@PLUGINS
@pytest.mark.parametrize("target", BOTH)
def test_plugins_at_the_end_are_cut_off(head: str, domain: str, target: str, tmp_path: Path) -> None:
    warned: list[str] = []
    graph, plan = api.quantize(nms(head, domain), FEEDS, Recipe(target=target), Monitor(warn=warned.append))
    assert set(plan.points) == {"x", "r"}
    assert any("EfficientNMS_TRT" in text for text in warned)
    assert any("calibrating without the custom operators" in text for text in warned)
    (plugin,) = custom_nodes(graph)
    assert (plugin.op_type, plugin.domain) == ("EfficientNMS_TRT", domain)
    assert {graph.dtype(v) for v in plugin.inputs} == {"float32"}  # the plugin's own type, not the pairs'
    assert all(graph.producer(v, "DequantizeLinear") is None for v in plugin.inputs)
    (written,) = files.save(graph, tmp_path / "out.onnx", check=True)
    assert listing(tmp_path) == {"out.onnx"}
    saved = onnx.load(written)
    assert [(n.op_type, n.domain) for n in saved.graph.node if "NMS" in n.op_type] == [("EfficientNMS_TRT", domain)]
    assert not [f for f in check(saved, target).findings if f.severity == "E"]
    found = api.compare(nms(head, domain), graph, FEEDS)
    assert [error.tensor for error in found.errors] == ["y"]  # d and e are the plugin's
    assert 25 < found.worst[0].sqnr_db < 60


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("external_bytes", [0, 1 << 30])
def test_the_checker_still_checks_the_rest(external_bytes: int, tmp_path: Path) -> None:
    graph = Graph.from_proto(nms())
    files.save(graph, tmp_path / "good.onnx", check=True, external_bytes=external_bytes)
    graph.set_attribute(graph.nodes[1], "slope", 0.5)  # Relu has none
    with pytest.raises(ModelError, match="slope"):
        files.save(graph, tmp_path / "bad.onnx", check=True, external_bytes=external_bytes)
    assert not (tmp_path / "bad.onnx").exists()


def test_the_digest_of_a_plan_does_not_see_the_stand_in() -> None:
    proto = nms()
    before = proto.SerializeToString()
    api.make_plan(proto)
    assert proto.SerializeToString() == before


def test_inputs_alone_are_observed_before_a_plugin() -> None:
    body = "y = MatMul(x, w) d, e = EfficientNMS_TRT(y, y)"
    seen = api.calibrate(model(body, "float[4,32] y, int32[n] d, float[n] e"), FEEDS, Recipe(target="tensorrt@10"))
    assert set(seen.tensors) == {"x"}
    graph = Graph.from_proto(model("d, e = EfficientNMS_TRT(x, x)", "int32[n] d"))
    with pytest.raises(ModelError, match="EfficientNMS_TRT"):
        collect(graph, ("x",), open_source(FEEDS, input_specs(graph)))


def test_all_tensors_are_those_before_a_plugin() -> None:
    seen = api.calibrate(nms(), FEEDS, Recipe(target="tensorrt@10"), all_tensors=True)
    assert set(seen.tensors) == {"x", "n", "r", "y"}  # not e, a float output of the plugin


def test_nothing_left_to_compare() -> None:
    proto = nms()
    del proto.graph.output[0]
    with pytest.raises(ModelError, match="all that is to be compared"):
        api.compare(proto, proto, FEEDS)
    found = api.compare(proto, proto, FEEDS, layers=True)
    assert {error.tensor for error in found.errors} == {"n", "r", "y"}


def test_stand_ins_are_of_a_domain_of_their_own() -> None:
    proto = nms()
    assert stand_in(proto) == 1
    assert proto.graph.node[-1].domain
    assert proto.graph.node[-1].domain in {entry.domain for entry in proto.opset_import}
    onnx.checker.check_model(proto, full_check=True)
    assert stand_in(proto) == 0


def test_opsets_are_raised_around_plugins() -> None:
    graph = Graph.from_proto(nms(HEAD.replace("17", "9")))
    graph.convert_opset(17)
    assert graph.opset == 17
    assert [(n.op_type, n.domain) for n in graph.nodes][-1] == ("EfficientNMS_TRT", "")


def test_custom_operators_of_known_names_are_not_taken_for_them() -> None:
    proto = model("a = MatMul(x, w) y = MatMul(a, w)")
    proto.graph.node[1].domain = "mine"
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    plan = api.make_plan(proto)
    assert [d.reason for d in plan.decisions if d.node == "MatMul:y"] == ["custom operator (mine)"]
    assert set(plan.points) == {"x"}
