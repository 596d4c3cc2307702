"""The table of formats as text: what `onnxq formats` prints and docs/formats.md holds."""

from __future__ import annotations

import numpy as np

from onnxq.errors import RecipeError, known_names
from onnxq.formats.families import FAMILIES, encode
from onnxq.formats.grammar import KINDS, Format
from onnxq.formats.table import TARGETS, TENSORRT, Cell, cells, recorded

SAMPLE = (1024, 1024)
"""Rows and columns of the matrix whose bits are counted."""

LEGEND = (
    "Numbers under a target: the lowest opset of the form. `seen`: the tests of this repository made a file from the "
    "command line and ran it there, ONNX Runtime on a CPU; `checked`: they made it, and `onnxq check` finds nothing "
    "that the target refuses. `-`: refused (-v says why). "
    f"Bits: of all that is stored, scales and zero points included, for a weight of {SAMPLE[0]} x {SAMPLE[1]}; files "
    "for tensorrt@8 hold float weights before their pairs."
)

REFUSED = ("refused", "target", "why")
MEASURED = ("as", "format", "target", "digits, dB", "MiniLM, dB")


MEASURED_BY = (
    "SQNR of the outputs of the files of each cell, on 16 samples of digits and of MiniLM's "
    "(`python scripts/formats_audit.py`). On digits weights in blocks are those of one Gemm. `-`: the format takes "
    "nothing there, or a CPU cannot run it."
)


def chosen(target: str | None) -> tuple[str, ...]:
    """All targets, or the one named.

    Raises:
        RecipeError: there is none of that name.
    """
    if target is None:
        return TARGETS
    name = TENSORRT[-1] if target == "tensorrt" else target
    known = (*TARGETS, *(f"{t}+dla" for t in TENSORRT))
    if name not in known:
        raise RecipeError(f"unknown target {target!r}", known_names(target, ("tensorrt", *known)))
    return (name,)


def header(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the columns of `rows`."""
    return ("as", "format", "bits", *targets, "form")


def rows(targets: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A row for each format of weights and activations that one of the targets takes."""
    made = []
    for (role, format_), found in _grouped(targets).items():
        forms = dict.fromkeys(c.form for c in found.values() if not c.reason)
        if forms:
            bits = f"{bits_stored(format_):.2f}" if role == "weights" else str(KINDS[format_.type].bits)
            made.append((role, str(format_), bits, *(_told(found[t]) for t in targets), "; ".join(forms)))
    return made


def refusals(targets: tuple[str, ...]) -> list[tuple[str, ...]]:
    """(formats, target, why) of what is refused."""
    told: dict[tuple[str, str], list[str]] = {}
    for cell in cells(targets):
        if cell.reason:
            told.setdefault((cell.reason, cell.target), []).append(f"{cell.role} {_plain(cell.format)}")
    alike: dict[tuple[str, str], list[str]] = {}
    for (reason, target), formats in told.items():
        alike.setdefault((", ".join(dict.fromkeys(formats)), reason), []).append(target)
    return [(formats, ", ".join(where), reason) for (formats, reason), where in alike.items()]


def measured(targets: tuple[str, ...]) -> list[tuple[str, ...]]:
    """(role, format, targets of equal results, SQNR on digits, on MiniLM) of what the tests and the audit ran."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for cell in cells(targets):
        if cell.seen:
            numbers = ("-" if (v := cell.seen.get(name)) is None else f"{v:.1f}" for name in ("digits", "minilm"))
            alike.setdefault((cell.role, str(cell.format), *numbers), []).append(cell.target)
    return [(role, name, ", ".join(where), *rest) for (role, name, *rest), where in alike.items()]


def bits_stored(format_: Format) -> float:
    """Bits of a weight in the file; those of the type itself where nothing but the type changes."""
    if format_.type not in FAMILIES:
        return float(KINDS[format_.type].bits)
    return encode(np.zeros(SAMPLE, np.float32), format_).bits_per_weight()


def markdown(targets: tuple[str, ...] = TARGETS) -> str:
    """Both tables in Markdown."""
    tables = ((header(targets), rows(targets)), (REFUSED, refusals(targets)), (MEASURED, measured(targets)))
    first, refused, numbers = ("\n".join(_table(*table)) for table in tables)
    return "\n\n".join((first, LEGEND, refused, f"{MEASURED_BY} {recorded()['runtime']}.", numbers)) + "\n"


def _grouped(targets: tuple[str, ...]) -> dict[tuple[str, Format], dict[str, Cell]]:
    grouped: dict[tuple[str, Format], dict[str, Cell]] = {}
    for cell in cells(targets):
        grouped.setdefault((cell.role, cell.format), {})[cell.target] = cell
    return grouped


def _told(cell: Cell) -> str:
    known = "seen" if cell.target == "ort-cpu" else "checked"
    return "-" if cell.reason else f"{cell.opset} {known}" if cell.seen else str(cell.opset)


def _plain(format_: Format) -> str:
    return str(format_).partition(":")[0]


def _table(names: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (names, tuple("---" for _ in names), *lines)]
