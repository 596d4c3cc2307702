"""The ONNX element types that checks and passes speak of, as numbers, so that to import them need not load onnx.

Source: enum TensorProto.DataType in onnx.proto; a test compares them.
"""

from __future__ import annotations

FLOAT, UINT8, INT8, INT32, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 10, 16
FLOAT8E4M3FN, INT4, FLOAT4E2M1 = 17, 22, 23

NUMBERS = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16}
"""Numpy's name of a float type -> its number, as attributes of nodes have it."""

FLOATS = frozenset(NUMBERS.values())
HALVES = FLOATS - {FLOAT}
FOUR_BITS = frozenset({INT4, FLOAT4E2M1})
QTYPES = FOUR_BITS | {INT8, FLOAT8E4M3FN}

SMALLEST_NORMAL = {FLOAT: 2.0**-126, FLOAT16: 2.0**-14, BFLOAT16: 2.0**-126}
"""Least positive normal number of a float type."""

PRECISION = {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
"""What TensorRT calls a float type."""


def type_name(dtype: int | None) -> str:
    """The ONNX name of an element type."""
    from onnx import TensorProto

    return "an unknown type" if dtype is None else TensorProto.DataType.Name(dtype)
