"""Fold a BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul in front of it.

In inference, per channel c:   y = (x - mean) / sqrt(var + epsilon) * scale + B  =  x * f + s
with                           f = scale / sqrt(var + epsilon),  s = B - mean * f
(ONNX operator BatchNormalization), and `onnxq.linear` takes f and s into weight and bias. A MatMul without a bias
gets an Add of s in the place of the batch norm.

Preconditions: inference form, constant parameters and weight, and nobody but the batch norm reads what the linear
node computes. Channels are axis 1, so a MatMul folds only where its output is a matrix.

A weight that several nodes read, with the same batch norm behind each, stays one. Where batch norms differ, as those of
the levels of some pyramids do, each node gets a weight of its own: batch norms that stayed would run in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import Linear, exactly, linear_before, renewed, scale_outputs
from onnxq.sharers import rejoin

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node

    Array = npt.NDArray[Any]


def fold_batch_norm(graph: Graph) -> int:
    """Fold every batch norm that follows a linear node; return how many."""
    norms = [n for n in graph.nodes if n.op_type == "BatchNormalization" and n.domain in ("", "ai.onnx")]
    folded = [linear for norm in norms if (linear := _fold(graph, norm)) is not None]
    rejoin(graph, folded)
    return len(folded)


def _fold(graph: Graph, norm: Node) -> Linear | None:
    """Fold one, and return what it was folded into, as that was; None where it stays."""
    linear = linear_before(graph, norm, norm.inputs[0])
    if linear is None or not _in_inference(graph, norm) or linear.rank is None:
        return None
    affine = _affine(graph, norm, linear.channels)
    if affine is None or linear.rank + linear.axis != 1:
        return None
    if linear.node.op_type == "MatMul" and linear.bias_add is None:
        return linear if _fold_into_product(graph, norm, linear, *affine) else None
    if not scale_outputs(graph, linear, *affine):
        return None
    result = norm.inputs[0]
    assert result is not None  # noqa: S101  linear_before found the node that makes it
    graph.absorb(norm, result)
    if linear.bias_add is not None:
        _rename_scaled(graph, linear.node)
    return linear


def _fold_into_product(graph: Graph, norm: Node, linear: Linear, factor: Array, shift: Array) -> bool:
    product, old_bias = norm.inputs[0], norm.inputs[2]
    bias = exactly(shift, str(graph.dtype(linear.weight)))
    if bias is None or old_bias is None or not scale_outputs(graph, linear, factor, np.zeros_like(shift)):
        return False
    output = norm.outputs[0]
    added = graph.add(
        "Add", [product, graph.constant(renewed(old_bias), bias)], name=f"{output.name}", before=norm, like=output
    )
    graph.absorb(norm, added)
    _rename_scaled(graph, linear.node)
    return True


def _rename_scaled(graph: Graph, product: Node) -> None:
    """The product alone now holds values that no tensor of the model had."""
    graph.rename(product.outputs[0], f"{product.outputs[0].name}/scaled")


def _in_inference(graph: Graph, norm: Node) -> bool:
    """Whether only Y is used; before opset 14 the use of further outputs is what makes it training."""
    further = norm.outputs[1:]
    return not graph.attribute(norm, "training_mode", 0) and not any(v.uses() or v.is_graph_output() for v in further)


def _affine(graph: Graph, norm: Node, channels: int) -> tuple[Array, Array] | None:
    """The batch norm's factor and shift, each of shape (channels,), or None when they are not constant."""
    arrays = [graph.const(value) if graph.shape(value) == (channels,) else None for value in norm.inputs[1:5]]
    scale, bias, mean, variance = (None if a is None else a.astype(np.float64) for a in arrays)
    if scale is None or bias is None or mean is None or variance is None:
        return None
    spread = variance + graph.attribute(norm, "epsilon", 1e-5)
    if not (np.isfinite([scale, bias, mean, spread]).all() and np.all(spread > 0)):
        return None
    factor = scale / np.sqrt(spread)
    return factor, bias - mean * factor
