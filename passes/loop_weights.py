"""Make weights of the states of a Loop that begin as weights and never change.

TensorFlow hands a while loop what its body reads as states, the weights of its layers among them, and exporters write
them so. Inside the body they are activations then, and nothing there has a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node


def loop_weights(graph: Graph) -> int:
    """Let the bodies of a graph's Loops, at any depth, read such states as weights of their own; return how many."""
    loops = [(part, n) for part in graph.parts() for n in part.nodes if n.op_type == "Loop" and not n.domain]
    return sum(_settled(part, node) for part, node in loops)


def _settled(around: Graph, node: Node) -> int:
    (body,) = around.bodies_of(node)
    count = 0
    for index, (state, result) in enumerate(zip(body.inputs[2:], body.outputs[1:], strict=False)):  # then come scans
        initial, on = node.inputs[index + 2], body.producer(result, "Identity")
        readers = [(user, i) for user, i in body.users(state) if user is not on]
        unchanged = result is state or (on is not None and on.inputs[0] is state)
        array = around.const(initial) if unchanged and readers else None
        if initial is None or array is None:
            continue
        body.replace_uses(state, body.constant(f"{initial.name}/held", array), readers)
        made = node.outputs[index]
        if not made.is_graph_output():  # the state still goes round, but nobody reads it: a number will do
            around.replace_uses(made, initial)
            around.set_input(node, index + 2, around.constant(f"{state.name}/unread", np.zeros((), array.dtype)))
            state.shape = result.shape = made.shape = None
        count += 1
    return count
