"""ONNX Runtime's CUDA provider.

Sources: docs/OperatorKernels.md of ONNX Runtime (which kernels there are: `onnxq.checks.ort_cuda_kernels`), its
matmul_integer.cc and integer_gemm.cc, and its DQ selectors. docs/onnxruntime.md has the forms and what is unmeasured.
"""

from __future__ import annotations

from onnxq.numerics import INT8, INT8_WEIGHT
from onnxq.targets.target import Target

ORT_CUDA = Target(
    name="ort-cuda",
    activation=INT8,  # MatMulInteger on CUDA takes int8 only; another zero point would cost a reduction per call
    weight=INT8_WEIGHT,
    min_opset=13,  # per-channel DequantizeLinear
    weighted={"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1},
    both_ends=frozenset(),  # no pool computes on int8 there, and every pair is two kernels
    movers=frozenset(),
    min_channels=32,  # integer_gemm.cc copies both operands where K or N is no multiple of 32
    group_multiple=1,
    high_precision="fp16",
    placement="ort-cuda",
    products="integer",
    tables=True,
    block_size=32,  # what the provider itself cuts per-channel scales into
    blocked_bits=frozenset({4, 8}),
    refuses={
        "dynamic": "DynamicQuantizeLinear has no CUDA kernel: every product would wait for the CPU",
    },
    next_step={
        "the rules, without a GPU": "onnxq check {model} --target ort-cuda",
        "Python, ONNX Runtime {oldest} or later": "onnxruntime.InferenceSession("
        "{model!r}, providers=['CUDAExecutionProvider'])",
    },
)
