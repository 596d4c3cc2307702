"""Every rule has tests, and docs/check.md lists every rule as the table has it."""

from __future__ import annotations

import re
from pathlib import Path

from onnxq.checks import CHECKS

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "check.md"


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    source = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    tested = set(re.findall(r'Case\(\s*"(P\d+)"', source))
    assert tested == set(CHECKS) - {"P34", "P35"}  # those two have files of their own
    assert (HERE / "test_validity.py").exists()
    assert (HERE / "test_coverage.py").exists()


def test_the_documentation_lists_every_rule() -> None:
    """The table between the markers is what this makes; when it is not, put it there."""
    rows = [f"| {name} | {c.severity} | {c.rule} | {c.hint} | {c.source} |" for name, c in CHECKS.items()]
    table = "\n".join(["| id | level | rule | what to do | source |", "|---|---|---|---|---|", *rows])
    written = DOCS.read_text().partition("<!-- rules -->\n")[2].partition("\n<!-- end of rules -->")[0]
    assert written == table
