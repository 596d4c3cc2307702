"""Outlier columns beside the product: y = x W becomes x[:, O] W[O] + (x m) W', m zero on O and one elsewhere.

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, eq. 8): a few input channels that are far larger than the others
would take all the steps of an int8 scale. They are multiplied in float, the rest in int8, and both are added. The paper
finds the columns O in every call; a graph holds those that calibration saw. Everything is exact here: what becomes
int8 is decided by the plan, which leaves the product of the few columns in float.

The rest keeps its width, with zeros in place of O: a product of K - |O| columns would lie badly in memory, and the
Mul joins the pointwise kernel before it. W' has zeros in the rows O, so that its scales do not see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import StatisticsError
from onnxq.linear import linear_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph, Node, Value


@dataclass(frozen=True)
class SplitOutliers:
    """Split the matrix products that read these tensors.

    Attributes:
        columns: tensor -> its outlier columns, ascending.
    """

    columns: Mapping[str, tuple[int, ...]]

    def __call__(self, graph: Graph) -> int:
        """Return how many products were split.

        Raises:
            StatisticsError: a tensor is not in this graph.
        """
        values = {str(v.name): v for v in graph.values()} if self.columns else {}
        count = 0
        for name in self.columns:
            if name not in values:
                raise StatisticsError(
                    f"tensor {name!r}, which had outlier columns, is not in the model",
                    "The statistics belong to another model or target. Run `onnxq calibrate` again.",
                )
        for name in (n for n in values if n in self.columns):  # the order of the graph, whatever that of the columns
            readers = split_readers(graph, values[name])
            count += len(readers)
            if readers:
                _split(graph, values[name], np.array(self.columns[name], np.int64), readers)
        return count


def split_readers(graph: Graph, value: Value) -> list[Node]:
    """The MatMul and Gemm nodes with a constant matrix that read the value as their rows."""
    nodes = [node for node, index in graph.users(value) if index == 0 and node.op_type in ("MatMul", "Gemm")]
    return [
        n for n in nodes if linear_at(graph, n) is not None and not graph.attribute(n, "transA", 0) and _plain(graph, n)
    ]


def _plain(graph: Graph, node: Node) -> bool:
    return bool(graph.attribute(node, "alpha", 1.0) == 1.0)


def _split(
    graph: Graph, value: Value, columns: np.ndarray[tuple[int], np.dtype[np.int64]], readers: list[Node]
) -> None:
    kind = str(graph.dtype(value))
    width = 0
    for node in readers:
        array = graph.const(node.inputs[1])
        assert array is not None  # noqa: S101  `split_readers` takes no other
        turned = bool(graph.attribute(node, "transB", 0))
        width = array.shape[1] if turned else array.shape[0]
        few = array[:, columns].T if turned else array[columns]
        rest = array.copy()
        rest[(slice(None), columns) if turned else columns] = 0
        name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        graph.set_input(node, 1, graph.constant(f"{name}/rest", rest))
        picked = _picked(graph, value, columns, kind)
        product = graph.add("MatMul", [picked, graph.constant(f"{name}/outliers", few)], name=f"{node.name}/outliers")
        _add(graph, node, product, kind)
    mask = np.ones(width, kind)
    mask[columns] = 0
    masked = graph.add(
        "Mul", [value, graph.constant(f"{value.name}/mask", mask)], name=f"{value.name}/rest", like=value
    )
    for node in readers:
        graph.set_input(node, 0, masked)


def _picked(graph: Graph, value: Value, columns: np.ndarray[tuple[int], np.dtype[np.int64]], kind: str) -> Value:
    """The outlier columns of the value, gathered once."""
    for node, index in graph.users(value):
        if index == 0 and node.op_type == "Gather" and str(node.outputs[0].name).endswith("/outliers"):
            return node.outputs[0]
    indices = graph.constant(f"{value.name}/columns", columns)
    made = graph.add("Gather", [value, indices], name=f"{value.name}/outliers", attributes={"axis": -1})
    graph.retype(made, kind)
    return made


def _add(graph: Graph, node: Node, product: Value, kind: str) -> None:
    """Let the sum of both products stand in the place, and under the name, of what the node made."""
    output, users = node.outputs[0], graph.users(node.outputs[0])
    name = str(output.name)
    product.shape = output.shape
    graph.retype(product, kind)
    total = graph.add("Add", [output, product], name=f"{name}/sum", like=output)
    graph.replace_uses(output, total, users)
    if output.is_graph_output():
        graph.replace_output(output, total)
    else:
        graph.rename(output, f"{name}/rest")
        total.name = name
