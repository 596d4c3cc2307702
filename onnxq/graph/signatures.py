"""Whether nodes have the inputs and attributes of their operators, and shapes as many numbers as a tensor has axes.

Asked before onnx's C++ code is called, which takes that for granted: its version converter ends the process otherwise,
and its shape inference counts to the number of elements that a shape is declared to have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import onnx

MOST_AXES = 1024
"""No tensor has more; numpy ends at 64, ONNX Runtime and TensorRT long before that."""

_SHAPES = {"Expand": 1, "Reshape": 1, "ConstantOfShape": 0, "Col2Im": 1, "MaxUnpool": 2, "AffineGrid": 1}
"""Operator -> the input that has a number for each axis of what it makes."""


def signature_problem(nodes: Iterable[onnx.NodeProto], opset: int) -> str | None:
    """What the first node of the default domain lacks, or has of another type, bodies included; else None."""
    return next(_problems(nodes, opset), None)


def _problems(nodes: Iterable[onnx.NodeProto], opset: int) -> Iterator[str]:
    import onnx
    from onnx import defs

    for node in nodes:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _problems(body.node, opset)
        if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type, opset):
            continue
        schema = defs.get_schema(node.op_type, opset)
        name = f"node {node.name!r} ({node.op_type})"
        if len(node.input) < schema.min_input:
            yield f"{name} has {len(node.input)} inputs, opset {opset} wants {schema.min_input} at least"
        if len(node.output) < schema.min_output:
            yield f"{name} has {len(node.output)} outputs, opset {opset} wants {schema.min_output} at least"
        given = {a.name: onnx.AttributeProto.AttributeType.Name(a.type) for a in node.attribute}
        for key, wanted in schema.attributes.items():
            if key not in given and wanted.required:
                yield f"{name} lacks its attribute {key!r}"
            if key in given and given[key] != str(wanted.type).rpartition(".")[2]:
                yield f"{name} has its attribute {key!r} in another type than opset {opset} knows"


def axes_problem(graph: onnx.GraphProto) -> str | None:
    """What the first node, bodies included, reads as a shape of more numbers than a tensor has axes; else None."""
    return next(_axes_problems(graph, {}), None)


def _axes_problems(graph: onnx.GraphProto, around: Mapping[str, int]) -> Iterator[str]:
    """`around` has what is long among the vectors that a body can read."""
    values = (v for v in (*graph.input, *graph.output, *graph.value_info) if v.type.HasField("tensor_type"))
    dims = [(v.name, [d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]
    dims += [(tensor.name, list(tensor.dims)) for tensor in graph.initializer]
    long = {**around, **{name: shape[0] for name, shape in dims if len(shape) == 1 and shape[0] > MOST_AXES}}
    for node in graph.node:
        slot = _SHAPES.get(node.op_type, -1)
        if 0 <= slot < len(node.input) and node.input[slot] in long:
            read = node.input[slot]
            yield f"node {node.name!r} ({node.op_type}) reads {read!r} as a shape, which has {long[read]:,} numbers"
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _axes_problems(body, long)
