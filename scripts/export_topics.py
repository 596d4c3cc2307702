"""Train a classifier on MiniLM's sentence embeddings, and export both as one model: text -> part of the library.

    python scripts/export_topics.py [OUT]

Needs what export_minilm.py needs. The texts are docstrings of Python's standard library and the label of each is the
module that it stands in, so the data differs a little between Python versions. The encoder stays as it was trained
by its authors; two Gemm with a GELU between them are trained on the mean of its token vectors.

Writes into OUT (default .cache/models/topics):
    topics.onnx       opset 17; input_ids, attention_mask, token_type_ids [N, L] -> logits float32 [N, 14]
    calib/NNN.npz     128 feeds of texts that were trained on, int64 [1, 3..64]
    test.npz          1000 others, padded, int64 [1000, L], with label int64 [1000]
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import export_minilm
import numpy as np
from export_minilm import INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPICS = (
    *("_pydecimal", "asyncio", "distutils", "email", "http", "importlib", "logging"),
    *("mailbox", "multiprocessing", "tarfile", "tkinter", "turtle", "unittest", "xml"),
)
SEED = 20261125
CALIB, TEST = 128, 1000
MAX_TOKENS, BATCH = 64, 64
LEAST = 30  # characters of a docstring
HIDDEN, EPOCHS, RATE = 256, 60, 2e-3


def examples() -> list[tuple[str, int]]:
    """Docstrings and the number of their topic, no docstring twice, in a seeded random order."""
    found: dict[str, int] = {}
    for topic, text in _docstrings():
        if topic in TOPICS and len(text) >= LEAST:
            found.setdefault(text, TOPICS.index(topic))
    items = list(found.items())
    return [items[i] for i in np.random.default_rng(SEED).permutation(len(items))]


def _docstrings() -> Iterator[tuple[str, str]]:
    """Top-level module and docstring of every function and class, whitespace collapsed, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if export_minilm.SKIPPED_FOLDERS.isdisjoint(parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield parts[0].removesuffix(".py"), " ".join((ast.get_docstring(node) or "").split())


def embedder(folder: Path) -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """The encoder with the mean over unmasked tokens behind it: int64 [N, L] three times -> float32 [N, 384]."""
    import torch

    class Mean(torch.nn.Module):  # type: ignore[misc] # as above
        """Leaves padding out of the mean."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = export_minilm.load_model(folder)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:  # noqa: ANN401 -- as above
            """See `embedder`."""
            hidden = self.encoder(input_ids, attention_mask, token_type_ids)
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    return Mean().eval()


def embedded(model: Any, feed: export_minilm.Feed) -> Any:  # noqa: ANN401 -- as above
    """Embeddings of all rows, float32 [N, 384]."""
    import torch

    rows = len(feed["input_ids"])
    with torch.no_grad():
        parts = [model(*(torch.from_numpy(feed[n][i : i + BATCH]) for n in INPUTS)) for i in range(0, rows, BATCH)]
    return torch.cat(parts)


def trained_head(x: Any, y: Any) -> Any:  # noqa: ANN401 -- as above
    """Two linear layers fitted with AdamW to embeddings [N, 384] and labels [N]."""
    import torch

    head = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], HIDDEN),
        torch.nn.GELU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(HIDDEN, len(TOPICS)),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.05)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(head(x[batch]), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.eval()


def export(model: Any, path: Path) -> None:  # noqa: ANN401 -- as above
    """Write with batch N and length L free."""
    import torch

    example = torch.ones(2, 16, dtype=torch.int64)
    mask = example.clone()
    mask[1, 10:] = 0  # an all-ones mask lets the library leave masking out
    torch.onnx.export(
        model,
        (example, mask, example * 0),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={name: {0: "N", 1: "L"} for name in INPUTS} | {"logits": {0: "N"}},
    )


def main() -> None:
    """Train, export, write the data, print the accuracy of the exported file."""
    import onnxruntime  # noqa: TID251 -- the exported file is measured, outside the engine
    import torch
    from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore] # only where models are made

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(".cache/models/topics"))
    out: Path = parser.parse_args().out
    (out / "calib").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    folder = export_minilm.checkpoint()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    texts = examples()
    for index, (text, _) in enumerate(texts[TEST : TEST + CALIB]):
        feed = export_minilm.encode(tokenizer, [text])
        np.savez_compressed(out / "calib" / f"{index:03}.npz", **feed)  # type: ignore[arg-type] # numpy's stub takes the names for allow_pickle
    tokenizer.enable_padding()
    test, train = (export_minilm.encode(tokenizer, [t for t, _ in part]) for part in (texts[:TEST], texts[TEST:]))
    labels = np.array([topic for _, topic in texts], dtype=np.int64)
    np.savez_compressed(out / "test.npz", label=labels[:TEST], **test)  # type: ignore[arg-type] # as above

    encoder = embedder(folder)
    model = _joined(encoder, trained_head(embedded(encoder, train), torch.from_numpy(labels[TEST:])))
    path = out / "topics.onnx"
    export(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [session.run(None, {n: test[n][i : i + BATCH] for n in INPUTS})[0] for i in range(0, TEST, BATCH)]
    right = int((np.concatenate(found).argmax(axis=1) == labels[:TEST]).sum())
    print(f"{path}: {len(texts) - TEST} texts to train on, {right} of {TEST} others right")


def _joined(encoder: Any, head: Any) -> Any:  # noqa: ANN401 -- as above
    """One model of the two."""
    import torch

    class Topics(torch.nn.Module):  # type: ignore[misc] # as above
        """Text to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, head

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:  # noqa: ANN401 -- as above
            """Int64 [N, L] three times -> float32 [N, 14]."""
            return self.head(self.encoder(input_ids, attention_mask, token_type_ids))

    return Topics().eval()


if __name__ == "__main__":
    main()
