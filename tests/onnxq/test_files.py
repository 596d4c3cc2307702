"""Model files: what cannot be read says so, and what is written is there whole or not at all."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import graph_of, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq import api, files
from onnxq.errors import ModelError, OnnxqError, OutputError
from onnxq.graph import Graph
from onnxq.graph.shelf import SHELVED_BYTES, FileTensor
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "digits.onnx"
W = np.arange(400, dtype=np.float32).reshape(20, 20)
BRANCHES = """(float[N,20] x, bool c) => (float[N,20] y) {
  a = MatMul(x, w)
  y = If (c) <then_branch = t () => (float[N,20] p) { k = Constant<value_float=2.0>() p = Mul(a, k) },
              else_branch = e () => (float[N,20] q) { q = MatMul(a, w) }>
}"""
SAVED = graph_of(BRANCHES, w=W).to_proto().SerializeToString()
EVERYWHERE = pytest.mark.parametrize("apart", [False, True], ids=["read whole", "weights left in the file"])


def refused(path: Path, *says: str) -> None:
    with pytest.raises(ModelError) as error:
        files.load(path)
    assert all(word in str(error.value) for word in (str(path), *says)), str(error.value)
    assert error.value.hint


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight w lies at offset 0 of the 1,600 bytes of `w.bin`."""
    path = tmp_path / "m.onnx"
    model = onnx.ModelProto.FromString(SAVED)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=1000)
    assert (tmp_path / "w.bin").stat().st_size == W.nbytes
    return path


def point(path: Path, **entries: str) -> None:
    """Write entries of w's external data."""
    model = onnx.load(path, load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    known = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


# --- what cannot be read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "is not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX model"),
        (bytes(4) + b"ORTM" + bytes(100), "is not an ONNX model but one in ONNX Runtime's own format"),
        (bytes(4) + b"TFL3" + bytes(100), "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph with outputs"),
        (SAVED[:-30], "cut short or damaged"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, says)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "No such file")
    refused(tmp_path, "is a folder")


@EVERYWHERE
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_prefix_of_a_model_is_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool, data: st.DataObject
) -> None:
    monkeypatch.setattr(files, "SPILL_BYTES", 0 if apart else files.SPILL_BYTES)
    whole = data.draw(st.sampled_from([SAVED, DIGITS.read_bytes()]))
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        files.load(path)
    except ModelError as error:
        said = error.message
    else:  # all that may be missing is what comes behind the graph
        assert onnx.load(path).graph == onnx.ModelProto.FromString(whole).graph
        return
    assert str(path) in said


@EVERYWHERE
def test_flipped_bytes_give_an_error_for_users_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    monkeypatch.setattr(files, "SPILL_BYTES", 0 if apart else files.SPILL_BYTES)
    path, rng, refusals = tmp_path / "m.onnx", np.random.default_rng(7), 0
    for _ in range(300):
        damaged = bytearray(SAVED)
        for _ in range(rng.choice([1, 1, 3])):
            # the middle is one large weight: most faults go to the structure at both ends
            places = [rng.integers(len(damaged)), *rng.integers(400, size=2), -rng.integers(1, 100)]
            damaged[rng.choice(places)] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            files.load(path).digest()
        except OnnxqError:
            refusals += 1
    assert 50 < refusals < 300  # the rest hit numbers and documentation


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(SAVED)
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [4])
    model.graph.sparse_initializer.append(sparse)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "sparse")


def test_maps_are_refused_with_how_to_export_without(tmp_path: Path) -> None:
    """What scikit-learn's and LightGBM's converters write for classifiers unless told otherwise: the model is valid."""
    model = onnx.ModelProto.FromString(SAVED)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.node.append(helper.make_node("ZipMap", ["y"], ["scores"], "z", domain="ai.onnx.ml"))
    one = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("scores", helper.make_sequence_type_proto(one)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "has a map, 'scores'", "'zipmap': False")


# --- external data -------------------------------------------------------------------------------------


def test_external_data_is_read_when_needed(external: Path) -> None:
    graph = files.load(external)
    assert files.data_files(graph) == {external.parent / "w.bin"}
    np.testing.assert_array_equal(graph.const(graph.weights["w"]), W)
    assert files.model_bytes(external) == external.stat().st_size + W.nbytes


