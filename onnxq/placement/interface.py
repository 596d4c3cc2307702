"""An integer interface: a Q/DQ pair at every float input and output of the model, for a last pass to cut open.

What an input's readers are, all of them read behind the pair: those that stay in float then read the codes' values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.interface import SIZES, widened_input, widened_output
from onnxq.patterns.pairs import existing_pair, origin
from onnxq.placement.tensorrt import BOUNDED
from onnxq.placement.weighted import FLOAT_TYPES
from onnxq.plan import Point

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Plan

_PARAMETERS = frozenset({"Resize", "Clip", "Pad", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose inputs behind the first are numbers to compute with exactly, not data."""


_OTHER_FLOATS = frozenset({"bfloat16", "float64"})
_NO_CODES = "codes stand for float32 and float16 alone; a model exported in one of these has integer ends"
_NO_STEP = "the scale that the model has for it is not one constant"


def with_interface(graph: Graph, plan: Plan) -> Plan:
    """The plan with a pair at every float input and output of the main graph that can have one.

    Args:
        graph: the prepared graph.
        plan: its placement, in mode static, not yet resolved.
    """
    points, joins, notes = dict(plan.points), dict.fromkeys(plan.joins), list(plan.notes)
    for given in graph.inputs:
        if graph.dtype(given) in _OTHER_FLOATS:
            notes.append(f"input {given.name} stays {graph.dtype(given)}: {_NO_CODES}")
        if graph.dtype(given) not in FLOAT_TYPES:
            continue
        value = widened_input(graph, given)
        if why := _why_float(graph, value):
            notes.append(f"input {given.name} stays {graph.dtype(given)}: {why}")
            continue
        uses = tuple((u.name or "", i) for u, i in graph.users(value) if _reads(graph, u))
        if (pair := existing_pair(graph, value)) is not None:
            joins |= {(node, index, str(pair.name)): None for node, index in uses if not _quantizes(graph, value, node)}
        elif uses:
            known = points.get(str(value.name)) or _point(graph, value, points)
            points[str(value.name)] = replace(known, uses=tuple(dict.fromkeys((*known.uses, *uses))))
    for value in graph.outputs:
        if graph.dtype(value) in _OTHER_FLOATS:
            notes.append(f"output {value.name} stays {graph.dtype(value)}: {_NO_CODES}")
        if graph.dtype(value) in FLOAT_TYPES and not value.is_graph_input():
            _with_output(graph, value, points, notes)
    return replace(plan, points=points, joins=tuple(joins), notes=tuple(notes))


def _with_output(graph: Graph, value: Value, points: dict[str, Point], notes: list[str]) -> None:
    """Add what puts a pair at a float output, or a note on why there can be none."""
    own = graph.producer(value, "DequantizeLinear")
    if graph.is_const(value) or (own is not None and graph.scalar(own.inputs[1]) is None):
        why = "it is a constant" if own is None else _NO_STEP
        notes.append(f"output {value.name} stays {graph.dtype(value)}: {why}")
    elif own is None:
        made = widened_output(graph, value)  # in float32, of which a Cast makes the output
        known = points.get(str(made.name)) or _point(graph, made, points)
        uses = () if made is value else tuple((u.name or "", i) for u, i in graph.users(made) if value in u.outputs)
        # What leaves the model is not to be clipped because its tails seemed rare.
        points[str(made.name)] = replace(
            known,
            uses=tuple(dict.fromkeys((*known.uses, *uses))),
            output=known.output or made is value,
            protected=True,
        )


def _reads(graph: Graph, user: Node) -> bool:
    return not graph.in_body(user) and user.op_type not in SIZES


def _quantizes(graph: Graph, value: Value, node: str) -> bool:
    return any(u.name == node and u.op_type == "QuantizeLinear" for u, _ in graph.users(value))


def _why_float(graph: Graph, value: Value) -> str | None:
    users = graph.users(value)
    parameter = next((u for u, i in users if i and u.op_type in _PARAMETERS), None)
    if parameter is not None:
        return f"{parameter.op_type} {parameter.name} computes with it exactly"
    if users and all(graph.in_body(u) for u, _ in users):
        return "it is read in bodies only"
    pair = existing_pair(graph, value)
    own = None if pair is None else pair.producer()
    if own is not None and graph.scalar(own.inputs[1]) is None:
        return _NO_STEP
    return None if any(_reads(graph, u) for u, _ in users) else "nothing reads its values"


def _point(graph: Graph, value: Value, points: dict[str, Point]) -> Point:
    """A new point; a rearranged copy of a tensor that has one shares its scale, so that nothing is rounded twice."""
    name, source = str(value.name), origin(graph, value)
    of = points.get(str(source.name))
    return Point(
        tensor=name,
        uses=(),
        observe=name if of is None else of.observe,
        group=name if of is None else of.group,
        calibrator=None if of is None else of.calibrator,
        protected=graph.producer(source, *BOUNDED) is not None,
        dtype=graph.dtype(value) or "float32",
        range=None if of is None else of.range,
        chosen=None if of is None else of.chosen,
        bounds=(-float("inf"), float("inf")) if of is None else of.bounds,
        qtype=None if of is None else of.qtype,
    )
