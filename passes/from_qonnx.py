"""Quant nodes, as Brevitas and other tools of the QONNX format write them, become QuantizeLinear and DequantizeLinear.

QONNX (Pappalardo et al. 2022, arXiv 2206.07527): Quant(x, scale, zeropt, bitwidth; signed, narrow, rounding_mode) is
(clip(round(x / s + z), lo, hi) - z) s, with lo, hi those of the bit width. Up to 8 bits that is an int8 or uint8 pair,
behind a Clip where fewer codes are used. A quantized weight is stored as its codes.

BipolarQuant(x, scale) is s where x >= 0 and -s below: codes 1 and -1. Trunc(x, scale, zeropt, in_bits, out_scale,
out_bits) drops the low bits of what was quantized by s: floor(round(x / s) / t) out_scale with t = out_scale / s, a
power of two; then a pair by out_scale, exact since its input lies on that grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
DROPPING = {"FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round", "HALF_EVEN": "Round"}
"""Trunc's rounding -> ONNX's operator."""
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
    """Rewrite every Quant, BipolarQuant and Trunc node of the main graph; return how many.

    Raises:
        ModelError: one of more than 8 bits, with computed scales, or with a rounding that ONNX has not.
    """
    found = [node for node in graph.nodes if node.domain in DOMAINS and node.op_type in GRIDS]
    for node in found:
        grid = GRIDS[node.op_type](graph, node)
        source = node.inputs[0]
        assert source is not None  # noqa: S101  they have an input
        array = graph.const(source)
        if node.op_type == "BipolarQuant":
            source, array = _signs(graph, node, source, array, grid)
        elif node.op_type == "Trunc":
            source, array = _without_low_bits(graph, node, source, grid), None
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


def _bipolar(graph: Graph, node: Node) -> _Grid:
    scale = graph.const(node.inputs[1])
    axes = [] if scale is None else [axis for axis, size in enumerate(scale.shape) if size > 1]
    if scale is None or len(axes) > 1 or (axes and not graph.is_const(node.inputs[0])):
        raise ModelError(
            f"BipolarQuant node {node.name!r} has a computed scale, or several that Q/DQ pairs cannot have",
            "One constant scale can be written, and for a weight one per channel.",
        )
    axis = axes[0] - scale.ndim + (graph.rank(node.inputs[0]) or scale.ndim) if axes else None
    return _Grid(scale, 0, -128, 127, "int8", axis)  # only 1 and -1 are met: nothing to clip


def _signs(
    graph: Graph, node: Node, source: Value, array: npt.NDArray[Any] | None, grid: _Grid
) -> tuple[Value, npt.NDArray[Any] | None]:
    """What to quantize: s where x >= 0, else -s."""
    if array is not None:
        return source, np.where(array >= 0, grid.scale, -grid.scale)
    name, scale = str(source.name), grid.scale.reshape(-1)[0]
    zero = graph.constant(f"{name}_zero", np.asarray(0, scale.dtype))
    above = graph.add("GreaterOrEqual", [source, zero], name=f"{name}_not_negative", before=node)
    graph.retype(above, "bool")
    ends = [graph.constant(f"{name}_end", np.asarray(end, scale.dtype)) for end in (scale, -scale)]
    return graph.add("Where", [above, *ends], name=f"{name}_sign", before=node, like=source), None


def _truncated(graph: Graph, node: Node) -> _Grid:
    given = [graph.const(v) for v in node.inputs[1:]]
    if len(given) != 5 or any(array is None or array.size != 1 for array in given):
        raise ModelError(
            f"Trunc node {node.name!r} has no single constant scale before and behind it",
            "Export it again with Brevitas 0.12 or later, in evaluation mode.",
        )
    scale, zero, _, out, width = (float(np.asarray(array).reshape(-1)[0]) for array in given)
    rounding = str(graph.attribute(node, "rounding_mode", "FLOOR")).upper()
    times = out / scale if scale > 0 and out > 0 else np.nan
    whole = abs(np.log2(times) - np.rint(np.log2(times))) < 1e-3 and width.is_integer() and 2 <= width <= 8
    if zero or rounding not in DROPPING or not whole:
        said = f"zero point {zero:g}, {width:g} bits, rounding {rounding}, scale times {times:g}"
        raise ModelError(
            f"Trunc node {node.name!r} cannot be written: {said}",
            "Taken are zero point 0, 2 to 8 bits, FLOOR, CEIL or ROUND, and scales that differ by a power of two.",
        )
    signed, narrow = bool(graph.attribute(node, "signed", 1)), int(graph.attribute(node, "narrow", 0))
    steps = 1 << int(width)
    low, high = (narrow - steps // 2, steps // 2 - 1) if signed else (0, steps - 1 - narrow)
    return _Grid(np.asarray(given[3]), 0, low, high, "int8" if signed else "uint8", None)


def _without_low_bits(graph: Graph, node: Node, source: Value, grid: _Grid) -> Value:
    """floor(round(x / s) / t) out_scale, in the numbers that x has."""
    name, scale = str(source.name), graph.const(node.inputs[1])
    assert scale is not None  # noqa: S101  `_truncated` has looked
    out = grid.scale.reshape(-1)[0]
    factor = np.exp2(np.rint(np.log2(float(out) / float(scale.reshape(-1)[0]))))
    rounding = DROPPING[str(graph.attribute(node, "rounding_mode", "FLOOR")).upper()]
    numbers = {"step": scale.reshape(-1)[0], "low_bits": np.asarray(factor, out.dtype), "scale_out": out}
    step, low_bits, last = (graph.constant(f"{name}_{what}", np.asarray(n)) for what, n in numbers.items())
    for op, more in (("Div", [step]), ("Round", []), ("Div", [low_bits]), (rounding, []), ("Mul", [last])):
        source = graph.add(op, [source, *more], name=f"{name}_{op.lower()}", before=node, like=source)
    return source


GRIDS: dict[str, Callable[[Graph, Node], _Grid]] = {"Quant": _grid, "BipolarQuant": _bipolar, "Trunc": _truncated}
"""Operator -> the grid that its output lies on."""


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
