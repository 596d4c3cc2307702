"""Report pages by the command line, without a browser: what is measured, what is taken from beside, what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of

from onnxq import cli, reporting
from onnxq.monitor import Monitor
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
TEXT = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }"
ROWS = np.random.default_rng(1).normal(size=(40, 32)).astype(np.float32)


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str


@pytest.fixture
def onnxq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """The command line in a folder with a model and its data."""
    onnx.save(graph_of(TEXT, w=W).to_proto(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=ROWS)
    np.savez(tmp_path / "back.npz", x=ROWS[::-1])
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["onnxq", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Run(status, *capsys.readouterr())

    return call


def data(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'id="data">(.*?)</script>', Path(page).read_text(), re.DOTALL)
    made: dict[str, Any] = json.loads(found)
    return made


def test_a_run_reports_in_passing(onnxq: Callable[..., Run]) -> None:
    run = onnxq("quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--report", "q.html")
    assert run.status == 0
    assert "q.html" in run.out
    text = Path("q.html").read_text()
    assert f"Measured on {reporting.PICKED} samples of the calibration data" in text
    found = data("q.html")
    assert [row[1] for row in found["layers"] if row[7] is not None] == ["MatMul:a", "Tanh:b", "MatMul:y"]
    assert {picture["name"] for picture in found["pictures"]} == {"x", "b"}
    plain = onnxq("quantize", "m.onnx", "--data", "d.npz", "-o", "p.onnx")
    assert Path("p.onnx").read_bytes() == Path("q.onnx").read_bytes()
    assert "html" not in plain.out


def test_the_same_page_for_any_order_of_the_samples(onnxq: Callable[..., Run]) -> None:
    for name in ("d", "back"):
        onnxq("quantize", "m.onnx", "--data", f"{name}.npz", "-o", "q.onnx", "--report", f"{name}.html", "-q")
    assert Path("d.html").read_bytes() == Path("back.html").read_bytes()


def test_statistics_have_histograms_and_no_errors(onnxq: Callable[..., Run]) -> None:
    onnxq("calibrate", "m.onnx", "--data", "d.npz", "-o", "s.npz", "-q")
    assert onnxq("quantize", "m.onnx", "--statistics", "s.npz", "--report", "q.html", "-q").status == 0
    assert "Errors were not measured" in Path("q.html").read_text()
    found = data("q.html")
    assert {row[7] for row in found["layers"]} == {None}
    assert len(found["pictures"]) == 2


def test_data_beside_the_model_is_measured_on_too(onnxq: Callable[..., Run]) -> None:
    Path("d.npz").rename("m.npz")
    onnxq("quantize", "m.onnx", "--report", "q.html", "-q")
    assert "Measured on" in Path("q.html").read_text()


def test_a_budget_and_its_held_back_data(onnxq: Callable[..., Run]) -> None:
    budget = ("--min-sqnr", 10, "--eval-data", "held.npz")
    np.savez("held.npz", x=ROWS[:9] / 2)
    run = onnxq("quantize", "m.onnx", "--data", "d.npz", *budget, "-o", "q.onnx", "--report", "q.html", "-q")
    assert run.status == 0, run.err
    text = Path("q.html").read_text()
    assert "of the held-back data." in text
    assert "SQNR &gt;= 10 dB: holds" in text


def test_compare_takes_histograms_from_its_data_and_reasons_from_beside(onnxq: Callable[..., Run]) -> None:
    onnxq("quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "-q")
    run = onnxq("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--report", "c.html")
    assert run.status == 0
    assert "wrote c.html" in run.out
    assert "layer" not in run.out  # not asked for
    found = data("c.html")
    assert "int8 input and weight, a scale per output channel" in found["texts"]
    assert {picture["name"]: picture["count"] for picture in found["pictures"]} == {"x": ROWS.size, "b": ROWS.size}
    asked = onnxq("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--report", "c.html", "--json")
    assert [t["tensor"] for t in json.loads(asked.out)["tensors"]] == ["y"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": []}', '{"nodes": {"a": 1}}', '{"nodes": {}, "notes": 3}'])
def test_something_else_beside_is_no_plan(onnxq: Callable[..., Run], text: str) -> None:
    onnxq("quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "-q")
    Path("q.plan.json").write_text(text)
    assert onnxq("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--report", "c.html", "-q").status == 0


def test_inputs_are_not_overwritten(onnxq: Callable[..., Run]) -> None:
    before = Path("m.onnx").read_bytes()
    run = onnxq("quantize", "m.onnx", "--data", "d.npz", "--report", "m.onnx")
    assert run.status == 1
    assert "m.onnx" in run.err
    assert Path("m.onnx").read_bytes() == before
    assert onnxq("compare", "m.onnx", "m.onnx", "--data", "d.npz", "--report", "d.npz").status == 1
    assert onnxq("quantize", "m.onnx", "--data", "d.npz", "--report", "no/such/r.html").status == 1
    assert not Path("m.int8.onnx").exists()  # refused before anything ran


def test_a_model_that_cannot_be_run_is_written_all_the_same(tmp_path: Path, onnxq: Callable[..., Run]) -> None:
    text = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) y = EfficientNMS_TRT(a) }"
    onnx.save(graph_of(text, w=W).to_proto(), tmp_path / "m.onnx")
    run = onnxq("quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--report", "q.html")
    assert run.status == 0
    assert Path("q.onnx").exists()
    assert Path("q.html").exists()


def test_a_failed_measurement_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    onnx.save(graph_of(TEXT, w=W).to_proto(), tmp_path / "m.onnx")
    other = graph_of("(float[N,32] x) => (float[N,32] z) { z = Relu(x) }")
    monitor = Monitor(warn=said.append)
    assert reporting.measured(tmp_path / "m.onnx", other, [{"x": ROWS[:1]}], Recipe(), monitor) is None
    assert "the report is without errors of layers: the two models" in said[0]
