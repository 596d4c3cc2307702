"""Operators of ONNX that several rooms know by name."""

from __future__ import annotations

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
"""Those that may give something else each time."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Those that multiply each step of a sequence [steps, batch, inputs] by weights W and R, their inputs 1 and 2."""

RECURRENT_AS_RUN = RECURRENT | {"DynamicQuantizeLSTM"}
"""Those, and ONNX Runtime's own for int8 weights."""

_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_CONTRIB = ("QuantizeLinear", "DequantizeLinear", "QAttention", "QGemm", "QEmbed", "QOrdered", "QMoE", "MatMulNBits")
_INTEGER_CONTRIB = (*_INTEGER, *_CONTRIB, "MatMulBnb4")


def is_integer(op_type: str, domain: str) -> bool:
    """Whether an operator computes on integers by itself or is a quantization operator of ONNX Runtime's own domain."""
    if domain == "com.microsoft":
        return op_type.startswith(_INTEGER_CONTRIB)
    return domain in ("", "ai.onnx") and op_type.startswith(_INTEGER)
