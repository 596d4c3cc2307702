"""Markdown tables from the cells of bench_accuracy.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOOLS = {"ort": "ONNX Runtime", "modelopt": "ModelOpt", "onnxsim": "onnxsim", "quark": "Quark"}
LEAST = 0.3  # of the MACs in int8: below, a tool's figure is the float model's more than its own


def accuracy_tables(folder: Path, names: Mapping[str, bool], columns: list[str], effort: str) -> str:
    """One summary over all models, then a table for each of them. `effort` is the default one, which is judged."""
    cells = {n: {c: found for c in ["float", *columns] if (found := _cell(folder / n / f"{c}.json"))} for n in names}
    full = {n: own for n, own in cells.items() if len(own) > 1}
    parts = [_summary(full, names, effort)]
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
    ours = [c for own in cells.values() for c in own if c.startswith("onnxq") and len(c.split()) == 3]
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


def _short(cell: dict[str, Any]) -> str:
    if "measures" not in cell:
        return "fails"
    score = _score(cell)
    legal = f", {cell['errors']} errors" if cell["errors"] else ""
    return f"{_sqnr(cell):.1f}{f', {score[1]:.2f}' if score else ''}, {100 * cell['int8']:.0f} %{legal}"


def _detail(title: str, own: dict[str, dict[str, Any]]) -> str:
    score = _score(own["float"])
    head = ["way", "SQNR dB", score[0] if score else "score", "MACs in int8 %", "errors for TensorRT", "seconds"]
    lines = [f"### {title}", "", _row(head), _row(["---", *["--:"] * 5])]
    if score:
        lines.append(_row(["float", "", f"{score[1]:.2f}", "", "", ""]))
    for column, cell in own.items():
        if column == "float":
            continue
        if "measures" not in cell:
            lines.append(_row([column, "fails", "", "", "", f"{cell['error'][:80]}"]))
            continue
        own_score = _score(cell)
        errors = "" if cell["errors"] is None else str(cell["errors"])
        numbers = [f"{_sqnr(cell):.2f}", f"{own_score[1]:.2f}" if own_score else "", f"{100 * cell['int8']:.1f}"]
        lines.append(_row([column, *numbers, errors, f"{cell['seconds']:.1f}"]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
