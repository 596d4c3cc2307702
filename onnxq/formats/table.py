"""Which target takes which format: one explicit table, read by the validation and by `onnxq formats`.

A cell is (role, type, granularity, target). `ROWS` lists those that work, with the form that is written; every other
cell is refused with the first reason of `WHY_NOT` that speaks of it. What files of each cell gave when they were run
stands in seen.json, which scripts/formats_audit.py writes and tests/onnxq/test_formats_seen.py holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import RecipeError
from onnxq.formats.grammar import KINDS, Format

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = ("tensorrt@8", "tensorrt@10", "tensorrt@11", "ort-cpu", "ort-cuda")
"""The DLA's variants take int8 and fp16, as their TensorRT does, and nothing else."""

TENSORRT = ("tensorrt@8", "tensorrt@10", "tensorrt@11")
NEW_TENSORRT = ("tensorrt@10", "tensorrt@11")
ORT = ("ort-cpu", "ort-cuda")
SEEN_FILE = Path(__file__).with_name("seen.json")


@dataclass(frozen=True)
class Row:
    """Cells that work in one way.

    Attributes:
        role: "weights" or "activations".
        types: names of types.
        granularities: of them.
        targets: of them.
        opset: the lowest in which the form can be written.
        form: what is written.
    """

    role: str
    types: tuple[str, ...]
    granularities: tuple[str, ...]
    targets: tuple[str, ...]
    opset: int
    form: str


QDQ = "QuantizeLinear, DequantizeLinear"

ROWS: tuple[Row, ...] = (
    Row("weights", ("int8",), ("channel",), (*TENSORRT, *ORT), 13, "DequantizeLinear"),
    Row("weights", ("int8", "int4", "int3"), ("block",), ORT, 21, "DequantizeLinear(block_size)"),
    Row("weights", ("int4", "int3"), ("channel",), ORT, 21, "DequantizeLinear"),
    Row("weights", ("int4", "int3"), ("block",), NEW_TENSORRT, 21, "DequantizeLinear(block_size)"),
    Row("weights", ("int8",), ("tensor",), ("ort-cpu",), 13, "DequantizeLinear"),
    Row("weights", ("uint8",), ("channel", "tensor"), ("ort-cpu",), 13, "DequantizeLinear"),
    Row("weights", ("uint8", "uint4"), ("block",), ("ort-cpu",), 21, "DequantizeLinear(block_size)"),
    Row("weights", ("uint4",), ("channel",), ("ort-cpu",), 21, "DequantizeLinear"),
    Row("weights", ("int2", "ternary"), ("block",), ("ort-cpu",), 25, "DequantizeLinear(block_size)"),
    Row("weights", ("int2", "ternary"), ("channel",), ("ort-cpu",), 25, "DequantizeLinear"),
    Row("weights", ("nf4", "fp4", "fp4e2m1"), ("block",), ("ort-cpu",), 21, "Cast, Gather(levels), Mul(scale)"),
    Row("weights", ("log4",), ("block", "channel"), ("ort-cpu",), 21, "Cast, Gather(levels), Mul(scale)"),
    Row("weights", ("mxfp4",), ("block",), ("ort-cpu",), 21, "Cast, Gather(levels), Mul(Pow(2, exponent))"),
    Row("weights", ("mxfp8",), ("block",), ("ort-cpu",), 21, "Cast, Mul(Pow(2, exponent))"),
    Row("weights", ("nvfp4",), ("block",), ("ort-cpu",), 21, "Cast, Gather(levels), Mul(float8 scale)"),
    Row(
        "weights", ("nvfp4",), ("block",), NEW_TENSORRT, 23, "DequantizeLinear(block_size), float8 scales: from 10.8 on"
    ),
    Row("weights", ("binary",), ("channel",), ("ort-cpu",), 18, "BitShift, BitwiseAnd, Mul, Sub"),
    Row("weights", ("fp8e4m3", "fp8e5m2"), ("channel", "tensor"), ("ort-cpu",), 19, "DequantizeLinear"),
    Row("activations", ("int8",), ("tensor",), (*TENSORRT, "ort-cuda"), 13, "QuantizeLinear, DequantizeLinear"),
    Row("activations", ("uint8",), ("tensor",), ("ort-cpu",), 13, "QuantizeLinear, DequantizeLinear"),
    Row("activations", ("uint8+dynamic",), ("tensor",), ("ort-cpu",), 13, "DynamicQuantizeLinear"),
    Row("activations", ("int8",), ("token",), ("ort-cpu",), 18, "ReduceMax, Div, Round, MatMulInteger"),
    Row("activations", ("int16", "uint16"), ("tensor",), ("ort-cpu",), 21, QDQ),
    Row("weights", ("fp8e4m3",), ("channel", "tensor"), NEW_TENSORRT, 19, "DequantizeLinear"),
    Row("activations", ("fp8e4m3",), ("tensor",), NEW_TENSORRT, 19, QDQ),
    Row("weights", ("int8",), ("tensor",), (*TENSORRT, "ort-cuda"), 13, "DequantizeLinear"),
    Row("weights", ("fp16",), ("",), (*TENSORRT, *ORT), 13, "float16 tensors"),
    Row("activations", ("fp16",), ("",), (*TENSORRT, *ORT), 13, "float16 tensors"),
    Row("weights", ("bf16",), ("",), NEW_TENSORRT, 22, "bfloat16 tensors"),  # that of Conv
    Row("activations", ("bf16",), ("",), NEW_TENSORRT, 22, "bfloat16 tensors"),
    Row("activations", ("float",), ("",), (*TENSORRT, *ORT), 13, "as it is"),
)

