"""What is chosen from data beside ranges: GPTQ's and AWQ's weights, and LLM.int8()'s outlier columns."""

from __future__ import annotations

from onnxq.weights.refine import METHODS, Seen, chosen_weights, from_data, needs_data, refined

__all__ = ["METHODS", "Seen", "chosen_weights", "from_data", "needs_data", "refined"]
