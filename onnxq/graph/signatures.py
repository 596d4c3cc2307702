"""Whether nodes have the inputs and attributes of their operators.

Asked before onnx's version converter is called: its C++ code takes that for granted, and ends the process otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx


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
