"""Tensors to be counted as ONNX Runtime holds them: what is counted has no order.

On x64 CPUs ONNX Runtime holds what convolutions read and write in blocks of 8 or 16 channels (its domain
com.microsoft.nchwc), and puts in order (ReorderOutput) what it gives out. For the observed tensors of MobileNetV2 that
takes half as long as the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.ahead import LEAST_BYTES, sample_bytes
from onnxq.errors import ModelError
from onnxq.runtime import Session
from onnxq.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx

    from onnxq.graph import Graph
    from onnxq.runtime import Loadable

_WHOLE = 16
"""Of so many channels, or a multiple, any block is full: no numbers are held beside theirs."""


def pays(graph: Graph, tensors: Sequence[str]) -> bool:
    """Whether leaving these tensors as they are held may pay: there are convolutions, and enough to put in order."""
    return any(graph.producer(v, "Conv") for v in graph.values()) and sample_bytes(graph, tensors) >= LEAST_BYTES


def session_in_any_order(model: bytes, *, threads: int = 0) -> Session:
    """A session on the CPU whose outputs may have their values in another order, within the same shape.

    The order of samples on axis 0 stays. Every value has the same bits as in a session of the model as it is: it is
    optimized by that, and run without what puts outputs in order.

    Args:
        model: serialized, with its weights inside.
        threads: as of a Session.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    try:
        with Scratch() as folder:
            ordered, proto = optimized(model, folder, threads=threads)
        if not leave_in_blocks(proto.graph):
            return ordered
        return Session(proto.SerializeToString(), as_written=True, threads=threads, optimize=False)
    except (OSError, ModelError):  # no room for it, or what ONNX Runtime wrote it cannot read
        return Session(model, as_written=True, threads=threads)


def optimized(
    model: bytes | Loadable, folder: Path, *, threads: int = 0, apart: bool = False
) -> tuple[Session, onnx.ModelProto]:
    """A session of the model on the CPU, and the model as it was optimized for that, weights and all.

    Kept `apart`, the larger ones lie in a file in `folder`.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        OSError: what it wrote cannot be read.
    """
    import onnx

    path = folder / "optimized.onnx"
    session = Session(model, as_written=True, threads=threads, write_to=path, weights_apart=apart)
    return session, onnx.load(path, load_external_data=not apart)


def leave_in_blocks(graph: onnx.GraphProto) -> int:
    """Make outputs of what ONNX Runtime would have put in order for them; return of how many.

    Args:
        graph: as ONNX Runtime optimized it. Not changed where it has bodies, which may read by the old names.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return 0
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    for node in graph.node:
        if _orders(node) and node.output[0] in outputs and node.input[0] not in names:
            names |= {node.input[0]: node.output[0], node.output[0]: node.input[0]}
    for node in graph.node:
        _rename(node, names)
    _drop_unread(graph, outputs)
    return len(names) // 2


def _orders(node: onnx.NodeProto) -> bool:
    """Whether a node does nothing but give the values of its input in another order."""
    said = {attribute.name: attribute.i for attribute in node.attribute}
    whole = said.get("channels", 1) % _WHOLE == 0 and not said.get("channels_last", 0)
    return node.op_type == "ReorderOutput" and node.domain == "com.microsoft.nchwc" and whole


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for held in (node.input, node.output):
        for index, name in enumerate(held):
            held[index] = names.get(name, name)


def _drop_unread(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Drop the nodes that put in order what nobody reads so."""
    read = outputs.union(*(node.input for node in graph.node))
    kept = [node for node in graph.node if node.op_type != "ReorderOutput" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
