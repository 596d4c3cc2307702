"""Train and export `models/glyphs`: letters and digits in fonts it has never seen, by a small MobileNetV3.

    python scripts/train_glyphs.py [OUT]            needs torch, pillow and Debian's apt-get

BatchNorm nodes are kept, and opset 13 spells HardSwish and SiLU as several operators, as older exports do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import render_glyphs
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

SEED = 20261125
OPSET = 13
VARIANTS, EPOCHS, BATCH, RATE = 2, 3, 128, 5e-3
CALIB, TEST = 512, 2000


def conv(inputs: int, outputs: int, kernel: int, act: nn.Module | None, stride: int = 1, groups: int = 1) -> nn.Module:
    """Conv without bias, BatchNorm and maybe an activation; the size stays, or is divided by the stride."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act else []))


class SqueezeExcite(nn.Module):  # type: ignore[misc] # torch has no types where the checks run
    """Scale every channel by a gate computed from the global average; HardSigmoid, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] -> the same shape."""
        return x * self.gate(x)


class Inverted(nn.Module):  # type: ignore[misc] # as above
    """Widen, filter each channel by itself, gate, narrow; beside an identity where the shape stays."""

    def __init__(
        self, inputs: int, wide: int, outputs: int, kernel: int, act: nn.Module, *, stride: int = 1, gate: bool = True
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, wide, 1, act),
            conv(wide, wide, kernel, act, stride, groups=wide),
            SqueezeExcite(wide) if gate else nn.Identity(),
            conv(wide, outputs, 1, None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return x + self.body(x) if self.residual else self.body(x)


def network() -> nn.Sequential:
    """Image [N, 1, 32, 32] in 0..1 -> logits [N, 47]."""
    return nn.Sequential(
        conv(1, 24, 3, nn.Hardswish(), stride=2),
        Inverted(24, 48, 24, 3, nn.ReLU6(), gate=False),
        Inverted(24, 96, 40, 5, nn.Hardswish(), stride=2),
        Inverted(40, 160, 40, 5, nn.Hardswish()),
        Inverted(40, 160, 40, 3, nn.SiLU(), gate=False),
        Inverted(40, 200, 80, 3, nn.Hardswish(), stride=2),
        Inverted(80, 320, 80, 3, nn.SiLU()),
        conv(80, 256, 1, nn.Hardswish()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, len(render_glyphs.CLASSES)),
    )


def train(model: nn.Sequential, images: render_glyphs.Images, labels: render_glyphs.Labels) -> None:
    """Fit `model` in place with AdamW and a one-cycle rate; leaves it in evaluation mode."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x))[: steps * BATCH].reshape(steps, BATCH):
            loss = F.cross_entropy(model(x[batch] / 255), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss)
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}", flush=True)
    model.eval()


def export(model: nn.Sequential, path: Path) -> None:
    """Write `model` as ONNX with a free batch; PRESERVE keeps the exporter from folding BatchNorm."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, render_glyphs.SIZE, render_glyphs.SIZE),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )


def accuracy(path: Path, images: npt.NDArray[np.float32], labels: render_glyphs.Labels) -> float:
    """Share of `images` that the exported file gets right."""
    import onnxruntime  # noqa: TID251 -- the exported file is measured, not the torch model

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.mean(logits.argmax(axis=1) == labels))


def unit(images: render_glyphs.Images) -> npt.NDArray[np.float32]:
    """0..255 -> 0..1, float32."""
    return (images / np.float32(255)).astype(np.float32)


def main() -> None:
    """Render, train, export, write the data beside the model and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("models/glyphs"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the order of sums, and so the weights, depends on it

    render_glyphs.fetch()
    seen, unseen = render_glyphs.split()
    images, labels = render_glyphs.render(seen * VARIANTS, SEED)
    test, test_labels = render_glyphs.render(unseen, SEED + 1)
    test, test_labels = test[:TEST], test_labels[:TEST]
    print(f"{len(seen)} fonts, {len(images)} images to train on; {len(unseen)} fonts to test on", flush=True)
    model = network().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    train(model, images, labels)
    export(model, out / "glyphs.onnx")
    np.savez_compressed(out / "calib.npz", image=unit(images[:CALIB]))
    np.savez_compressed(out / "test.npz", image=unit(test), label=test_labels)
    weights = sum(p.numel() for p in model.parameters())
    share = accuracy(out / "glyphs.onnx", unit(test), test_labels)
    print(f"{weights} weights, test accuracy {share:.4f} ({round(share * len(test_labels))} of {len(test_labels)})")


if __name__ == "__main__":
    main()
