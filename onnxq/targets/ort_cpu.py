"""ONNX Runtime's CPU provider: Q/DQ pairs that its optimizer replaces by integer kernels.

Sources: ONNX Runtime's QDQ selectors and actions (qdq_selector_action_transformer.cc) and the operators they were
seen to replace with 1.31; tests/onnxq/test_ort_cpu.py optimises each of them.
"""

from __future__ import annotations

from onnxq.numerics import INT8_WEIGHT, UINT8
from onnxq.targets.target import Target

ORT_CPU = Target(
    name="ort-cpu",
    activation=UINT8,  # with a range from 0 on its zero point is 0, and a Relu before the Q vanishes
    weight=INT8_WEIGHT,
    min_opset=13,  # per-channel Q/DQ
    weighted={"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1},  # ConvTranspose: counted, but it has no kernel
    both_ends=frozenset(
        {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"}  # QLinear*
    ),
    movers=frozenset(
        {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Slice", "Split"}
        | {"Gather", "Expand", "Tile", "DepthToSpace", "Resize"}  # the pairs around them are dropped
    ),
    min_channels=1,  # what pays is decided by islands, not by layers: onnxq.placement.ort_cpu
    group_multiple=1,
    placement="ort-cpu",
    pointwise_db=3.0,  # a pass over memory: MiniLM's kernels take 1.7 % less than with 1.5, for the same SQNR
    convolved_db=0.5,  # free, in a QuantizeLinear with a scale per channel
    float_share=0.05,  # what changes of type cost counts too, where a layer in float takes two to four times its time
    tables=True,  # in mode weight-only
    block_size=32,  # what the provider itself cuts per-channel scales into
    blocked_bits=frozenset({4, 8}),
    next_step={
        "ONNX Runtime": "onnxq check {model} --target ort-cpu{sizes}",
        "Python, ONNX Runtime {oldest} or later": "onnxruntime.InferenceSession("
        "{model!r}, providers=['CPUExecutionProvider'])",
    },
)
