"""Element types as people call them, and what values of them weigh."""

from __future__ import annotations

from math import prod

NAMES = {1: "float32", 10: "float16", 16: "bfloat16", 11: "float64", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16"}
NAMES |= {6: "int32", 7: "int64", 9: "bool", 12: "uint32", 13: "uint64", 8: "string", 21: "uint4", 22: "int4"}
NAMES |= {17: "fp8 (e4m3)", 18: "fp8 (e4m3fnuz)", 19: "fp8 (e5m2)", 20: "fp8 (e5m2fnuz)", 23: "fp4 (e2m1)"}
NAMES |= {24: "e8m0", 25: "uint2", 26: "int2"}
"""Number of an ONNX element type -> how people call it; a test compares them with onnx."""

BITS = {"uint4": 4, "int4": 4, "fp4 (e2m1)": 4, "uint2": 2, "int2": 2}
"""Bits of an element; of others eight times the size in bytes that `_bytes` knows."""

_BYTES = {"float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4}
_BYTES |= {"float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2}

CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "fp4 (e2m1)", "e8m0")
"""Types that hold codes of weights; 8-bit floats hold values and scales."""


def stored_bytes(kind: str, dims: tuple[int | None, ...]) -> int:
    """Bytes of a tensor; dimensions that are not known count as 0."""
    count = prod(d or 0 for d in dims)
    return -(-count * BITS.get(kind, 8 * _BYTES.get(kind, 1)) // 8)
