"""Let a first convolution with strides read blocks of pixels as channels, in place of a pixel every so often.

ONNX Runtime's CPU provider unrolls what a convolution of a few channels reads into a matrix, C bytes at a time. With
strides (b, b) the same sums are those of a convolution without strides over SpaceToDepth(x, b), which has C b b
channels and a window of ceil(k / b). Its integers, their order aside, are the same; positions that the window has in
addition have weight 0. SpaceToDepth stands in front of QuantizeLinear: integers have no kernel for it in older
versions. Measured with 1.31 on a CPU with VNNI, SpaceToDepth counted, the time over that of what it replaces: 7x7 with
3 channels and strides of 2 0.77 (one channel 0.62), 5x5 0.60, 4x4 and strides of 4 0.68, 2x2 0.55, 3x3 0.70 (as with
padded channels). Wider windows and more channels are unrolled in long pieces already: 11x11 1.25, 16x16 and strides of
16 1.5, 4x4 with 8 channels 1.26.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxq.integer_conv import integer_conv
from onnxq.interface import widened_input

if TYPE_CHECKING:
    from onnxq.graph import Dim, Graph, Node
    from onnxq.integer_conv import IntegerConv

RANK = 4
"""Of an image: samples, channels, height, width."""

CHANNELS, ROW = 3, 24
"""Most channels of the image, and most values in a row of a window."""


class Side(NamedTuple):
    """A window along one axis, over blocks: its positions, and zeros in front and behind, in blocks and in pixels."""

    window: int
    pads: tuple[int, int]
    zeros: tuple[int, int]


@dataclass(frozen=True)
class SpaceToDepth:
    """The pass.

    Attributes:
        inputs: whether images that are inputs of the graph count: not where they are to come as codes.
    """

    inputs: bool = True

    def __call__(self, graph: Graph) -> int:
        """Rewrite each convolution of an image that gains, of known and divisible height and width; return how many."""
        coded = () if self.inputs else tuple(widened_input(graph, value) for value in graph.inputs)
        count = 0
        for conv in [node for node in graph.nodes if node.op_type == "Conv" and not node.domain]:
            found = integer_conv(graph, conv)
            sides = None if found is None or found.image in coded else _sides(graph, conv, found)
            if found is not None and sides is not None:
                _rewrite(graph, conv, found, *sides)
                count += 1
        return count


def _side(size: Dim, kernel: int, stride: int, pads: tuple[int, int]) -> Side | None:
    """The window over blocks of `stride` pixels that has the same outputs, or None where there is none.

    Output o reads pixels o * stride - pads[0] + (0 ... kernel - 1).
    """
    if not isinstance(size, int) or size % stride or min(pads) < 0:
        return None
    front = -pads[0] % stride
    behind = -(front + kernel) % stride
    window, ahead = (front + kernel + behind) // stride, (pads[0] + front) // stride
    outputs = (size + sum(pads) - kernel) // stride + 1
    after = outputs - 1 + window - size // stride - ahead
    return Side(window, (ahead, after), (front, behind)) if outputs > 0 and after >= 0 else None


def _rewrite(graph: Graph, conv: Node, found: IntegerConv, rows: Side, columns: Side) -> None:
    image, block = found.image, graph.attribute(conv, "strides")[0]
    size = {"blocksize": block}
    blocks = graph.add("SpaceToDepth", [image], name=f"{image.name}_blocks", attributes=size, before=found.quantize)
    narrow = graph.add("QuantizeLinear", [blocks, *found.quantize.inputs[1:]], name=f"{image.name}_blocks_quantized")
    read = graph.add("DequantizeLinear", [narrow, *found.source.inputs[1:]], name=f"{image.name}_blocks_dequantized")
    graph.set_input(conv, 0, read)
    found.replace_weight(graph, conv, _over_blocks(found.codes, block, rows, columns), "blocks")
    graph.set_attribute(conv, "strides", (1, 1))
    graph.set_attribute(conv, "kernel_shape", (rows.window, columns.window))
    graph.set_attribute(conv, "pads", (rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1]))


def _sides(graph: Graph, conv: Node, found: IntegerConv) -> tuple[Side, Side] | None:
    """The window over blocks along rows and columns, where that is another form of this convolution, and gains."""
    image, codes = found.image, found.codes
    shape = graph.shape(image)
    if shape is None or codes.ndim != len(shape) or len(shape) != RANK or graph.dtype(image) != "float32":
        return None
    strides = tuple(graph.attribute(conv, "strides", (1, 1)))
    pads = tuple(graph.attribute(conv, "pads", (0, 0, 0, 0)))
    plain = graph.attribute(conv, "auto_pad", "NOTSET") == "NOTSET" and int(graph.attribute(conv, "group", 1)) == 1
    if not plain or set(graph.attribute(conv, "dilations", (1,))) != {1} or _has_zero_point(graph, found):
        return None
    if not strides[0] == strides[1] > 1 or codes.shape[1] > CHANNELS or codes.shape[1] * codes.shape[3] > ROW:
        return None
    rows, columns = (_side(shape[i + 2], codes.shape[i + 2], strides[i], (pads[i], pads[i + 2])) for i in (0, 1))
    return None if rows is None or columns is None else (rows, columns)


def _has_zero_point(graph: Graph, found: IntegerConv) -> bool:
    """Whether a code of 0 is no weight of 0."""
    zero = found.weight.inputs[2] if len(found.weight.inputs) > 2 else None
    known = None if zero is None else graph.const(zero)
    return zero is not None and (known is None or bool(known.any()))


def _over_blocks(codes: np.ndarray, block: int, rows: Side, columns: Side) -> np.ndarray:
    """[O, C, kh, kw] weights as [O, block block C, rows.window, columns.window], in the order of SpaceToDepth."""
    outputs, channels = codes.shape[:2]
    wide = np.pad(codes, ((0, 0), (0, 0), rows.zeros, columns.zeros))
    parts = wide.reshape(outputs, channels, rows.window, block, columns.window, block)
    return parts.transpose(0, 3, 5, 1, 2, 4).reshape(outputs, -1, rows.window, columns.window)
