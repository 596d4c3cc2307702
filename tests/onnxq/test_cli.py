"""The command line: what it writes, what it says and where, and its exit status."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of
from onnx import TensorProto

from onnxq import cli, files
from onnxq.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS = Path(__file__).parents[2] / "models" / "digits"
ROOT = Path(__file__).parents[2]
W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
TEXT = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; a small model and its data lie in `in`."""
    folder = tmp_path / "in"
    folder.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    onnx.save(graph_of(TEXT, w=W).to_proto(), folder / "m.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32))
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def onnxq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """The command line in this process, as `python -m` would run it."""

    def call(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["onnxq", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Run(status, said.out, said.err)

    return call


def failed(run: Run, *says: str, status: int = 1) -> None:
    assert run.status == status, run
    assert run.out == ""
    last = run.err[run.err.rindex("error: " if status == 1 or "error: " in run.err else "Error: ") :]
    assert all(word in last for word in says), run.err
    assert len(last.splitlines()) <= 3, "what is wrong, and what to do"


MODEL, DATA = Path("../in/m.onnx"), Path("../in/data.npz")


# --- the main job --------------------------------------------------------------------------------------


def test_quantize(here: Path, onnxq: Callable[..., Run]) -> None:
    run = onnxq("quantize", MODEL, "--data", DATA)
    assert run.status == 0
    assert sorted(p.name for p in here.iterdir()) == ["m.int8.onnx", "m.int8.plan.json"]
    assert "wrote m.int8.onnx" in run.out
    assert "int8: 2 of 2" in run.out
    assert "trtexec --onnx=m.int8.onnx" in run.out
    assert "--minShapes=x:1x32" in run.out
    assert "Observing" in run.err
    assert {n.op_type for n in onnx.load("m.int8.onnx").graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    plan = json.loads(Path("m.int8.plan.json").read_text())
    assert plan["data"]["samples"] == 8
    assert {n["precision"] for n in plan["nodes"].values() if n["op"] == "MatMul"} == {"int8"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("from_statistics", [False, True])
def test_the_check_that_is_printed_works_when_pasted(onnxq: Callable[..., Run], *, from_statistics: bool) -> None:
    """Of a model whose sizes are open, whose input's name holds a blank, and that only real integers suit."""
    text = "(float[N,T,32] x, int64[2] to) => (float[M,K] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) %s }"
    model = graph_of(text % ("y = Identity(c)" if from_statistics else "y = Reshape(c, to)"), w=W).to_proto()
    model.graph.input[0].name = model.graph.node[0].input[0] = "my input, 1"
    onnx.save(model, "m.onnx")
    feeds = Path("my data")
    feeds.mkdir()
    for i in range(8):
        feed = {"my input, 1": np.random.default_rng(i).normal(size=(1, 3, 32)).astype(np.float32)}
        np.savez(feeds / f"{i}.npz", **feed | {"to": np.array([3, 32])})
    given = ["--data", feeds]
    if from_statistics:
        assert onnxq("calibrate", "m.onnx", *given, "--target", "ort-cpu", "-o", "s.npz").status == 0
        given = ["--statistics", "s.npz"]
    run = onnxq("quantize", "m.onnx", *given, "--target", "ort-cpu", "--effort", "fast", "-o", "a b.onnx")
    assert run.status == 0
    (line,) = (line for line in run.out.splitlines() if line.startswith("  onnxq compare "))
    compared = onnxq(*shlex.split(line.replace("...", "'my data'"))[1:])
    assert (compared.status, compared.err) == (0, "Comparing ...\n")
    (line,) = (line for line in run.out.splitlines() if line.startswith("  onnxq check "))
    assert ("--shapes" in line, "--data" in line) == (from_statistics, not from_statistics)
    checked = onnxq(*shlex.split(line)[1:])
    assert (checked.status, checked.err) == (0, "")
    assert "100.0% of the multiply-accumulates in integer kernels" in checked.out


def test_the_same_run_writes_the_same_bytes_and_the_input_stays(here: Path, onnxq: Callable[..., Run]) -> None:
    def state() -> dict[str, Any]:
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (here.parent / "in").iterdir()}

    before = state()
    for name in ("a.onnx", "b.onnx"):
        assert onnxq("quantize", MODEL, "--data", DATA, "-o", name).status == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert Path("a.plan.json").read_bytes() == Path("b.plan.json").read_bytes()
    assert state() == before


def test_quiet_and_verbose(here: Path, onnxq: Callable[..., Run]) -> None:
    assert here
    fast = ("--data", DATA, "--effort", "fast")
    np.savez("more.npz", x=np.ones((9, 32), np.float32))
    assert onnxq("quantize", MODEL, "--data", "more.npz", "--effort", "fast", "-q") == Run(0, "", "")
    assert onnxq("calibrate", MODEL, *fast, "-o", "s.npz", "-q") == Run(0, "", "")
    assert onnxq("merge", "s.npz", "-o", "t.npz", "-q") == Run(0, "", "")
    brief, verbose = onnxq("quantize", MODEL, "--data", DATA), onnxq("quantize", MODEL, "--data", DATA, "-v")
    assert "Relu:b" not in brief.out
    assert "Relu:b" in verbose.out
    assert "8 different samples are too few" in onnxq("quantize", MODEL, "--data", DATA, "-q").err
    assert "NO CALIBRATION DATA" in onnxq("quantize", MODEL, "-q").err  # a warning is never quiet
    assert "calibrated on only 3 samples" in onnxq("quantize", MODEL, *fast, "--max-samples", 3, "-q").err


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (("--min-sqnr", 20), 1, "judged on data, and none was given"),
        (("--measure", "--target", "ort-cpu"), 2, "--measure times the list of a budget"),
        (("--measure", "--min-sqnr", 20), 2, "tensorrt cannot be timed here"),
        (("--mode", "weight-only", "--weight-method", "gptq"), 1, "weight_method gptq needs data"),
        (("--data", "DATA", "--eval-data", "DATA"), 2, "--eval-data is for a budget"),
        (("--data", "DATA", "--report", "m.int8.onnx"), 2, "is the name of another output"),
        (("--data", "DATA", "--labels", "y"), 1, "no array for the label 'y'"),
    ],
)
def test_what_goes_wrong_is_said_once(
    here: Path, onnxq: Callable[..., Run], given: tuple[object, ...], status: int, says: str
) -> None:
    run = onnxq("quantize", MODEL, "-q", *(DATA if item == "DATA" else item for item in given))
    assert run.status == status
    assert says in run.err
    assert "NO CALIBRATION" not in run.err
    assert not list(here.iterdir())


def test_data_beside_the_model_is_taken_and_said(here: Path, onnxq: Callable[..., Run]) -> None:
    shutil.copy(DATA, MODEL.with_suffix(".npz"))
    run = onnxq("quantize", MODEL)
    assert run.status == 0
    assert "m.npz, found beside the model" in run.err
    assert onnxq("quantize", MODEL, "--data", DATA, "-o", "b.onnx").status == 0
    assert (here / "m.int8.onnx").read_bytes() == (here / "b.onnx").read_bytes()


AUTO = ("--mode", "auto", "--target", "ort-cuda")


@pytest.mark.parametrize(
    ("options", "held", "stored"),
    [
        (("--mode", "weight-only"), "int8", TensorProto.INT8),
        (("--mode", "weight-only", "--weight-bits", "4", "--block-size", "32"), "int4", TensorProto.INT4),
        (("--weights", "uint8", "--target", "ort-cpu"), "uint8", TensorProto.UINT8),
        (("--weights", "nf4", "--target", "ort-cpu"), "nf4", TensorProto.UINT4),
        (("--mode", "float"), "fp16", TensorProto.FLOAT16),
        (("--mode", "float", "--high-precision", "bf16"), "bf16", TensorProto.BFLOAT16),
        (("--weights", "fp16", "--target", "ort-cpu"), "fp16", TensorProto.FLOAT16),
        (("--activations", "fp8e4m3", "--effort", "fast"), "fp8e4m3", TensorProto.FLOAT8E4M3FN),
        (("--activations", "int16", "--effort", "fast", "--target", "ort-cpu"), "int8", TensorProto.INT8),
        (("--mode", "dynamic", "--target", "ort-cpu"), "int8", TensorProto.INT8),
        (("--mode", "auto", "--target", "ort-cuda", "--effort", "fast"), "int8", TensorProto.INT8),
        ((*AUTO, "--effort", "fast", "--weight-bits", "4"), "int8", TensorProto.INT8),  # rows are open, so static
    ],
)
def test_a_file_is_named_after_what_it_holds(
    here: Path, onnxq: Callable[..., Run], options: tuple[str, ...], held: str, stored: int
) -> None:
    run = onnxq("quantize", MODEL, "--data", DATA, *options)
    assert (run.status, f"wrote m.{held}.onnx" in run.out) == (0, True), run.err
    assert {p.name for p in here.iterdir()} == {f"m.{held}.onnx", f"m.{held}.plan.json"}
    assert stored in {tensor.data_type for tensor in onnx.load(f"m.{held}.onnx").graph.initializer if tensor.dims}


def test_what_mode_auto_stands_for_names_the_file(here: Path, onnxq: Callable[..., Run]) -> None:
    onnx.save(graph_of(TEXT.replace("N", "4"), w=W).to_proto(), "few.onnx")
    run = onnxq("quantize", "few.onnx", *AUTO, "--weight-bits", "4")
    assert run.status == 0, run.err
    assert {p.name for p in here.iterdir()} == {"few.onnx", "few.int4.onnx", "few.int4.plan.json"}
    assert onnxq("quantize", "few.onnx", *AUTO).status == 0
    assert (here / "few.int8.onnx").exists()
    assert onnxq("quantize", "none.onnx", *AUTO).status == 1


INTEGERS = ("--target", "ort-cpu", "--io-types", "int8")


def test_the_summary_says_how_near_by_the_samples_that_judge(here: Path, onnxq: Callable[..., Run]) -> None:
    np.savez(here / "many.npz", x=np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32))
    for options, half in (
        ((), ""),
        (("--high-precision", "fp32"), ""),
        (INTEGERS, ""),
        (("--high-precision", "bf16"), ""),  # which is computed in float32, rounded behind every node
    ):
        run = onnxq("quantize", MODEL, "--data", "many.npz", *options)
        (found,) = re.findall(
            r"^SQNR (\S+) dB at the worst output, on (\d+) samples of the .* judge(.*)$", run.out, re.MULTILINE
        )
        told = json.loads((here / "m.int8.plan.json").read_text())["judged"]
        assert float(found[0]) == pytest.approx(told["sqnr_db"], abs=0.06)  # both are rounded
        assert found[1:] == (str(told["samples"]), half)
        assert told["as_written"] is not bool(half)
    run = onnxq("quantize", MODEL, "--data", "many.npz", "--effort", "fast")
    assert "SQNR" not in run.out
    assert "judged" not in json.loads((here / "m.int8.plan.json").read_text())


def test_without_data_the_weights_alone_and_loudly(here: Path, onnxq: Callable[..., Run]) -> None:
    run = onnxq("quantize", MODEL)
    assert run.status == 0
    assert "NO CALIBRATION DATA" in run.err
    assert "--data" in run.err
    assert "int8 weights only, all computed in float: 2 of 2" in run.out
    kinds = [n.op_type for n in onnx.load(here / "m.int8.onnx").graph.node]
    assert "DequantizeLinear" in kinds
    assert "QuantizeLinear" not in kinds


def test_shards_give_the_bytes_of_one_run(here: Path, onnxq: Callable[..., Run]) -> None:
    rows = np.load(DATA)["x"]
    for i, part in enumerate((rows[:3], rows[3:4], rows[4:])):
        np.savez(f"part{i}.npz", x=part)
        assert onnxq("calibrate", MODEL, "--data", f"part{i}.npz", "-o", f"s{i}.npz").status == 0
    run = onnxq("merge", "s2.npz", "s0.npz", "s1.npz", "-o", "all.npz")
    assert "8 samples" in run.out
    assert onnxq("quantize", MODEL, "--statistics", "all.npz", "-o", "a.onnx").status == 0
    assert onnxq("quantize", MODEL, "--data", DATA, "-o", "b.onnx").status == 0
    assert onnxq("calibrate", MODEL, "--data", DATA, "-o", "one.npz").status == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    assert (here / "a.plan.json").read_bytes() == (here / "b.plan.json").read_bytes()
    assert (here / "all.npz").read_bytes() == (here / "one.npz").read_bytes()


def test_statistics_as_data_are_statistics(here: Path, onnxq: Callable[..., Run]) -> None:
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "s.npz")
    assert onnxq("quantize", MODEL, "--data", "s.npz").status == 0
    failed(onnxq("calibrate", MODEL, "--data", "s.npz", "-o", "t.npz"), "s.npz", "statistics", "--statistics")
    failed(onnxq("quantize", MODEL, "--statistics", DATA), "data.npz", "'x'", "--data")
    assert not (here / "t.npz").exists()


