"""Top-1 accuracy of digits models on the held-out test images.

python scripts/digits_accuracy.py models/digits/digits.onnx digits.int8.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onnxq.runtime import Session

TEST = Path(__file__).resolve().parent.parent / "models" / "digits" / "test.npz"


def accuracy(model: Path) -> float:
    """Share of the test images that the model reads right."""
    with np.load(TEST) as data:
        images, labels = data["image"], data["label"]
    (logits,) = Session(model, as_written=True).run({"image": images})
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    """Print the accuracy of every model named, and the change from the first to the others."""
    models = [Path(argument) for argument in sys.argv[1:]]
    shares = [accuracy(model) for model in models]
    for model, share in zip(models, shares, strict=True):
        print(f"{share:7.2%} {100 * (share - shares[0]):+6.2f} points  {model}")


if __name__ == "__main__":
    main()
