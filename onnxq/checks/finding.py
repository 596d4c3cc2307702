"""What a check says: a Breach, which the table of checks completes to a Finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnx import NodeProto

Severity = Literal["E", "W", "I"]
"""E: the parser or the builder refuses it; W: it builds, but int8 or a fusion is lost; I: worth knowing."""


@dataclass(frozen=True)
class Breach:
    """One place where a rule does not hold: the node (with its operator) or tensor, and what is wrong there."""

    severity: Severity
    where: str
    message: str
    op: str = ""


@dataclass(frozen=True)
class Finding:
    """A breach with what the table knows of its rule.

    Attributes:
        id: of the rule, P1 to P36.
        severity: E, W or I.
        where: name of the node; of its first output when it has none; of the tensor when `op` is empty.
        message: what is wrong there.
        hint: what to do.
        source: where the rule comes from.
        op: operator of the node; empty when `where` is a tensor or the model.
    """

    id: str
    severity: Severity
    where: str
    message: str
    hint: str
    source: str
    op: str = ""

    def __str__(self) -> str:
        return f"{self.id} {self.severity} {self.where}: {self.message}"


def label(node: NodeProto) -> str:
    """What a message calls a node: its name, or its first output when it has none."""
    return node.name or next(iter(node.output), node.op_type)


def error(node: NodeProto, message: str) -> Breach:
    """The parser or the builder refuses it."""
    return Breach("E", label(node), message, node.op_type)


def warning(node: NodeProto, message: str) -> Breach:
    """It builds, but int8 or a fusion is lost."""
    return Breach("W", label(node), message, node.op_type)


def note(node: NodeProto, message: str) -> Breach:
    """Worth knowing."""
    return Breach("I", label(node), message, node.op_type)