def test_plan(here: Path, onnxq: Callable[..., Run]) -> None:
    run = onnxq("plan", MODEL)
    assert run.status == 0
    assert "MatMul:a" in run.out
    assert "int8: 2 of 2" in run.out
    run = onnxq("plan", MODEL, "--json")
    assert json.loads(run.out)["nodes"]["MatMul:a"]["precision"] == "int8"
    assert run.err == ""
    assert not list(here.iterdir())


def test_compare(here: Path, onnxq: Callable[..., Run]) -> None:
    onnxq("quantize", MODEL, "--data", DATA)
    run = onnxq("compare", MODEL, "m.int8.onnx", "--data", DATA)
    assert run.status == 0
    assert "SQNR" in run.out
    assert "over 8 samples" in run.out
    found = json.loads(onnxq("compare", MODEL, "m.int8.onnx", "--data", DATA, "--layers", "--json").out)
    assert [t["sqnr_db"] for t in found["tensors"]] == sorted(t["sqnr_db"] for t in found["tensors"])
    assert {t["tensor"] for t in found["tensors"]} >= {"a", "y"}
    assert "first model" not in run.err
    assert "warning: the first model is quantized" in onnxq("compare", "m.int8.onnx", MODEL, "--data", DATA).err
    assert "first model" not in onnxq("compare", "m.int8.onnx", "m.int8.onnx", "--data", DATA).err
    same = json.loads(onnxq("compare", MODEL, MODEL, "--data", DATA, "--json").out)
    assert [(t["max_abs"], t["cosine"]) for t in same["tensors"]] == [(0, pytest.approx(1))]
    other = graph_of("(float[N,32] x) => (float[N,32] z) { z = Relu(x) }")
    onnx.save(other.to_proto(), here / "other.onnx")
    failed(onnxq("compare", MODEL, "other.onnx", "--data", DATA), "'y'", "'z'")


