"""Write an Einsum with one constant weight as the MatMul that it is: placement and backends know layers by that name.

    Einsum("btgi,gih->btgh", x, W)  =  Transpose(MatMul(Transpose(x), W))

Labels of both x and W that the result has too are batches, those that it lacks are summed over; the others are rows (of
x) and columns (of W). A MatMul wants x as [rows but the last, batches, the last row, summed] and W as [batches, summed,
columns]. Several summed labels or columns are one axis there, with a Reshape on either side. What sums over a label of
one operand alone, takes a diagonal, or has no rows, columns or sums is left as it is.

An axis of unknown size is taken to be as long as the weight's axis of the same label. ONNX's Einsum gives a label one
range of indices and broadcasts an ellipsis alone, but ONNX Runtime and onnx's reference evaluator, as numpy, also take
1 for n. Of batches a MatMul does so as well. Of what is summed it is an error at run time and never another number; the
Einsum adds the same value n times, which no layer does. Axes whose size nobody knows are common there, behind a Reshape
to a computed shape, so they are not left in float for that. What is known to be broadcast is left as it is.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from onnxq.graph import Attribute, Dim, Graph, Node, Value


@dataclass(frozen=True)
class _Product:
    """Labels of the axes of the tensor, of the constant and of the result, a letter each."""

    x: str
    w: str
    y: str

    @property
    def rows(self) -> str:
        return "".join(label for label in self.x if label not in self.w)

    @property
    def batches(self) -> str:
        return "".join(label for label in self.w if label in self.x and label in self.y)

    @property
    def summed(self) -> str:
        return "".join(label for label in self.w if label not in self.y)

    @property
    def columns(self) -> str:
        return "".join(label for label in self.w if label not in self.x)

    @property
    def lead(self) -> str:
        """The axes of a MatMul's first input and of its result in front of the last."""
        return self.rows[:-1] + self.batches + self.rows[-1:]

    def is_matmul(self) -> bool:
        once = all(len(set(labels)) == len(labels) for labels in (self.x, self.w, self.y))
        made = set(self.y) == set(self.rows + self.batches + self.columns)
        return once and made and set(self.summed) <= set(self.x) and all((self.rows, self.summed, self.columns))


def einsum_to_matmul(graph: Graph) -> int:
    """Rewrite every Einsum of one tensor and one constant that is a MatMul; return how many."""
    made: dict[Value, list[Value]] = {}
    return sum(_rewrite(graph, node, made) for node in graph.nodes if node.op_type == "Einsum" and not node.domain)


def _rewrite(graph: Graph, node: Node, made: dict[Value, list[Value]]) -> bool:
    constant = [graph.is_const(value) for value in node.inputs]
    if sorted(constant) != [False, True]:
        return False
    x, w = node.inputs[constant.index(False)], node.inputs[constant.index(True)]
    array, labels = graph.const(w), _labels(graph, node)
    if x is None or w is None or array is None or labels is None or graph.dtype(w) not in FLOATS:
        return False
    product = _Product(labels[constant.index(False)], labels[constant.index(True)], labels[2])
    if not product.is_matmul() or not _fits(graph.shape(x), array.shape, product):
        return False
    output, value, name = node.outputs[0], x, node.name
    steps = [step for step in _steps(product, array) if step is not None]
    for step in steps:
        title = f"{output.name}/{step.title}"
        forms = made.setdefault(w, [w]) if step.op_type == "MatMul" else []
        inputs = [] if step.constant is None else [_held(graph, step.constant, forms, title)]
        like = output if step is steps[-1] else None
        value = graph.add(step.op_type, [value, *inputs], name=title, attributes=step.said, before=node, like=like)
        step_node = value.producer()
        if step_node is not None and step.op_type == "MatMul":
            layer = step_node
    graph.absorb(node, value)
    layer.name = name  # rules know nodes by their names
    return True


def _held(graph: Graph, array: npt.NDArray[Any], forms: list[Value], name: str) -> Value:
    """The array as one of the forms of a weight, so that products that share it still do; else as a new one of them."""
    found = next((v for v in forms if np.array_equal(np.asarray(graph.const(v)), array)), None)
    if found is None:
        found = graph.constant(name, array)
        forms.append(found)
    return found


def _labels(graph: Graph, node: Node) -> tuple[str, str, str] | None:
    """Those of both inputs and of the result, an ellipsis of the tensor written out; None where it is not plain."""
    equation = str(graph.attribute(node, "equation", "")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    given = terms.split(",")
    if not arrow or len(given) != 2:
        return None
    for index, value in enumerate(node.inputs):
        if "..." in given[index]:
            rank = graph.rank(value)
            if rank is None or graph.is_const(value):
                return None
            count = rank - len(given[index].replace("...", ""))
            free = "".join(label for label in string.ascii_letters if label not in equation)[:count]
            given[index], result = given[index].replace("...", free), result.replace("...", free)
    left, right = given
    return (left, right, result) if (left + right + result).isalpha() else None


def _fits(shape: tuple[Dim, ...] | None, sizes: tuple[int, ...], product: _Product) -> bool:
    """Whether the ranks are those of the labels, and no axis that both have is broadcast, as far as that is known."""
    if len(sizes) != len(product.w) or (shape is not None and len(shape) != len(product.x)):
        return False
    both = dict(zip(product.w, sizes, strict=True))
    known = zip(product.x, shape or (), strict=False)
    return all(not isinstance(size, int) or size == both.get(label, size) for label, size in known)


@dataclass(frozen=True, eq=False)
class _Step:
    """An operator on what the one before made, and its second input."""

    op_type: str
    title: str
    constant: npt.NDArray[Any] | None = None
    said: Mapping[str, Attribute] | None = None


def _steps(product: _Product, array: npt.NDArray[Any]) -> Iterator[_Step | None]:
    sizes = dict(zip(product.w, array.shape, strict=True))
    lead, batches, summed, columns = product.lead, product.batches, product.summed, product.columns
    apart = [sizes[label] for label in columns]
    terms = prod(sizes[label] for label in summed)  # and not -1, which no batch of nothing has
    kept = [0] * len(lead)  # as they are
    yield _transpose(product.x, lead + summed, "rows")
    yield _Step("Reshape", "summed", np.array([*kept, terms], np.int64)) if len(summed) > 1 else None
    matrix = np.transpose(array, [product.w.index(label) for label in batches + summed + columns])
    shape = (*matrix.shape[: len(batches)], terms, prod(apart))
    yield _Step("MatMul", "weight", np.ascontiguousarray(matrix.reshape(shape)))
    yield _Step("Reshape", "columns", np.array([*kept, *apart], np.int64)) if len(columns) > 1 else None
    yield _transpose(lead + columns, product.y, "ordered")


def _transpose(before: str, after: str, title: str) -> _Step | None:
    said = {"perm": [before.index(label) for label in after]}
    return None if before == after else _Step("Transpose", title, said=said)
