"""Q/DQ pairs that a model brings along, and tensors that are rearranged copies of others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

COPIES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators whose output holds exactly the values of their input."""


WIDER = "onnxq.step_is_wider_by"
"""Metadata of a DequantizeLinear that lost its zero point (`passes/fit_pairs.py`): its new step over its old one."""


def origin(graph: Graph, value: Value) -> Value:
    """The tensor of which this one is a rearranged copy: itself, when no copying operator makes it."""
    while (node := graph.producer(value, *COPIES)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def arrives_quantized(graph: Graph, value: Value | None) -> bool:
    """Whether a DequantizeLinear makes the tensor, or the one of which it is a copy."""
    return value is not None and graph.producer(origin(graph, value), "DequantizeLinear") is not None


def existing_pair(graph: Graph, value: Value) -> Value | None:
    """The output of a per-tensor Q/DQ pair that the model already has on this tensor."""
    for user, index in graph.users(value):
        if user.op_type == "QuantizeLinear" and index == 0 and not graph.in_body(user):
            for dequantize, _ in graph.users(user.outputs[0]):
                whole = dequantize.op_type == "DequantizeLinear" and graph.size(dequantize.inputs[1]) == 1
                if whole and not graph.in_body(dequantize):
                    return dequantize.outputs[0]
    return None


def kept(graph: Graph) -> tuple[str, ...]:
    """Names of the tensors that the model quantizes already, weights with a QuantizeLinear among them."""
    quantized = (n.inputs[0] for n in graph.nodes if n.op_type == "QuantizeLinear")
    return tuple(dict.fromkeys(str(v.name) for v in quantized if v is not None))


def shift_notes(graph: Graph) -> tuple[str, ...]:
    """What the user should know of the model's own Q and DQ nodes whose zero point is not 0 everywhere."""
    pairs = (n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.inputs) > 2)
    odd = [str(n.name) for n in pairs if (zero := graph.const(n.inputs[2])) is not None and zero.any()]
    text = "of the model's own Q and DQ nodes have a zero point other than 0; they are kept, but TensorRT refuses them"
    notes = (f"{len(odd)} {text}: {', '.join(odd[:3])}",) if odd else ()
    return (*notes, *_fit_notes(graph))


def _fit_notes(graph: Graph) -> tuple[str, ...]:
    """What the pairs lost that had a zero point, which the target has not."""
    found = {str(n.outputs[0].name): float(n.metadata_props.get(WIDER, 0)) for n in graph.nodes if n.outputs}
    wider = {name: ratio for name, ratio in found.items() if ratio}
    if not wider:
        return ()
    worst = max(wider, key=lambda name: wider[name])
    lost = 20 * math.log10(wider[worst]) if wider[worst] > 1 else 0.0
    grown = f"the step of {worst} grew most, {wider[worst]:.3f} times ({lost:.1f} dB)"
    return (f"{len(wider)} of the model's own Q/DQ pairs had a zero point and are symmetric int8 now; {grown}",)


def interpolates(graph: Graph, node: Node) -> bool:
    """Whether the node is a Resize that makes no value beyond those it reads; a cubic one overshoots."""
    return node.op_type == "Resize" and graph.attribute(node, "mode", "nearest") in ("nearest", "linear")
