"""What `onnxq formats` says was seen: every cell again, from the command line; seen.json holds what it must give."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real_models import CACHE, cached

from onnxq.formats import Cell, cells
from onnxq.formats.table import recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

AUDIT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "formats_audit.py"), run_name="t")
WORK = [c for c in cells() if not c.reason]
SLACK_DB = 2.0
"""By which processors may differ: products of int8 saturate on some."""


def by_form() -> Iterator[Cell]:
    """One cell of each form that ONNX Runtime's CPU provider reads."""
    yield from {(c.role, c.form): c for c in WORK if c.target == "ort-cpu"}.values()


def holds(cell: Cell, name: str, folder: Path) -> None:
    found, said = AUDIT["tried"](cell, *AUDIT["MODELS"][name], folder), cell.seen
    assert bool(found) == (name in said), f"{cell} on {name}: run scripts/formats_audit.py --write"
    for db in found.values():
        assert (db is None) == (said[name] is None)
        assert db is None or db >= (said[name] or 0.0) - SLACK_DB


@pytest.mark.parametrize("cell", WORK, ids=str)
def test_digits(cell: Cell, tmp_path: Path) -> None:
    holds(cell, "digits", tmp_path)


@pytest.mark.parametrize("cell", list(by_form()), ids=str)
def test_minilm(cell: Cell, tmp_path: Path) -> None:
    cached(f"{AUDIT['MODELS']['minilm'][0].relative_to(CACHE)}")
    holds(cell, "minilm", tmp_path)


def test_nothing_is_recorded_that_is_not_tried() -> None:
    assert set(recorded()["cells"]) == {str(c) for c in WORK}
    assert all(c.seen for c in WORK), "a cell that works was made on one of the models"


@pytest.mark.parametrize("refused", [c for c in cells() if c.reason][::7], ids=str)
def test_the_command_line_refuses_with_the_reason(refused: Cell, tmp_path: Path) -> None:
    model, data = AUDIT["MODELS"]["digits"]
    status, said = AUDIT["onnxq"](
        "quantize", str(model), "-o", str(tmp_path / "q.onnx"), *AUDIT["options"](refused, data)
    )
    assert status == 2
    assert refused.reason in " ".join(said.split())
    assert not list(tmp_path.iterdir())
