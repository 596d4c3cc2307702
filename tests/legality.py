"""Whether a model keeps the rules that decide if TensorRT takes it and runs it in int8: P1 to P22 of onnxq.checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks import CHECKS, check

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxq.checks import Finding

# Advice about speed, not law: a recipe may choose otherwise, and `assert_legal` leaves it out.
ADVICE = frozenset(CHECKS) - {f"P{number}" for number in range(1, 23)}


def findings(model: ModelProto, base_dir: str | None = None, target: str = "tensorrt@10") -> list[Finding]:
    """All findings, worst first."""
    return list(check(model, target, base_dir).findings)


def assert_legal(
    model: ModelProto,
    allow: frozenset[str] = frozenset(),
    base_dir: str | None = None,
    target: str = "tensorrt@10",
) -> None:
    """Raises AssertionError with every E and W of P1 to P22, but those of the rules in `allow`."""
    left_out = ADVICE | allow
    wrong = [f for f in findings(model, base_dir, target) if f.severity != "I" and f.id not in left_out]
    if wrong:
        raise AssertionError("\n".join(["TensorRT's rules are broken:", *map(str, wrong)]))
