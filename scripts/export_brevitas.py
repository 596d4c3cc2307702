"""Make tests/data/qat_brevitas.onnx: a small network trained with Brevitas, exported as QONNX, and its own outputs.

    python scripts/export_brevitas.py [OUT]

Needs brevitas, onnxoptimizer, qonnx and torch. Weights of 4 bits, binary ones and some of 8 bits; activations of 8 and
4 bits; an average that Trunc cuts to 8 bits. Nodes Quant, BipolarQuant and Trunc. Beside it, in an .npz, two inputs
and what the trained network itself gives for them. brevitas 0.13.4, torch 2.13.0 (CPU), seed 0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from qat import train

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "qat_brevitas.onnx"
STEPS, BATCH = 40, 16


def make_model() -> Any:  # noqa: ANN401 -- brevitas has no types where the checks run
    """Two convolutions, a truncated mean and a linear layer."""
    import brevitas.nn as qnn
    from brevitas import quant
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc] # as above
        """Image [N, 3, 8, 8] -> [N, 16]."""

        def __init__(self) -> None:
            super().__init__()
            self.image = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
            self.c1 = qnn.QuantConv2d(3, 16, 3, padding=1, weight_bit_width=4)
            self.r1 = qnn.QuantReLU(bit_width=4)
            self.c2 = qnn.QuantConv2d(16, 16, 3, padding=1, weight_quant=quant.SignedBinaryWeightPerTensorConst)
            self.r2 = qnn.QuantReLU(bit_width=8, return_quant_tensor=True)
            self.mean = qnn.TruncAvgPool2d(8, trunc_quant=quant.TruncTo8bit)
            self.fc = qnn.QuantLinear(16, 16, bias=True, weight_bit_width=8)

        def forward(self, x: Any) -> Any:  # noqa: ANN401 -- as above
            """One run."""
            x = self.mean(self.r2(self.c2(self.r1(self.c1(self.image(x))))))
            return self.fc(getattr(x, "value", x).flatten(1))

    return Net()


def main() -> None:
    """Train to tell the mean of noise images, then write the model and two of its results."""
    import torch
    from brevitas.export import export_qonnx

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make_model().train()
    train(model, 0.02, (torch.randn(BATCH, 3, 8, 8) for _ in range(STEPS)))
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    export_qonnx(
        model, args=x, export_path=str(out), opset_version=17, dynamo=False, input_names=["image"], output_names=["y"]
    )
    np.savez_compressed(out.with_suffix(".npz"), image=x.numpy(), y=getattr(expected, "value", expected).numpy())


if __name__ == "__main__":
    main()
