"""Conv, ConvTranspose, Gemm and MatMul seen alike: y = W x + b, with one row of W per output channel.

An affine step behind such a node goes into its weights row by row, one before it column by column:

    (W x + b) f + s  =  (f W) x + (b f + s)          f, s per output channel
    W (x f + s) + b  =  (W f) x + (b + W s)          f, s per input channel

Everything is computed in float64 and stored in the weight's own type. Weights are never written in place: another
node may share them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.numerics import INT8, QuantParams, quantize
from onnxq.numerics import dequantize as dequantize_codes

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

CONVS = ("Conv", "ConvTranspose")
BIASED = (*CONVS, "Gemm")
"""Those with a bias of their own, input 2."""
LINEAR = (*BIASED, "MatMul")
FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear node of the main graph with a constant weight.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        weight: its input 1.
        channels: length of the output channel axis.
        axis: the output channel axis of y, counted from the end.
        rank: rank of y; None where a MatMul's is unknown.
        groups: of a convolution, else 1.
        bias_add: the Add that gives a MatMul its constant bias, if there is one.
    """

    node: Node
    weight: Value
    channels: int
    axis: int
    rank: int | None
    groups: int = 1
    bias_add: Node | None = None


def linear_at(graph: Graph, node: Node | None) -> Linear | None:
    """The node as a `Linear`, or None when it is no such node, lies in a body, or its weight is computed."""
    return _described(graph, node) if node is not None and graph.is_const(_weight(node)) else None


def quantized_linear_at(graph: Graph, node: Node | None) -> Linear | None:
    """Likewise where the weight may be stored quantized, behind a DequantizeLinear; see `weight_array`."""
    stored = node is not None and _stored(graph, _weight(node))
    return _described(graph, node) if node is not None and stored else None


def weight_array(graph: Graph, value: Value | None) -> Array | None:
    """A constant weight in float64, in the shape of its tensor, as its codes have it where it is stored quantized."""
    if graph.is_const(value):
        return np.asarray(graph.const(value), np.float64)
    dequantize = graph.producer(value, "DequantizeLinear")
    if dequantize is None or not _stored(graph, value):
        return None
    scale = np.asarray(graph.const(dequantize.inputs[1]), np.float32)
    axis = int(graph.attribute(dequantize, "axis", 1)) if scale.ndim else None
    zeros = np.zeros(scale.shape, np.int8)
    made = graph.producer(dequantize.inputs[0], "QuantizeLinear")
    params = QuantParams(scale, zeros, INT8, axis)
    codes = graph.const(dequantize.inputs[0]) if made is None else quantize(_array(graph, made.inputs[0]), params)
    return None if codes is None else dequantize_codes(codes, params).astype(np.float64)


def _array(graph: Graph, value: Value | None) -> Array:
    return np.asarray(graph.const(value))


def _weight(node: Node) -> Value | None:
    return node.inputs[1] if node.op_type in LINEAR and len(node.inputs) > 1 else None


def _stored(graph: Graph, value: Value | None) -> bool:
    """Whether it is a constant, or one in symmetric int8 without blocks behind DequantizeLinear, or Q and DQ."""
    if graph.is_const(value):
        return True
    node = graph.producer(value, "DequantizeLinear")
    if node is None or graph.attribute(node, "block_size", 0) or not graph.is_const(node.inputs[1]):
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and (graph.const(zero) is None or np.any(graph.const(zero))):
        return False
    made = graph.producer(node.inputs[0], "QuantizeLinear")
    source = node.inputs[0] if made is None else made.inputs[0]
    return graph.is_const(source) and (made is not None or graph.dtype(source) == "int8")


