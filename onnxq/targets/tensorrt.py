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
    float4=True,  # from 10.8 on
    pointwise_db=0.5,  # one more number in the kernel that makes the codes
    float_share=0.05,  # a layer in fp16 takes twice its time in int8 at most
    refuses={"dynamic": "its parser takes scales that are constants, and no DynamicQuantizeLinear or MatMulInteger"},
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
    blocked_bits=frozenset(),  # scales of blocks came with 10
    float4=False,
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

_CACHE = (
    "up to TensorRT 10.7 NVIDIA documents int8 on DLA from calibration caches; where the builder refuses Q/DQ on DLA, "
    "`onnxq export-cache` with this target writes the same scales for the float model (docs/pipelines.md)"
)
_WEIGHTS_ALONE = "a DLA takes int8 weights where activations are quantized too, and nowhere else"
_DLA = "--useDLACore=0 --allowGPUFallback"
_TRTEXEC = "trtexec --onnx={model} --saveEngine={engine}"

TENSORRT_8_DLA = replace(
    TENSORRT_8,
    name="tensorrt@8+dla",
    every_tensor=True,  # one tensor without a scale, and the region around it runs in fp16: ModelOpt #1661
    refuses={**TENSORRT_8.refuses, "weight-only": _WEIGHTS_ALONE},
    remark=_CACHE,  # and TensorRT#2222
    next_step={
        "trtexec (TensorRT 8, DLA)": _TRTEXEC + f" --int8 --fp16 {_DLA}{{shapes}}",
        "polygraphy": "polygraphy convert {model} --int8 --fp16 --use-dla --allow-gpu-fallback -o {engine}",
    },
)

TENSORRT_10_DLA = replace(
    TENSORRT_10,
    name="tensorrt@10+dla",
    every_tensor=True,
    refuses={**TENSORRT_10.refuses, "weight-only": _WEIGHTS_ALONE},
    remark=_CACHE,
    next_step={
        # The last 10.x with DLA is 10.7, before strong typing became the rule in 10.12.
        "trtexec (TensorRT 10, DLA)": _TRTEXEC + f" --int8 --fp16 {_DLA}{{shapes}}",
        "polygraphy": "polygraphy convert {model} --int8 --fp16 --use-dla --allow-gpu-fallback -o {engine}",
    },
)

# 11.0 to 11.4.0 have no DLA; 11.4.1 has it back, on Jetson AGX Orin with JetPack 7.2.2.
TENSORRT_11_DLA = replace(
    TENSORRT_11,
    name="tensorrt@11+dla",
    every_tensor=True,
    refuses={**TENSORRT_11.refuses, "weight-only": _WEIGHTS_ALONE},
    next_step={
        "trtexec (TensorRT 11.4.1 on Orin, DLA)": _TRTEXEC + f" {_DLA}{{shapes}}",
        "polygraphy": "polygraphy convert {model} --strongly-typed --use-dla --allow-gpu-fallback -o {engine}",
    },
)
