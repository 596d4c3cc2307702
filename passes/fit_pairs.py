"""A model's own Q/DQ pairs on the grid of a target that takes symmetric int8 only, as TensorRT does.

Training tools write uint8 with zero points (torch.ao, TensorFlow). A pair (s, z) covers [(lo - z) s, (hi - z) s]. With
z in the middle of uint8 the codes are moved by 128, which loses nothing. Any other z: the symmetric grid that covers
as much has the step max((hi - z), (z - lo)) s / 127, which is up to twice as wide, 6 dB. Weights keep their
granularity; int8 codes with zero point 0 stay as they are, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.patterns.pairs import WIDER

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.numerics import QType


UINT8 = 2  # TensorProto.UINT8, as output_dtype has it


@dataclass(frozen=True)
class FitPairs:
    """Give pairs with a zero point one without.

    Attributes:
        grid: the target's for activations; nothing is done where it is not symmetric int8.
    """

    grid: QType

    def __call__(self, graph: Graph) -> int:
        """Return how many tensors got other parameters."""
        if not (self.grid.symmetric and self.grid.signed):
            return 0
        count = 0
        for node in graph.nodes:
            if node.op_type == "QuantizeLinear" and not node.domain:
                count += _fit_pair(graph, node)
            elif node.op_type == "DequantizeLinear" and not node.domain:
                count += _fit_weight(graph, node)
        return count


def _fit_pair(graph: Graph, node: Node) -> bool:
    """A QuantizeLinear and all that dequantize it."""
    found = _parameters(graph, node)
    readers = [user for user, _ in graph.users(node.outputs[0])]
    same = all(n.op_type == "DequantizeLinear" and not graph.in_body(n) for n in readers)
    if found is None or not readers or not same or node.outputs[0].is_graph_output():
        return False
    scale, zero = found
    others = [_parameters(graph, reader) for reader in readers]
    if any(o is None or not (np.array_equal(o[0], scale) and np.array_equal(o[1], zero)) for o in others):
        return False
    new, ratio = symmetric(scale, zero)
    _write(graph, [node, *readers], new, np.zeros(zero.shape, np.int8))
    graph.retype(node.outputs[0], "int8")
    for reader in readers:
        reader.metadata_props[WIDER] = f"{ratio:.4f}"
    return True


def _fit_weight(graph: Graph, node: Node) -> bool:
    """Codes stored with a zero point."""
    found, codes = _parameters(graph, node), graph.const(node.inputs[0])
    if found is None or codes is None or graph.attribute(node, "block_size", 0):
        return False
    scale, zero = found
    axis = int(graph.attribute(node, "axis", 1)) % max(codes.ndim, 1)
    along = [-1 if d == axis else 1 for d in range(codes.ndim)]
    wide = (codes.astype(np.float64) - zero.reshape(along if zero.ndim else ())) * scale.reshape(
        along if scale.ndim else ()
    ).astype(np.float64)
    others = tuple(d for d in range(codes.ndim) if d != axis)
    amax = np.abs(wide).max(axis=others) if scale.ndim and scale.size > 1 else np.abs(wide).max(keepdims=False)
    step = np.where(amax == 0, 1.0, amax / 127).astype(scale.dtype).reshape(scale.shape)
    if zero.dtype == np.uint8 and (zero == 128).all() and codes.min() > 0:  # -127 to 127 by the same step
        step = scale
    per = step.reshape(along if step.ndim else ()).astype(np.float64)
    new = np.clip(np.rint(wide / per), -127, 127).astype(np.int8)
    graph.set_input(node, 0, graph.constant(f"{getattr(node.inputs[0], 'name', 'weight')}_int8", new))
    _write(graph, [node], step, np.zeros(zero.shape, np.int8))
    node.metadata_props[WIDER] = f"{float((step / scale).max()):.4f}"
    return True


def symmetric(scale: npt.NDArray[Any], zero: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """(the scale of symmetric int8 that covers the same, the largest ratio of the new step to the old).

    uint8 around 128 keeps its scale: its lowest code becomes -128, which ONNX's int8 has.
    """
    limits = np.iinfo(zero.dtype)
    shift = zero.astype(np.float64)
    middle = (zero == 128) if zero.dtype == np.uint8 else (zero == 0)
    ratio = np.where(middle, 1.0, np.maximum(limits.max - shift, shift - limits.min) / 127)
    return (scale.astype(np.float64) * ratio).astype(scale.dtype), float(ratio.max())


def _parameters(graph: Graph, node: Node) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Scale and zero point where both are constants and the pair has a zero point, of 8 bits, that is not int8 0."""
    scale = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None
    zero = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.dtype.kind != "f":
        return None
    if zero is None and (len(node.inputs) < 3 or node.inputs[2] is None) and _is_uint8(graph, node):
        zero = np.zeros(scale.shape, np.uint8)  # what ONNX means, and TensorRT does not
    if zero is None or zero.dtype not in (np.uint8, np.int8) or zero.shape != scale.shape:
        return None
    return (scale, zero) if zero.dtype == np.uint8 or zero.any() else None


def _is_uint8(graph: Graph, node: Node) -> bool:
    """Whether a Q or DQ without a zero point has uint8 codes."""
    if node.op_type == "QuantizeLinear":
        return int(graph.attribute(node, "output_dtype", 0)) in (0, UINT8)
    codes, maker = graph.const(node.inputs[0]), graph.producer(node.inputs[0], "QuantizeLinear")
    if codes is not None or maker is None:
        return bool(codes is not None and codes.dtype == np.uint8)
    zero = graph.const(maker.inputs[2]) if len(maker.inputs) > 2 else None
    return bool(zero.dtype == np.uint8) if zero is not None else _is_uint8(graph, maker)


def _write(graph: Graph, nodes: list[Node], scale: npt.NDArray[Any], zero: npt.NDArray[Any]) -> None:
    name = str(nodes[-1].outputs[0].name)
    made: list[Value] = [graph.constant(f"{name}_scale", scale), graph.constant(f"{name}_zero_point", zero)]
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            graph.set_attribute(node, "output_dtype", None)  # the zero point says it now
        for index, value in enumerate(made, 1):
            graph.set_input(node, index, value)
