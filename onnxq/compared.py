"""Which tensors of two models are compared, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.customs import behind_customs, custom_nodes, listed
from onnxq.errors import ModelError
from onnxq.operators import is_integer

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.monitor import Monitor

FLOATS = ("float16", "bfloat16", "float32", "float64")
WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

_CODES = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "float4", "float8")
"""How the types begin that weights have as codes."""


def is_quantized(graph: Graph) -> bool:
    """Whether anything in the model is: a node, in a body too, or a weight that is codes."""
    parts = tuple(graph.parts())
    nodes = [node for part in parts for node in part.nodes]
    weights = (value for part in parts for value in part.weights.values())
    return any(
        is_integer(n.op_type, n.domain) or (n.op_type in ("QuantizeLinear", "DequantizeLinear") and not n.domain)
        for n in nodes
    ) or any((graph.dtype(value) or "").startswith(_CODES) for value in weights)


def warn_if_swapped(reference: Graph, quantized: Graph, monitor: Monitor) -> None:
    """Say so where the first model is quantized and the second is not; two quantized ones are compared on purpose.

    No error: the noise is the same either way, and hardly another is the signal.
    """
    if is_quantized(reference) and not is_quantized(quantized):
        monitor.warn(
            "the first model is quantized and the second is not: errors are told of the second. "
            "Give the float model first, if they are swapped"
        )


def missing(one: Graph, other: Graph) -> tuple[str, ...]:
    """Names of the outputs of one model that the other has not."""
    names = {v.name for v in other.outputs}
    return tuple(str(v.name) for v in one.outputs if v.name not in names)


def common(reference: Graph, quantized: Graph, monitor: Monitor, *, layers: bool) -> list[str]:
    """Names of the tensors that both models have: of the layers those in float, of the outputs whole numbers too.

    Raises:
        ModelError: there are none.
    """

    def names(graph: Graph) -> list[str]:
        made = [v for v in graph.outputs if not graph.is_const(v)]  # a weight that is an output needs no run
        outputs = [v for v in made if graph.dtype(v) in (*FLOATS, *WHOLE)]
        if not layers:
            return [str(v.name) for v in outputs]
        graph = graph.copy()  # a file need not say the types of what lies between input and output
        graph.infer_shapes()
        made = [v for n in graph.nodes for v in n.outputs if v.name and graph.dtype(v) in FLOATS]
        return [str(v.name) for v in (*made, *outputs)]

    others = set(names(quantized))
    found = [name for name in dict.fromkeys(names(reference)) if name in others]
    if found and (lost := missing(reference, quantized)):
        monitor.warn(f"outputs that the quantized model has not, so not compared: {', '.join(lost)}")
    if not found:
        raise ModelError(
            "the two models have no numeric tensor of the same name to compare",
            "The outputs are {} in the float model and {} in the other.".format(
                *(", ".join(repr(v.name) for v in graph.outputs) for graph in (reference, quantized))
            ),
        )
    return found


def without_customs(names: list[str], reference: Graph, quantized: Graph, monitor: Monitor) -> list[str]:
    """The names that both models compute without custom operators.

    Raises:
        ModelError: there are none.
    """
    behind = behind_customs(reference) | behind_customs(quantized)
    left = [name for name in names if name not in behind]
    operators = listed(custom_nodes(reference) or custom_nodes(quantized))
    if names and not left:
        raise ModelError(
            f"ONNX Runtime lacks custom operators, on which all that is to be compared depends: {operators}",
            "Give their library with --custom-ops lib.so, or compare what lies before them with --layers.",
        )
    if len(left) < len(names):
        monitor.warn(f"{len(names) - len(left)} tensors are not compared: they depend on custom operators, {operators}")
    return left