def test_compare_prints_outputs_before_layers_and_holds_a_bound(here: Path, onnxq: Callable[..., Run]) -> None:
    assert here
    onnxq("quantize", MODEL, "--data", DATA)
    compare = ("compare", MODEL, "m.int8.onnx", "--data", DATA)
    run = onnxq(*compare, "--layers", "--fail-below", 1)
    assert run.status == 0
    assert run.out.index("top-1") < run.out.index("layer")
    low = onnxq(*compare, "--fail-below", 99)
    assert low.status == 1
    assert "SQNR" in low.out  # the figures come all the same
    assert "error: 1 of 1 outputs are below 99 dB: 'y' " in low.err
    assert json.loads(onnxq(*compare, "--fail-below", 99, "--json").out)["samples"] == 8
    assert onnxq("compare", MODEL, MODEL, "--data", DATA, "--fail-below", 99, "-q") == Run(0, "", "")
    failed(onnxq(*compare, "--fail-below", "nan"), "nan", status=2)


def test_compare_holds_no_bound_of_an_output_that_is_gone(here: Path, onnxq: Callable[..., Run]) -> None:
    text = "(float[N,32] x) => (float[N,32] {}) {{ y = Relu(x) z = Tanh(x) }}"
    onnx.save(graph_of(text.format("y, float[N,32] z")).to_proto(), here / "both.onnx")
    onnx.save(graph_of(text.format("z")).to_proto(), here / "one.onnx")
    assert onnxq("compare", "one.onnx", "both.onnx", "--data", DATA, "--fail-below", 9).status == 0
    assert onnxq("compare", "both.onnx", "one.onnx", "--data", DATA).status == 0
    gone = onnxq("compare", "both.onnx", "one.onnx", "--data", DATA, "--fail-below", 9)
    assert gone.status == 1
    assert "error: outputs that the quantized model has not cannot reach 9 dB: 'y'" in gone.err
    assert "one.onnx has no others" in gone.err
    onnx.save(graph_of(text.format("z, float[N,32] v").replace("y =", "v =")).to_proto(), here / "other.onnx")
    renamed = onnxq("compare", "both.onnx", "other.onnx", "--data", DATA, "--fail-below", 9)
    assert renamed.status == 1
    assert "other.onnx has 'v' instead" in renamed.err


