"""What the command line prints of plans: complete tables, the lines below them, and what goes to another device."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import graph_of

from onnxq import api, cli, tables
from onnxq.outcome import GroupError, Sensitivity
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.report import Summary, summarize

if TYPE_CHECKING:
    from onnxq.graph import Graph

W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
TEXT = "(float[4,32] x) => (float[4,32] y) { a = MatMul(x, w) b = Erf(a) c = MatMul(b, w) y = EfficientNMS_TRT(c) }"


def graph() -> Graph:
    return graph_of(TEXT, w=W)


def test_sizes() -> None:
    assert [tables.size(n) for n in (999, 99_999, 100_000, 12_345_678)] == ["1.0 kB", "100.0 kB", "0.10 MB", "12.35 MB"]


def test_a_group_measured_with_others_says_so() -> None:
    alone = GroupError("a", ("a",), 1, 0.5, 40.0, 30.0, 25.0, (1e-3,))
    found = Sensitivity((alone, replace(alone, name="b", output_db=35.25)), 3, 20.0, 4)
    assert not [line for line in tables.sensitivity(found, every=True) if "~" in line or "alone:" in line]
    shared = replace(found, groups=(alone, replace(alone, name="b", output_db=35.25, together=6)))
    text = "\n".join(tables.sensitivity(shared, every=True))
    assert "~ 35.25 of 6" in text
    assert "~ 30.00" not in text
    assert "1 of 2 groups were measured alone" in text


def test_a_table_holds_every_cell_whole() -> None:
    long = "/a/very/[bold]long[/bold]/name" * 8
    text = tables.table(("one", "two"), [("1", long), ("22", "b")])
    assert "one" in text.splitlines()[1]
    assert "".join(text.split()).count("[bold]") == 8  # folded, not cut, and no markup
    assert not text.endswith("\n")


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "100.0%"), (0.99999, "99.9%"), (0.951, "95.1%"), (0.57, "57.0%"), (0.0, "0.0%")]
)
def test_all_is_said_of_all_only(share: float, said: str) -> None:
    (*_, last) = tables.summary_lines(Summary(3, 2, True, share, 0, 0, (), ()))
    assert f", {said} of their MACs" in last


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Summary(8, 3, True, 0.04, 0, 0, (), ()), True),
        (Summary(8, 3, True, 0.0, 0, 0, (), ()), True),
        pytest.param(Summary(8, 3, True, 0.05, 0, 0, (), ()), False, id="enough"),
        pytest.param(Summary(8, 0, True, 0.0, 0, 0, (), ()), False, id="nothing"),
        pytest.param(Summary(8, 3, False, 0.04, 0, 0, (), ()), False, id="weights alone"),
        pytest.param(Summary(8, 3, True, 0.04, 0, 0, (), (), sized=False), False, id="sizes unknown"),
    ],
)
def test_a_share_of_the_work_that_pays_nothing_says_so(found: Summary, *, said: bool) -> None:
    (*_, last) = tables.summary_lines(found)
    assert last.endswith(": hardly any of the work gets faster") is said


def test_the_summary_says_what_falls_back() -> None:
    found = Summary(3, 2, True, 0.5, 2000, 1000, (("too small", "Conv", 1),), (), (("Gemm", 2), ("Erf", 1)))
    plan = Plan("tensorrt", {}, (), (), kept=("a",), remarks=("three zero points",))
    first, *lines, last = tables.result(plan, found, [Path("m.onnx"), Path("m.data")])
    assert (first, last) == ("1 tensor was quantized already, and kept so", "note: three zero points")
    assert lines[0] == "weighted operators left in float:"
    assert "too small" in lines[1]
    assert lines[2:] == [
        "not for DLA, falls back to the GPU: 2 Gemm, 1 Erf",
        "int8: 2 of 3 weighted operators, 50.0% of their MACs",
        "wrote m.onnx (2.0 kB -> 1.0 kB), m.data",
    ]
    (last,) = tables.summary_lines(Summary(1, 1, False, 1.0, 0, 0, (), ()))
    assert last.startswith("int8 weights only, all computed in float: 1 of 1")


def test_decisions_of_every_node_or_of_the_int8_ones() -> None:
    plan = api.make_plan(graph())
    some, every = (tables.decisions(plan, every=every) for every in (False, True))
    assert "MatMul:a" in some
    assert "Erf:b" not in some
    assert "Erf:b" in every
    assert "custom operator" in every


def test_summaries_of_other_targets_have_no_fallback() -> None:
    assert summarize(api.make_plan(graph())).fallback == ()
    dla = api.make_plan(graph(), Recipe(target="tensorrt@10+dla"))
    assert dict(summarize(dla).fallback) == {"MatMul": 2, "Erf": 1, "EfficientNMS_TRT": 1}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["onnxq", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_the_command_line_shows_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(graph().to_proto(), tmp_path / "m.onnx")
    assert call(monkeypatch, "plan", tmp_path / "m.onnx", "--target", "tensorrt@10+dla") == 0
    out = capsys.readouterr().out
    assert "not for DLA, falls back to the GPU: 2 MatMul" in out
    assert "note: custom operators are left as they are: EfficientNMS_TRT of the default domain" in out


def test_the_command_line_takes_custom_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    text = "(float[4,32] x) => (float[4,32] y) { a = MatMul(x, w) b, c = NegPos(a) y = MatMul(c, w) }"
    proto = graph_of(text, w=W).to_proto()
    proto.graph.node[1].domain = "ai.onnx.contrib"
    onnx.save(proto, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    arguments = ("quantize", "m.onnx", "--data", "random:4")
    assert call(monkeypatch, *arguments) == 1
    assert "lacks custom operators: NegPos of ai.onnx.contrib" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, *arguments, "--custom-ops", extensions.get_library_path()) == 0
    assert "int8: 2 of 2" in capsys.readouterr().out
