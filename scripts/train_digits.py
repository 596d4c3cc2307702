"""Train and export `models/digits`: a small network with the parts that make quantization hard.

    python scripts/train_digits.py [OUT]            needs torch, onnxscript, scikit-learn

BatchNorm nodes are kept in the file on purpose: folding them is the quantizer's work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SEED = 20261120
TEST, CALIB = 450, 256
EPOCHS, BATCH, RATE = 70, 64, 3e-3
FULL_SCALE = 16.0  # the data set counts dark pixels in 4x4 blocks
OPSET = 17


def conv(inputs: int, outputs: int, kernel: int, act: nn.Module | None, groups: int = 1) -> nn.Sequential:
    """Build Conv without bias + BatchNorm + optional activation; the size [H, W] stays as it was."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act else []))


class Residual(nn.Module):  # type: ignore[misc] # torch has no types where the checks run
    """Two convolutions beside an identity, or beside a 1x1 projection when the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, nn.ReLU()),
            conv(outputs, outputs, 3, None),
        )
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        return F.relu(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):  # type: ignore[misc] # as above
    """Scale every channel by a gate computed from the global average (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] -> the same shape."""
        return x * self.gate(x)


class Branches(nn.Module):  # type: ignore[misc] # as above
    """Two branches joined by Concat: their ranges differ, yet Concat wants one scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.plain = conv(channels, channels // 2, 1, nn.SiLU())
        self.pooled = nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1),
            conv(channels, channels // 2, 1, nn.SiLU()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] -> the same shape."""
        return torch.cat([self.plain(x), self.pooled(x)], dim=1)


def network() -> nn.Sequential:
    """Build the model: image [N, 1, 8, 8] in 0..1 -> logits [N, 10]."""
    return nn.Sequential(
        conv(1, 32, 3, nn.ReLU()),
        Residual(32, 32),
        Residual(32, 64),
        nn.MaxPool2d(2),
        conv(64, 64, 3, nn.Hardswish(), groups=64),
        conv(64, 64, 1, nn.Hardswish()),
        SqueezeExcite(64, 16),
        Branches(64),
        conv(64, 64, 3, nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, 10),
    )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move each image by -1, 0 or +1 pixel along both axes; what leaves the frame is lost."""
    count, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(model: nn.Sequential, images: Array, labels: Labels) -> None:
    """Fit `model` in place with AdamW and a one-cycle rate; leaves it in evaluation mode."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: steps * BATCH].reshape(steps, BATCH):
            loss = F.cross_entropy(model(shifted(x[batch])), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Sequential, path: Path) -> None:
    """Write `model` as ONNX with a free batch; PRESERVE keeps the exporter from folding BatchNorm."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )


def accuracy(path: Path, images: Array, labels: Labels) -> float:
    """Measure the share of `images` that the exported file gets right."""
    import onnxruntime  # noqa: TID251 -- the exported file is measured, not the torch model

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.mean(logits.argmax(axis=1) == labels))


def main() -> None:
    """Train, export, write the data beside the model and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("models/digits"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(2)  # the order of sums, and so the weights, depends on it

    digits = load_digits()
    images = (digits.images / FULL_SCALE).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    x, test_x, y, test_y = train_test_split(images, labels, test_size=TEST, random_state=SEED, stratify=labels)
    model = network()
    train(model, x, y)
    export(model, out / "digits.onnx")
    np.savez_compressed(out / "calib.npz", image=x[:CALIB])
    np.savez_compressed(out / "test.npz", image=test_x, label=test_y)
    weights = sum(p.numel() for p in model.parameters())
    share = accuracy(out / "digits.onnx", test_x, test_y)
    print(f"{weights} weights, test accuracy {share:.4f} ({round(share * len(test_y))} of {len(test_y)})")


if __name__ == "__main__":
    main()
