"""The table of graphs as this CPU runs them, scripts/bench_tables.py: what counts as whose best."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

TABLES = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "bench_tables.py"))


def cell(written: float, run: float, integers: float, int8: float = 1.0) -> dict[str, Any]:
    """Of another tool."""
    measures = {"measures": {"SQNR dB": written}, "as run": {"SQNR dB": run}, "errors": 0, "seconds": 1.0}
    return {**measures, "int8": int8, "integers": integers}


OWN = {"measures": {"SQNR dB": 30.0}, "int8": 0.9, "integers": 0.87, "errors": None, "seconds": 1.0}


def test_what_is_float_by_choice_or_unknown_or_failed_is_nobodys_best() -> None:
    unknown = {name: value for name, value in cell(60.0, 60.0, 1.0).items() if name != "integers"}
    cells = {"ort_a": cell(50.0, 50.0, 0.1, int8=0.08), "ort_b": unknown, "ort_c": {"error": "took more than 180 s"}}
    assert TABLES["best_as_run"](cells, "ort") == (None, None)


def test_half_of_the_work_in_integers_by_what_the_cpu_runs() -> None:
    """What the graph says, and other tools' graphs, do not count."""
    half, well, floats = cell(22.0, 21.0, 0.5), cell(25.0, 20.0, 1.0), cell(20.0, 28.0, 0.49)
    cells = {"ort_half": half, "ort_well": well, "ort_floats": floats, "onnxsim_a": cell(40.0, 40.0, 1.0)}
    assert TABLES["best_as_run"](cells, "ort") == (half, floats)


def test_the_table() -> None:
    cells = {
        "one": {"onnxq ort-cpu balanced": OWN, "ort_a": cell(9.0, 21.5, 0.75), "quark_a": cell(9.0, 28.0, 0.0)},
        "no other": {"onnxq ort-cpu balanced": OWN},
        "not ours": {"ort_a": cell(9.0, 9.0, 1.0)},
    }
    (table,) = TABLES["cpu_summary"](cells, "balanced")
    assert table.splitlines()[2:] == [
        "| one | 30.0, 87 % | 21.5, 75 % / 21.5, 75 % |  |  | none / 28.0, 0 % | +8.5, +2.0 |",
        "| no other | 30.0, 87 % |  |  |  |  | none, none |",
    ]
    assert TABLES["cpu_summary"](cells, "fast") == []


def test_columns_of_float16_are_ours_too(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    names = ("onnxq tensorrt balanced", "onnxq tensorrt balanced float16", "onnxq tensorrt fast minmax")
    for name, decibels in zip(names, (31.0, 29.0, 12.0), strict=True):
        found = {"measures": {"SQNR dB": decibels}, "int8": 1.0, "errors": 0, "seconds": 1.0}
        (tmp_path / "one" / f"{name}.json").write_text(json.dumps(found))
    (tmp_path / "one" / "float.json").write_text(json.dumps({"measures": {"SQNR dB": float("inf")}}))
    head, _, row = TABLES["accuracy_tables"](tmp_path, {"one": False}, list(names), "balanced").splitlines()[:3]
    assert "tensorrt balanced: dB" in head
    assert "tensorrt balanced float16: dB" in head
    assert "fast minmax" not in head
    assert "| 31.0, 100 % | 29.0, 100 % |" in row
