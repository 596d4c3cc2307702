"""P34: models that are not valid ONNX, and what the other rules then do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from check_graphs import CONV, const, io, model, pair
from onnx import numpy_helper

from onnxq.checks import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def said(proto: onnx.ModelProto | Path) -> dict[str, str]:
    """Where and what P34 finds."""
    return {f.where: f.message for f in check(proto).findings if f.id == "P34"}


@pytest.mark.parametrize("body", ["y = Relu(x)", CONV.replace("c =", "y =")])
def test_valid_models_pass(body: str) -> None:
    assert said(model(body)) == {}


def test_of_unsorted_nodes_the_first_is_named_and_nothing_else_is_said() -> None:
    proto = model(f"{pair('d', 'x')} c = Conv(d, w) y = Relu(c)")
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    first = "the nodes are not in topological order: this one, the first of 3, reads c, which no earlier node makes"
    assert said(proto) == {"y": first}
    assert [f.id for f in check(proto).findings] == ["P34"]
    (found,) = check(proto, "ort-cuda").findings
    assert (found.id, found.where, found.message) == ("C0", "y", first)
    assert check(proto).summary.macs == {}


def test_an_input_without_a_rank_is_named_and_the_rest_is_checked() -> None:
    """onnx.checker stops at the first one, and says neither which it is nor what else is wrong."""
    for body, others in (("y = Relu(x)", 0), ("y = Relu(x, x)", 1)):
        proto = model(body)
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.ClearField("shape")
        found = said(proto)
        assert "declares no rank" in found.pop("x")
        assert len(found) == others


def test_a_cycle_ends() -> None:
    proto = model("t = Identity(x) y = Identity(t)")
    proto.graph.node[0].input[0] = "y"
    assert said(proto) == {"t": "the nodes are not in topological order: this one reads y, which no earlier node makes"}


def test_each_node_that_reads_what_is_made_nowhere_is_named() -> None:
    proto = model("t = Identity(u) y = Add(t, v)")
    assert said(proto) == {"t": "reads u, which no node makes", "y": "reads v, which no node makes"}


def test_a_body_may_read_what_is_around_it_and_nothing_else() -> None:
    text = """t = Identity(x) y = If (k) <then_branch = a () => (float[1,8,4,4] p) { p = Relu(t) },
              else_branch = b () => (float[1,8,4,4] o) { o = Relu(t) }>"""
    proto = model(text, io(inputs="float[1,8,4,4] x, bool k"))
    assert said(proto) == {}
    proto.graph.node[1].attribute[0].g.node[0].input[0] = "nowhere"
    assert set(said(proto)) == {"p"}


def test_the_checker_of_onnx_speaks() -> None:
    proto = model("y = Relu<slope = 0.5>(x)")
    assert "slope" in said(proto)["g"]
    wrong = model("y = Add(x, b5)", extra=(const("float[5] b5"),))  # 5 against 4: only strict inference sees it
    assert "onnx.checker" in said(wrong)["g"]


def test_a_plugin_is_worth_knowing_and_no_error() -> None:
    proto = model("y = Relu(x)")
    proto.graph.node[0].op_type = "Relo"  # as EfficientNMS_TRT, which exporters write into the default domain
    (found,) = [f for f in check(proto).findings if f.id == "P34"]
    assert (found.severity, found.where) == ("I", "y")
    assert "needs a plugin" in found.message
    proto.graph.node[0].op_type = "Relu"
    proto.graph.node[0].domain = "mine"
    assert "No opset import for domain 'mine'" in said(proto)["g"]
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    assert {f.severity for f in check(proto).findings if f.id == "P34"} == {"I"}
    proto.graph.node[0].domain = "com.microsoft"
    proto.graph.node[0].op_type = "Gelu"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert said(proto) == {}


def test_bytes_of_weights_are_counted() -> None:
    proto = model("y = Conv(x, w)")
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 8, 1, 1), np.float32), "w"))
    assert said(proto) == {}
    weight.raw_data = weight.raw_data[:-1]
    assert said(proto)["w"] == "255 bytes for 256 of FLOAT"


def broken(change: Callable[[onnx.TensorProto], None], folder: Path) -> dict[str, str]:
    """What P34 says of a model with external data whose weight `w` was changed."""
    proto = model("y = Conv(x, w)")
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = folder / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="m.bin", size_threshold=64)
    stored = onnx.load_model(path, load_external_data=False)
    change(next(tensor for tensor in stored.graph.initializer if tensor.name == "w"))
    path.write_bytes(stored.SerializeToString())
    return said(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "m.bin", ""),
        ("location", "gone.bin", "external data file 'gone.bin' is missing"),
        ("location", "../m.bin", "external data '../m.bin' lies outside the model's folder"),
        ("length", "128", "128 bytes of external data for 256 of FLOAT"),
        ("offset", "4096", "external data file 'm.bin' ends before byte 4352"),
        ("offset", "-4", "external data file 'm.bin' ends before byte 255"),
    ],
)
def test_external_data_is_there(key: str, value: str, message: str, tmp_path: Path) -> None:
    def change(tensor: onnx.TensorProto) -> None:
        entry = next(entry for entry in tensor.external_data if entry.key == key)
        entry.value = value

    assert broken(change, tmp_path) == ({"w": message} if message else {})


def test_four_bit_weights_are_two_to_a_byte() -> None:
    proto = model("y = Relu(x)")
    weight = onnx.helper.make_tensor("i4", onnx.TensorProto.INT4, (3,), b"\x11\x01", raw=True)
    proto.graph.initializer.append(weight)
    assert said(proto) == {}
    proto.graph.initializer[-1].raw_data = b"\x11"
    assert said(proto)["i4"] == "1 bytes for 2 of INT4"
