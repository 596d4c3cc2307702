"""Tensors inside bodies of If, Loop and Scan as results of the main graph, so that a run of the model returns them.

For calibration only, on a copy: a branch that is not taken gives an empty tensor, a loop gives what all its
iterations gave, one behind the other. All come flat, because a tensor's shape may differ from iteration to iteration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnxq.graph import Graph, Node, Value

EXPOSED = frozenset({"If", "Loop", "Scan"})
"""Operators from whose bodies values can be brought out."""


def why_hidden(part: Graph) -> str | None:
    """Why the values of a body cannot be brought out; None when they can."""
    body = part.body
    while body is not None:
        if body.node.op_type not in EXPOSED or body.node.domain not in ("", "ai.onnx"):
            return f"values inside a {body.node.op_type} cannot be observed"
        body = body.around.body
    return None


def expose(graph: Graph, names: Collection[str]) -> dict[str, Value]:
    """Bring the named tensors of bodies out, in place; return each with its value in the main graph, under its name."""
    found: dict[str, Value] = {}
    for part in tuple(graph.parts())[1:]:
        own = (*part.inputs, *(v for node in part.nodes for v in node.outputs))
        for value in [v for v in own if v.name in names]:
            name = str(value.name)
            graph.rename(value, f"{name}/inside")
            found[name] = outside = _to_main(part, value, name)
            outside.name = name
    return found


def _to_main(part: Graph, value: Value, name: str) -> Value:
    dtype = part.dtype(value) or "float32"
    while part.body is not None:
        everything = part.constant(f"{name}/flat_shape", np.array([-1]))
        flat = part.add("Reshape", [value, everything], name=f"{name}/flat")
        part.retype(flat, dtype)
        value = _BRING[part.body.node.op_type](part, flat, dtype, name)
        part = part.body.around
    return value


def _from_if(part: Graph, flat: Value, dtype: str, name: str) -> Value:
    around, node = _place(part)
    for branch in around.parts():
        if branch.body is None or branch.body.node is not node:
            continue
        if branch.body.graph is part.body.graph:  # type: ignore[union-attr]  # a body has one
            branch.add_output(flat)
        else:
            none = branch.constant(f"{name}/none", np.zeros(0, dtype))
            branch.add_output(branch.add("Identity", [none], name=f"{name}/empty", like=none))
    return around.extend(node, f"{name}/branch", dtype)


def _from_scan(part: Graph, flat: Value, dtype: str, name: str) -> Value:
    around, node = _place(part)
    part.add_output(flat)
    for attribute in ("scan_output_axes", "scan_output_directions"):
        if (said := around.attribute(node, attribute)) is not None:
            around.set_attribute(node, attribute, [*said, 0])
    return around.extend(node, f"{name}/steps", dtype)


def _from_loop(part: Graph, flat: Value, dtype: str, name: str) -> Value:
    """A sequence that gets the tensor of each iteration as one more element, joined behind the loop.

    Scan outputs would have to be of one length, and a tensor that grows would be copied in every iteration.
    """
    around, node = _place(part)
    carried = max(len(node.inputs), 2) - 2  # the number of iterations and the condition may be left out
    none = around.constant(f"{name}/none", np.zeros(0, dtype))
    first = around.add("SequenceConstruct", [none], name=f"{name}/first")
    around.retype(first, dtype, sequence=True)
    around.set_input(node, 2 + carried, first)
    before = part.add_input(f"{name}/before", dtype)
    part.retype(before, dtype, sequence=True)
    grown = part.add("SequenceInsert", [before, flat], name=f"{name}/so_far")
    part.retype(grown, dtype, sequence=True)
    part.add_output(grown, 1 + carried)
    last = around.extend(node, f"{name}/steps", dtype)
    for index in reversed(range(carried, len(node.outputs) - 1)):  # the scan outputs move back by one
        old, new = node.outputs[index], node.outputs[index + 1]
        held = old.name
        new.type, new.shape = old.type, old.shape
        around.replace_uses(old, new)
        around.rename(old, f"{name}/moved")
        new.name = held
    state = node.outputs[carried]
    if state is not last:
        around.rename(state, f"{name}/steps")
    around.retype(state, dtype, sequence=True)
    state.shape = None
    whole = around.add("ConcatFromSequence", [state], name=f"{name}/joined", attributes={"axis": 0})
    around.retype(whole, dtype)
    return whole


def _place(part: Graph) -> tuple[Graph, Node]:
    assert part.body is not None  # noqa: S101  only bodies are brought out
    return part.body.around, part.body.node


_BRING = {"If": _from_if, "Loop": _from_loop, "Scan": _from_scan}
