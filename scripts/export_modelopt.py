"""Make tests/data/qat_modelopt.onnx: a small network quantized and trained on by NVIDIA's ModelOpt, with its Q/DQ.

    python scripts/export_modelopt.py [OUT]

Needs nvidia-modelopt and torch. ModelOpt's INT8_DEFAULT_CFG, whose quantizers are those of pytorch-quantization: int8
with zero point 0, one scale for an activation, one for each output channel of a weight. The last layer is not
quantized. Beside it, in an .npz, two inputs and what the trained network gives for them. nvidia-modelopt 0.47.0, torch
2.13.0 (CPU), seed 0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from qat import export, images, train

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "qat_modelopt.onnx"
STEPS, BATCH = 40, 16


def make_model() -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """Two convolutions, a mean and two linear layers; image [N, 3, 8, 8] -> [N, 16]."""
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc] # as above
        """In float; ModelOpt puts the quantizers in."""

        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.fc, self.head = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Any) -> Any:  # noqa: ANN401 -- as above
            """One run."""
            x = self.c2(self.c1(x).relu()).relu().mean((2, 3))
            return self.head(self.fc(x).relu())

    return Net()


def main() -> None:
    """Quantize, train on, then write the model and two of its results."""
    import modelopt.torch.quantization as mtq
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = mtq.quantize(make_model(), mtq.INT8_DEFAULT_CFG, lambda m: m(images(64)))
    mtq.disable_quantizer(model, "head*")
    train(model, 0.05, (images(BATCH) for _ in range(STEPS)))
    mtq.calibrate(model, "max", lambda m: m(images(64)))  # weights have moved since
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    x = torch.randn(2, 3, 8, 8) * 1.5
    with torch.no_grad():
        expected = model(x)
    export(model, x, out)
    np.savez(out.with_suffix(".npz"), image=x.numpy(), y=expected.numpy())


if __name__ == "__main__":
    main()
