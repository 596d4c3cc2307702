"""What the scripts share that train small quantized networks in PyTorch for tests/data: images, training, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def images(count: int) -> Any:  # noqa: ANN401  torch has no types where the checks run
    """Noise of many sizes, [count, 3, 8, 8]."""
    import torch

    return torch.randn(count, 3, 8, 8) * torch.linspace(0.5, 2, count)[:, None, None, None] + 0.3


def train(model: Any, rate: float, batches: Iterable[Any]) -> None:  # noqa: ANN401  as above
    """Let the first output tell the mean of each image, by gradient descent; then set the model to evaluation."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), rate)
    for x in batches:
        loss = ((model(x)[:, 0] - x.mean((1, 2, 3))) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def export(model: Any, x: Any, out: Path) -> None:  # noqa: ANN401  as above
    """Write the model, image [N, 3, 8, 8] -> y, fake quantization as Q/DQ pairs; `x` is an example."""
    import torch

    torch.onnx.export(
        model,
        (x,),
        str(out),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["y"],
        dynamic_axes={"image": {0: "N"}, "y": {0: "N"}},
    )
