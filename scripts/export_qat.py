"""Make tests/data/qat_torch.onnx: a small network trained with torch.ao's fake quantization, exported with its Q/DQ.

    python scripts/export_qat.py [OUT]

Needs torch. Activations are uint8 with a zero point, weights int8 per channel: torch.ao's usual choice. The last
layer is not quantized. torch 2.13.0 (CPU), seed 0, one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qat import export, images, train

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "qat_torch.onnx"
STEPS, BATCH = 60, 16


def make_model() -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """Make two convolutions, a mean, and two linear layers; three inputs and three weights are fake-quantized."""
    import torch
    from torch import nn
    from torch.ao import quantization as ao

    def activation() -> Any:  # noqa: ANN401 -- as above
        scheme = {"dtype": torch.quint8, "qscheme": torch.per_tensor_affine, "quant_min": 0, "quant_max": 255}
        return ao.FakeQuantize(observer=ao.MovingAverageMinMaxObserver, **scheme)

    def weight() -> Any:  # noqa: ANN401 -- as above
        scheme = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "quant_min": -128, "quant_max": 127}
        return ao.FakeQuantize(observer=ao.MovingAveragePerChannelMinMaxObserver, ch_axis=0, **scheme)

    class Net(nn.Module):  # type: ignore[misc] # as above
        """Fake quantization in front of each product but the last."""

        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.fc, self.head = nn.Linear(16, 32), nn.Linear(32, 16)
            self.a = nn.ModuleList(activation() for _ in range(3))
            self.w = nn.ModuleList(weight() for _ in range(3))

        def forward(self, x: Any) -> Any:  # noqa: ANN401 -- as above
            """Image [N, 3, 8, 8] -> [N, 16]."""
            f = nn.functional
            x = f.conv2d(self.a[0](x), self.w[0](self.c1.weight), self.c1.bias, padding=1).relu()
            x = f.conv2d(self.a[1](x), self.w[1](self.c2.weight), self.c2.bias, padding=1).mean((2, 3))
            return self.head(f.linear(self.a[2](x), self.w[2](self.fc.weight), self.fc.bias).relu())

    return Net()


def main() -> None:
    """Train to tell the mean of noise images, then write the model."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make_model().train()
    train(model, 0.05, (images(BATCH) for _ in range(STEPS)))
    for fake in (*model.a, *model.w):
        fake.disable_observer()
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    export(model, torch.randn(2, 3, 8, 8), out)


if __name__ == "__main__":
    main()