def test_recipe_files_and_flags(here: Path, onnxq: Callable[..., Run]) -> None:
    (here / "r.toml").write_text('calibrator = "minmax"\n[[rules]]\nnodes = "MatMul:y"\nquantize = false\n')
    assert onnxq("quantize", MODEL, "--data", DATA, "--recipe", "r.toml").status == 0
    plan = json.loads((here / "m.int8.plan.json").read_text())
    assert plan["nodes"]["MatMul:y"]["precision"] != "int8"
    assert {t["calibrator"] for t in plan["tensors"].values()} == {"minmax"}
    onnxq("quantize", MODEL, "--data", DATA, "--recipe", "r.toml", "--calibrator", "mse", "--exclude-op", "Relu")
    plan = json.loads((here / "m.int8.plan.json").read_text())
    assert {t["calibrator"] for t in plan["tensors"].values()} == {"mse"}
    run = onnxq("quantize", MODEL, "--data", DATA, "--exclude", "*y")
    assert "int8: 1 of 2" in run.out


def test_names_with_spaces_colons_slashes_and_brackets(here: Path, onnxq: Callable[..., Run]) -> None:
    model = graph_of(TEXT, w=W).to_proto()
    renamed = {"x": "in put:0", "a": "/a/b [c]:0", "y": "out/[red]y[/]"}
    for node in model.graph.node:
        node.name = f"/layer {node.op_type}[0]:{node.output[0]}"
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    model.graph.input[0].name, model.graph.output[0].name = renamed["x"], renamed["y"]
    folder = here / "a b [x]"
    folder.mkdir()
    onnx.save(model, folder / "my model:1.onnx")
    np.savez(folder / "d.npz", **{"in put:0": np.load(DATA)["x"]})
    run = onnxq("quantize", folder / "my model:1.onnx", "--data", folder / "d.npz", "-v")
    assert run.status == 0
    assert "'my model:1.int8.onnx'" in run.out  # quoted for the shell
    assert "/layer MatMul[0]:a" in run.out
    run = onnxq("quantize", folder / "my model:1.onnx", "--data", folder / "d.npz", "--exclude", "/layer MatMul[0]:a")
    assert "int8: 1 of 2" in run.out
    run = onnxq("compare", folder / "my model:1.onnx", "my model:1.int8.onnx", "--data", folder / "d.npz")
    assert "out/[red]y[/]" in run.out


