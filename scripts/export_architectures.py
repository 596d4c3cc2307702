"""Export well-known architectures with random weights: real graphs, for tests and for timing.

    python scripts/export_architectures.py [OUT] [--small] [--force]

Needs torch, transformers and onnxscript.
Writes resnet50, mobilenet_v2, bert_base and vit_b16 (.onnx, opset 17, free batch) into OUT, by default
.cache/models; with --small narrow two-stage variants below 3 MB each. BatchNorm nodes are kept; their
statistics, the scales of all norms and all biases are made lively, so that folding has something to do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20261120
OPSET = 17
BATCHES, BATCH = 3, 8  # random images from which BatchNorm takes its running statistics
COARSE = 8  # images are smooth noise: upsampled from this size, as edges in photographs are rare
IMAGE, SMALL_IMAGE = 224, 32
TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def resnet(*, small: bool) -> Any:  # noqa: ANN401 -- torch has no types where the checks run
    """Build ResNet-50, or two bottleneck stages of it."""
    import transformers

    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "num_labels": 16} if small else {}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**({"num_labels": 1000} | sizes)))


def mobilenet(*, small: bool) -> Any:  # noqa: ANN401 -- as above
    """Build MobileNetV2 1.0 at 224, or a quarter of its width on small images."""
    import transformers

    sizes = {"depth_multiplier": 0.25, "image_size": SMALL_IMAGE, "num_labels": 16} if small else {}
    config = transformers.MobileNetV2Config(**({"tf_padding": False, "num_labels": 1000} | sizes))
    return transformers.MobileNetV2ForImageClassification(config)


def bert(*, small: bool) -> Any:  # noqa: ANN401 -- as above
    """Build the BERT-base encoder, or two narrow layers with a small vocabulary."""
    import transformers

    sizes = {
        "vocab_size": 512,
        "max_position_embeddings": 64,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    config = transformers.BertConfig(attn_implementation="eager", **(sizes if small else {}))
    return transformers.BertModel(config, add_pooling_layer=False)


def vit(*, small: bool) -> Any:  # noqa: ANN401 -- as above
    """Build ViT-B/16, or two narrow layers on small images."""
    import transformers

    sizes = {
        "image_size": SMALL_IMAGE,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_labels": 16,
    }
    config = transformers.ViTConfig(attn_implementation="eager", **({"num_labels": 1000} | (sizes if small else {})))
    return transformers.ViTForImageClassification(config)


ARCHITECTURES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("resnet50", "resnet_small", resnet),
    ("mobilenet_v2", "mobilenet_small", mobilenet),
    ("bert_base", "bert_small", bert),
    ("vit_b16", "vit_small", vit),
)


def images(count: int, size: int) -> Any:  # noqa: ANN401 -- as above
    """Make smooth noise with grain, float32 [count, 3, size, size]; contrast and tint differ by image."""
    import torch

    smooth = torch.nn.functional.interpolate(
        torch.randn(count, 3, COARSE, COARSE), size=size, mode="bilinear", align_corners=False
    )
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.3, 2.0)
    return smooth * contrast + torch.randn(count, 3, 1, 1) + 0.2 * torch.randn(count, 3, size, size)


def enliven(model: Any, size: int) -> bool:  # noqa: ANN401 -- as above
    """Draw biases, scales and convolutions, then let BatchNorm see data; True when there is any BatchNorm.

    The exporter merges equal tensors behind Identity nodes, so biases left at zero would bend the graph.
    Convolutions get He et al. (2015), variance 2 / fan-in, lest the signal die on its way through them.
    """
    import torch

    norms = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.LayerNorm))]
    batch_norms = [m for m in norms if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.05)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
        for norm in batch_norms:
            norm.momentum = None  # a plain average over the batches, none of the initial 0 and 1 left
        if batch_norms:
            model.train()
            for _ in range(BATCHES):
                model(images(BATCH, size))
    model.eval()
    return bool(batch_norms)


def export(model: Any, path: Path, size: int) -> None:  # noqa: ANN401 -- as above
    """Write `model` with the TorchScript exporter: images for vision models, else three token inputs."""
    import torch

    text = model.main_input_name == "input_ids"
    inputs, output = (TOKENS, "last_hidden_state") if text else (("image",), "logits")
    axes = {0: "N", 1: "L"} if text else {0: "N"}

    class FirstOutput(torch.nn.Module):  # type: ignore[misc] # as above
        """Leaves a plain tensor in place of the library's output record."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any) -> Any:  # noqa: ANN401 -- as above
            """Int64 [N, L] three times -> float32 [N, L, C], or image [N, 3, H, W] -> logits [N, classes]."""
            return self.model(*args)[output]

    example = torch.ones(2, 16, dtype=torch.int64)
    has_batch_norm = enliven(model, size)
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        FirstOutput().eval(),
        (example, example.tril(diagonal=14), example * 0) if text else (images(2, size),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        # PRESERVE keeps the exporter from folding BatchNorm into the convolutions.
        training=mode.PRESERVE if has_batch_norm else mode.EVAL,
        do_constant_folding=not has_batch_norm,
        input_names=list(inputs),
        output_names=[output],
        dynamic_axes=dict.fromkeys((*inputs, output), axes) if text else {"image": axes, "logits": axes},
    )


def main() -> None:
    """Export each architecture that is not there yet."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(".cache/models"))
    parser.add_argument("--small", action="store_true", help="the variants below 3 MB")
    parser.add_argument("--force", action="store_true", help="export again what exists")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for full_name, small_name, build in ARCHITECTURES:
        path: Path = args.out / f"{small_name if args.small else full_name}.onnx"
        if path.exists() and not args.force:
            print(f"{path}: kept")
            continue
        torch.manual_seed(SEED)
        export(build(small=args.small), path, SMALL_IMAGE if args.small else IMAGE)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
