"""How much an error of a matrix product's output weighs where a normalization of the rows comes next.

LayerNormalization and RMSNormalization divide every row by how large it is, and multiply its channels by constants. So
what a product adds to a row errs by that much less behind it:

    e_rj  becomes  e_rj g_j / sigma_r.

Without regard to it a transformer's few rows of massive activations (Sun et al., 2024, arXiv 2402.17762), which may be
ten times as large as the others and hold nearly all the power in one channel, decide what is chosen for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import linear_at
from onnxq.patterns import find_patterns
from onnxq.patterns.match import axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True, eq=False)
class Normalized:
    """What is normalized behind a product.

    Attributes:
        tensor: whose rows are, shape (..., N).
        centred: whether a row's mean is taken off, as LayerNormalization does.
        gain: |g|, shape (N,); None where it is computed, or others read the tensor too, as a residual stream's.
    """

    tensor: str
    centred: bool
    gain: Array | None

    def sizes(self, z: Array, count: int) -> Array | None:
        """1 / sigma of every row of the tensor's values z, shape (R,); 0 of an empty row, and of one with NaN.

        None where these are not as many rows as the product reads: broadcast, or reshaped.
        """
        rows = z.reshape(-1, z.shape[-1]).astype(np.float64)
        if len(rows) != count:
            return None
        rows[~np.isfinite(rows).all(axis=1)] = 0.0
        powers = np.square(rows - rows.mean(axis=1, keepdims=True) if self.centred else rows).mean(axis=1)
        with np.errstate(divide="ignore"):
            return np.where(powers > 0, 1 / np.sqrt(powers), 0.0).astype(np.float32)

    def weighs(self, z: Array, count: int) -> Array | None:
        """What errors in every row are multiplied by, shape (R, 1) or (R, N); None likewise."""
        sizes = self.sizes(z, count)
        if sizes is None:
            return None
        return sizes[:, None] if self.gain is None else sizes[:, None] * self.gain


def normalized(graph: Graph) -> Mapping[str, Normalized]:
    """Name of a product with a constant weight -> what is normalized behind it, with only additions between."""
    nodes = {str(n.name): n for n in graph.nodes}
    patterns = [p for p in find_patterns(graph) if p.kind in ("LayerNorm", "RMSNorm")]
    reads = {p.input: (p.kind, [nodes[name] for name in p.nodes]) for p in patterns}
    found = {}
    for node in graph.nodes if reads else ():
        linear = linear_at(graph, node) if node.op_type in _PRODUCTS else None
        value = None if linear is None else _normalized_behind(graph, linear.node.outputs[0], reads)
        if linear is None or value is None:
            continue
        kind, parts = reads[str(value.name)]
        if _by_rows(graph, parts, value):
            gain = _gain(graph, parts, value, linear.channels)
            found[str(node.name)] = Normalized(str(value.name), kind == "LayerNorm", gain)
    return found


def _by_rows(graph: Graph, parts: Sequence[Node], value: Value) -> bool:
    """Whether it is the value's last axis alone that is normalized, and nothing is added to it before."""
    rank = graph.rank(value)
    last = (-1,) if rank is None else (-1, rank - 1)
    if len(parts) == 1:
        return not parts[0].op_type.startswith("Skip") and graph.attribute(parts[0], "axis", -1) in last
    means = [axes(graph, node, rank) for node in parts if node.op_type == "ReduceMean"]
    return all(over is not None and len(over) == 1 and over[0] in last for over in means)


def _gain(graph: Graph, parts: Sequence[Node], value: Value, channels: int) -> Array | None:
    """|g| of a normalization in one node that alone reads the value."""
    norm = parts[0]
    if len(parts) > 1 or graph.only_user(value) is not norm or len(norm.inputs) < 2:
        return None
    gain = graph.const(norm.inputs[1])
    return np.abs(np.asarray(gain, np.float32)) if gain is not None and gain.shape == (channels,) else None


def _normalized_behind(graph: Graph, value: Value | None, reads: Mapping[str, object]) -> Value | None:
    """The value, or the sum that it alone goes into, that is normalized."""
    while value is not None and str(value.name) not in reads:
        user = graph.only_user(value)
        value = user.outputs[0] if user is not None and user.op_type == "Add" and not user.domain else None
    return value
