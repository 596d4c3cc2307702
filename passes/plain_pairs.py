"""A model's own pairs as TensorRT and ONNX Runtime's CUDA provider take them: side by side, and biases in float.

TFLite's models (tf2onnx) hold biases in int32 behind a DequantizeLinear, which neither takes: the product s_x s_w q is
written as the float bias that it is. Between Q and DQ stand operators that only move codes; the DQ goes before them,
which changes no value. Of weights an axis that is counted from the end is counted from the front, and one scale is a
scalar: ONNX Runtime fuses no others with a product (`check`, C7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node

MOVERS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def plain_pairs(graph: Graph) -> int:
    """Rewrite them; return how many."""
    found = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and not n.domain]
    return sum(_float_bias(graph, node) or _plain_weight(graph, node) or _before_movers(graph, node) for node in found)


def _float_bias(graph: Graph, node: Node) -> bool:
    codes, scale = graph.const(node.inputs[0]), graph.const(node.inputs[1])
    if codes is None or scale is None or codes.dtype != np.int32 or graph.attribute(node, "block_size", 0):
        return False
    axis = int(graph.attribute(node, "axis", 1)) % max(codes.ndim, 1)
    along = [-1 if d == axis else 1 for d in range(codes.ndim)] if scale.size > 1 else [1] * codes.ndim
    real = codes.astype(np.float64) * scale.astype(np.float64).reshape(along)  # ONNX has no zero point for int32
    output = node.outputs[0]
    graph.replace_uses(output, graph.constant(f"{output.name}_float", real.astype(scale.dtype)))
    graph.remove(node)
    return True


def _plain_weight(graph: Graph, node: Node) -> bool:
    stored, rank, axis = node.inputs[0], graph.rank(node.inputs[0]), int(graph.attribute(node, "axis", 1))
    if rank is None or not graph.is_const(stored):
        return False
    if from_end := axis < 0:
        graph.set_attribute(node, "axis", axis + rank)
    vectors = {i: graph.const(v) for i, v in enumerate(node.inputs) if i and v is not None and graph.shape(v) == (1,)}
    known = 1 in vectors and all(array is not None for array in vectors.values())
    one = known and len(vectors) == len(node.inputs) - 1 and not graph.attribute(node, "block_size", 0)
    for index, array in vectors.items() if one else ():
        value = node.inputs[index]
        if array is not None and value is not None:
            graph.set_input(node, index, graph.constant(f"{value.name}_scalar", array.reshape(())))
    return from_end or one


def _before_movers(graph: Graph, node: Node) -> bool:
    """One scale for all: else its axis would move too."""
    scale = graph.const(node.inputs[1])
    if scale is None or scale.size != 1 or node.outputs[0].is_graph_output():
        return False
    moved = False
    while (mover := graph.producer(node.inputs[0], *MOVERS)) is not None:
        value = mover.inputs[0]
        if mover.domain or value is None or graph.only_user(mover.outputs[0]) is not node or graph.is_const(value):
            break
        real = graph.add(
            "DequantizeLinear",
            [value, *node.inputs[1:]],
            name=f"{value.name}_real",
            before=mover,
            attributes={name: attribute.value for name, attribute in node.attributes.items()},
        )
        graph.retype(real, graph.dtype(node.outputs[0]) or str(scale.dtype))
        real.shape = value.shape
        made = graph.add(
            mover.op_type,
            [real, *mover.inputs[1:]],
            name=f"{mover.outputs[0].name}_real",
            before=mover,
            attributes={name: attribute.value for name, attribute in mover.attributes.items()},
            like=node.outputs[0],
        )
        graph.absorb(node, made)
        graph.remove(mover)
        node, moved = graph.producer(real, "DequantizeLinear") or node, True
    return moved