def test_missing_external_data(external: Path) -> None:
    (external.parent / "w.bin").unlink()
    refused(external, "'w.bin'", "'w'", "missing", str(external.parent))


def test_external_data_cut_short(external: Path) -> None:
    with (external.parent / "w.bin").open("r+b") as file:
        file.truncate(W.nbytes - 1)
    refused(external, "'w.bin' is too short for weight 'w'", "1,599", "1,600")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-4"},
        {"offset": "-1600", "length": "1600"},
        {"length": "-1600"},
        {"length": "1599"},
        {"length": "many"},
        {"offset": "1e3"},
    ],
)
def test_entries_that_do_not_fit_the_weight(external: Path, entries: dict[str, str]) -> None:
    point(external, **entries)
    refused(external, "'w'", "'w.bin'", *entries.values())


def test_an_offset_behind_the_end(external: Path) -> None:
    point(external, offset="8")
    refused(external, "too short")


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "{folder}/w.bin", "", "link.bin", "sub/w.bin"])
def test_external_data_stays_in_the_folder(external: Path, location: str) -> None:
    outside = external.parent / "outside"
    outside.mkdir()
    folder = external.parent / "inside"
    folder.mkdir()
    shutil.move(external.parent / "w.bin", outside / "w.bin")
    path = Path(shutil.move(external, folder / "m.onnx"))
    shutil.copy(outside / "w.bin", external.parent / "w.bin")
    (folder / "link.bin").symlink_to(outside / "w.bin")
    (folder / "sub").symlink_to(outside)
    point(path, location=location.format(folder=folder))
    refused(path, "outside the model's folder", "'w'")


def test_a_link_to_a_model_is_followed_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(SAVED)
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    assert files.load(tmp_path / "link.onnx").digest() == files.load(tmp_path / "m.onnx").digest()


# --- round trips ---------------------------------------------------------------------------------------

SKIPPED = {
    TensorProto.UNDEFINED,
    # onnx.checker's own type lists lack them
    *(getattr(TensorProto, name) for name in ("FLOAT6E2M3", "FLOAT6E3M2") if hasattr(TensorProto, name)),
}


def tensor_of(kind: int) -> TensorProto:
    name = TensorProto.DataType.Name(kind)
    if kind == TensorProto.STRING:
        return helper.make_tensor(name, kind, [2], [b"a\x00\xff", "ü".encode()])  # type: ignore[list-item]  # it takes bytes
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    array = np.random.default_rng(kind).integers(0, 2, size=(3, 25)).astype(dtype)
    if name.startswith("FLOAT8"):
        array = np.arange(256, dtype=np.uint8).view(dtype)  # each code, the NaNs among them
    elif dtype in (np.float16, np.dtype("bfloat16")):
        array = np.arange(65536, dtype=np.uint16).view(dtype)
    return numpy_helper.from_array(array, name)


@pytest.mark.parametrize("external_bytes", [files.EXTERNAL_DATA_BYTES, 0], ids=["inside", "external"])
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, external_bytes: int) -> None:
    tensors = [tensor_of(kind) for kind in TensorProto.DataType.values() if kind not in SKIPPED]
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}.out"]) for t in tensors]
    outputs = [helper.make_tensor_value_info(f"{t.name}.out", t.data_type, list(t.dims)) for t in tensors]
    opset = helper.make_opsetid("", 25)
    model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors), opset_imports=[opset], ir_version=13)
    before = Graph.from_proto(model)
    written = files.save(before, tmp_path / "m.onnx", check=True, external_bytes=external_bytes)
    assert len(written) == (2 if external_bytes == 0 else 1)
    after = files.load(tmp_path / "m.onnx")
    assert after.digest() == before.digest() == files.spill(before.copy()).digest()
    kept = {t.name: t for t in after.to_proto().graph.initializer}
    for tensor in tensors:
        got = kept[tensor.name]
        assert (got.data_type, got.dims, got.raw_data, got.string_data) == (
            tensor.data_type,
            tensor.dims,
            tensor.raw_data,
            tensor.string_data,
        )