# --- bad input -----------------------------------------------------------------------------------------


def bad(name: str, here: Path) -> list[object]:  # noqa: C901, PLR0912  one branch for each fault
    """The arguments of a run that must fail."""
    text = MODEL.read_bytes()
    data = np.load(DATA)["x"]
    model: Path | str = MODEL
    source: Path | str = "bad.npz"
    if name == "text":
        model = here / "notes.onnx"
        model.write_text("these are notes")
    elif name == "truncated":
        model = here / "t.onnx"
        model.write_bytes(text[: len(text) // 2])
    elif name == "missing":
        model = here / "none.onnx"
    elif name in ("no external data", "outside"):
        model = here / "e.onnx"
        proto = onnx.ModelProto.FromString(text)
        onnx.save(proto, model, save_as_external_data=True, location="e.data", size_threshold=0)
        if name == "outside":
            proto = onnx.load(model, load_external_data=False)
            next(e for e in proto.graph.initializer[0].external_data if e.key == "location").value = "../../etc/e.data"
            model.write_bytes(proto.SerializeToString())
        else:
            (here / "e.data").unlink()
    elif name == "empty folder":
        (here / "empty").mkdir()
        source = "empty"
    elif name == "no data":
        source = "none.npz"
    elif name == "wrong name":
        np.savez("bad.npz", xx=data)
    elif name == "wrong rank":
        np.savez("bad.npz", x=data[0])
    elif name == "wrong size":
        np.savez("bad.npz", x=data[:, :8])
    elif name == "wrong dtype":
        np.savez("bad.npz", x=data.astype(np.complex64))
    elif name == "nan":
        data = data.copy()
        data[5, 3] = np.nan
        np.savez("bad.npz", x=data)
    return ["quantize", model, "--data", DATA if model != MODEL else source]


@pytest.mark.parametrize(
    ("name", "says"),
    {
        "text": ("notes.onnx is not an ONNX model", "15 bytes"),
        "truncated": ("t.onnx is cut short or damaged", "Copy or export"),
        "missing": ("none.onnx cannot be read", "No such file", "Check the path"),
        "no external data": ("e.onnx", "'e.data'", "weight 'w' is missing", "beside the model"),
        "outside": ("e.onnx", "'w'", "outside the model's folder", "'../../etc/e.data'"),
        "empty folder": ("empty", "no calibration data", ".npz"),
        "no data": ("none.npz", "no such file"),
        "wrong name": ("bad.npz", "'xx'", "'x'"),
        "wrong rank": ("bad.npz", "'x'", "[32]", "batch axis"),
        "wrong size": ("bad.npz", "'x'", "axis 1 is 8, not 32"),
        "wrong dtype": ("bad.npz", "'x'", "complex64", "float32"),
        "nan": ("bad.npz, sample 5", "'x' holds NaN", "[0, 3]"),
    }.items(),
)
def test_bad_input(here: Path, onnxq: Callable[..., Run], name: str, says: tuple[str, ...]) -> None:
    arguments = bad(name, here)
    before = sorted(here.rglob("*"))
    failed(onnxq(*arguments), *says)
    assert sorted(here.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quantize", MODEL, "--target", "tensort"], ("'tensort'", "Did you mean 'tensorrt'?")),
        (["quantize", MODEL, "--calibrator", "entrpy"], ("'entrpy'", "Did you mean 'entropy'?")),
        (["quantize", MODEL, "--percentile", "0"], ("percentile",)),
        (["quantize", MODEL, "--percentile", "many"], ("--percentile",)),
        (["quantize", MODEL, "--providers", "gpu"], ("'gpu'", "cuda")),
        (["quantize", MODEL, "--weight-form", "qq"], ("weight_form", "dq, qdq")),
        (["quantize", MODEL, "--max-samples", "0"], ("max_samples",)),
        (["quantize", MODEL, "--exclude", "MatMul:aa"], ("'MatMul:aa'", "matches no node", "'MatMul:a'")),
        (["quantize", MODEL, "--exclude-op", "Matmul"], ("'Matmul'", "'MatMul'")),
        (["quantize", MODEL, "--recipe", "none.toml"], ("none.toml", "No such file")),
        (["quantize", MODEL, "--data", DATA, "--shapes", "x=1x32"], ("x=1x32", "x:1x3x224x224")),
        (["quantize", MODEL, "--data", DATA, "--statistics", "s.npz"], ("not both",)),
        (["quantize"], ("MODEL",)),
        (["calibrate", MODEL], ("--data",)),
        (["calibrate", MODEL, "--data", DATA], ("--output",)),
        (["merge", "-o", "x.npz"], ("STATISTICS",)),
        (["quantise", MODEL], ("quantise",)),
        (["quantize", MODEL, "--dta", DATA], ("--dta", "--data")),
        (["quantize", MODEL, "--data", ""], ("--data", "empty")),
        (["quantize", MODEL, "--data", DATA, "--recipe", ""], ("--recipe", "empty")),
        (["merge", "", "-o", "s.npz"], ("STATISTICS", "empty")),
        (["quantize", MODEL, "--data", DATA, "--data", DATA], ("--data", "twice", "one folder")),
        (["quantize", MODEL, "--percentile", "99"], ("--calibrator percentile", "auto would not heed it")),
        (["quantize", MODEL, "--exclude", "MATMUL:A"], ("'MATMUL:A'", "'MatMul:a'")),
        (["check", MODEL, "--float", MODEL], ("--float wants --measure",)),
        (["check", MODEL, "--data", DATA], ("--data", "ort-cpu", "tensorrt nothing runs")),
    ],
)
def test_wrong_use(here: Path, onnxq: Callable[..., Run], arguments: list[object], says: tuple[str, ...]) -> None:
    failed(onnxq(*arguments), *says, status=2)
    assert not list(here.iterdir())


def test_outputs_that_cannot_be_written(here: Path, onnxq: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    failed(onnxq("quantize", MODEL, "--data", DATA, "-o", MODEL), "m.onnx is itself an input", "another file")
    failed(onnxq("quantize", MODEL, "--data", DATA, "-o", here), "is a folder")
    failed(onnxq("quantize", MODEL, "--data", DATA, "-o", here / "none" / "o.onnx"), "does not exist")
    failed(onnxq("calibrate", MODEL, "--data", DATA, "-o", DATA), "data.npz is itself an input")
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "s.npz")
    failed(onnxq("merge", "s.npz", "s.npz", "-o", "s.npz"), "s.npz is itself an input")

    def denied(*_: object, **__: object) -> None:  # root may write anywhere, so the tests cannot ask for it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)
    run = onnxq("quantize", MODEL, "--data", DATA)
    failed(run, "m.int8.onnx cannot be written: Permission denied", "-o")
    assert "Observing" not in run.err  # it fails before the work


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_pipe_or_a_device_stays_what_it_is(here: Path, onnxq: Callable[..., Run], command: str) -> None:
    os.mkfifo(here / "pipe")
    failed(onnxq(command, MODEL, "--data", DATA, "-o", "pipe"), "pipe is a device or a pipe", "Name a file")
    with pytest.raises(OutputError, match="device or a pipe"):
        files.save(graph_of(TEXT, w=W), "pipe")
    assert (here / "pipe").is_fifo()


def test_samples_that_are_added_up_twice_are_told(here: Path, onnxq: Callable[..., Run]) -> None:
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "s.npz", "--effort", "fast")
    (here / "copy.npz").write_bytes((here / "s.npz").read_bytes())
    run = onnxq("merge", "s.npz", "copy.npz", "-o", "t.npz")
    assert run.status == 0
    assert "warning: copy.npz: of the same samples as one before it, which count twice" in run.err
    assert onnxq("merge", "s.npz", "-o", "u.npz").err == ""


