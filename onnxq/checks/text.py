"""A report as rows and lines for a terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from onnxq.shares import percent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.checks import Report
    from onnxq.checks.finding import Finding

HEADER = ("level", "rule", "where", "what")
LEVELS = {"E": "error", "W": "warning", "I": "note"}
SHOWN = 5  # findings of one rule, reformats


def rows(report: Report, *, every: bool) -> list[tuple[str, str, str, str]]:
    """One row for each finding, worst first, SHOWN of a rule unless `every`; columns as HEADER."""
    found = []
    for _, group in groupby(report.findings, lambda finding: (finding.severity, finding.id)):
        alike = list(group)
        kept = alike if every or len(alike) <= SHOWN + 1 else alike[:SHOWN]
        found += [_row(finding) for finding in kept]
        if len(kept) < len(alike):
            found.append(("", alike[0].id, "", f"and {len(alike) - len(kept)} more; --verbose for all"))
    return found


def advice(report: Report) -> list[tuple[str, str]]:
    """(Rule, what to do) for each rule with an error or a warning, in the order of the findings."""
    return list(dict.fromkeys((f.id, f.hint) for f in report.findings if f.severity != "I"))


def summary(report: Report, *, every: bool) -> Iterator[str]:
    """The predictions, and the counts."""
    macs, nodes = report.summary.macs, report.summary.nodes
    shares = ", ".join(f"{kind} {percent(report.summary.share(kind))} ({nodes[kind]} nodes)" for kind in macs)
    refused = "" if report.legal else ", were the errors mended"
    if macs:
        counted = "" if report.sized else ", counted with 1 for every size that the model leaves open (--shapes)"
        yield f"predicted share of {sum(macs.values()):,} MACs{counted}{refused}: {shares}"
    reformats = report.summary.reformats
    yield f"predicted reformats between precisions: {len(reformats)}"
    shown = reformats if every or len(reformats) <= SHOWN + 1 else reformats[:SHOWN]
    for change in shown:
        yield f"  {change.before} -> {change.after} at {change.where} ({change.op}), on {change.tensor}"
    if len(shown) < len(reformats):
        yield f"  and {len(reformats) - len(shown)} more; --verbose for all"
    counts = [_count(report.count(level), word) for level, word in LEVELS.items()]
    yield f"{report.target}: {', '.join(counts)}"


def _row(finding: Finding) -> tuple[str, str, str, str]:
    where = f"{finding.where} ({finding.op})" if finding.op else finding.where
    return LEVELS[finding.severity], finding.id, where, finding.message


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
