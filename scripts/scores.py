"""How near a model stays to the float model, and how well it does its task. Nothing here but numpy.

A measure is a function (feeds, the float model's outputs, another's) -> name -> number; outputs are a list of arrays
for each feed. The first name is always the SQNR in dB, 10 log10(sum exact² / sum (exact - found)²).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Outputs = list[list[Array]]
Measure = Callable[[list[Feed], Outputs, Outputs], dict[str, float]]


def sqnr(exact: Array, found: Array) -> float:
    """In dB; infinite where nothing differs."""
    noise = float(np.square(exact.astype(np.float64) - found).sum())
    return 10 * float(np.log10(np.square(exact.astype(np.float64)).sum() / noise)) if noise else float("inf")


def _first(outputs: Outputs) -> Array:
    return np.concatenate([o[0] for o in outputs])


def top1(path: Path) -> Measure:
    """Share of the labels in the file that the largest logit meets."""

    def measure(_feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
        with np.load(path) as data:
            labels = data["label"]
        logits = _first(found)
        right = logits.argmax(axis=1) == labels[: len(logits)]
        return {"SQNR dB": sqnr(_first(exact), logits), "top-1 %": 100 * float(right.mean())}

    return measure


def agreement(_feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
    """Random weights: no task, only the SQNR of the logits."""
    return {"SQNR dB": sqnr(_first(exact), _first(found))}


def hidden(feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
    """Over the tokens that are no padding."""
    real = np.concatenate([f["attention_mask"].astype(bool) for f in feeds])
    return {"SQNR dB": sqnr(_first(exact)[real], _first(found)[real])}


def decisions(threshold: float) -> Measure:
    """Share of probabilities on the float model's side of the threshold."""

    def measure(_feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
        a, b = _first(exact), _first(found)
        return {"SQNR dB": sqnr(a, b), "same decision %": 100 * float(((a > threshold) == (b > threshold)).mean())}

    return measure


def retrieval(feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
    """How often a sentence finds its own continuation among all: the first half of the feeds in the second half."""
    half = len(feeds) // 2
    pooled = [
        np.concatenate([_pooled(f, o[0]) for f, o in zip(feeds[part], found[part], strict=True)])
        for part in (slice(half), slice(half, None))
    ]
    best = (pooled[0] @ pooled[1].T).argmax(axis=1)
    real = [f["attention_mask"].astype(bool) for f in feeds]
    a, b = (np.concatenate([o[0][r] for o, r in zip(side, real, strict=True)]) for side in (exact, found))
    return {"SQNR dB": sqnr(a, b), "retrieval %": 100 * float((best == np.arange(best.size)).mean())}


def _pooled(feed: Feed, tokens: Array) -> Array:
    weights = feed["attention_mask"][:, :, None].astype(np.float32)
    mean = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
    unit: Array = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def characters(path: Path) -> Measure:
    """Read text lines: the share of characters right, 1 - edits / length over all lines.

    The file holds `label`: class numbers of each line, padded with 0, which stands for no character (CTC's blank).
    """

    def measure(_feeds: list[Feed], exact: Outputs, found: Outputs) -> dict[str, float]:
        with np.load(path) as data:
            labels = data["label"]
        probabilities = _first(found)
        edits = length = 0
        for row, best in zip(labels, probabilities.argmax(axis=2), strict=False):
            text = [c for c in row.tolist() if c]
            edits += _edits(text, _read(best.tolist()))
            length += len(text)
        return {"SQNR dB": sqnr(_first(exact), probabilities), "characters %": 100 * (1 - edits / length)}

    return measure


def _read(steps: list[int]) -> list[int]:
    """CTC: repeated classes once, blanks not at all."""
    return [c for c, before in zip(steps, [0, *steps], strict=False) if c and c != before]


def _edits(a: list[int], b: list[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]
