"""TensorRT, explicit quantization.

Sources: NVIDIA's developer guide, "Working with Quantized Types"; onnx-tensorrt's parser; NvInfer.h.
"""

from __future__ import annotations

from onnxq.numerics import INT8, INT8_WEIGHT
from onnxq.targets.target import Target

TENSORRT = Target(
    name="tensorrt",
    activation=INT8,  # the parser refuses any zero point but 0
    weight=INT8_WEIGHT,  # NVIDIA's tools clamp weights to ±127
    min_opset=13,  # per-channel Q/DQ
    weighted={"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1},
    both_ends=frozenset({"AveragePool", "GlobalAveragePool"}),
    movers=frozenset(
        {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
        | {"MaxPool", "Slice", "Split", "Gather", "Expand", "Tile"}
    ),
    min_channels=16,  # ModelOpt's exclusion rules; int8 tensor cores want multiples of 16
    group_multiple=4,  # NvInfer.h, IConvolutionLayer::setNbGroups
    next_step={
        "TensorRT 11": "trtexec --onnx={model} --saveEngine={engine}{shapes}",
        "TensorRT 10": "trtexec --onnx={model} --saveEngine={engine} --stronglyTyped{shapes}",
    },
)