def _described(graph: Graph, node: Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in LINEAR or graph.in_body(node):
        return None
    weight = node.inputs[1]
    shape = graph.shape(weight)
    if weight is None or shape is None or graph.dtype(weight) not in FLOATS or 0 in shape:
        return None
    dims = [d for d in shape if isinstance(d, int)]
    if node.op_type in CONVS:
        groups = int(graph.attribute(node, "group", 1))
        channels = dims[0] if node.op_type == "Conv" else dims[1] * groups
        return Linear(node, weight, channels, 1 - len(dims), len(dims), groups)
    if len(dims) != 2:
        return None
    if node.op_type == "Gemm":
        return Linear(node, weight, dims[0] if graph.attribute(node, "transB", 0) else dims[1], -1, 2)
    return Linear(node, weight, dims[1], -1, graph.rank(node.inputs[0]) or graph.rank(node.outputs[0]))


def linear_before(graph: Graph, user: Node, value: Value | None) -> Linear | None:
    """The linear node that computes the value for this user and for nobody else.

    A MatMul may be followed by the Add of its bias, whose only user is then `user`.
    """
    if value is None or graph.only_user(value) is not user:
        return None
    if (made := graph.producer(value, *LINEAR)) is not None:
        return linear_at(graph, made)
    add = graph.producer(value, "Add")
    for product, bias in () if add is None else (add.inputs[:2], add.inputs[1::-1]):
        if product is None or graph.only_user(product) is not add:
            continue
        linear = linear_at(graph, graph.producer(product, "MatMul"))
        if linear is not None and per_output_channel(graph, linear, bias) is not None:
            return replace(linear, bias_add=add)
    return None


def per_output_channel(graph: Graph, linear: Linear, value: Value | None) -> Array | None:
    """A constant that meets y as one float64 number per output channel, shape (channels,).

    None when it is no constant, varies along another axis, or would change y's shape by broadcasting.
    """
    # Of a MatMul of unknown rank only this is known: its output is no scalar.
    return _along(graph, value, linear.channels, linear.axis, linear.rank or 1)


def per_input_channel(graph: Graph, linear: Linear, value: Value | None, x: Value | None) -> Array | None:
    """A constant that meets x, the linear node's input before the constant's step, as float64 of shape (C,) or ().

    None when it is no constant, varies along another axis or over the channels of a grouped convolution, or when
    the shape of x does not prove that broadcasting leaves it as it is.
    """
    shape = graph.shape(x)
    if graph.size(value) == 1:
        constant = _along(graph, value, 1, -1, len(shape or ()))
        return None if constant is None else constant.reshape(())
    op = linear.node.op_type
    if shape is None or (op == "Gemm" and graph.attribute(linear.node, "transA", 0)):
        return None  # a transposed x has its channels where the output has its rows
    if op in CONVS and (linear.groups > 1 or len(shape) != linear.rank):
        return None
    axis = linear.axis if op in CONVS else -1
    if len(shape) < -axis:
        return None
    size = shape[axis]
    return _along(graph, value, size, axis, len(shape)) if isinstance(size, int) else None


def scale_outputs(graph: Graph, linear: Linear, factor: Array, shift: Array, *, bias_only: bool = False) -> bool:
    """Replace y by y * factor + shift, each of shape (channels,), inside the weights; `bias_only`: W has the factor.

    Returns False, and changes nothing, when the bias is computed, when a MatMul has no bias to take the shift, or
    when the new weights cannot be stored without loss.
    """
    stays = bias_only or np.all(factor == 1)
    weight = None if stays else _read(graph, linear) * _on_rows(graph, linear, factor)
    return _store(graph, linear, weight, factor, shift)


def scale_inputs(graph: Graph, linear: Linear, factor: Array, shift: Array) -> bool:
    """Replace x by x * factor + shift, each of shape (C,) or (), inside the weights.

    A shift needs a Conv without padding: padding comes after the shift and is not shifted. Returns False, and
    changes nothing, where that or the storing fails.
    """
    weight = _read(graph, linear)
    added = np.zeros(linear.channels)
    if np.any(shift != 0):
        if linear.node.op_type != "Conv" or not _unpadded(graph, linear.node):
            return False
        columns = np.broadcast_to(shift, weight.shape[1:2]).reshape(-1, *(1,) * (weight.ndim - 2))
        added = (weight * columns).reshape(linear.channels, -1).sum(axis=1)
    scaled = weight * _on_columns(graph, linear, factor) if np.any(factor != 1) else None
    return _store(graph, linear, scaled, np.ones(linear.channels), added)


def add_bias(graph: Graph, linear: Linear, added: Array, mark: str) -> None:
    """Add to the output of a linear node, float64 of shape (channels,), in its constant bias or a new one.

    A MatMul takes it in the constant Add that follows, or a new one. `mark` ends the new names of tensors that stand
    for other values then.
    """
    node, dtype = linear.node, str(graph.dtype(linear.weight))
    if node.op_type == "MatMul":
        _add_behind(graph, linear, added.astype(dtype), mark)
        return
    beta = graph.attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = 0.0 if old is None else beta * np.asarray(graph.const(old), np.float64)
    name = f"{node.name}/bias" if old is None else renewed(old)
    graph.set_input(node, 2, graph.constant(name, (bias + added).astype(dtype)))
    if node.op_type == "Gemm":
        graph.set_attribute(node, "beta", None)  # it is in the bias now; the default is 1


def constant_operand(graph: Graph, node: Node) -> int | None:
    """Index of the one constant operand of an Add or Mul."""
    constant = [graph.is_const(v) for v in node.inputs[:2]]
    return constant.index(True) if constant.count(True) == 1 else None


def _add_behind(graph: Graph, linear: Linear, added: Array, mark: str) -> None:
    """Into the Add that follows the product, or a new one."""
    output = linear.node.outputs[0]
    user = graph.only_user(output)
    index = constant_operand(graph, user) if user is not None and user.op_type == "Add" else None
    bias = None if user is None or index is None else user.inputs[index]
    old = per_output_channel(graph, linear, bias)
    if user is not None and index is not None and bias is not None and old is not None:
        graph.set_input(user, index, graph.constant(renewed(bias), (old + added).astype(added.dtype)))
        graph.rename(output, f"{output.name}/{mark}")
        return
    users = graph.users(output)
    constant = graph.constant(f"{linear.node.name}/bias", added)
    whole = graph.add("Add", [output, constant], name=f"{output.name}/shifted", like=output)
    if output.is_graph_output():
        graph.replace_output(output, whole)
    else:
        name = str(output.name)
        graph.rename(output, f"{name}/{mark}")
        graph.rename(whole, name)
    graph.replace_uses(output, whole, users)


def exactly(array: Array, dtype: str) -> Array | None:
    """The float64 array in another type, or None when a number overflows or the largest ones lose precision."""
    with np.errstate(all="ignore"):
        stored = array.astype(dtype)
        error = np.abs(stored.astype(np.float64) - array).max(initial=0.0)
    # Rounding to nearest errs by at most eps / 2 of the number itself; NaN and inf fail the comparison.
    return stored if error <= np.finfo(dtype).eps * np.abs(array).max(initial=0.0) else None


def renewed(value: Value) -> str:
    """The name of a weight that replaces another."""
    return re.sub(r"(/folded(_\d+)?)?$", "/folded", str(value.name), count=1)


def _read(graph: Graph, linear: Linear) -> Array:
    """The weight in float64."""
    return np.asarray(graph.const(linear.weight), dtype=np.float64)


def _along(graph: Graph, value: Value | None, size: int, axis: int, rank: int) -> Array | None:
    """A constant that varies along one axis of a tensor of that rank only, as float64 of shape (size,)."""
    shape = graph.shape(value)
    if not graph.is_const(value) or shape is None or len(shape) > rank or graph.dtype(value) not in FLOATS:
        return None
    if graph.size(value) != 1 and not (graph.size(value) == size and len(shape) >= -axis and shape[axis] == size):
        return None
    array = graph.const(value)
    return None if array is None else np.broadcast_to(array.astype(np.float64).reshape(-1), (size,))


def _on_rows(graph: Graph, linear: Linear, factor: Array) -> Array:
    """(channels,) in the shape that broadcasts over the weight's output channels."""
    rank = graph.rank(linear.weight) or 0
    if linear.node.op_type == "ConvTranspose":  # weight (C, M / groups, ...): each group has rows of its own
        inputs = graph.shape(linear.weight) or ()
        rows = np.repeat(factor.reshape(linear.groups, -1), int(inputs[0] or 0) // linear.groups, axis=0)
        return rows.reshape(*rows.shape, *(1,) * (rank - 2))
    if linear.node.op_type == "Conv" or graph.attribute(linear.node, "transB", 0):
        return factor.reshape(-1, *(1,) * (rank - 1))
    return factor


def _on_columns(graph: Graph, linear: Linear, factor: Array) -> Array:
    """(C,) or () in the shape that broadcasts over the weight's input channels; C only where groups is 1."""
    rank = graph.rank(linear.weight) or 0
    if factor.ndim == 0:
        return factor
    if linear.node.op_type == "Conv" or graph.attribute(linear.node, "transB", 0):
        return factor.reshape(-1, *(1,) * (rank - 2))
    return factor.reshape(-1, *(1,) * (rank - 1))


def _unpadded(graph: Graph, conv: Node) -> bool:
    auto = graph.attribute(conv, "auto_pad", "NOTSET")
    return auto == "VALID" or (auto == "NOTSET" and not any(graph.attribute(conv, "pads", ())))


def _store(graph: Graph, linear: Linear, weight: Array | None, factor: Array, shift: Array) -> bool:
    """Store a new weight (None: it stays) and b * factor + shift; False, and nothing done, where that fails."""
    dtype = str(graph.dtype(linear.weight))
    changes: list[tuple[Node, int, str, Array | None]] = []
    if weight is not None:
        changes.append((linear.node, 1, renewed(linear.weight), exactly(weight, dtype)))
    if np.any(factor != 1) or np.any(shift != 0):
        node, index = _bias_slot(graph, linear)
        old = None if node is None or index >= len(node.inputs) else node.inputs[index]
        if (node is None and np.any(shift != 0)) or (old is not None and not graph.is_const(old)):
            return False
        if node is not None and (old is not None or np.any(shift != 0)):
            beta = graph.attribute(node, "beta", 1.0)
            bias = (beta * np.asarray(graph.const(old), np.float64) if old is not None else 0.0) * factor + shift
            name = f"{linear.node.name}/bias" if old is None else renewed(old)
            changes.append((node, index, name, exactly(bias, dtype)))
    if any(array is None for *_, array in changes):
        return False
    for node, index, name, array in changes:
        if array is not None:
            graph.set_input(node, index, graph.constant(name, array))
        if index != 1 and node.op_type == "Gemm":
            graph.set_attribute(node, "beta", None)  # it is in the bias now; the default is 1
    return True


def _bias_slot(graph: Graph, linear: Linear) -> tuple[Node | None, int]:
    """The node and input index that hold the bias, filled or not."""
    if linear.node.op_type != "MatMul":
        return linear.node, 2
    if linear.bias_add is None:
        return None, 0
    return linear.bias_add, 0 if graph.is_const(linear.bias_add.inputs[0]) else 1


def biased_product(graph: Graph, value: Value) -> tuple[Value, npt.NDArray[Any]] | None:
    """(the product of matrices [..., N], its bias [N]) that the value is the sum of; None when it is none."""
    add, shape = graph.producer(value, "Add"), graph.shape(value) or (None,)
    terms = () if add is None else tuple(add.inputs)
    for product, constant in zip(terms, terms[::-1], strict=True):
        bias = graph.const(constant)
        if product is None or bias is None or graph.producer(product, "MatMul") is None:
            continue
        if bias.ndim and bias.size == bias.shape[-1] == shape[-1] and graph.shape(product) == shape:
            return product, bias.reshape(-1)
    return None
