"""Which nodes an older version of the default operator set takes as they are, with the same meaning.

Most new versions of an operator add element types (bfloat16, float8, int4) and say nothing else anew. A node that uses
none of these is, letter for letter, a node of the older version. Which operators are so, by the texts of onnx's
schemas from opset 18 to 25, is said here by name: a test reads the texts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxq.graph import Graph, Node, Value

DEFAULT = ("", "ai.onnx")
"""The default domain's names."""

LOWEST = 18
"""The lowest opset that the tables below speak of."""

SAME = frozenset({
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"),
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxUnpool"),
    *("Cast", "CastLike", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Det", "Dropout"),
    *("DequantizeLinear", "QuantizeLinear", "QLinearMatMul", "Elu", "Equal", "Flatten", "GRU", "LSTM", "RNN"),
    *("HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "Loop", "Scan"),
    *("LpNormalization", "MaxRoiPool", "Mish", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize", "RoiAlign"),
    *("Round", "Selu", "Shape", "Size", "Softplus", "Softsign", "Squeeze", "ThresholdedRelu", "TopK"),
    *("Transpose", "Unsqueeze"),
})  # fmt: skip
"""Operators whose versions from opset 18 to 25 differ in element types, in attributes that older ones lack and whose
default is what these do, and in `ASIDE`."""

SAME_FROM = {"GridSample": 20, "DeformConv": 19}
"""Likewise from another opset on: GridSample's modes had other names before."""


def _rounds_up(graph: Graph, node: Node) -> bool:
    """From 22 on windows that would start in the padding behind the data are left out."""
    return bool(graph.attribute(node, "ceil_mode", 0))


def _pads_itself(graph: Graph, node: Node) -> bool:
    """19 mends the formulas of these."""
    return bool(graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET")


def _is_narrow(dtype: str | None) -> bool:
    """24 says anew what becomes of infinities."""
    return (dtype or "float8").startswith(("float8", "float4"))


def _resizes_anew(graph: Graph, node: Node) -> bool:
    """19 has one more way to transform coordinates, and says how sizes that keep the aspect ratio are rounded."""
    return bool(
        graph.attribute(node, "coordinate_transformation_mode") == "half_pixel_symmetric"
        or graph.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    )


POOL_ANEW = 19

ASIDE: Mapping[str, Callable[[Graph, Node], bool]] = {
    "AveragePool": lambda graph, node: _rounds_up(graph, node) or _pads_itself(graph, node),
    "MaxPool": _rounds_up,
    "Cast": lambda graph, node: _is_narrow(graph.dtype(node.outputs[0])),
    "CastLike": lambda graph, node: _is_narrow(graph.dtype(node.outputs[0])),
    "Pad": lambda graph, node: graph.attribute(node, "mode") == "wrap",
    "Resize": _resizes_anew,
}
"""Operator -> whether a node uses what a later version brought or changed, and no type or attribute tells."""


def fits(graph: Graph, node: Node, opset: int) -> bool:
    """Whether the node, as it is, but for attributes at their defaults, means the same in the older opset."""
    if node.domain not in DEFAULT:
        return True
    now, then = signature(node.op_type, graph.opset), signature(node.op_type, opset)
    if now is None or then is None:
        return now is then
    if now.version == then.version:
        return True
    known = node.op_type in SAME and opset >= LOWEST
    if not known and opset < SAME_FROM.get(node.op_type, graph.opset + 1):
        return False
    if node.op_type in ASIDE and ASIDE[node.op_type](graph, node):
        return False
    return _says_nothing_new(graph, node, now, then) and _takes_types(graph, node, now, then)


def rounds_otherwise(graph: Graph, node: Node, opset: int) -> bool:
    """Whether ONNX Runtime's CPU provider adds up in another order there: from 19 on AveragePool is another kernel."""
    return node.op_type == "AveragePool" and node.domain in DEFAULT and opset < POOL_ANEW <= graph.opset


def unknown_attributes(node: Node, opset: int) -> tuple[str, ...]:
    """Attributes of a node that the opset's version of it lacks."""
    then = signature(node.op_type, opset) if node.domain in DEFAULT else None
    return () if then is None else tuple(name for name in node.attributes if name not in then.attributes)


@dataclass(frozen=True)
class Formal:
    """A place of a signature: its type variable, the types allowed, whether values there may differ, or repeat."""

    variable: str
    types: frozenset[str]
    mixed: bool
    repeats: bool


@dataclass(frozen=True)
class Signature:
    """What one version of an operator takes: its since_version, attributes with their defaults, inputs and outputs."""

    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]


@lru_cache(maxsize=4096)
def signature(op_type: str, opset: int) -> Signature | None:
    """An operator of the default domain as an opset has it; None where it has not."""
    from onnx import defs, helper

    try:
        schema = defs.get_schema(op_type, opset)
    except defs.SchemaError:
        return None
    many = defs.OpSchema.FormalParameterOption.Variadic
    formals = [
        tuple(Formal(f.type_str, frozenset(f.types), not f.is_homogeneous, f.option == many) for f in side)
        for side in (schema.inputs, schema.outputs)
    ]
    defaults = {
        name: _plain(helper.get_attribute_value(a.default_value)) if a.default_value.type else None
        for name, a in schema.attributes.items()
    }
    return Signature(int(schema.since_version), defaults, formals[0], formals[1])


def onnx_name(dtype: str | None) -> str:
    """ONNX's name of an element type from numpy's; empty when it is not known."""
    short = {"float32": "float", "float64": "double", "float4_e2m1fn": "float4e2m1"}
    return short.get(dtype or "", (dtype or "").replace("_", ""))


def _takes_types(graph: Graph, node: Node, now: Signature, then: Signature) -> bool:
    """Whether the older version takes as many inputs, and their types; unknown types where both allow the same."""
    bound: dict[str, str] = {}
    sides = ((node.inputs, now.inputs, then.inputs), (node.outputs, now.outputs, then.outputs))
    for values, ours, theirs in sides:
        if len(values) > len(theirs) and not (theirs and theirs[-1].repeats):
            return False
        for index, value in enumerate(values):
            if value is not None and not _takes(graph, value, _at(ours, index), _at(theirs, index), bound):
                return False
    return True


def _takes(graph: Graph, value: Value, now: Formal, then: Formal, bound: dict[str, str]) -> bool:
    kind = onnx_name(graph.dtype(value))
    if not kind:
        return now.types == then.types
    same = then.mixed or bound.setdefault(then.variable, kind) == kind
    return same and f"tensor({kind})" in then.types


def _at(formals: tuple[Formal, ...], index: int) -> Formal:
    return formals[min(index, len(formals) - 1)]


def _says_nothing_new(graph: Graph, node: Node, now: Signature, then: Signature) -> bool:
    """Whether attributes that the older version lacks have their default, or numbers that change nothing."""
    for name in node.attributes:
        value = _plain(graph.attribute(node, name))
        ones = name == "dilations" and set(value) == {1}  # they have no default
        if name not in then.attributes and not ones and value != now.attributes.get(name):
            return False
    return True


def _plain(value: Any) -> Any:  # noqa: ANN401  an attribute's
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, (list, tuple)) else value
