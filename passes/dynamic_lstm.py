"""Mode dynamic: LSTM becomes com.microsoft DynamicQuantizeLSTM, int8 weights and inputs quantized at run time.

W [directions, 4 hidden, input] and R [directions, 4 hidden, hidden] are stored transposed, with a scale for each
direction and gate row: shape [directions, 4 hidden]. Everything else of the node stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.numerics import QType
    from onnxq.plan import Plan

ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
STATES = 8  # inputs of an LSTM: X, W, R, B, sequence_lens, initial_h, initial_c, P


@dataclass(frozen=True)
class DynamicLSTM:
    """Rewrite the LSTM nodes of the plan.

    Attributes:
        plan: which nodes.
        qtype: the weights' grid, symmetric.
    """

    plan: Plan
    qtype: QType

    def __call__(self, graph: Graph) -> int:
        """Return how many nodes were rewritten."""
        planned = {n for w in self.plan.weights for n, _ in w.uses}
        found = [n for n in graph.nodes if n.op_type == "LSTM" and n.name in planned]
        for node in found:
            self._rewrite(graph, node)
        return len(found)

    def _rewrite(self, graph: Graph, node: Node) -> None:
        inputs: list[Value | None] = [*node.inputs, *(None,) * (STATES - len(node.inputs))]
        for index in (1, 2):
            inputs[index], *parameters = self._stored(graph, node.inputs[index])
            inputs += parameters
        said = {a: graph.attribute(node, a) for a in ATTRIBUTES}
        first = graph.add(
            "DynamicQuantizeLSTM",
            inputs,
            name=f"{node.name}_quantized",
            before=node,
            attributes={a: list(v) if isinstance(v, tuple) else v for a, v in said.items() if v is not None},
            like=node.outputs[0],
            domain=CONTRIB,
        )
        maker = first.producer()
        assert maker is not None  # noqa: S101  it was just made
        made = [first, *(graph.extend(maker, f"{node.name}_state", "float32") for _ in node.outputs[1:])]
        for old, new in zip(node.outputs, made, strict=True):
            new.shape = old.shape
            graph.replace_uses(old, new)
        graph.remove(node)

    def _stored(self, graph: Graph, value: Value | None) -> tuple[Value, Value, Value]:
        """Codes [directions, input, 4 hidden], scales and zero points [directions, 4 hidden]."""
        array = graph.const(value)
        assert value is not None  # noqa: S101  the plan holds only constants
        assert array is not None  # noqa: S101  likewise
        codes, scale = _quantized(np.swapaxes(array, 1, 2).astype(np.float64), self.qtype)
        return (
            graph.constant(f"{value.name}_quantized", codes),
            graph.constant(f"{value.name}_scale", scale),
            graph.constant(f"{value.name}_zero_point", np.zeros(scale.shape, np.int8)),
        )


def _quantized(weight: npt.NDArray[np.float64], qtype: QType) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes and scales of [directions, input, rows], absmax over the inputs of each row; an all-zero row has s = 1."""
    amax: npt.NDArray[Any] = np.abs(weight).max(axis=1)
    scale = np.where(amax == 0, 1.0, np.maximum(amax / qtype.qmax, float(np.finfo(np.float32).tiny)))
    stored = scale.astype(np.float32)
    codes = np.clip(np.rint(weight / stored[:, None, :].astype(np.float64)), qtype.qmin, qtype.qmax)
    return codes.astype(np.int8), stored
