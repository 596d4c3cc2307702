"""Operators that the ONNX standard does not know: of a custom-operator library, or plugins of TensorRT.

They are left as they are and quantized around. ONNX Runtime computes them only with their library; what does not
depend on them it computes without. Exporters for TensorRT write plugins in a domain of their own or, without a
schema, in the default one (EfficientNMS_TRT), where onnx's checker and version converter stumble over them: those
two see a stand-in.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx

    from onnxq.graph import Graph, Node

STAND_IN = "onnxq.stand_in"
"""Domain under which unknown operators of the default domain are shown to onnx's C++ code."""

_DEFAULT = ("", "ai.onnx")
_NO_SCHEMAS = "ai.onnx.training"  # a domain of the standard's, of which a build of onnx may lack the schemas


@lru_cache(maxsize=4096)
def is_custom(op_type: str, domain: str) -> bool:
    """Whether an operator is neither of the standard nor ONNX Runtime's own, as far as its name and domain tell."""
    if domain == _NO_SCHEMAS or domain.startswith(CONTRIB):
        return False
    from onnx import defs

    return not defs.has(op_type, "" if domain in _DEFAULT else domain)


def custom_nodes(graph: Graph) -> tuple[Node, ...]:
    """The custom nodes, those inside bodies of If, Loop and Scan included, in order."""
    every = (inner for node in graph.nodes for inner in (node, *graph.bodies(node)))
    return tuple(node for node in every if is_custom(node.op_type, node.domain))


def behind_customs(graph: Graph) -> set[str]:
    """Names of the main graph's activations that a custom node makes or that depend on one."""
    found: set[str] = set()
    for node in graph.nodes:
        parts = (node, *graph.bodies(node))
        reads = {str(v.name) for part in parts for v in part.inputs if v is not None}
        if reads & found or any(is_custom(part.op_type, part.domain) for part in parts):
            found.update(str(v.name) for v in node.outputs if v.name)
    return found


def listed(nodes: Iterable[Node]) -> str:
    """Which operators of which domains, and the nodes, as `NegPos of ai.onnx.contrib (split, split_1)`."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in nodes:
        names[node.op_type, node.domain].append(node.name or "")
    parts = []
    for (op_type, domain), known in names.items():
        more = f" and {len(known) - 3} more" if len(known) > 3 else ""
        parts.append(f"{op_type} of {domain or 'the default domain'} ({', '.join(known[:3])}{more})")
    return "; ".join(parts)


def notes(graph: Graph) -> tuple[str, ...]:
    """What the plan says of the graph's custom nodes; nothing when it has none."""
    found = custom_nodes(graph)
    return (f"custom operators are left as they are: {listed(found)}",) if found else ()


def needs_stand_in(graph: Graph) -> bool:
    """Whether a custom node lies in the default domain, as onnx's checker and converter do not have it."""
    return any(not node.domain for node in custom_nodes(graph))


def stand_in(proto: onnx.ModelProto) -> int:
    """Move unknown operators of the default domain to one of their own, in place; return how many there were.

    onnx then knows nothing of these nodes and passes them by; all it asks of the others it goes on asking.
    """
    from onnx import helper

    defined = {function.name for function in proto.functions if function.domain in _DEFAULT}
    moved = [
        node
        for node in (*_nodes(proto.graph), *(n for function in proto.functions for n in function.node))
        if node.domain in _DEFAULT and node.op_type not in defined and is_custom(node.op_type, "")
    ]
    for node in moved:
        node.domain = STAND_IN
    if moved:
        proto.opset_import.append(helper.make_opsetid(STAND_IN, 1))
    return len(moved)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(body)
