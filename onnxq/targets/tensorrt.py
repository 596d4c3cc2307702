"""TensorRT, explicit quantization.

Sources: NVIDIA's developer guide, "Working with Quantized Types"; onnx-tensorrt's parser; NvInfer.h.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.numerics import INT8, INT8_WEIGHT
from onnxq.targets.target import Target

TENSORRT_10 = Target(
    name="tensorrt@10",
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
        # From 10.12 on strong typing is what is not deprecated; the int8 and fp16 flags contradict it.
        "trtexec (TensorRT 10)": "trtexec --onnx={model} --saveEngine={engine} --stronglyTyped{shapes}",
        "polygraphy": "polygraphy convert {model} --strongly-typed -o {engine}",
    },
)

TENSORRT_8 = replace(
    TENSORRT_10,
    name="tensorrt@8",
    weight_form="qdq",  # int8 constants were documented from 10 on
    deconv_per_channel=False,  # builds failed or gave wrong results: TensorRT#1694, #1934
    next_step={
        # Weakly typed: the flags say which types the builder may use beside the Q/DQ pairs.
        "trtexec (TensorRT 8)": "trtexec --onnx={model} --saveEngine={engine} --int8 --fp16{shapes}",
        "polygraphy": "polygraphy convert {model} --int8 --fp16 -o {engine}",
    },
)

TENSORRT_11 = replace(
    TENSORRT_10,
    name="tensorrt@11",
    high_precision="fp16",  # strongly typed always: what is left in float32 would run in float32
    next_step={
        "trtexec (TensorRT 11)": "trtexec --onnx={model} --saveEngine={engine}{shapes}",
        "polygraphy": "polygraphy convert {model} --strongly-typed -o {engine}",
    },
)
