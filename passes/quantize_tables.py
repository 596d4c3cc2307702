"""Store planned embedding tables in int8: Gather becomes com.microsoft GatherBlockQuantized.

    row = (codes[i] - 128) * scale[i, block]

Codes are uint8, whose zero point is 128 where none is given; scales have the type of the Gather's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.blocks import quantize_blocks
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Plan

MIDDLE = 128


@dataclass(frozen=True)
class QuantizeTables:
    """Quantize the tables of the plan.

    Attributes:
        plan: its weights that a Gather reads.
        method: "absmax" or "mse", as `blocks.quantize_blocks` knows it.
    """

    plan: Plan
    method: Any = "absmax"

    def __call__(self, graph: Graph) -> int:
        """Return how many Gather nodes were replaced."""
        nodes = {n.name or "": n for n in graph.nodes}
        sizes = {n: w.block_size for w in self.plan.weights for n, index in w.uses if index == 0}
        made: dict[tuple[int, int], tuple[Value, Value]] = {}
        found = [(nodes[n], size) for n, size in sizes.items() if size and n in nodes]
        gathers = [(node, size) for node, size in found if node.op_type == "Gather"]
        for node, size in gathers:
            self._replace(graph, node, size, made)
        return len(gathers)

    def _replace(self, graph: Graph, node: Node, size: int, made: dict[tuple[int, int], tuple[Value, Value]]) -> None:
        table, indices = node.inputs[0], node.inputs[1]
        array = graph.const(table)
        assert table is not None  # noqa: S101  the plan holds only tables that are constants
        assert array is not None  # noqa: S101  likewise
        if (id(table), size) not in made:
            blocks = quantize_blocks(array, 1, size, method=self.method)
            codes = (blocks.codes.astype(np.int16) + MIDDLE).astype(np.uint8)
            made[id(table), size] = (
                graph.constant(f"{table.name}_quantized", codes),
                graph.constant(f"{table.name}_scale", blocks.scale),
            )
        codes_value, scale = made[id(table), size]
        attributes = {"bits": 8, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        rows = graph.add(
            "GatherBlockQuantized",
            [codes_value, indices, scale],
            name=f"{node.outputs[0].name}_rows",
            before=node,
            attributes=attributes,
            like=node.outputs[0],
            domain=CONTRIB,
        )
        graph.absorb(node, rows)
