"""Markdown tables from the cells of bench_accuracy.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOOLS = {"ort": "ONNX Runtime", "modelopt": "ModelOpt", "onnxsim": "onnxsim", "quark": "Quark"}
LEAST = 0.3  # of the MACs in int8: below, a tool's figure is the float model's more than its own
HALF = 0.5  # of the MACs in integer kernels, from which on a graph runs as int8 on this CPU
FLOAT16 = "float16"  # what the name of a column ends in where float16 is around int8


def accuracy_tables(folder: Path, names: Mapping[str, bool], columns: list[str], effort: str) -> str:
    """Two summaries over all models, then a table for each of them. `effort` is the default one, which is judged."""
    cells = {n: {c: found for c in ["float", *columns] if (found := _cell(folder / n / f"{c}.json"))} for n in names}
    full = {n: own for n, own in cells.items() if len(own) > 1}
    parts = [_summary(full, names, effort), *cpu_summary(full, effort)]
    for name, own in full.items():
        parts.append(_detail(f"{name}{' (random weights and data)' if names[name] else ''}", own))
    return "\n\n".join(parts)


def _cell(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _sqnr(cell: dict[str, Any]) -> float:
    return float(cell["measures"]["SQNR dB"]) if "measures" in cell else float("-inf")


def _score(cell: dict[str, Any]) -> tuple[str, float] | None:
    """Name and number of the task's score, where there is one."""
    rest = [item for item in cell["measures"].items() if item[0] != "SQNR dB"]
    return rest[0] if rest else None


def _summary(cells: dict[str, dict[str, dict[str, Any]]], names: Mapping[str, bool], effort: str) -> str:
    """The efforts against the best setting of each tool, by SQNR; graphs that stay in float do not count."""
    every = {c: c.removesuffix(FLOAT16).split() for own in cells.values() for c in own if c.startswith("onnxq")}
    ours = [c for c, words in every.items() if len(words) == 3]
    ours = sorted(dict.fromkeys(ours), key=lambda c: (c.split()[1] != "tensorrt", c))
    head = ["model", "float score", *(f"{c.removeprefix('onnxq ')}: dB, score, int8" for c in ours)]
    head += [f"best of {tool}: dB, score, int8" for tool in TOOLS.values()]
    head += [f"{effort} above the best of the others, dB: tensorrt, ort-cpu"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, own in cells.items():
        score = _score(own["float"])
        row = [f"{name}*" if names[name] else name, f"{score[1]:.2f} {score[0]}" if score else ""]
        row += [_short(own[c]) if c in own else "" for c in ours]
        bests = []
        for prefix in TOOLS:
            tried = [c for c in own if c.startswith(f"{prefix}_") and own[c].get("int8", 0) >= LEAST]
            best = max(tried, key=lambda c: _sqnr(own[c]), default=None)
            row.append("" if best is None else _short(own[best]))
            bests += [] if best is None else [_sqnr(own[best])]
        mine = [own.get(f"onnxq {target} {effort}") for target in ("tensorrt", "ort-cpu")]
        row.append(", ".join(f"{_sqnr(c) - max(bests):+.1f}" for c in mine if c) if bests else "")
        lines.append(_row(row))
    return "\n".join(lines)


def cpu_summary(cells: dict[str, dict[str, dict[str, Any]]], effort: str) -> list[str]:
    """Ours for ONNX Runtime's CPU against each tool's best setting of which that runs half in integers, and of all.

    SQNR of every graph is of what ONNX Runtime runs with all its optimizations. A list of one table, or none.
    """
    column = f"onnxq ort-cpu {effort}"
    shown = {name: own for name, own in cells.items() if "integers" in own.get(column, {})}
    head = ["model", f"{effort}: dB, in integers on this CPU"]
    head += [f"{tool}, {HALF:.0%} in integers or more / any" for tool in TOOLS.values()]
    head += [f"{effort} above the best of the others, dB: {HALF:.0%} in integers or more, any"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, own in shown.items():
        row, gaps = [name, _as_run(own[column])], []
        bests = [best_as_run(own, prefix) for prefix in TOOLS]
        row += ["" if whatever is None else f"{_as_run(integer)} / {_as_run(whatever)}" for integer, whatever in bests]
        for each in zip(*bests, strict=True):
            found = [_sqnr_here(cell) for cell in each if cell is not None]
            gaps.append(f"{_sqnr_here(own[column]) - max(found):+.1f}" if found else "none")
        lines.append(_row([*row, ", ".join(gaps)]))
    return ["\n".join(lines)] if shown else []


def best_as_run(own: Mapping[str, dict[str, Any]], prefix: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """A tool's best cells of one model by what this CPU runs: of those half in integers or more, and of all in int8.

    None where there is none. Graphs that stay in float by the tool's own choice count in neither, nor do those of which
    nobody asked what runs.
    """
    tried = [c for n, c in own.items() if n.startswith(f"{prefix}_") and "integers" in c and c["int8"] >= LEAST]
    integer = [c for c in tried if c["integers"] >= HALF]
    return max(integer, key=_sqnr_here, default=None), max(tried, key=_sqnr_here, default=None)


def _sqnr_here(cell: dict[str, Any]) -> float:
    return float(cell.get("as run", cell["measures"])["SQNR dB"])


def _as_run(cell: dict[str, Any] | None) -> str:
    return "none" if cell is None else f"{_sqnr_here(cell):.1f}, {100 * cell['integers']:.0f} %"


def _short(cell: dict[str, Any]) -> str:
    if "measures" not in cell:
        return "fails"
    score = _score(cell)
    legal = f", {cell['errors']} errors" if cell["errors"] else ""
    return f"{_sqnr(cell):.1f}{f', {score[1]:.2f}' if score else ''}, {100 * cell['int8']:.0f} %{legal}"


def _detail(title: str, own: dict[str, dict[str, Any]]) -> str:
    score = _score(own["float"])
    head = ["way", "SQNR dB", score[0] if score else "score", "MACs in int8 %", "in integers on this CPU %"]
    head += ["errors for TensorRT", "seconds"]
    lines = [f"### {title}", "", _row(head), _row(["---", *["--:"] * (len(head) - 1)])]
    if score:
        lines.append(_row(["float", "", f"{score[1]:.2f}", *[""] * 4]))
    for column, cell in own.items():
        if column == "float":
            continue
        if "measures" not in cell:
            lines.append(_row([column, "fails", *[""] * 4, f"{cell['error'][:80]}"]))
            continue
        own_score = _score(cell)
        errors = "" if cell["errors"] is None else str(cell["errors"])
        numbers = [f"{_sqnr(cell):.2f}", f"{own_score[1]:.2f}" if own_score else "", f"{100 * cell['int8']:.1f}"]
        numbers.append(f"{100 * cell['integers']:.1f}" if "integers" in cell else "")
        lines.append(_row([column, *numbers, errors, f"{cell['seconds']:.1f}"]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
