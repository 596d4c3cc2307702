"""Perplexity of the causal language model in every scheme, on text that no training step saw.

    python scripts/bench_language.py [MODEL CALIB HELD_OUT]

Defaults: models/causal. CALIB and HELD_OUT are .npz files with `tokens` int64 [count, length]; the model gives logits
[N, L, V] of the next token. Prints a Markdown table: perplexity of every token but the first, its rise over float,
and the size of the file. A scheme whose format the target refuses is left out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxq import OnnxqError, Recipe, api
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
CAUSAL = ROOT / "models" / "causal"
BATCH = 32
METHODS = ("nearest", "gptq", "awq")
CPU: dict[str, object] = {"target": "ort-cpu"}
NARROW: dict[str, object] = {"target": "ort-cpu", "mode": "weight-only"}
SCHEMES: tuple[tuple[str, dict[str, object]], ...] = (
    ("int8, static, ort-cpu", {**CPU, "effort": "fast"}),
    ("int8, static, tensorrt's pairs", {"high_precision": "fp32", "effort": "fast"}),
    ("the same, effort balanced (SmoothQuant)", {"high_precision": "fp32", "effort": "balanced"}),
    ("int8, dynamic, ort-cpu", {**CPU, "mode": "dynamic"}),
    ("int8, dynamic, outliers apart (LLM.int8)", {**CPU, "mode": "dynamic", "outlier_threshold": 6.0}),
)
WEIGHTS = ("int8/channel", "int4/block:32", "int4/channel", "int3/block:32", "int3/channel")
CODEBOOKS = ("uint4/block:32", "nf4/block:64", "nf4/block:64+double", "fp4/block:64", "mxfp4", "log4/block:32")
TWO_BITS = ("int2/block:32", "ternary/block:32", "binary/channel")


def schemes() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (name, fields of the recipe)."""
    yield from SCHEMES
    for weights in WEIGHTS:
        for method in METHODS:
            yield f"weights {weights}, {method}", {**NARROW, "weights": weights, "weight_method": method}
    for weights in (*CODEBOOKS, *TWO_BITS):
        yield f"weights {weights}", {**NARROW, "weights": weights}


def perplexity(model: Path, tokens: npt.NDArray[np.int64]) -> float:
    """Give exp of the mean negative log-likelihood of every token but the first of a row."""
    session = Session(model)
    total = 0.0
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        logits = session.run({"tokens": part})[0][:, :-1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        total -= float(np.take_along_axis(logits, part[:, 1:, None], -1).sum())
    return float(np.exp(total / tokens[:, 1:].size))


def main() -> None:
    """Quantize, judge, print."""
    given = [Path(arg) for arg in sys.argv[1:4]]
    model, calib, held_out = given or [CAUSAL / n for n in ("causal.onnx", "calib.npz", "held_out.npz")]
    tokens = np.load(held_out)["tokens"]
    exact = perplexity(model, tokens)
    print("| scheme | perplexity | over float | file, KB |\n|---|---|---|---|")
    print(f"| float32 | {exact:.4f} | | {model.stat().st_size / 1000:.0f} |", flush=True)
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "q.onnx"
        for name, fields in schemes():
            try:
                recipe = Recipe(**fields)  # type: ignore[arg-type]  # fields by name
                needs = recipe.mode in ("static", "dynamic") or recipe.weight_method != "nearest"
                graph, _ = api.quantize(model, str(calib) if needs else None, recipe)
            except OnnxqError as error:
                refused.append(f"{name}: {error.message}")
                continue
            graph.save(out)
            found = perplexity(out, tokens)
            size = out.stat().st_size / 1000
            print(f"| {name} | {found:.4f} | {100 * (found / exact - 1):+.2f} % | {size:.0f} |", flush=True)
    for line in refused:
        print("refused:", line)


if __name__ == "__main__":
    main()
