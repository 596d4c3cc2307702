"""Small graphs for the tests of onnxq.checks, and how a rule is tested on a pair of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import onnx
import onnx.parser
from legality import ADVICE, assert_legal
from onnx import helper, numpy_helper

from onnxq.checks import check

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[str, int] = {}
X8 = "float[1,8,4,4] x"


def const(declaration: str, value: float | str = 1) -> str:
    """An initializer in ONNX text, all elements equal: `float[2,2] w` becomes `float[2,2] w = {1, 1, 1, 1}`."""
    dims = declaration.split("[")[1].split("]", maxsplit=1)[0].split(",") if "[" in declaration else []
    return f"{declaration} = {{{', '.join([str(value)] * prod(map(int, dims)))}}}"


def pair(out: str, name: str, axis: int | None = None) -> str:
    """A Q/DQ pair `out` on a tensor: scale s, or along an axis the vector sv with zero point zv."""
    attribute, scale = ("", "s, z") if axis is None else (f"<axis={axis}>", "sv, zv")
    return f"""{out}_q = QuantizeLinear{attribute}({name}, {scale})
               {out} = DequantizeLinear{attribute}({out}_q, {scale})"""


CONSTANTS = [
    *("float s = {0.5}", "float s2 = {0.25}", "int8 z = {0}", const("float[8] sv"), const("int8[8] zv", 0)),
    *(const("float[8,8,1,1] w"), const("float[8,8] m"), const("float[8] b"), "float lo = {0}", "float hi = {6}"),
]
CONV = f"{pair('xd', 'x')} {pair('wd', 'w', 0)} c = Conv(xd, wd, b)"  # int8 1x1 convolution, 8 to 8 channels


def io(inputs: str = X8, outputs: str = "float[1,8,4,4] y") -> str:
    """The signature of a text graph."""
    return f"({inputs}) => ({outputs})"


def model(
    body: str,
    signature: str = io(),
    extra: tuple[str, ...] = (),
    opset: int = 21,
    types: Mapping[str, int] = NOTHING,
) -> onnx.ModelProto:
    """Parses a graph that has CONSTANTS and `extra`; `types` rewrites constants to types that text cannot say."""
    names = {text.split(" = ")[0].split()[-1] for text in extra}
    constants = [text for text in CONSTANTS if text.split(" = ")[0].split()[-1] not in names]
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    graph = f"g {signature} <{', '.join([*constants, *extra])}> {{ {body} }}"
    parsed = onnx.parser.parse_model(f"{head} {graph}")
    for tensor in parsed.graph.initializer:
        if tensor.name in types:
            values = numpy_helper.to_array(tensor).ravel()
            tensor.CopyFrom(helper.make_tensor(tensor.name, types[tensor.name], tensor.dims, values))
    return parsed


@dataclass(frozen=True)
class Case:
    """A graph with what its rule finds in it, (severity, place) each, and a graph in which it finds nothing."""

    rule: str
    bad: onnx.ModelProto
    found: set[tuple[str, str]]
    good: onnx.ModelProto
    also: frozenset[str] = field(default=frozenset())  # further rules that the bad graph cannot but break
    target: str = "tensorrt@10"


def assert_breached(case: Case) -> None:
    """The rule finds exactly what it should in the bad graph, and no other rule of P1 to P22 finds anything."""
    found = check(case.bad, case.target).findings
    assert {(f.severity, f.where) for f in found if f.id == case.rule} == case.found
    assert {f.id for f in found if f.severity != "I" and f.id not in ADVICE} - {case.rule} - _new(case) == case.also


def assert_kept(case: Case) -> None:
    """The rule finds nothing in the good graph, which keeps P1 to P22."""
    assert [f for f in check(case.good, case.target).findings if f.id == case.rule] == []
    assert_legal(case.good, _new(case), target=case.target)


def _new(case: Case) -> frozenset[str]:
    """The graphs are of opsets that TensorRT 8 does not know, which is P13's to say."""
    return frozenset({"P13"}) if case.target == "tensorrt@8" else frozenset()
