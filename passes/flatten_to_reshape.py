"""Write Flatten(axis 1) as Reshape where ONNX Runtime's CUDA provider has no kernel of Flatten: from opset 21 on.

Its kernels are of the versions up to 13 (docs/OperatorKernels.md), those of Reshape go on; the CPU would take the
Flatten, and copies to it and back.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node

NO_KERNEL = 21


def flatten_to_reshape(graph: Graph) -> int:
    """Rewrite them; return how many."""
    if graph.opset < NO_KERNEL:
        return 0
    return sum(_rewritten(graph, node) for node in graph.nodes if node.op_type == "Flatten" and not node.domain)


def _rewritten(graph: Graph, node: Node) -> bool:
    shape = graph.shape(node.inputs[0])
    if not shape or graph.attribute(node, "axis", 1) not in (1, 1 - len(shape)):
        return False
    rest = [d for d in shape[1:] if isinstance(d, int)]
    sizes = [-1, prod(rest)] if len(rest) == len(shape) - 1 else [0, -1]  # 0: as it is
    output = node.outputs[0]
    target = graph.constant(f"{output.name}_shape", np.array(sizes, np.int64))
    graph.absorb(
        node, graph.add("Reshape", [node.inputs[0], target], name=f"{output.name}_flat", before=node, like=output)
    )
    return True