AT_RUN_TIME = "TensorRT has it in operators of its own, outside ONNX, that nothing here can run or check"

WHY_NOT: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("", (), ("tensorrt@8+dla", "tensorrt@10+dla", "tensorrt@11+dla"), "a DLA computes in int8 and fp16 only"),
    ("activations", ("int4",), TENSORRT, "TensorRT has 4-bit integers for weights only"),
    ("", ("fp8e4m3", "fp8e5m2"), ("tensorrt@8",), "TensorRT has float8 from 10 on"),
    ("", ("fp8e5m2",), NEW_TENSORRT, "of the float8 types TensorRT takes E4M3 only"),
    ("", ("bf16",), ("tensorrt@8",), "TensorRT has bfloat16 from 9 on"),
    ("", ("bf16",), ("ort-cpu", "ort-cuda"), "ONNX Runtime has too few bfloat16 kernels to run a model"),
    ("", ("int16", "uint16"), TENSORRT, "TensorRT has no 16-bit integers"),
    ("", ("uint8", "uint4"), TENSORRT, "TensorRT's zero points are all 0, so it takes signed types only"),
    ("", ("int8",), TENSORRT, "TensorRT takes blocks of 4-bit weights only, and scales that are constants"),
    ("", ("int4", "int3"), ("tensorrt@8",), "TensorRT has 4-bit weights from 10 on"),
    ("", ("int4", "int3"), NEW_TENSORRT, "TensorRT takes 4-bit weights in blocks only"),
    ("", ("nvfp4",), ("tensorrt@8",), "TensorRT has float4 from 10.8 on"),
    ("activations", ("nvfp4",), NEW_TENSORRT, f"{AT_RUN_TIME} (TRT_FP4DynamicQuantize)"),
    ("", ("mxfp8",), TENSORRT, f"{AT_RUN_TIME} (TRT_MXFP8DynamicQuantize)"),
    (
        "activations",
        ("nvfp4", "mxfp8", "int4"),
        ORT,
        "ONNX Runtime has no product of activations in blocks or in 4 bits",
    ),
    ("", ("mxfp4",), TENSORRT, "TensorRT takes float4 in blocks of 16 with float8 scales only: nvfp4"),
    ("", (), TENSORRT, "TensorRT's parser has no such type, and would expand the tables that spell it to float"),
    ("activations", (), ("ort-cuda",), "on CUDA ONNX Runtime has integer products of int8 with one scale only"),
    (
        "weights",
        ("nf4", "fp4"),
        ("ort-cuda",),
        "CUDA's MatMulBnb4 would read it; onnxq writes that for ort-cpu alone, since none was seen on a GPU yet",
    ),
    ("weights", (), ("ort-cuda",), "on CUDA only MatMulNBits and MatMulBnb4 read narrow weights; this is neither"),
    ("activations", ("fp8e4m3", "fp8e5m2"), ("ort-cpu",), "ONNX Runtime 1.31's optimizer spoils pairs in float8"),
    ("activations", (), ("ort-cpu",), "ONNX Runtime's CPU kernels quantize to uint8, and compute nothing in this type"),
    ("weights", (), ("ort-cpu",), "ONNX Runtime's CPU provider has no operator that reads it"),
)
"""(role or "", types or () for all, targets, the reason); the first that fits is told."""


