"""Weights that a graph computes from constants: by DequantizeLinear, or by other operators from codes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from onnxq.checks import build
from onnxq.checks.index import WEIGHTED
from onnxq.inventory.types import CODES, NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import NodeProto

    from onnxq.checks.index import Model


def decoded_from(model: Model) -> dict[str, str]:
    """Tensor that is computed from constants alone -> the largest narrow one of these, empty where there is none."""
    found: dict[str, str] = {}
    for node in model.nodes:
        names = [name for name in node.input if name]
        if names and not any(build.bodies(node)) and all(name in found or name in model.constants for name in names):
            narrow = [found.get(name, name) for name in names]
            narrow = [name for name in narrow if name and NAMES.get(model.types.get(name, 1)) in CODES]
            codes = max(narrow, key=lambda name: prod(d or 0 for d in model.shapes.get(name, ())), default="")
            found |= {name: codes for name in node.output if name}
    return found


def codes_of(model: Model, node: NodeProto, decoded: Mapping[str, str]) -> str:
    """The codes that the weight of a product is computed from by other operators than DequantizeLinear, or nothing."""
    names = node.input[:2] if node.op_type in WEIGHTED else ()
    return next((decoded[n] for n in names if decoded.get(n) and model.dequantizer(n) is None), "")
