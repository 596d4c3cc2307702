"""Every cell of `onnxq formats` from the command line: what its file computes, or the refusal.

    python scripts/formats_audit.py [--write] [--missing] [MODEL ...]      digits and minilm by default

Each format is given to `onnxq quantize` for each target. A file for ort-cpu is run there: the cell was seen. A file for
another target is held against that target's rules by `onnxq check`, and run by ONNX Runtime's CPU provider without
optimizations where it has the types. Prints a Markdown table of the SQNR of the outputs in dB; --write puts what was
found into onnxq/formats/seen.json, from which `onnxq formats` takes its words, with --missing only what is not there
yet. tests/onnxq/test_formats_seen.py does it all again on digits.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from onnxq import Recipe, api, cli
from onnxq.errors import ModelError
from onnxq.formats import cells
from onnxq.formats.table import SEEN_FILE, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onnxq.formats import Cell

ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, tuple[Path, Path]] = {
    "digits": (ROOT / "models/digits/digits.onnx", ROOT / "models/digits/calib.npz"),
    "minilm": (ROOT / ".cache/models/minilm/minilm.onnx", ROOT / ".cache/models/minilm/calib"),
}
SAMPLES = 16
MOST_DB = 999.0
"""Of equal outputs."""
HALVES = ("fp16", "bf16")


def onnxq(*arguments: str) -> tuple[int, str]:
    """Exit status and what was said, of the command line in this process."""
    said = io.StringIO()
    with patch.object(sys, "argv", ["onnxq", *arguments]), contextlib.redirect_stderr(said):
        try:
            with contextlib.redirect_stdout(said):
                cli.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def options(cell: Cell, data: Path) -> list[str]:
    """The flags of one cell: narrow weights beside float inputs, activations with the weights they go with."""
    asked = [f"--{cell.role}", str(cell.format), "--target", cell.target]
    if cell.role == "weights" and cell.format.type not in HALVES:
        return [*asked, "--activations", "float"]
    if cell.role == "weights" or cell.format.type == "float":
        return asked
    return [*asked, "--effort", "fast", "--max-samples", str(SAMPLES), "--data", str(data)]


def tried(cell: Cell, model: Path, data: Path, folder: Path) -> dict[str, float | None]:
    """{"db": SQNR of the worst output} of the file that the command line makes, None where a CPU cannot run it.

    Empty where the model has nothing that the format takes.

    Raises:
        AssertionError: no file was made, or its target's rules are broken.
    """
    output = folder / "q.onnx"
    status, said = onnxq("quantize", str(model), "-o", str(output), *options(cell, data))
    assert status == 0, f"{cell}: {said}"  # noqa: S101  the audit asserts
    plan = json.loads(output.with_suffix(".plan.json").read_text())
    whole = cell.format.type in ("float", *HALVES)
    if not whole and not any("macs" in plan["nodes"][name] for w in plan["weights"] for name, _ in w["uses"]):
        return {}
    if cell.target != "ort-cpu":
        status, said = onnxq("check", str(output), "--target", cell.target)
        assert status == 0, f"{cell}: {said}"  # noqa: S101  likewise
    try:
        found = api.compare(model, output, str(data), Recipe(max_samples=SAMPLES))
    except ModelError:
        assert cell.target != "ort-cpu", str(cell)  # noqa: S101  likewise
        return {"db": None}
    return {"db": round(min(found.outputs[0].sqnr_db, MOST_DB), 1)}


def audited(names: Sequence[str], known: Mapping[str, object]) -> Iterator[tuple[Cell, dict[str, float | None]]]:
    """(cell, model -> dB) of every cell that is not refused, nor known."""
    for cell in cells():
        if cell.reason or str(cell) in known:
            continue
        found: dict[str, float | None] = {}
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                made = tried(cell, *MODELS[name], Path(folder))
            found |= {name: made["db"]} if made else {}
        yield cell, found


def main() -> None:
    """Try, print, and write where it is asked for."""
    names = [a for a in sys.argv[1:] if not a.startswith("-")] or list(MODELS)
    runtime = f"ONNX Runtime {version(packages_distributions()['onnxruntime'][0])}, CPU"
    there = [str(c) for c in cells() if not c.reason]
    known = {c: v for c, v in recorded()["cells"].items() if c in there} if "--missing" in sys.argv else {}
    print(f"| cell | {' | '.join(names)} |\n|---|{'---|' * len(names)}", flush=True)
    for cell, found in audited(names, known):
        known[str(cell)] = found
        print(f"| {cell} | {' | '.join(str(found.get(n, '-')) for n in names)} |", flush=True)
        if "--write" in sys.argv:
            ordered = {c: known[c] for c in there if c in known}
            SEEN_FILE.write_text(json.dumps({"runtime": runtime, "cells": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
