"""What a quantized model holds, told from files of this and of other tools."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of
from onnx import TensorProto, helper, numpy_helper

from onnxq import api, cli, files, tables
from onnxq.errors import ModelError
from onnxq.inventory import NAMES, Holding, is_low, look_at, take_stock
from onnxq.recipe import Recipe
from onnxq.smoothed import Smoothed, record
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.inventory import Inventory

W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
TEXT = "(float[4,32] x) => (float[4,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
FEEDS = [{"x": np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)}]
INTEGERS = """(float[4,32] x) => (int32[4,32] y)
    { q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, codes, z) }"""
HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> m '


def parsed(text: str, *packed: TensorProto, **weights: object) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(packed)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def precisions(found: Inventory) -> dict[str, str]:
    return {layer.outputs[0]: layer.precision for layer in found.layers}


@pytest.mark.parametrize(("number", "name"), NAMES.items())
def test_element_types_are_those_of_onnx(number: int, name: str) -> None:
    said = TensorProto.DataType.Name(number).lower()
    plain = {"float32": "float", "float64": "double", "fp4 (e2m1)": "float4e2m1", "e8m0": "float8e8m0"}.get(name, name)
    assert said == (f"float8{name[5:-1]}" + "fn" * (name == "fp8 (e4m3)") if name.startswith("fp8") else plain)


def test_a_float_model_holds_nothing() -> None:
    found = take_stock(graph_of(TEXT, w=W).to_proto())
    assert not found.quantized
    assert found.sizes == (("float32", 1, 4096),)
    assert found.macs() == {"float32": 2 * 4 * 32 * 32}
    assert found.low_share() == 0


def test_what_onnxq_writes() -> None:
    graph, plan = api.quantize(graph_of(TEXT, w=W), FEEDS, Recipe(target="tensorrt@10", calibrator="minmax"))
    found = take_stock(graph.to_proto())
    assert precisions(found) == {"a": "int8", "b": "float32", "y": "int8"}
    assert found.low_share() == plan.int8_share() == 1
    by_name = {t.tensor: t for t in found.tensors}
    x = by_name["x"]
    assert (x.kind, x.weight, x.granularity, x.scales, x.zero_point, x.size) == ("int8", False, "per tensor", 1, 0, 0)
    assert x.low == x.high == pytest.approx(float(np.abs(FEEDS[0]["x"]).max()) / 127)
    (weight,) = (t for t in found.tensors if t.weight)
    assert (weight.granularity, weight.scales, weight.size) == ("per channel, axis 1", 32, 1024)
    largest = np.abs(W).max(axis=0) / 127
    assert weight.low == pytest.approx(largest.min())
    assert weight.high == pytest.approx(largest.max())
    assert len(weight.readers) == 2
    assert {kind: size for kind, _, size in found.sizes}["int8"] >= 1024


def test_weights_alone_compute_in_float() -> None:
    graph, _ = api.quantize(graph_of(TEXT, w=W), None)
    found = take_stock(graph.to_proto())
    assert set(precisions(found).values()) <= {"int8 weight", "float16", "float32"}
    assert precisions(found)["a"] == "int8 weight"
    assert found.low_share() == 0
    assert found.quantized


def test_blocks_of_four_bits() -> None:
    text = """(float[4,32] x) => (float[4,32] y) {
        w = DequantizeLinear<axis=0, block_size=16>(codes, scale)
        y = MatMul(x, w)
    }"""
    codes = helper.make_tensor("codes", TensorProto.INT4, (32, 32), np.ones(512, np.uint8).tobytes(), raw=True)
    found = take_stock(parsed(text, codes, scale=np.full((2, 32), 0.5, np.float32)))
    (weight,) = found.tensors
    assert weight == Holding("codes", "int4", True, "blocks of 16, axis 0", 64, 0.5, 0.5, 0, 512, ("y",))
    assert precisions(found) == {"y": "int4 weight"}
    assert {kind: size for kind, _, size in found.sizes} == {"int4": 512, "float32": 256}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_packed_for_an_operator(kind: str) -> None:
    recipe = Recipe(target="ort-cpu", weights=f"{kind}/block:16", format="qoperator")
    graph, _ = api.quantize(graph_of(TEXT, w=W), None, recipe)
    found = take_stock(graph.to_proto())
    assert precisions(found) == {"a": f"{kind} weight", "b": "float32", "y": f"{kind} weight"}
    assert found.macs()[f"{kind} weight"] == 2 * 4 * 32 * 32
    assert {(t.kind, t.granularity, t.size) for t in found.tensors} == {(kind, "blocks of 16", 32 * 32 // 2)}


def test_weights_that_other_operators_decode() -> None:
    text = """(float[4,32] x) => (float[4,32] y) {
        index = Cast<to=7>(codes)
        level = Gather(levels, index)
        w = Mul(level, scale)
        y = MatMul(x, w)
    }"""
    codes = helper.make_tensor("codes", TensorProto.UINT4, (32, 32), bytes(512), raw=True)
    scales = {"levels": np.linspace(-1, 1, 16, dtype=np.float32), "scale": np.ones((32, 1), np.float32)}
    found = take_stock(parsed(text, codes, **scales))
    assert precisions(found) == {"y": "uint4 weight"}  # what makes the weight is no layer
    assert found.tensors == (Holding("codes", "uint4", True, "codes", 0, None, None, None, 512, ("y",)),)


def test_eight_bit_floats() -> None:
    text = """(float[4,32] x) => (float[4,32] y) {
        q = QuantizeLinear<output_dtype=17>(x, s)
        d = DequantizeLinear(q, s)
        w = DequantizeLinear(codes, s)
        y = MatMul(d, w)
    }"""
    codes = helper.make_tensor("codes", TensorProto.FLOAT8E4M3FN, (32, 32), bytes(1024), raw=True)
    found = take_stock(parsed(text, codes, s=np.float32(0.1)))
    assert precisions(found) == {"y": "fp8 (e4m3)"}
    assert [(t.tensor, t.kind) for t in found.tensors] == [("x", "fp8 (e4m3)"), ("codes", "fp8 (e4m3)")]
    assert found.low_share() == 1


def test_integer_operators() -> None:
    text = """(float[4,32] x) => (float[4,32] y) {
        q = QuantizeLinear(x, s, z)
        p = QLinearMatMul(q, s, z, codes, t, u, s, z)
        y = DequantizeLinear(p, s, z)
    }"""
    scales = {"s": np.float32(0.5), "t": np.linspace(0.1, 0.2, 32, dtype=np.float32)}
    zeros = {"z": np.uint8(128), "u": np.zeros(32, np.int8)}
    found = take_stock(parsed(text, codes=np.ones((32, 32), np.int8), **scales, **zeros))
    assert precisions(found) == {"p": "int8"}
    assert [(t.tensor, t.kind, t.scales, t.zero_point) for t in found.tensors] == [
        ("x", "uint8", 1, 128),
        ("codes", "int8", 32, 0),
    ]
    assert found.low_share() == 1


def test_scales_at_run_time() -> None:
    graph, _ = api.quantize(graph_of(TEXT, w=W), None, Recipe(target="ort-cpu", mode="dynamic"))
    found = take_stock(graph.to_proto())
    assert found.quantized
    assert precisions(found)["b"] == "float32"
    assert "int8" in precisions(found).values()


@pytest.mark.parametrize(
    "call",
    [
        "y = com.microsoft.MatMulIntegerToFloat(x8, w, sx, sw, zx, zw, b)",
        "y = com.microsoft.QAttention<num_heads=2>(x8, w, b, sx, sw, , zx, zw)",
    ],
)
def test_operators_whose_scales_stand_apart_from_their_codes(call: str) -> None:
    constants = {"sx": np.float32(0.5), "zx": np.uint8(7), "b": np.full(96, -9, np.float32)}
    constants |= {
        "w": np.ones((32, 96), np.int8),
        "sw": np.linspace(1, 2, 96, dtype=np.float32),
        "zw": np.zeros(96, np.int8),
    }
    text = f"(float[1,4,32] x) => (float y) {{ x8 = QuantizeLinear(x, sx, zx) {call} }}"
    found = {h.tensor: h for h in take_stock(parsed(text, **constants)).tensors}
    assert set(found) == {"x", "w"}
    read, weight = found["x"], found["w"]
    assert (read.kind, read.granularity, read.low, read.high, read.zero_point) == ("uint8", "per tensor", 0.5, 0.5, 7)
    assert (weight.kind, weight.scales, weight.low, weight.high, weight.zero_point) == ("int8", 96, 1, 2, 0)


def test_operators_between_pairs() -> None:
    text = """(float[1,4,8,8] x) => (float[1,4,4,4] y, int64[4] s) {
        q = QuantizeLinear(x, k, z)  d = DequantizeLinear(q, k, z)
        a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
        p = QuantizeLinear(a, k, z)  y = DequantizeLinear(p, k, z)
        s = Shape(x)
    }"""
    found = take_stock(parsed(text, k=np.float32(0.1), z=np.int8(3)))
    assert precisions(found) == {"a": "int8"}  # and no line for the Shape
    assert {t.tensor for t in found.tensors} == {"x", "a"}
    assert {t.zero_point for t in found.tensors} == {3}


def test_conversions_between_float_types_are_no_layers() -> None:
    text = "(float[4] x) => (float[4] y) { h = Cast<to=10>(x) a = Relu(h) b = Cast<to=1>(a) y = Neg(b) }"
    found = take_stock(parsed(text))
    assert [(x.op_type, x.precision, x.outputs) for x in found.layers] == [
        ("Cast", "float16", ("h",)),  # of an input
        ("Relu", "float16", ("a", "b")),
        ("Neg", "float32", ("y",)),
    ]


def test_work_is_counted_with_the_shapes_of_a_run() -> None:
    text = (
        "(float[N,32] x, float[M,N] u) => (float[M,32] y) { q = QuantizeLinear(x, k, z) d = DequantizeLinear(q, k, z) "
    )
    text += "y = MatMul(u, d) }"
    proto = parsed(text, k=np.float32(0.1), z=np.int8(0))
    assert take_stock(proto).macs() == {"float32": 32}
    assert take_stock(proto, shapes={"x": (5, 32), "u": (3, 5), "y": (3, 32)}).macs() == {"float32": 3 * 5 * 32}


def test_work_is_counted_where_tensors_are_smoothed_and_products_have_other_names() -> None:
    text = """(float[N,4,8] x) => (float[N,4,5] y) {
              h = Mul(x, s) q = QuantizeLinear(h, k, z) d = DequantizeLinear(q, k, z)
              e = DequantizeLinear(w, k, z) p = MatMul(d, e) y = Add(b, p) }"""
    ones, step, zero = np.ones(8, np.float32), np.float32(0.1), np.int8(0)
    graph = graph_of(text, 17, s=ones, k=step, z=zero, b=np.ones(5, np.float32), w=np.ones((8, 5), np.int8))
    record(graph, [Smoothed("f", "h", -1)], "f", Factor(ones, ones))
    found = take_stock(graph.to_proto(), shapes={"x": (3, 4, 8), "f": (3, 4, 8), "y": (3, 4, 5)})
    assert found.macs() == {"int8": 3 * 4 * 8 * 5}
    assert next(layer for layer in found.layers if layer.op_type == "Mul").outputs == ("h", "f")


def test_bodies_are_looked_into() -> None:
    text = """(float[4] x, bool c) => (float[4] y) {
        y = If(c) <
            then_branch = one () => (float[4] t) { q = QuantizeLinear(x, k, z)  t = DequantizeLinear(q, k, z) },
            else_branch = two () => (float[4] e) { e = Relu(x) }
        >
    }"""
    found = take_stock(parsed(text, k=np.float32(0.1), z=np.int8(0)))
    assert [t.tensor for t in found.tensors] == ["x"]
    assert precisions(found)["e"] == "float32"


def test_nodes_in_any_order_are_shown_like_those_in_order() -> None:
    text = """(float[4] x, bool c) => (float[4] y) { a = Relu(x) b = Neg(a) y = If (c) <
        then_branch = one () => (float[4] t) { s = Relu(b) t = Neg(s) },
        else_branch = two () => (float[4] e) { e = Relu(x) }
    > }"""
    proto = parsed(text)
    expected = take_stock(proto)
    for attribute in proto.graph.node[2].attribute:
        attribute.g.node.reverse()
    proto.graph.node.reverse()
    given = proto.SerializeToString(deterministic=True)
    assert take_stock(proto) == expected
    assert proto.SerializeToString(deterministic=True) == given


@pytest.mark.parametrize(("read", "said"), [("y", "form a cycle"), ("nowhere", "reads nowhere")])
def test_what_no_order_mends_is_an_error_and_not_a_traceback(read: str, said: str) -> None:
    proto = parsed("(float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }")
    proto.graph.node[0].input[0] = read
    with pytest.raises(ModelError, match=said):
        take_stock(proto)


def test_low_precisions() -> None:
    assert [is_low(kind) for kind in ("int8", "fp8 (e4m3)", "int8 weight", "float16", "unknown")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def show(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["onnxq", "show", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    file = tmp_path / "m [bold].onnx"
    files.save(api.quantize(graph_of(TEXT, w=W), FEEDS)[0], file, check=False)
    brief, verbose = show(file), show(file, "-v")
    assert "[bold].onnx: " in brief
    assert "per channel, axis 1: 32" in brief
    assert "100.0% of the MACs compute on quantized operands" in brief
    assert "MatMul:a" not in brief.split("read by")[0]
    assert "MatMul:a" in verbose.split("read by")[0]
    found = json.loads(show(file, "--json"), parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(look_at(file).to_dict()))
    onnx.save(graph_of(TEXT, w=W).to_proto(), tmp_path / "f.onnx")
    assert "nothing in it is quantized" in show(tmp_path / "f.onnx")
    onnx.save(parsed(INTEGERS, codes=W.astype(np.int8)), tmp_path / "i.onnx")
    assert "nothing" not in show(tmp_path / "i.onnx")
    assert "100.0% of the MACs compute on quantized operands" in show(tmp_path / "i.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(SystemExit):
        show(tmp_path / "bad.onnx")


def test_show_tells_of_open_sizes(tmp_path: Path) -> None:
    """A share of the work is worth little where maps count as one pixel; open batches change no share."""

    def last(text: str, feed: np.ndarray[Any, Any] = FEEDS[0]["x"]) -> str:
        file = tmp_path / "m.onnx"
        files.save(api.quantize(graph_of(text, w=W), [{"x": feed}])[0], file, check=False)
        return next(line for line in tables.inventory(look_at(file), "m", 0, every=False) if "of the MACs" in line)

    assert "leaves open" not in last(TEXT)
    assert "leaves open" not in last(TEXT.replace("[4,32]", "[N,32]"))
    for dims in ("[N,T,32]", "[]"):
        assert "counted with 1 for every size that the model leaves open" in last(
            TEXT.replace("[4,32]", dims), FEEDS[0]["x"][None]
        )
