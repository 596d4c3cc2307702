"""Quant nodes, as Brevitas and other tools of the QONNX format write them, become QuantizeLinear and DequantizeLinear.

QONNX (Pappalardo et al. 2022, arXiv 2206.07527): Quant(x, scale, zeropt, bitwidth; signed, narrow, rounding_mode) is
(clip(round(x / s + z), lo, hi) - z) s, with lo, hi those of the bit width. Up to 8 bits that is an int8 or uint8 pair,
behind a Clip where fewer codes are used. A quantized weight is stored as its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
ROUNDING = ("ROUND", "ROUND_EVEN", "HALF_EVEN")


@dataclass(frozen=True, eq=False)
class _Grid:
    """What a Quant node rounds to: scale of x's rank or one, codes lo to hi."""

    scale: npt.NDArray[Any]
    zero: int
    low: int
    high: int
    kind: str
    axis: int | None


def from_qonnx(graph: Graph) -> int:
    """Rewrite every Quant node of the main graph; return how many.

    Raises:
        ModelError: one of more than 8 bits, with computed scales, or with a rounding that ONNX has not.
    """
    found = [node for node in graph.nodes if node.domain in DOMAINS and node.op_type == "Quant"]
    for node in found:
        grid = _grid(graph, node)
        source = node.inputs[0]
        assert source is not None  # noqa: S101  Quant has an input
        array = graph.const(source)
        real = _pair(graph, node, source, grid) if array is None else _codes(graph, source, array, grid)
        real.shape = node.outputs[0].shape or source.shape
        graph.absorb(node, real)
    return len(found)


def _grid(graph: Graph, node: Node) -> _Grid:
    given = [graph.const(v) for v in node.inputs[1:4]]
    rounding = str(graph.attribute(node, "rounding_mode", "ROUND")).upper()
    if len(given) < 3 or any(array is None for array in given):
        raise ModelError(f"Quant node {node.name!r} computes its scale", "Export the model in evaluation mode.")
    if rounding not in ROUNDING:
        raise ModelError(f"Quant node {node.name!r} rounds by {rounding}", "ONNX rounds half to even only.")
    scale, zero, width = (np.asarray(array) for array in given)
    bits, signed = float(width.reshape(-1)[0]), bool(graph.attribute(node, "signed", 1))
    narrow = int(graph.attribute(node, "narrow", 0))
    whole = zero.size and (zero == zero.reshape(-1)[0]).all() and float(zero.reshape(-1)[0]).is_integer()
    if width.size != 1 or not bits.is_integer() or not 2 <= bits <= 8 or not whole:
        raise ModelError(
            f"Quant node {node.name!r} has {bits:g} bits, or zero points that differ or are no whole numbers",
            "Q/DQ pairs take 2 to 8 bits and one zero point a tensor here.",
        )
    steps = 1 << int(bits)
    low, high = (narrow - steps // 2, steps // 2 - 1) if signed else (0, steps - 1 - narrow)
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(axes) > 1:
        raise ModelError(f"Quant node {node.name!r} has scales along {len(axes)} axes", "One axis can be written.")
    rank = graph.rank(node.inputs[0])
    axis = axes[0] - scale.ndim + (rank or scale.ndim) if axes else None
    kind, middle = "int8" if signed else "uint8", int(zero.reshape(-1)[0])
    limits = np.iinfo(kind)
    if not limits.min <= middle <= limits.max:
        raise ModelError(
            f"Quant node {node.name!r} has the zero point {middle}, which is no {kind}", "Export it with one inside."
        )
    return _Grid(scale, middle, low, high, kind, axis)


def _parameters(graph: Graph, name: str, grid: _Grid) -> tuple[list[Value], dict[str, int]]:
    scale = grid.scale.reshape(-1) if grid.axis is not None else grid.scale.reshape(-1)[0].reshape(())
    zero = np.full(scale.shape, grid.zero, grid.kind)
    made = [graph.constant(f"{name}_scale", scale), graph.constant(f"{name}_zero_point", zero)]
    return made, {} if grid.axis is None else {"axis": grid.axis}


def _pair(graph: Graph, node: Node, source: Value, grid: _Grid) -> Value:
    name, limits = str(source.name), np.iinfo(grid.kind)
    if (grid.low, grid.high) != (limits.min, limits.max) and grid.axis is None:
        scale = grid.scale.reshape(-1)[0]
        bounds = [np.asarray((code - grid.zero) * scale, scale.dtype) for code in (grid.low, grid.high)]
        inputs = [source, *(graph.constant(f"{name}_limit", bound) for bound in bounds)]
        source = graph.add("Clip", inputs, name=f"{name}_clipped", before=node, like=source)
    elif (grid.low, grid.high) != (limits.min, limits.max):
        raise ModelError(f"Quant node {node.name!r} has a scale per channel in few bits", "Activations take one scale.")
    parameters, attributes = _parameters(graph, name, grid)
    codes = graph.add(
        "QuantizeLinear", [source, *parameters], name=f"{name}_quantized", before=node, attributes=attributes
    )
    graph.retype(codes, grid.kind)
    return _real(graph, name, codes, parameters, attributes, node)


def _codes(graph: Graph, source: Value, array: npt.NDArray[Any], grid: _Grid) -> Value:
    name = str(source.name)
    steps = np.rint(array.astype(np.float64) / grid.scale.astype(np.float64) + grid.zero)
    codes = graph.constant(f"{name}_quantized", np.clip(steps, grid.low, grid.high).astype(grid.kind))
    parameters, attributes = _parameters(graph, name, grid)
    return _real(graph, name, codes, parameters, attributes, None)


def _real(
    graph: Graph, name: str, codes: Value, parameters: list[Value], attributes: dict[str, int], before: Node | None
) -> Value:
    made = graph.add(
        "DequantizeLinear", [codes, *parameters], name=f"{name}_dequantized", before=before, attributes=attributes
    )
    graph.retype(made, "float32")
    return made
