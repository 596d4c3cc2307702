"""A part of onnx's backend models through every target and mode; scripts/backend_models.py takes all of them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[1] / "scripts" / "backend_models.py"), run_name="cases"
)


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Every 150th model by the hash of its name, and its float outputs."""
    return [
        (c, SCRIPT["outputs"](c.model.SerializeToString(), c.feeds[0]) if c.feeds else None)
        for c in SCRIPT["cases"](150)
    ]


@pytest.mark.parametrize("name", SCRIPT["COLUMNS"])
def test_the_same_results_or_a_refusal_with_its_reason(name: str, found: list[Any]) -> None:
    outcome = SCRIPT["column"](found, SCRIPT["COLUMNS"][name])
    assert outcome.faults == []
    assert outcome.counts.total() == 2 * len(found) > 0