@EVERYWHERE
def test_the_model_on_disk_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    monkeypatch.setattr(files, "SPILL_BYTES", 0 if apart else files.SPILL_BYTES)
    (tmp_path / "m.onnx").write_bytes(SAVED)
    graph = files.load(tmp_path / "m.onnx")
    assert graph.to_proto() == Graph.from_proto(onnx.ModelProto.FromString(SAVED)).to_proto()
    shutil.copy(DIGITS, tmp_path / "d.onnx")
    assert files.load(tmp_path / "d.onnx").to_proto() == Graph.from_proto(onnx.load(DIGITS)).to_proto()


# --- writing -------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "o.onnx"


@pytest.mark.parametrize("name", ["o.onnx", "o", "o.json", "o.textproto", "a b:[c].onnx"])
def test_a_model_is_written_whatever_its_name(out: Path, name: str) -> None:
    path = out.parent / name
    assert files.save(graph_of(BRANCHES, w=W), path, check=True) == [path]
    assert files.load(path).digest() == graph_of(BRANCHES, w=W).digest()
    assert list(out.parent.iterdir()) == [path]


def test_external_data_and_what_an_older_run_left(out: Path) -> None:
    first, second = graph_of(BRANCHES, w=W), graph_of(BRANCHES, w=-W)
    old = files.save(first, out, external_bytes=0)
    unrelated = out.parent / "o.onnx.backup.data"
    unrelated.write_bytes(b"keep me")
    new = files.save(second, out, check=True, external_bytes=0)
    assert new[0] == old[0] == out
    assert {p.name for p in out.parent.iterdir()} == {"o.onnx", new[1].name, unrelated.name}
    feed = {"x": np.ones((1, 20), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(files.load(out), feed)[0], run(second, feed)[0])
    assert files.save(second, out, external_bytes=0) == new  # again, over itself
    files.save(second, out)  # now inside: the data file goes
    assert {p.name for p in out.parent.iterdir()} == {"o.onnx", unrelated.name}


def test_saving_over_the_file_that_weights_are_read_from(out: Path) -> None:
    files.save(graph_of(BRANCHES, w=W), out, external_bytes=0)
    graph = files.load(out)
    graph.constant("unused", np.ones(300, np.float32))
    files.save(graph, out, external_bytes=0)
    np.testing.assert_array_equal(graph.const(graph.weights["w"]), W)
    again = files.load(out)
    np.testing.assert_array_equal(again.const(again.weights["w"]), W)


def failing_replace(suffix: str) -> Callable[[Path, Path], Path]:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if str(target).endswith(suffix):
            raise OSError(28, "No space left on device")
        return real(self, target)

    return replace


@pytest.mark.parametrize(("suffix", "external_bytes"), [(".onnx", 0), (".data", 0), (".onnx", 10**9)])
def test_a_write_that_fails_leaves_everything_as_it_was(
    out: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, external_bytes: int
) -> None:
    files.save(graph_of(BRANCHES, w=W), out, external_bytes=0)
    before = listing(out.parent)
    monkeypatch.setattr(Path, "replace", failing_replace(suffix))
    with pytest.raises(OutputError, match="No space left on device") as error:
        files.save(graph_of(BRANCHES, w=-W), out, external_bytes=external_bytes)
    assert str(out) in error.value.message
    assert listing(out.parent) == before


def test_a_model_that_the_checker_refuses_leaves_everything_as_it_was(out: Path) -> None:
    out.write_bytes(b"old")
    bad = graph_of("(float[N] x) => (float[N] y) { y = Relu<slope = 0.5>(x) }")
    with pytest.raises(ModelError, match="slope"):
        files.save(bad, out, check=True)
    assert listing(out.parent) == {"o.onnx": b"old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_output_error(out: Path) -> None:
    out.write_text("old")

    def write(_: Path) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(OutputError, match="No space left"):
        files.write_aside(out, write)
    assert listing(out.parent) == {"o.onnx": b"old"}


def test_text_is_written_whole(out: Path) -> None:
    files.write_text(out, "grün\n")
    assert listing(out.parent) == {"o.onnx": "grün\n".encode()}


def test_outputs_that_cannot_be(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_writable(out)
    assert not listing(out.parent)
    out.write_bytes(SAVED)
    files.check_writable(out, out.parent / "other.onnx")
    link = out.parent / "link.onnx"
    link.symlink_to(out)
    cases = {
        "is itself an input": (out, link),
        "is a folder": (out.parent,),
        "does not exist": (out.parent / "none" / "o.onnx",),
        "is not a folder": (out / "o.onnx",),
    }
    for says, arguments in cases.items():
        with pytest.raises(OutputError, match=says) as error:
            files.check_writable(*arguments)
        assert "file" in error.value.hint

    def denied(*_: object, **__: object) -> None:  # root may write anywhere, so the tests cannot ask for it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(OutputError, match=r"o\.onnx cannot be written: Permission denied"):
        files.check_writable(out)


# --- for ONNX Runtime ----------------------------------------------------------------------------------


def runs(graph: Graph) -> list[Any]:
    return Session(files.for_runtime(graph.copy())).run({"x": W[:2], "c": np.array(True)})


def test_spilled_weights_are_read_where_they_lie() -> None:
    graph = graph_of(BRANCHES, w=W)
    expected = Session(graph.to_proto().SerializeToString()).run({"x": W[:2], "c": np.array(True)})
    assert graph.shelf is None
    loadable = files.for_runtime(graph.copy())
    assert (loadable.folder, set(loadable.arrays)) == (None, {"w"})
    np.testing.assert_equal(runs(graph), expected)
    digest = graph.digest()
    spilled = files.spill(graph)
    folder = spilled.shelf
    assert folder is not None
    before = {p.name for p in folder.iterdir()}
    loadable = files.for_runtime(spilled.copy())
    assert (loadable.folder, dict(loadable.arrays)) == (folder, {})
    assert len(loadable.model) < W.nbytes
    np.testing.assert_equal(runs(spilled), expected)
    assert {p.name for p in folder.iterdir()} == before
    assert spilled.digest() == digest
    copy = spilled.copy()
    del spilled, graph
    assert folder.exists()  # the copy still needs it
    del copy
    assert not folder.exists()


def external_model(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(
        graph_of(BRANCHES, w=W).to_proto(), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    return path


def test_weights_in_the_users_files_stay_there(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    expected = runs(files.load(path))
    spilled = files.spill(files.load(path))
    assert spilled.shelf is not None
    assert not list(spilled.shelf.glob("weights*"))
    assert files.for_runtime(spilled.copy()).folder == path.parent
    np.testing.assert_equal(runs(spilled), expected)


def test_new_weights_go_where_the_others_lie(tmp_path: Path) -> None:
    plain, spilled = files.load(external_model(tmp_path)), files.spill(files.load(tmp_path / "own" / "m.onnx"))
    large, small = np.arange(SHELVED_BYTES, dtype=np.int8), np.arange(5)
    for graph, kind in ((plain, False), (spilled, True), (spilled.copy(), True)):
        values = graph.constant("large", large), graph.constant("small", small)
        assert [isinstance(v.const_value, FileTensor) for v in values] == [kind, False]
        np.testing.assert_equal([graph.const(v) for v in values], [large, small])
    narrow = spilled.constant("narrow", np.ones(3 * SHELVED_BYTES, ml_dtypes.int4))
    np.testing.assert_array_equal(spilled.const(narrow), np.ones(3 * SHELVED_BYTES, ml_dtypes.int4))
    texts = spilled.constant("texts", np.array(["a" * 99] * SHELVED_BYTES, object))
    assert spilled.size(texts) == SHELVED_BYTES


def test_what_was_made_for_a_copy_goes_with_it(tmp_path: Path) -> None:
    graph = files.spill(files.load(external_model(tmp_path)))
    folder = graph.shelf
    assert folder is not None
    copy = graph.copy()
    value = copy.constant("large", np.ones(SHELVED_BYTES, np.int8))
    inner = copy.copy()
    del copy
    gc.collect()
    assert len(list(folder.glob("weights*"))) == 1  # the copy's copy needs it
    np.testing.assert_array_equal(inner.const(inner.weights["large"]), 1)
    del inner, value
    gc.collect()
    assert not list(folder.glob("weights*"))
    del graph
    gc.collect()
    assert not folder.exists()


def test_a_large_model_is_checked_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    check = onnx.checker.check_model

    def look(path: str, **options: bool) -> None:
        shown.append(Path(path).stat().st_size)
        check(path, **options)

    monkeypatch.setattr(onnx.checker, "check_model", look)
    graph = graph_of(BRANCHES, w=W)
    for limit in (files.SPILL_BYTES, 0):
        monkeypatch.setattr(files, "SPILL_BYTES", limit)
        files.save(graph, tmp_path / "out.onnx", check=True)
    assert shown[0] > W.nbytes > shown[1]
    graph.set_attribute(graph.nodes[0], "bogus", 1)
    with pytest.raises(ModelError, match="bogus"):
        files.save(graph, tmp_path / "bad.onnx", check=True)
    assert not (tmp_path / "bad.onnx").exists()


def test_numbers_in_the_field_of_another_type_are_refused(tmp_path: Path) -> None:
    """Also where the shape wants none: onnx_ir would read them."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.INT16, dims=[0], int64_data=[1, 2])
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="'w' holds int64_data, where its element type has int32_data"):
        files.load(tmp_path / "m.onnx")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> graph_name (float[dim_name] x) => (float[dim_name] y) { y = Relu(x) }'
    )
    model = onnx.parser.parse_model(text)
    model.producer_name, model.graph.node[0].doc_string, model.graph.doc_string = "maker_name", "remark_1", "remark_2"
    onnx.helper.set_model_props(model, {"key_name": "value_name"})
    data = model.SerializeToString()
    for name in (b"graph_name", b"dim_name", b"maker_name", b"remark_1", b"remark_2", b"key_name", b"value_name"):
        assert name in data
        (tmp_path / "m.onnx").write_bytes(data.replace(name, b"\xff" + name[1:]))
        with pytest.raises(ModelError, match="is not text"):
            files.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("body", ["y = Expand(x, s)", "y = Reshape(x, s)", "y = ConstantOfShape(s)"])
def test_a_shape_of_more_numbers_than_a_tensor_has_axes(body: str, inside: bool) -> None:
    """At which onnx's shape inference, and with it its version converter, counts for ever: so nothing may call it."""
    text = "agraph (float[4] x, int64[{}] s, bool c) => (float[N] y) {{ {} }}"
    if inside:
        parts = (f"{part}_branch = {part} () => (float[M] y) {{ {body} }}" for part in ("then", "else"))
        body = f"y = If (c) <{', '.join(parts)}>"
    head = '<ir_version: 8, opset_import: ["" : 13]>'
    long = onnx.parser.parse_model(head + text.format(1 << 40, body))
    for refuses in (Graph.from_proto, api.make_plan, api.check):
        with pytest.raises(ModelError, match="reads 's' as a shape, which has 1,099,511,627,776 numbers"):
            refuses(long)
    assert Graph.from_proto(onnx.parser.parse_model(head + text.format(1, body))).nodes


def test_what_declares_no_rank_is_written_as_it_is(tmp_path: Path) -> None:
    """onnx.checker asks for ranks, no runtime does; all else that it asks for is still asked for."""
    proto = onnx.ModelProto.FromString(SAVED)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    files.save(Graph.from_proto(proto), tmp_path / "m.onnx", check=True)
    written = onnx.load(tmp_path / "m.onnx")
    assert not written.graph.input[0].type.tensor_type.HasField("shape")
    proto.graph.node[0].attribute.append(helper.make_attribute("transB", 1))  # a MatMul has none
    with pytest.raises(ModelError, match="transB"):
        files.save(Graph.from_proto(proto), tmp_path / "bad.onnx", check=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_what_lies_on_a_shelf_outlives_the_graph_that_is_spilled_again() -> None:
    """A model that is given as a graph with a shelf of its own: passes put weights there before it is spilled."""
    text = "(float[64,1024] x) => (float[64,1024] y) { y = Add(x, w) }"
    graph = files.spill(graph_of(text, w=np.ones((64, 1024), np.float32)))
    mine = graph.copy()
    made = np.arange(64 * 1024, dtype=np.float32).reshape(64, 1024)
    mine.set_input(mine.nodes[0], 1, mine.constant("made", made))
    mine = files.spill(mine)
    gc.collect()
    np.testing.assert_array_equal(mine.const(mine.weights["made"]), made)
    folder = mine.shelf
    del graph, mine
    gc.collect()
    assert folder is not None
    assert not folder.exists()
