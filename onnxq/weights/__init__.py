"""Weights chosen from data, for the mode weight-only: GPTQ, and AWQ's factors and clipping."""

from __future__ import annotations

from onnxq.weights.refine import METHODS, Seen, chosen_weights, refined, with_weights

__all__ = ["METHODS", "Seen", "chosen_weights", "refined", "with_weights"]
