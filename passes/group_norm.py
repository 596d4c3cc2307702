"""Write a GroupNormalization of opset 18 to 20 as the InstanceNormalization that it is.

That version has a scale and a bias for each group. ONNX deprecated it with opset 21, where they are of channels:
onnx.checker refuses it, and onnx's converter hands the short vectors over as they are. ONNX Runtime runs it.
InstanceNormalization with the groups as channels is the same function of any version, and what PyTorch exports:

    y = s_g (x - mean_g) / sqrt(var_g + epsilon) + b_g,  mean and variance over what a sample has in group g
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node

FIRST, BEFORE = 18, 21
"""The version of the operator with scales of groups is of the opsets from the first to below the second."""


def group_norm(graph: Graph) -> int:
    """Rewrite every one, those of bodies too; return how many."""
    if not FIRST <= graph.domains.get("", 0) < BEFORE:
        return 0
    parts = tuple(graph.parts())
    found = [(p, n) for p in parts for n in p.nodes if n.op_type == "GroupNormalization" and not n.domain]
    if found:
        graph.infer_shapes()  # for the types
    for part, node in found:
        _rewrite(part, node)
    return len(found)


def _rewrite(graph: Graph, node: Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None  # noqa: S101  it has an input
    name, kind = output.name, graph.dtype(source)
    values = list(node.inputs)
    if kind == "bfloat16":  # which InstanceNormalization takes from opset 22 on
        values = [
            graph.add("Cast", [v], name=f"{name}/float{i}", before=node, attributes={"to": 1})
            for i, v in enumerate(values)
        ]
    apart = graph.constant(f"{name}/groups", np.array([0, graph.attribute(node, "num_groups"), -1], np.int64))
    made = graph.add("Reshape", [values[0], apart], name=f"{name}/grouped", before=node)
    epsilon = graph.attribute(node, "epsilon", 1e-5)
    made = graph.add(
        "InstanceNormalization",
        [made, *values[1:]],
        name=f"{name}/normalized",
        before=node,
        attributes={"epsilon": epsilon},
    )
    shape = graph.add("Shape", [source], name=f"{name}/shape", before=node)
    made = graph.add("Reshape", [made, shape], name=f"{name}/whole", before=node, like=output)
    if kind == "bfloat16":
        graph.retype(made, "float32")
        made = graph.add("Cast", [made], name=f"{name}/rounded", before=node, attributes={"to": 16}, like=output)
    graph.absorb(node, made)
