"""Operators of ONNX that several rooms know by name."""

from __future__ import annotations

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
"""Those that may give something else each time."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Those that multiply each step of a sequence [steps, batch, inputs] by weights W and R, their inputs 1 and 2."""

RECURRENT_AS_RUN = RECURRENT | {"DynamicQuantizeLSTM"}
"""Those, and ONNX Runtime's own for int8 weights."""

SHAPES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Pad": (1,)}
SHAPES |= {"Slice": (1, 2, 3, 4), "Resize": (2, 3), "Unsqueeze": (1,), "Squeeze": (1,), "Split": (1,), "TopK": (1,)}
"""Operators -> the inputs that say shapes, axes or counts."""

FROM_DATA = frozenset({"Shape", "Size", "If", "Loop", "Scan"})
"""Where the computation of a shape ends: those that take it from data, and control flow.

How often a loop ran is a result of its data, and no computation of a shape.
"""

_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_CONTRIB = ("QuantizeLinear", "DequantizeLinear", "QAttention", "QGemm", "QEmbed", "QOrdered", "QMoE", "MatMulNBits")
_INTEGER_CONTRIB = (*_INTEGER, *_CONTRIB, "MatMulBnb4")


def is_integer(op_type: str, domain: str) -> bool:
    """Whether an operator computes on integers by itself or is a quantization operator of ONNX Runtime's own domain."""
    if domain == CONTRIB:
        return op_type.startswith(_INTEGER_CONTRIB)
    return domain in ("", "ai.onnx") and op_type.startswith(_INTEGER)
