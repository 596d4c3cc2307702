"""One copy of a weight that several graphs of a model hold."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxq.graph.graph import Graph

SMALLEST = 1024
"""Bytes from which on a second copy counts."""


def share(graph: Graph, may: Callable[[ir.Value], bool]) -> int:
    """Let the users of equal weights in different graphs of the model read one, which then lies in the main graph.

    Args:
        graph: the model.
        may: whether a weight may be one of several graphs.

    Returns:
        How many copies that saved.
    """
    main = graph.model.graph
    bodies = tuple(main.subgraphs())
    found: dict[bytes, list[ir.Value]] = {}
    for part in (main, *bodies) if bodies else ():
        for value in part.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST or not may(value):
                continue
            array = np.ascontiguousarray(tensor.numpy())
            kind = f"{tensor.dtype.name} {array.shape}".encode()
            found.setdefault(hashlib.sha256(kind + array.tobytes()).digest(), []).append(value)
    return sum(_join(main, same) for same in found.values() if len({id(v.graph) for v in same}) > 1)


def _join(main: ir.Graph, same: Sequence[ir.Value]) -> int:
    inner = [v for v in same if not v.is_graph_output()]
    if len(inner) < 2:
        return 0
    first, *others = inner
    if first.graph is not main and first.graph is not None:
        del first.graph.initializers[str(first.name)]
        main.register_initializer(first)
    for value in others:
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, first)
        if value.graph is not None:
            del value.graph.initializers[str(value.name)]
    return len(others)