NARROW = ("nvfp4", "mxfp8", "int4")
"""Types that people ask for as activations beside weights of the same type (W4A4, MXFP8), and that no target takes."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table; `reason` is empty where it works, and then `form` and `opset` say how."""

    role: str
    format: Format
    target: str
    opset: int = 0
    form: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.role} {self.format} @ {self.target}"

    @property
    def seen(self) -> dict[str, float | None]:
        """Model -> SQNR of its outputs in dB when the tests ran a file of this cell; None where it was checked only."""
        found: dict[str, float | None] = recorded()["cells"].get(str(self), {})
        return found


@cache
def recorded() -> dict[str, Any]:
    """What seen.json holds: the runtime, and what each cell gave."""
    found: dict[str, Any] = json.loads(SEEN_FILE.read_text(encoding="utf-8"))
    return found


def cell(format_: Format, role: str, target: str) -> Cell:
    """What becomes of a format as weights or activations on a target."""
    if misplaced := _misplaced(format_, role):
        return Cell(role, format_, target, reason=misplaced)
    name = format_.type + ("+dynamic" if "dynamic" in format_.modifiers else "")
    base = target.removesuffix("+dla")
    if base == target or format_.type in ("int8", "fp16", "float"):
        for row in ROWS:
            fits = row.role == role and name in row.types and format_.granularity in row.granularities
            if fits and base in row.targets:
                return Cell(role, format_, target, row.opset, row.form)
    for said, types, targets, reason in WHY_NOT:
        if said in ("", role) and (not types or format_.type in types) and target in targets:
            return Cell(role, format_, target, reason=reason)
    return Cell(role, format_, target, reason=f"{target} has no {format_.type}")


def check_cell(format_: Format, role: str, target: str) -> Cell:
    """The cell, where it works.

    Raises:
        RecipeError: it does not; the message says why, the hint what the target has.
    """
    found = cell(format_, role, target)
    if found.reason:
        choices = dict.fromkeys(c.format for c in cells() if c.role == role)
        known = ", ".join(str(f) for f in choices if not cell(f, role, target).reason)
        raise RecipeError(f"{target} cannot run {role} in {format_}: {found.reason}", f"It has: {known}.")
    return found


def _misplaced(format_: Format, role: str) -> str:
    """Why a granularity is none of weights, or of activations, on any target."""
    if role == "weights" and format_.dynamic:
        return "a weight is a constant, and so are its scales"
    if role == "activations" and format_.granularity in ("channel", "block") and format_.type not in NARROW:
        return "products take activations with one scale, or one per token"
    return ""


def cells(targets: tuple[str, ...] = TARGETS) -> Iterator[Cell]:
    """Every cell of these targets, by role, type, granularity and target, but what no target could have."""
    for role in ("weights", "activations"):
        for kind in KINDS.values():
            choices = [Format(kind.name, granularity) for granularity in kind.granularities or ("",)]
            choices += [Format(kind.name, "tensor", modifiers=frozenset({m})) for m in kind.modifiers if m == "dynamic"]
            listed = any(kind.name in {t.split("+")[0] for t in row.types} for row in ROWS if row.role == role)
            listed = listed or (role == "activations" and kind.name in NARROW)
            for choice in choices if listed else ():
                if not _misplaced(choice, role):
                    yield from (cell(choice, role, target) for target in targets)
