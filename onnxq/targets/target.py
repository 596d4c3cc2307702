"""Target: the facts about a backend that placement and lowering read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.numerics import QType


@dataclass(frozen=True)
class Target:
    """What a backend wants.

    Attributes:
        name: as on the command line.
        activation: grid of activations.
        weight: grid of weights.
        min_opset: lowest opset of the emitted graph.
        weighted: op types whose weight and input are quantized -> index of the weight input.
        both_ends: op types quantized on input and output when int8 flows through them anyway.
        movers: op types that only move data: int8 passes through them with its scale.
        min_channels: fewest input and output channels (Conv) or rows and columns (MatMul) worth int8.
        group_multiple: channels per group of an int8 grouped convolution must be a multiple of this.
        deconv_per_channel: whether ConvTranspose weights may have a scale per output channel.
        weight_form: "dq" for int8 weights + DequantizeLinear, "qdq" for float weights + Q + DQ.
        high_precision: type of what is not quantized, "fp32", "fp16" or "bf16", unless the recipe says otherwise.
        every_tensor: whether every float tensor needs a pair (DLA).
        remark: what the plan's notes say of the target; empty for nothing.
        placement: key of `onnxq.placement.PLACEMENTS` that places static int8.
        products: "qdq" for Q/DQ pairs around float products, "integer" for MatMulInteger.
        tables: whether embedding tables are stored as GatherBlockQuantized.
        block_size: values of a weight's reduction axis that share a scale in 4 bits, unless the recipe says otherwise.
        blocked_bits: widths of weights that may be quantized in blocks.
        float4: whether it reads DequantizeLinear of FLOAT4E2M1 codes in blocks of 16 with float8 scales.
        pointwise_db: what a Mul or Add of its own in front of a Q must take from a layer's noise, in dB.
        convolved_db: what a Mul must where only convolutions read it, if that is less: it goes into the Q.
        float_share: share of the multiply-accumulates that efforts above `fast` may leave in float, 0 to 1.
        refuses: mode -> why the target has no use for it.
        next_step: what -> the command that builds from the emitted file; of both {model}, {engine}, {shapes} and such
            are filled in.
    """

    name: str
    activation: QType
    weight: QType
    min_opset: int
    weighted: Mapping[str, int]
    both_ends: frozenset[str]
    movers: frozenset[str]
    min_channels: int
    group_multiple: int
    deconv_per_channel: bool = True
    weight_form: str = "dq"
    high_precision: str = "fp32"
    every_tensor: bool = False
    remark: str = ""
    placement: str = "tensorrt"
    products: str = "qdq"
    tables: bool = False
    block_size: int = 128
    blocked_bits: frozenset[int] = frozenset({4})
    float4: bool = False
    pointwise_db: float = 1.5
    convolved_db: float | None = None
    float_share: float = 0.0
    refuses: Mapping[str, str] = field(default_factory=dict)
    next_step: Mapping[str, str] = field(default_factory=dict)
