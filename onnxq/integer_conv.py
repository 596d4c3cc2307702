"""Convolutions that have codes of their own: what passes for the CPU provider rewrite together with its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from onnxq.graph import Graph, Node, Value


@dataclass(frozen=True)
class IntegerConv:
    """What a convolution reads that alone reads its codes, with one scale for each of its outputs or for all.

    Attributes:
        image: the activations.
        quantize: makes the codes of the activations.
        source: makes floats of them.
        weight: makes floats of the weight's codes.
        codes: the weight's, [O, C / group, ...].
    """

    image: Value
    quantize: Node
    source: Node
    weight: Node
    codes: np.ndarray

    def replace_weight(self, graph: Graph, conv: Node, codes: np.ndarray, suffix: str) -> None:
        """Let the convolution read other codes with the same scales; the old ones stay for others that read them."""
        old = self.weight.inputs[0]
        name = f"{'' if old is None else old.name}_{suffix}"
        axis = {"axis": graph.attribute(self.weight, "axis", 1)} if graph.rank(self.weight.inputs[1]) else None
        inputs = [graph.constant(name, codes), *self.weight.inputs[1:]]
        read = graph.add("DequantizeLinear", inputs, name=f"{name}_dequantized", before=conv, attributes=axis)
        graph.set_input(conv, 1, read)


def integer_conv(graph: Graph, conv: Node) -> IntegerConv | None:
    """What the convolution reads, or None where it is not of this kind."""
    source, weight = (graph.producer(v, "DequantizeLinear") for v in conv.inputs[:2])
    quantize = None if source is None else graph.producer(source.inputs[0], "QuantizeLinear")
    codes = None if weight is None else graph.const(weight.inputs[0])
    image = None if quantize is None else quantize.inputs[0]
    if source is None or weight is None or quantize is None or codes is None or image is None:
        return None
    if graph.only_user(source.outputs[0]) is not conv or graph.only_user(quantize.outputs[0]) is not source:
        return None
    scales = [v for node in (quantize, source) for v in node.inputs[1:] if v is not None]
    if any(graph.size(v) != 1 for v in scales) or (quantize.attributes.keys() | source.attributes.keys()) - {"axis"}:
        return None  # scales along channels, or types of their own, as a model may bring them
    along = int(graph.attribute(weight, "axis", 1)) % codes.ndim == 1 or graph.attribute(weight, "block_size", 0)
    if along and graph.size(weight.inputs[1]) != 1:
        return None  # scales along what changes, as a model may bring them
    return IntegerConv(image, quantize, source, weight, codes)
