"""Train the small causal language model of models/causal on the documentation in Python's standard library.

    python scripts/train_causal.py [OUT] [--steps N]

Needs torch. Writes into OUT (default models/causal):
    causal.onnx    TorchScript exporter, opset 17: tokens int64 [N, L], L <= 128 -> logits float32 [N, L, 128]
    calib.npz      tokens [128, 128]: of the training text, for calibration
    held_out.npz   tokens [128, 128]: of documents that no step of the training saw
Tokens are bytes of ASCII text. Documents are the language reference of `help()` and docstrings.
"""

from __future__ import annotations

import argparse
import ast
import math
import pydoc_data.topics
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Tokens = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261125
VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 128, 128, 128, 4, 3
STEPS, BATCH = 1000, 8
RATE, ADAM_RATE = 0.02, 3e-3
WINDOWS = 128
HELD_OUT = 0.06  # of all documents
SHORTEST = 120  # characters of a document
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef)


def documents() -> Iterator[str]:
    """Yield every topic of the language reference and every docstring of the standard library, in a fixed order."""
    for _, text in sorted(pydoc_data.topics.topics.items()):
        yield text
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, DEFINITIONS):
                    yield ast.get_docstring(node) or ""


def texts() -> tuple[Tokens, Tokens]:
    """(training text, held-out text) as bytes below 128; no document is in both, equal ones are taken once."""
    found = [text for text in dict.fromkeys(t.strip() for t in documents()) if len(text) >= SHORTEST]
    order = np.random.default_rng(SEED).permutation(len(found))
    apart = round(HELD_OUT * len(found))
    parts = ("\n\n\n".join(found[i] for i in chosen) for chosen in (order[apart:], order[:apart]))
    train, held_out = (np.frombuffer(p.encode("ascii", "replace"), np.uint8).astype(np.int64) for p in parts)
    return train, held_out


def windows(text: Tokens, count: int) -> Tokens:
    """[count, CONTEXT]: evenly spaced pieces of the text."""
    starts = np.linspace(0, len(text) - CONTEXT, count).astype(int)
    return np.stack([text[s : s + CONTEXT] for s in starts])


def make_model() -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """Make the untrained model: a GPT of pre-norm blocks with learned positions."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc] # as above
        """Attention and a feed-forward layer, each behind its LayerNorm and added to what it read."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.query, self.key, self.value, self.mix = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any, mask: Any) -> Any:  # noqa: ANN401 -- as above
            """[N, L, WIDTH] -> [N, L, WIDTH]."""
            y = self.norm1(x)
            n, length = y.shape[0], y.shape[1]
            q, k, v = (
                layer(y).reshape(n, length, HEADS, WIDTH // HEADS).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
            scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + mask
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, WIDTH)
            x = x + self.mix(mixed)
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Causal(nn.Module):  # type: ignore[misc] # as above
        """Tokens to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
            future = torch.full((CONTEXT, CONTEXT), -1e4).triu(1)
            self.register_buffer("future", future, persistent=False)
            for p in self.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens: Any) -> Any:  # noqa: ANN401 -- as above
            """Int64 [N, L] -> float32 [N, L, VOCABULARY]."""
            length = tokens.shape[1]
            x = self.tokens(tokens) + self.positions.weight[:length]
            mask = self.future[:length, :length]
            for block in self.blocks:
                x = block(x, mask)
            return self.head(self.norm(x))

    return Causal()


def loss_of(model: Any, tokens: Any) -> Any:  # noqa: ANN401 -- as above
    """Mean negative log-likelihood of each token but the first, in nats."""
    import torch

    logits = model(tokens)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


def orthogonal(update: Any) -> Any:  # noqa: ANN401 -- as above
    """Give U V^T of a matrix U S V^T, roughly: five Newton-Schulz steps of the Muon optimizer (Jordan et al. 2024)."""
    wide = update.shape[0] > update.shape[1]
    x = update.T if wide else update
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.T if wide else x


def train(model: Any, text: Tokens, steps: int) -> None:  # noqa: ANN401 -- as above
    """Muon on the matrices of the blocks, AdamW on the rest; the rate falls linearly to nothing."""
    import torch

    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    momenta = [torch.zeros_like(p) for p in matrices]
    rng, begun = np.random.default_rng(SEED), time.monotonic()
    for step in range(steps):
        starts = rng.integers(0, len(text) - CONTEXT, BATCH)
        model.zero_grad(set_to_none=True)
        loss = loss_of(model, torch.from_numpy(np.stack([text[s : s + CONTEXT] for s in starts])))
        loss.backward()
        share = min(1, (step + 1) / 30, (steps - step) / (0.7 * steps))
        adam.param_groups[0]["lr"] = ADAM_RATE * share
        adam.step()
        with torch.no_grad():
            for p, momentum in zip(matrices, momenta, strict=True):
                momentum.mul_(0.95).add_(p.grad)
                update = orthogonal(p.grad + 0.95 * momentum)
                p.mul_(1 - 0.01 * RATE * share).add_(
                    update, alpha=-RATE * share * max(1, p.shape[0] / p.shape[1]) ** 0.5
                )
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4} loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    """Train, say what the model reaches, and write model and text."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "models" / "causal")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # so that the sums do not depend on the machine
    text, apart = texts()
    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters())} weights; {len(text)} + {len(apart)} bytes of text")
    train(model, text, args.steps)
    held_out = windows(apart, WINDOWS)
    with torch.no_grad():
        nats = float(loss_of(model.eval(), torch.from_numpy(held_out)))
    print(f"held out: {nats / math.log(2):.3f} bits a byte, perplexity {math.exp(nats):.3f}")
    for name, tokens in (("calib", windows(text, WINDOWS)), ("held_out", held_out)):
        np.savez_compressed(args.out / f"{name}.npz", tokens=tokens)
    torch.onnx.export(
        model,
        (torch.from_numpy(held_out[:2, :16].copy()),),
        str(args.out / "causal.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_axes={"tokens": {0: "N", 1: "L"}, "logits": {0: "N", 1: "L"}},
    )


if __name__ == "__main__":
    main()
