"""Graphs as the checks see them: bodies, local functions, external data, shapes that are not known."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from check_graphs import CONV, X8, const, io, model, pair
from legality import ADVICE, assert_legal, findings
from onnx import numpy_helper

from onnxq.checks.build import graphs, own
from onnxq.checks.versions import get_version

SYNTHETIC = Path(__file__).parents[3] / "scripts" / "synthetic.py"
BRANCHES: Any = runpy.run_path(str(SYNTHETIC), run_name="synthetic")["branches"]


def test_assert_legal_lists_errors_and_warnings_but_the_allowed_ones() -> None:
    wrong = model(f"{pair('xd', 'x')} y = Conv(xd, w)", extra=("int8 z = {3}",))
    with pytest.raises(AssertionError, match=r"(?s)P4 E xd_q: .*P20 W y: w is not quantized"):
        assert_legal(wrong)
    with pytest.raises(AssertionError, match="P20") as raised:
        assert_legal(wrong, allow=frozenset({"P4"}))
    assert "P4" not in str(raised.value)
    assert_legal(wrong, allow=frozenset({"P4", "P20"}))


def test_assert_legal_leaves_advice_and_information_out() -> None:
    twice = model(f"{pair('xd', 'x')} {pair('xe', 'x')} y = Add(xd, xe)")
    stored = model("y = DequantizeLinear(x, s, z)", io(inputs="int8[1,8,4,4] x"))
    assert {(f.id, f.severity) for f in findings(twice)} >= {("P25", "W")}
    assert [(f.id, f.severity) for f in findings(stored)] == [("P19", "I")]
    assert_legal(twice)
    assert_legal(stored)


def test_model_is_left_alone() -> None:
    proto = model(f"{CONV} {pair('d', 'c')} y = Relu(d)")
    before = proto.SerializeToString(deterministic=True)
    findings(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_subgraph_bodies_follow_the_same_rules() -> None:
    body = """xq = QuantizeLinear(x, s, z)
              y = If (k) <then_branch = t () => (float[1,8,4,4] a) {
                      d = DequantizeLinear(xq, s, z) e = QuantizeLinear(d, s, bad) a = DequantizeLinear(e, s, bad) },
                  else_branch = f () => (float[1,8,4,4] o) { d = DequantizeLinear(xq, s, z) o = Conv(d, w) }>"""
    found = findings(model(body, io(inputs=f"{X8}, bool k"), extra=("int8 bad = {1}",)))
    assert {(f.id, f.where) for f in found if f.id not in ADVICE} == {("P4", "e"), ("P4", "a"), ("P20", "o")}


def test_local_functions_are_looked_into() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[4] x, float s, int8 z) => (float[4] y) { y = own.fake (x, s, z) }
        <domain: "own", opset_import: ["" : 21]>
        fake (x, s, z) => (y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    rules = sorted(f.id for f in findings(onnx.parser.parse_model(text)))
    assert rules == ["P2", "P2", "P4", "P4"]


def test_external_scales_are_read_and_external_weights_are_not(tmp_path: Path) -> None:
    proto = model(f"{CONV.replace('c =', 'y =')}", extra=(const("float[8] sv", 0),))
    for tensor in proto.graph.initializer:  # only raw data moves to a file
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    loaded = onnx.load_model(path, load_external_data=False)
    weight = next(tensor for tensor in loaded.graph.initializer if tensor.name == "w")
    weight.external_data[0].value = "nowhere.bin"
    found = [(f.id, f.where) for f in findings(loaded, str(tmp_path))]
    assert [place for place in found if place[0] not in ADVICE] == [("P3", "wd_q"), ("P3", "wd")]
    elsewhere = {f.id for f in findings(loaded, str(tmp_path / "elsewhere"))}
    assert "P34" in elsewhere
    assert "P3" not in elsewhere  # what is not there is not judged


def test_big_weights_need_no_values() -> None:
    proto = model(CONV.replace("c =", "y ="), io(outputs="float[1,8,n,m] y"), extra=(const("float[8,8,5,5] w"),))
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.ClearField("float_data")
    assert_legal(proto)


def test_stored_int8_weights_are_legal() -> None:
    body = f"{pair('xd', 'x')} wd = DequantizeLinear<axis=0>(i, sv, zv) y = Conv(xd, wd, b)"
    assert_legal(model(body, extra=(const("int8[8,8,1,1] i"),)))


def test_unknown_shapes_break_no_rule() -> None:
    assert_legal(model(CONV.replace("c =", "y ="), io(inputs="float[n,c,h,v] x", outputs="float[n,o,i,j] y")))


def test_defaults_of_onnxruntime_are_not_for_tensorrt(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    body = """c = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(c) a = Add(r, x)
              p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, m, b)"""
    float_model = model(body, io(outputs="float[1,8] y"), extra=(const("float[8,8,3,3] k", 0.1),), opset=17)
    float_model.ir_version = 8
    assert_legal(float_model)
    used = {name for node in float_model.graph.node for name in node.input}
    kept = [tensor for tensor in float_model.graph.initializer if tensor.name in used]
    del float_model.graph.initializer[:]
    float_model.graph.initializer.extend(kept)
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save_model(float_model, source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined] # no type information
        def __init__(self) -> None:
            draws = np.random.default_rng(0).uniform(-1, 2, (4, 1, 8, 4, 4)).astype(np.float32)
            self.feeds = iter([{"x": draw} for draw in draws])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantization.quantize_static(source, target, Reader())
    found = findings(onnx.load_model(target))
    assert {("P4", "E"), ("P5", "E"), ("P16", "E")} <= {(f.id, f.severity) for f in found}
    with pytest.raises(AssertionError, match="is not zero"):
        assert_legal(onnx.load_model(target))


def test_a_body_sees_what_is_around_it_and_nothing_of_its_siblings() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4] x, bool k) => (float[4] y)
        <float[4] w = {1,2,3,4}> {
        outside = Relu(x)
        y = If (k) <then_branch = t () => (float[4] a) { local = Add(outside, w) a = Relu(local) },
                    else_branch = e () => (float[4] b) { local = Abs(x) b = Neg(outside) }>
        z = Abs(outside)
    }"""
    main, then, other = graphs(onnx.parser.parse_model(text), "", get_version("tensorrt"))
    assert [node.op_type for node in then.users["local"]] == ["Relu"]
    assert not other.users["local"]  # the other branch reads its own of that name
    for seen in (main, then, other):
        assert sorted(node.op_type for node in seen.users["outside"]) == ["Abs", "Add", "Neg"]
    assert other.producers["local"].op_type == "Abs"
    assert then.producers["local"].op_type == "Add"
    assert other.producers["outside"].op_type == "Relu"
    assert "local" not in main.producers
    assert "w" in then.constants
    assert then.shapes["w"] == (4,)


def test_tables_of_bodies_grow_with_the_model() -> None:
    """A body's tables hold its own names, not again all that is around it."""

    def held(nodes: int) -> int:
        models = graphs(BRANCHES(nodes), "", get_version("tensorrt"))
        tables = (t for m in models for t in (m.constants, m.producers, m.users, m.shapes, m.types, m.carried))
        return sum(len(own(table)) for table in tables)

    small, large = held(160), held(320)
    assert large <= 2.1 * small
