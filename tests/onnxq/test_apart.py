"""Reading a large model in two parts: nothing is lost, whatever the file holds, and memory is not spent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import files
from onnxq.graph.apart import read_apart, write_joined

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.graph import Graph

LARGE: dict[str, npt.NDArray[Any]] = {
    "f32": np.arange(400, dtype=np.float32).reshape(20, 20),
    "f16": np.arange(800, dtype=np.float16).reshape(1, 800),
    "i8": np.arange(2000, dtype=np.int64).astype(np.int8),
    "i64": np.arange(200, dtype=np.int64),
}


def model(*more: TensorProto) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(array, name) for name, array in LARGE.items()]
    weights += [numpy_helper.from_array(np.array([1.5], np.float32), "small"), *more]
    nodes = [helper.make_node("Identity", [w.name], [f"{w.name}_out"]) for w in weights]
    outputs = [helper.make_tensor_value_info(f"{w.name}_out", w.data_type, list(w.dims)) for w in weights]
    graph = helper.make_graph(nodes, "g", [], outputs, weights, doc_string="kept")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="p" * 300)


def written(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_only_the_larger_weights_are_taken_out(tmp_path: Path) -> None:
    data, views = read_apart(written(tmp_path / "m.onnx", model()), 0)
    assert set(views) == set(LARGE)
    for name, array in LARGE.items():
        assert views[name].tobytes() == array.tobytes()
    rest = onnx.ModelProto.FromString(data)
    assert [t.name for t in rest.graph.initializer] == [*LARGE, "small"]
    assert rest.producer_name == "p" * 300
    for tensor in rest.graph.initializer:  # put by hand what was taken out: the model of before
        if tensor.name in views:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = views[tensor.name].tobytes()
    assert rest == model()


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", model())
    assert read_apart(path, path.stat().st_size) == (path.read_bytes(), {})
    assert read_apart(path, path.stat().st_size - 1)[1]


def typed() -> TensorProto:
    return helper.make_tensor("typed", TensorProto.FLOAT, [600], np.arange(600.0))


def packed() -> TensorProto:
    return helper.make_tensor("packed", TensorProto.INT4, [4000], bytes(2000), raw=True)


def short() -> TensorProto:
    return TensorProto(name="short", data_type=TensorProto.FLOAT, dims=[999], raw_data=bytes(2000))


def unknown() -> TensorProto:
    return TensorProto(name="unknown", data_type=99, dims=[500], raw_data=bytes(2000))


@pytest.mark.parametrize("tensor", [typed(), packed(), short(), unknown()], ids=lambda t: str(t.name))
def test_what_numpy_cannot_view_stays(tensor: TensorProto, tmp_path: Path) -> None:
    data, views = read_apart(written(tmp_path / "m.onnx", model(tensor)), 0)
    assert set(views) == set(LARGE)
    assert onnx.ModelProto.FromString(data).graph.initializer[-1] == tensor


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_damaged_file_is_left_to_the_parser(kept: float, tmp_path: Path) -> None:
    whole = model().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(kept * len(whole))])
    assert read_apart(path, 0) == (path.read_bytes(), {})


def loaded_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.setattr(files, "SPILL_BYTES", 0)
    return files.load(path)


def test_a_loaded_graph_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.onnx", model())
    whole = files.load(path)
    apart = loaded_apart(path, monkeypatch)
    assert apart.digest() == whole.digest()
    assert apart.to_proto() == whole.to_proto()


def test_replacing_the_file_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = loaded_apart(written(tmp_path / "m.onnx", model()), monkeypatch)
    other = written(tmp_path / "other.onnx", helper.make_model(helper.make_graph([], "g", [], [])))
    other.replace(tmp_path / "m.onnx")
    check_weights(graph)


def check_weights(graph: Graph) -> None:
    for name, array in LARGE.items():
        found: Any = graph.const(graph.weights[name])
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_a_spilled_graph_gives_up_its_arrays_and_reads_them_anew(tmp_path: Path) -> None:
    graph = files.load(written(tmp_path / "m.onnx", model()))
    digest, proto = graph.digest(), graph.to_proto()
    spilled = files.spill(graph)
    check_weights(spilled)
    assert (spilled.digest(), spilled.to_proto()) == (digest, proto)
    first, second = (spilled.const(spilled.weights["f32"]) for _ in range(2))
    assert first is not second  # a kept mapping would count as memory for as long as the graph lives
    folder = spilled.shelf
    assert folder is not None
    held = sum(entry.stat().st_size for entry in os.scandir(folder))
    assert held >= sum(array.nbytes for array in LARGE.values())


def strings() -> TensorProto:
    return helper.make_tensor("strings", TensorProto.STRING, [600], ["abc"] * 600)  # type: ignore[list-item]  # its stub forgot text


@pytest.mark.parametrize("tensor", [typed(), packed(), strings()], ids=lambda t: str(t.name))
def test_what_is_written_joined_is_the_model(tensor: TensorProto, tmp_path: Path) -> None:
    graph = files.load(written(tmp_path / "m.onnx", model(tensor)))
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.to_proto().graph.initializer}
    digest, path = graph.digest(), tmp_path / "out.onnx"
    for made in (graph, files.spill(graph)):
        write_joined(made.model, path)
        found = onnx.load(path)
        assert {t.name: t.data_location for t in found.graph.initializer} == dict.fromkeys(arrays, TensorProto.DEFAULT)
        for weight in found.graph.initializer:
            np.testing.assert_array_equal(numpy_helper.to_array(weight), arrays[weight.name])
        assert files.load(path).digest() == digest
    onnx.checker.check_model(path, full_check=True)


def test_weights_of_bodies_are_written_joined(tmp_path: Path) -> None:
    inner = numpy_helper.from_array(np.arange(400, dtype=np.float32), "inner")
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [400])
    body = helper.make_graph([helper.make_node("Identity", ["inner"], ["o"])], "b", [], [output], [inner])
    proto = model()
    proto.graph.node.append(helper.make_node("If", ["c"], ["chosen"], then_branch=body, else_branch=body))
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [400]))
    graph = files.load(written(tmp_path / "m.onnx", proto))
    expected = graph.to_proto()
    spilled = files.spill(graph)
    write_joined(spilled.model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx", load_external_data=False) == expected