def test_statistics_of_a_rule_that_left_a_layer_out(here: Path, onnxq: Callable[..., Run]) -> None:
    assert here
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "s.npz", "--effort", "fast", "--exclude", "MatMul:a")
    failed(onnxq("quantize", MODEL, "--statistics", "s.npz"), "'x'", "rules that leave in float what reads it")


def test_statistics_of_another_model(here: Path, onnxq: Callable[..., Run]) -> None:
    onnx.save(graph_of(TEXT, w=-W).to_proto(), here / "other.onnx")
    onnxq("calibrate", "other.onnx", "--data", DATA, "-o", "s.npz")
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "t.npz")
    failed(onnxq("quantize", MODEL, "--statistics", "s.npz"), "another model", "onnxq calibrate")
    failed(onnxq("merge", "s.npz", "t.npz", "-o", "u.npz"), "different models", "t.npz")
    failed(onnxq("quantize", MODEL, "--statistics", "none.npz"), "none.npz")


BODIES = """(float[N,32] x, bool c) => (float[N,32] y) {
  y = If (c) <then_branch = t () => (float[N,32] p) { p = MatMul(x, w) },
              else_branch = e () => (float[N,32] q) { q = Relu(x) }>
}"""


@pytest.mark.parametrize(
    ("text", "weights", "says"),
    [
        (BODIES, {"w": W}, ("bodies in float", "quantize = true")),
        ("(float[N,32] x) => (float[N,32] y) { y = Relu(x) }", {}, ("no Conv", "MatMul")),
        ("(float[N,32] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": W[:, :4]}, ("smaller than 16",)),
    ],
)
def test_nothing_to_quantize(
    here: Path, onnxq: Callable[..., Run], text: str, weights: dict[str, Any], says: tuple[str, ...]
) -> None:
    onnx.save(graph_of(text, **weights).to_proto(), here / "n.onnx")
    failed(onnxq("quantize", "n.onnx", "--data", "random:2"), "nothing to quantize in n.onnx", *says)
    assert [p.name for p in here.iterdir()] == ["n.onnx"]


