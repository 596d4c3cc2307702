"""Embedding tables: a Gather from a large float matrix, and when it pays to store the rows narrow.

Form: com.microsoft GatherBlockQuantized, one kernel that reads codes and scales of the wanted rows only. Of the three
forms with int8 rows, tried on the table of MiniLM (30522 x 384): Gather(int8) and a DequantizeLinear with one scale
27.4 dB, with a scale per column 39.1 dB, GatherBlockQuantized with blocks of 128 along the row 43.8 dB (of 32: 45.4).
The first two are two kernels; the scale of a row cannot be said by a DequantizeLinear behind the Gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.formats import Format
from onnxq.placement.weighted import FLOAT_TYPES
from onnxq.plan import WeightPoint

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

LARGE = 1 << 16
"""Fewest values of a table worth storing narrow."""

TABLE = Format("int8", "block", 128)
"""A row's: 2 bytes of scale for 128 values. Always in 8 bits: rows are a model's whole input, and 4 save little."""


def table_reason(graph: Graph, node: Node, target: Target) -> str | None:
    """Why the Gather reads its table in float; None when the rows are stored narrow."""
    shape, kind = graph.shape(node.inputs[0]), graph.dtype(node.inputs[0])
    if not target.tables or not graph.is_const(node.inputs[0]) or kind not in FLOAT_TYPES or shape is None:
        return "moves data"
    if len(shape) != 2 or graph.attribute(node, "axis", 0) != 0:
        return "gathers from a tensor that is no table of rows"
    if (graph.size(node.inputs[0]) or 0) < LARGE:
        return f"a table of fewer than {LARGE} values"
    if graph.is_const(node.inputs[1]):
        return "its indices are constant"
    return None


STORED = "table of int8 rows"


def stored_tables(graph: Graph, target: Target, recipe: Recipe) -> tuple[WeightPoint, ...]:
    """The tables whose rows are stored narrow, each with the nodes that gather from it."""
    uses: dict[str, list[tuple[str, int]]] = {}
    for node in graph.nodes:
        excluded = recipe.rule_value(node.name or "", node.op_type, "quantize") is False
        if node.op_type == "Gather" and not node.domain and not excluded and table_reason(graph, node, target) is None:
            uses.setdefault(str(node.inputs[0].name), []).append((node.name or "", 0))  # type: ignore[union-attr]  # a table is a constant
    return tuple(WeightPoint(name, tuple(where), None, TABLE) for name, where in uses.items())
