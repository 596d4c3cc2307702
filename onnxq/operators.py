"""Operators of ONNX that several rooms know by name."""

from __future__ import annotations

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
"""Those that may give something else each time."""
