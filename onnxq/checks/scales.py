"""What the checks ask about a Q's or DQ's parameters: its type, and the form of its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.checks.index import DQ, Q, integer
from onnxq.dtypes import FLOAT4E2M1, FLOAT8E4M3FN

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxq.checks.index import Model, Shape


def zero_point(node: NodeProto) -> str:
    """The name of a Q's or DQ's zero point, empty when absent."""
    return node.input[2] if len(node.input) > 2 else ""


def qtype(model: Model, node: NodeProto) -> int | None:
    """The type on the integer side of a Q or DQ; None when nothing in the node says it."""
    if name := zero_point(node):
        return model.types.get(name)
    if node.op_type == Q:
        return integer(node, "output_dtype", 0) or None
    maker = model.producers.get(node.input[0])
    if maker is not None and maker.op_type == Q:  # uint8 for ONNX when the Q does not say, int8 for TensorRT: P6
        return qtype(model, maker)
    return model.types.get(node.input[0])


def is_vector(model: Model, node: NodeProto) -> bool:
    """Whether a Q or DQ is per channel: a scale of rank 1 with more than one element."""
    dims = model.shapes.get(node.input[1], ())
    return len(dims) == 1 and dims != (1,)


def blocks(model: Model, node: NodeProto) -> tuple[Shape, Shape] | None:
    """Shapes of data and scale when the scale is one of blocks: several elements and the data's rank."""
    data, scale = model.shapes.get(node.input[0], ()), model.shapes.get(node.input[1], ())
    return (data, scale) if is_grid(scale) and len(data) == len(scale) else None


def is_grid(dims: Shape) -> bool:
    """Whether a scale's shape has more than one axis and more than one element."""
    return len(dims) > 1 and any(dim != 1 for dim in dims)


def in_two_levels(model: Model, node: NodeProto) -> bool:
    """Whether a DQ of float4 has scales that are float8 constants behind a DQ of their own: NVFP4."""
    maker = model.producers.get(node.input[1])
    if qtype(model, node) != FLOAT4E2M1 or maker is None or maker.op_type != DQ:
        return False
    return all(name in model.constants for name in maker.input if name) and qtype(model, maker) == FLOAT8E4M3FN


def same_scale(model: Model, *nodes: NodeProto | None) -> bool:
    """Whether the scales of Q and DQ nodes are exactly equal, as TensorRT compares them; None has no scale."""
    return len({_bytes(model, node) for node in nodes}) <= 1


def _bytes(model: Model, node: NodeProto | None) -> bytes:
    values = None if node is None or len(node.input) < 2 else model.array(node.input[1])
    return b"" if values is None else values.astype(np.float64).tobytes()
