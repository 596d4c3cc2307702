"""Model: one ONNX graph indexed by tensor name, as the checks read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.dtypes import FLOATS
from onnxq.operators import CONTRIB, is_integer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from onnx import ModelProto, NodeProto, TensorProto

    from onnxq.checks.versions import Version

Q, DQ = "QuantizeLinear", "DequantizeLinear"
# They move values and compute none, so a scale holds on both sides; Pad too, as zero stays zero.
COPIES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"})
COPIES |= {"Gather", "Expand", "Tile", "MaxPool", "Cast", "Pad"}
INTEGER_COPIES = COPIES - {"Cast"}  # a Cast of an integer to float is no DequantizeLinear
CONVS = frozenset({"Conv", "ConvTranspose"})
WEIGHTED = CONVS | {"Gemm", "MatMul"}
# What TensorRT fuses behind a convolution; the gates only together with the Mul of SiLU and HardSwish.
ACTIVATIONS = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "HardSwish"})
GATES = frozenset({"Sigmoid", "HardSigmoid"})

Shape = tuple["int | None", ...]
"""Dimensions; None for one that is not a number."""


@dataclass(frozen=True, eq=False)
class Model:
    """One graph (the main one or a subgraph body); a body also sees what surrounds it. Weights are never read.

    Attributes:
        proto: the whole model, as it was given.
        main: whether this is the main graph.
        version: what the checks are for.
        base_dir: folder of external data.
        nodes: in graph order; local functions are inlined.
        opset: of the ONNX domain.
        constants: initializers and the values of Constant nodes.
        producers: tensor -> the node that makes it.
        users: tensor -> its readers, those in nested bodies too, each once.
        inputs: of the graph; in models before IR 4 also weights.
        outputs: of the graph.
        shapes: known shapes.
        types: known element types.
        carried: tensor -> the DQ whose values it carries: the tensor is its output or a copy of that; for a
            Concat of dequantized tensors, the DQ of the first.
    """

    proto: ModelProto
    main: bool
    version: Version
    base_dir: str
    nodes: tuple[NodeProto, ...]
    opset: int
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]
    users: Mapping[str, tuple[NodeProto, ...]]
    inputs: frozenset[str]
    outputs: frozenset[str]
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    carried: Mapping[str, NodeProto]

    @property
    def pairs(self) -> Iterator[NodeProto]:
        """The Q and DQ nodes that have at least the two inputs that every rule after P1 needs."""
        return (n for n in self.nodes if is_qdq(n) and len(n.input) > 1)

    def op(self, *ops: str) -> Iterator[NodeProto]:
        """The nodes of these types with an input, in graph order."""
        return (n for n in self.nodes if n.op_type in ops and (is_onnx(n) or is_qdq(n)) and n.input)

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant; None when the tensor is not one, or its data is not there (P34 tells)."""
        from onnx import TensorProto, numpy_helper
        from onnx.checker import ValidationError

        tensor = self.constants.get(name)
        if tensor is None:
            return None
        if tensor.data_location == TensorProto.EXTERNAL:
            own = TensorProto()
            own.CopyFrom(tensor)  # reading puts the bytes into the message, which is the caller's
            tensor = own
        try:
            return numpy_helper.to_array(tensor, self.base_dir)
        except (OSError, ValueError, ValidationError):
            return None

    def origin(self, name: str, through: frozenset[str] = COPIES) -> str:
        """The tensor that `name` is made from, walking up the first inputs of the `through` ops."""
        while (node := self.producers.get(name)) and node.op_type in through and node.input:
            name = node.input[0]
        return name

    def constant(self, name: str) -> bool:
        """Whether a tensor is a constant, possibly moved, cast, quantized or dequantized."""
        return self.origin(name, COPIES | {Q, DQ}) in self.constants

    def dequantizer(self, name: str) -> NodeProto | None:
        """The DQ whose values a tensor carries, see `carried`."""
        return self.carried.get(name)

    def spread(self, name: str, through: frozenset[str] = COPIES) -> Iterator[str]:
        """The tensor and all copies of it downstream."""
        stack = [name]
        while stack:
            yield (name := stack.pop())
            users = self.users.get(name, ())
            copies = [u for u in users if u.op_type in through and (u.input[0] == name or u.op_type == "Concat")]
            stack.extend(output for user in copies for output in user.output)

    def readers(self, name: str, through: frozenset[str] = COPIES) -> list[NodeProto]:
        """The nodes that read the tensor or a copy of it, the copying nodes themselves left out."""
        found = (user for tensor in self.spread(name, through) for user in self.users.get(tensor, ()))
        return [user for user in found if user.op_type not in through]

    def read_only_by(self, name: str, *ops: str) -> bool:
        """Whether a tensor has readers, all of these types, and is no graph output."""
        users = self.users.get(name, ())
        return bool(users) and name not in self.outputs and all(user.op_type in ops for user in users)

    def before_pair(self, name: str) -> str:
        """What a Q/DQ pair quantizes when `name` is its output, else `name`."""
        node = self.producers.get(name)
        if node is None or node.op_type != DQ:
            return name
        quantizer = self.producers.get(node.input[0])
        return quantizer.input[0] if quantizer is not None and quantizer.op_type == Q else name

    def linear(self, name: str, ops: frozenset[str]) -> NodeProto | None:
        """The node among `ops` that makes a tensor, directly or through its batch norm and bias Add."""
        node = self.producers.get(name)
        while node is not None and node.op_type not in ops:
            normed = node.input[0] if node.op_type == "BatchNormalization" else self.without_constant(node, "Add")
            node = self.producers.get(normed)
        return node

    def without_constant(self, node: NodeProto, *ops: str) -> str:
        """The operand of a node of these types whose other operand is a constant; empty otherwise."""
        if node.op_type not in ops or not any(map(self.constant, node.input)):
            return ""
        return next((name for name in node.input if not self.constant(name)), "")

    def float_type(self, node: NodeProto) -> int | None:
        """The float type that a node computes in: that of its first typed output, else input; None: not known."""
        found = (self.types.get(name) for name in (*node.output, *node.input))
        return next((dtype for dtype in found if dtype in FLOATS), None)


def is_onnx(node: NodeProto) -> bool:
    """Whether a node is an ONNX operator and not one of a custom domain."""
    return node.domain in ("", "ai.onnx")


def is_qdq(node: NodeProto) -> bool:
    """Whether a node is a QuantizeLinear or DequantizeLinear, ONNX's or the same operator of ONNX Runtime's domain."""
    return node.op_type in (Q, DQ) and (is_onnx(node) or node.domain == CONTRIB)


def is_integer_operator(node: NodeProto) -> bool:
    """Whether a node computes on integers by itself or is a quantization operator of ONNX Runtime's own domain."""
    return is_integer(node.op_type, node.domain)


def is_addition(node: NodeProto) -> bool:
    """Whether a node is Add, or Sum of two, which the parser imports as the same."""
    return is_onnx(node) and (node.op_type == "Add" or (node.op_type == "Sum" and len(node.input) == 2))


def integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or its default."""
    return next((a.i for a in node.attribute if a.name == name), default)


def integers(node: NodeProto, name: str) -> tuple[int, ...]:
    """A list attribute of a node, empty when absent."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


def differ(one: int | None, other: int | None) -> bool:
    """Whether two dimensions are both known and not equal."""
    return one is not None and other is not None and one != other