def test_a_checker_that_refuses_leaves_the_old_output(
    here: Path, onnxq: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "m.int8.onnx").write_bytes(b"old")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no good")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    failed(onnxq("quantize", MODEL, "--data", DATA), "no good")
    assert {p.name: p.read_bytes() for p in here.iterdir()} == {"m.int8.onnx": b"old"}


def test_external_data_of_a_large_output(
    here: Path, onnxq: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.save, "__kwdefaults__", {"check": False, "external_bytes": 0})
    run = onnxq("quantize", MODEL, "--data", DATA)
    assert run.status == 0
    names = sorted(p.name for p in here.iterdir())
    assert len(names) == 3
    assert names[1].startswith("m.int8.onnx.")
    assert names[1] in run.out  # the file must travel with the model, so the user must know of it
    assert len(files.load("m.int8.onnx").weights) > 0


# --- help, and a real process --------------------------------------------------------------------------


def test_help_and_version(onnxq: Callable[..., Run]) -> None:
    run = onnxq("--help")
    assert run.status == 0
    assert all(command in run.out for command in cli.cli.commands)
    assert onnxq("--version").out.startswith("onnxq")
    assert onnxq().status == 2


COMMAND = [sys.executable, "-m", "onnxq"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_real_process(here: Path) -> None:
    arguments = ["quantize", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "calib.npz"), "--max-samples", "4"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "wrote digits.int8.onnx" in done.stdout
    done = subprocess.run([*COMMAND, "plan", "x"], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Preparing ...\nerror: x cannot be read")
    assert sorted(p.name for p in here.iterdir()) == ["digits.int8.onnx", "digits.int8.plan.json"]


def test_a_reader_that_leaves_early(here: Path) -> None:
    assert here
    command = f"{shlex.join(COMMAND)} plan {DIGITS / 'digits.onnx'} -v | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=ENVIRONMENT)  # noqa: S607
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_stopping_leaves_a_checkpoint_alone(here: Path) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("a shell started this in the background, where Ctrl-C is ignored, and so do its children")
    script = "import time, numpy as np\ndef load_data():\n"
    script += "    open('begun', 'w').close()\n    for _ in range(1000):\n        time.sleep(0.02)\n"
    script += "        yield {'x': np.ones((1, 32), 'float32')}\n"
    (here / "feeds.py").write_text(script)
    process = subprocess.Popen(
        [*COMMAND, "quantize", str(MODEL), "--data", "feeds.py"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not (here / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "no output was written" in err
    assert "Traceback" not in err
    left = {p.name for p in here.iterdir() if p.name != "__pycache__"} - {"begun", "feeds.py"}
    assert left <= {f"{MODEL.stem}.int8.onnx.partial"}  # none, when no sample was counted yet


# --- what a user may get wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("output", [".", "..", "folder"])
def test_an_output_that_is_a_folder(onnxq: Callable[..., Run], here: Path, output: str) -> None:
    (here / "folder").mkdir()
    run = onnxq("quantize", DIGITS / "digits.onnx", "--data", "random:1", "-o", output)
    assert (run.status, f"{output} is a folder" in run.err) == (1, True)


def test_pointers_of_git_lfs_are_named_for_data_too(onnxq: Callable[..., Run], here: Path) -> None:
    (here / "folder").mkdir()
    for name in ("a.npz", "a.tar", "a.parquet", "a.json", "folder/a.npz"):
        (here / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
        run = onnxq("quantize", DIGITS / "digits.onnx", "--data", name.split("/")[0], "--effort", "fast")
        assert run.status == 1
        assert f"{name}: is a Git LFS pointer" in run.err
    (here / "l.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    for command in ("quantize", "plan", "check", "show"):
        failed(onnxq(command, "l.onnx"), "l.onnx is a Git LFS pointer", "git lfs pull")


def test_comparing_on_nan_names_the_sample(onnxq: Callable[..., Run], here: Path) -> None:
    images = np.zeros((3, 1, 8, 8), np.float32)
    images[1, 0, 2, 3] = np.nan
    np.savez(here / "nan.npz", image=images)
    run = onnxq("compare", *[DIGITS / "digits.onnx"] * 2, "--data", "nan.npz")
    assert (run.status, "nan.npz, sample 1: input 'image' holds NaN" in run.err) == (1, True)


def test_a_model_that_is_quantized_already(onnxq: Callable[..., Run], here: Path) -> None:
    assert (
        onnxq("quantize", DIGITS / "digits.onnx", "--data", "random:9", "--effort", "fast", "-o", "q.onnx").status == 0
    )
    run = onnxq("quantize", "q.onnx", "--data", "random:9", "--effort", "fast", "-o", "qq.onnx")
    assert "tensors were quantized already, and kept so" in run.out
    run = onnxq("sensitivity", "q.onnx", "--data", "random:20")
    assert run.status == 1
    assert "there is no layer to measure: " in run.err
    assert "tensors are quantized already" in run.err
    assert not list(here.glob("*.partial"))


@pytest.mark.parametrize("mode", [("weight-only",), ("dynamic", "--target", "ort-cpu")])
def test_work_without_data_is_counted_by_shapes_or_said_to_be_a_guess(
    here: Path, onnxq: Callable[..., Run], mode: tuple[str, ...]
) -> None:
    """Two products of 32 x 32 a row, and one of two activations: 2 32^2 S of 2 32^2 S + 32 S^2."""
    text = """(float[N,S,32] x) => (float[N,S,S] y) {
        a = MatMul(x, w) b = MatMul(x, v) c = Transpose<perm=[0,2,1]>(b) y = MatMul(a, c)
    }"""
    onnx.save(graph_of(text, w=W, v=-W).to_proto(), here / "a.onnx")
    np.savez(
        here / "long.npz", x=np.ones((16, 64, 32), np.float32) * np.linspace(1, 2, 16, dtype=np.float32)[:, None, None]
    )
    guess = "counted with 1 for every size that the model leaves open (--shapes)"

    def said(*options: str) -> str:
        return onnxq("quantize", "a.onnx", "-o", "b.onnx", "--effort", "fast", "--mode", *mode, *options).out

    assert f"98.4% of their MACs, {guess}" in said()  # 64 of 65
    for told in (("--shapes", "x:1x64x32"), ("--data", "long.npz"), ("--data", "long.npz", "--min-sqnr", "10")):
        assert "50.0% of their MACs\n" in said(*told)
    assert '"macs": 65536' in (here / "b.plan.json").read_text()
    onnx.save(graph_of(TEXT.replace("[N,", "[N,S,"), w=W).to_proto(), here / "a.onnx")
    assert "100.0% of their MACs\n" in said()  # whatever S is
