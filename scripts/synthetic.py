"""Synthetic models of any number of nodes, for measuring how time and memory grow.

Weights are few and small, and shared by all layers of a kind, so that nodes are what is measured and not arithmetic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNELS, SIDE = 32, 4
TOKENS, WIDTH, HEADS = 4, 32, 2


class _Model:
    """A model while its nodes are added; each is named by a number, as exporters do."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self._rng = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401  whatever ONNX takes
        """Add a node with one output and return that output's name."""
        name = f"/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def weight(self, name: str, *shape: int) -> str:
        """Add a random weight, different for each name, and return its name."""
        if name not in self.weights:
            values = 0.1 * self._rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))  # small: sums stay finite
            self.weights[name] = numpy_helper.from_array(values.astype(np.float32), name)
        return name

    def constant(self, name: str, values: object, dtype: type = np.int64) -> str:
        """Add a constant and return its name."""
        self.weights[name] = numpy_helper.from_array(np.array(values, dtype), name)
        return name

    def done(self, source: str, shape: tuple[int, ...], last: str) -> onnx.ModelProto:
        """Give the whole model."""
        ends = [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
        begins = [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "synthetic", begins, ends, list(self.weights.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(nodes: int) -> onnx.ModelProto:
    """Blocks Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu; weights of each layer its own."""
    made = _Model()
    value = "image"
    while len(made.nodes) < nodes:
        block, begin = len(made.nodes), value
        for half in range(2):
            name = f"layer{block}.{half}"
            weight = made.weight(f"{name}.weight", CHANNELS, CHANNELS, 1, 1)
            value = made.node("Conv", value, weight)
            norm = [made.constant(f"{name}.{part}", np.ones(CHANNELS), np.float32) for part in "sbmv"]
            value = made.node("BatchNormalization", value, *norm)
            value = made.node("Relu", value if half == 0 else made.node("Add", value, begin))
    return made.done("image", (1, CHANNELS, SIDE, SIDE), value)


def transformer(nodes: int) -> onnx.ModelProto:
    """Blocks of attention and feed-forward with LayerNormalization and GELU spelled out in small operators."""
    made = _Model()
    half = made.constant("half", 0.5, np.float32)
    one, root = made.constant("one", 1.0, np.float32), made.constant("root", 2**0.5, np.float32)
    eps, two = made.constant("eps", 1e-5, np.float32), made.constant("two", 2.0, np.float32)
    split = made.constant("split", [1, TOKENS, HEADS, WIDTH // HEADS])
    joined = made.constant("joined", [1, TOKENS, WIDTH])

    def linear(value: str, name: str, rows: int, columns: int) -> str:
        product = made.node("MatMul", value, made.weight(f"{name}.weight", rows, columns))
        return made.node("Add", product, made.weight(f"{name}.bias", columns))

    def norm(value: str, name: str) -> str:
        centered = made.node("Sub", value, made.node("ReduceMean", value, axes=[-1]))
        variance = made.node("ReduceMean", made.node("Pow", centered, two), axes=[-1])
        scaled = made.node("Div", centered, made.node("Sqrt", made.node("Add", variance, eps)))
        scaled = made.node("Mul", scaled, made.weight(f"{name}.scale", WIDTH))
        return made.node("Add", scaled, made.weight(f"{name}.shift", WIDTH))

    def gelu(value: str) -> str:
        inner = made.node("Add", made.node("Erf", made.node("Div", value, root)), one)
        return made.node("Mul", made.node("Mul", value, inner), half)

    value = "tokens"
    while len(made.nodes) < nodes:
        name = f"layer{len(made.nodes)}"
        heads = [made.node("Reshape", linear(value, f"{name}.{part}", WIDTH, WIDTH), split) for part in "qkv"]
        q, k, v = (
            made.node("Transpose", part, perm=perm)
            for part, perm in zip(heads, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scores = made.node("Softmax", made.node("Mul", made.node("MatMul", q, k), half), axis=-1)
        mixed = made.node("Transpose", made.node("MatMul", scores, v), perm=[0, 2, 1, 3])
        attended = linear(made.node("Reshape", mixed, joined), f"{name}.out", WIDTH, WIDTH)
        value = norm(made.node("Add", value, attended), f"{name}.norm1")
        wide = gelu(linear(value, f"{name}.up", WIDTH, 2 * WIDTH))
        value = norm(made.node("Add", value, linear(wide, f"{name}.down", 2 * WIDTH, WIDTH)), f"{name}.norm2")
    return made.done("tokens", (1, TOKENS, WIDTH), value)


def branches(nodes: int) -> onnx.ModelProto:
    """Blocks of an If, each branch of which has a product and an activation of its own, and a Relu."""
    made = _Model()
    value, count = "tokens", 0
    while count < nodes:
        block, held = f"block{count}", []
        for branch, act in (("then", "Relu"), ("else", "Tanh")):
            name = f"{block}.{branch}"
            inner = [
                helper.make_node("MatMul", [value, made.weight(f"{name}.weight", WIDTH, WIDTH)], [f"{name}.product"]),
                helper.make_node(act, [f"{name}.product"], [f"{name}.result"]),
            ]
            ends = [helper.make_tensor_value_info(f"{name}.result", TensorProto.FLOAT, [1, TOKENS, WIDTH])]
            held.append(helper.make_graph(inner, name, [], ends))
        condition = made.node("Equal", made.node("ReduceMax", value, keepdims=0), made.constant("no", 9e9, np.float32))
        value = made.node("If", condition, then_branch=held[0], else_branch=held[1])
        value = made.node("Relu", value)
        count += 8
    return made.done("tokens", (1, TOKENS, WIDTH), value)


def inception(nodes: int) -> onnx.ModelProto:
    """Blocks of four branches of Conv and Relu, one behind an AveragePool, under a Concat of what came before too.

    Every second block is brought back to few channels and added to what the block before it began with.
    """
    made = _Model()
    quarter, value, residue = CHANNELS // 4, "image", "image"
    while len(made.nodes) < nodes:
        block = f"block{len(made.nodes)}"

        def convolved(source: str, name: str, out: int, channels: int) -> str:
            return made.node("Conv", source, made.weight(f"{name}.weight", out, channels, 1, 1))

        pooled = made.node("AveragePool", value, kernel_shape=[1, 1])
        width = CHANNELS
        for half in range(2):
            sources = (value, value, value, pooled if half == 0 else value)
            branches = [
                made.node("Relu", convolved(source, f"{block}.{half}.{i}", quarter, width))
                for i, source in enumerate(sources)
            ]
            value = made.node("Concat", value, *branches, axis=1)
            width += CHANNELS
        value = made.node("Add", convolved(value, f"{block}.last", CHANNELS, width), residue)
        value = residue = made.node("Relu", value)
    return made.done("image", (1, CHANNELS, SIDE, SIDE), value)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "residual": residual,
    "transformer": transformer,
    "branches": branches,
    "inception": inception,
}
"""Name -> function of a number of nodes."""
