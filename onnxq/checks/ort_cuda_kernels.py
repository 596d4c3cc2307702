"""The kernels of ONNX Runtime's CUDA provider, as data: operator, versions and element types.

Source of every row without one of its own: docs/OperatorKernels.md of microsoft/onnxruntime, section
CUDAExecutionProvider, at commit 001d12d2623fd411ce0f83d05abb5e82304a3389. Left out are kernels older than opset 11
and operators that no quantized model of ours has met.

A row "14+" there is a kernel of exactly version 14 of the operator: a kernel without an end matches no later version
(kernel_registry.cc, VerifyKernelDef). A row "[13, 18]" matches every version from 13 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.operators import CONTRIB

DOCUMENT = "docs/OperatorKernels.md, CUDAExecutionProvider"
FLOATS = frozenset({"float32", "float16", "double"})
FLOATS_BF = FLOATS | {"bfloat16"}
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
WIDE = frozenset({"int32", "int64", "uint32", "uint64"})
ANY = FLOATS_BF | INTEGERS | {"bool"}
INT8 = frozenset({"int8"})


@dataclass(frozen=True)
class Kernel:
    """One row.

    Attributes:
        first: lowest version of the operator.
        last: highest version; equal to `first` for a kernel without an end.
        types: element types of input 0.
        others: input index -> its element types, where they are not those of input 0.
        output: element types of output 0; empty for those of input 0.
        source: where the row comes from.
    """

    first: int
    last: int
    types: frozenset[str]
    others: tuple[tuple[int, frozenset[str]], ...] = ()
    output: frozenset[str] = frozenset()
    source: str = DOCUMENT


def _open(version: int, types: frozenset[str], **rest: object) -> Kernel:
    return Kernel(version, version, types, **rest)  # type: ignore[arg-type]  # the fields of Kernel by name


_EIGHT = frozenset({"int8", "uint8"})
_STORED = _EIGHT | {"int4", "uint4", "float8e4m3fn", "float8e5m2"}
_INDEX = frozenset({"int32", "int64"})
_HALF = frozenset({"float32", "float16"})
_BOOL = frozenset({"bool"})
_SHAPES = frozenset({"int64", "int32", "bool", ""})
_ARITHMETIC = (Kernel(7, 12, FLOATS | WIDE), _open(13, FLOATS_BF | WIDE), _open(14, FLOATS_BF | INTEGERS))
_COMPARE = FLOATS | WIDE
_UNARY = (Kernel(6, 12, FLOATS), _open(13, FLOATS))
_UNARY_BF = (Kernel(6, 12, FLOATS), _open(13, FLOATS_BF))
_REDUCE = (Kernel(1, 17, FLOATS | {"int32"}), _open(18, FLOATS | {"int32"}))
_MOVES = (Kernel(1, 12, ANY), _open(13, ANY))
_RESHAPED = (Kernel(1, 20, ANY), Kernel(21, 22, ANY), _open(23, ANY))

KERNELS: dict[tuple[str, str], tuple[Kernel, ...]] = {
    **{("", op): _ARITHMETIC for op in ("Add", "Sub", "Mul", "Div")},
    **{("", op): _UNARY_BF for op in ("Erf", "Exp", "Sqrt", "Tanh", "Sigmoid")},
    **{("", op): _UNARY for op in ("Log", "Reciprocal", "Floor", "Ceil")},
    **{("", op): _REDUCE for op in ("ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2")},
    **{("", op): (_open(7, _BOOL),) for op in ("And", "Or", "Xor")},
    **{("", op): (_open(1, FLOATS),) for op in ("GlobalAveragePool", "GlobalMaxPool", "Softplus", "Softsign")},
    **{("", op): (_open(6, FLOATS),) for op in ("Elu", "Selu", "InstanceNormalization")},
    **{("", op): (_open(7, FLOATS),) for op in ("Cos", "Sin")},
    **{("", op): _MOVES for op in ("Gather", "Slice", "Concat", "Flatten", "Expand")},
    **{("", op): _RESHAPED for op in ("Transpose", "Squeeze", "Unsqueeze")},
    **{
        ("", op): (Kernel(9, 12, _COMPARE, output=_BOOL), _open(13, _COMPARE, output=_BOOL))
        for op in ("Greater", "Less")
    },
    **{
        ("", op): (Kernel(12, 15, _COMPARE, output=_BOOL), _open(16, _COMPARE, output=_BOOL))
        for op in ("GreaterOrEqual", "LessOrEqual")
    },
    **{("", op): (Kernel(7, 13, FLOATS), _open(14, FLOATS)) for op in ("LSTM", "GRU", "RNN")},
    ("", "Abs"): (Kernel(6, 12, FLOATS | INTEGERS), _open(13, FLOATS_BF | INTEGERS)),
    ("", "Neg"): (_open(13, FLOATS_BF | {"int8", "int16", "int32", "int64"}),),
    ("", "Pow"): (Kernel(13, 14, FLOATS_BF | _INDEX), _open(15, FLOATS_BF | _INDEX)),
    ("", "Max"): (_open(12, FLOATS_BF | WIDE), _open(13, FLOATS_BF | WIDE)),
    ("", "Min"): (_open(12, FLOATS_BF | WIDE), _open(13, FLOATS_BF | WIDE)),
    ("", "Sum"): (Kernel(8, 12, FLOATS_BF), _open(13, FLOATS_BF)),
    ("", "ReduceSum"): (Kernel(1, 12, FLOATS | _INDEX), _open(13, FLOATS_BF | _INDEX)),
    ("", "ReduceMax"): (Kernel(1, 17, FLOATS | _INDEX), _open(18, FLOATS | _INDEX)),
    ("", "ReduceMin"): tuple(Kernel(a, 18 if a == 18 else 17, FLOATS | _INDEX | _EIGHT) for a in (1, 18)),
    **{
        ("", op): (Kernel(1, 17, FLOATS), _open(18, FLOATS))
        for op in ("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
    },
    ("", "Relu"): (Kernel(6, 12, FLOATS), _open(13, FLOATS_BF), _open(14, FLOATS_BF)),
    ("", "LeakyRelu"): (Kernel(6, 15, FLOATS), _open(16, FLOATS)),
    ("", "PRelu"): (Kernel(9, 15, FLOATS), _open(16, FLOATS)),
    ("", "HardSigmoid"): (Kernel(6, 21, FLOATS), _open(22, FLOATS_BF)),
    ("", "HardSwish"): (Kernel(14, 21, FLOATS), _open(22, FLOATS_BF)),
    ("", "Gelu"): (_open(20, FLOATS_BF),),
    ("", "Clip"): tuple(_open(v, FLOATS | {"int8", "uint8", "int64", "uint64"}) for v in (12, 13)),
    ("", "Softmax"): (Kernel(11, 12, FLOATS), _open(13, FLOATS_BF)),
    ("", "LogSoftmax"): (Kernel(11, 12, FLOATS), _open(13, FLOATS)),
    ("", "LayerNormalization"): (_open(17, FLOATS_BF),),
    ("", "BatchNormalization"): (Kernel(9, 13, FLOATS), _open(14, FLOATS), _open(15, FLOATS)),
    ("", "RMSNormalization"): (_open(23, FLOATS_BF),),
    ("", "Conv"): (Kernel(1, 10, FLOATS), Kernel(11, 21, FLOATS), _open(22, FLOATS_BF)),
    ("", "ConvTranspose"): (Kernel(1, 10, FLOATS), _open(11, FLOATS)),
    ("", "AveragePool"): (Kernel(11, 18, FLOATS), Kernel(19, 21, FLOATS), _open(22, FLOATS_BF)),
    ("", "MaxPool"): (_open(11, FLOATS), _open(12, FLOATS | _EIGHT)),
    ("", "MatMul"): (Kernel(9, 12, FLOATS), _open(13, FLOATS_BF)),
    ("", "Gemm"): (Kernel(11, 12, FLOATS), _open(13, FLOATS_BF)),
    ("", "Einsum"): (_open(12, FLOATS),),
    ("", "MatMulInteger"): (
        _open(
            10, INT8, output=frozenset({"int32"}), source=f"{DOCUMENT}; matmul_integer.cc: zero points in CPU memory"
        ),
    ),
    ("", "Cast"): tuple(
        Kernel(a, b, ANY, output=ANY) for a, b in ((6, 8), (9, 12), (13, 18), (19, 20), (21, 22), (23, 23))
    ),
    ("", "QuantizeLinear"): (
        Kernel(10, 18, frozenset({"float32"}), output=_EIGHT),
        Kernel(19, 20, _HALF, output=_EIGHT | {"float8e4m3fn", "float8e5m2"}),
        _open(21, _HALF, output=_STORED),
    ),
    ("", "DequantizeLinear"): (
        Kernel(10, 18, _EIGHT, ((1, frozenset({"float32"})),), frozenset({"float32"})),
        Kernel(19, 20, _EIGHT | {"float8e4m3fn", "float8e5m2"}, ((1, _HALF),), _HALF),
        _open(21, _STORED, others=((1, _HALF),), output=_HALF),
    ),
    ("", "Reshape"): (Kernel(1, 18, ANY), Kernel(19, 20, ANY), Kernel(21, 22, ANY), _open(23, ANY)),
    ("", "Identity"): (Kernel(1, 12, ANY), _open(13, ANY), Kernel(14, 18, ANY), _open(19, ANY)),
    ("", "Shape"): tuple(
        Kernel(a, b, ANY, output=frozenset({"int64"}))
        for a, b in ((1, 12), (13, 14), (15, 18), (19, 20), (21, 22), (23, 23))
    ),
    ("", "Size"): (_open(13, ANY, output=frozenset({"int64"})),),
    ("", "Split"): (Kernel(2, 12, ANY), Kernel(13, 17, ANY), _open(18, ANY)),
    ("", "Tile"): (_open(13, FLOATS_BF | _INDEX),),
    ("", "Pad"): (Kernel(11, 12, FLOATS), Kernel(13, 17, FLOATS | _BOOL), _open(18, FLOATS | _BOOL)),
    ("", "Resize"): tuple(
        Kernel(a, b, FLOATS | {"int32", "uint8"}) for a, b in ((11, 12), (13, 17), (18, 18), (19, 19))
    ),
    ("", "DepthToSpace"): (_open(13, FLOATS),),
    ("", "SpaceToDepth"): (_open(13, FLOATS),),
    ("", "Where"): (
        Kernel(9, 15, _BOOL, ((1, FLOATS | _INDEX | {"uint8"}),), FLOATS | _INDEX | {"uint8"}),
        _open(16, _BOOL, others=((1, FLOATS_BF | _INDEX | {"uint8"}),), output=FLOATS_BF | _INDEX | {"uint8"}),
    ),
    ("", "Equal"): (_open(11, _COMPARE | _BOOL, output=_BOOL), _open(13, _COMPARE | _BOOL, output=_BOOL)),
    ("", "Not"): (_open(1, _BOOL),),
    ("", "IsNaN"): (
        Kernel(9, 12, FLOATS, output=_BOOL),
        Kernel(13, 19, FLOATS_BF, output=_BOOL),
        _open(20, FLOATS_BF, output=_BOOL),
    ),
    ("", "IsInf"): (
        Kernel(10, 19, frozenset({"float32", "double"}), output=_BOOL),
        _open(20, FLOATS_BF, output=_BOOL),
    ),
    ("", "Range"): (_open(11, frozenset({"float32", "double", "int16", "int32", "int64"})),),
    ("", "ConstantOfShape"): (_open(9, frozenset({"int64"}), output=ANY),),
    ("", "CumSum"): (_open(14, FLOATS | WIDE),),
    **{("", op): tuple(_open(v, FLOATS, output=frozenset({"int64"})) for v in (12, 13)) for op in ("ArgMax", "ArgMin")},
    ("", "TopK"): (_open(11, FLOATS | _INDEX),),
    ("", "GatherElements"): (Kernel(11, 12, ANY), _open(13, ANY)),
    ("", "GatherND"): (_open(13, FLOATS_BF | _BOOL | {"int64"}),),
    ("", "ScatterND"): (Kernel(11, 15, ANY), Kernel(16, 17, ANY), _open(18, ANY)),
    ("", "ScatterElements"): (Kernel(11, 12, ANY), Kernel(13, 15, ANY), Kernel(16, 17, ANY), _open(18, ANY)),
    ("", "GridSample"): (_open(16, frozenset({"float32"})),),
    ("", "Attention"): (_open(23, _HALF | {"bfloat16"}),),
    ("", "RotaryEmbedding"): (_open(23, _HALF | {"bfloat16"}),),
    ("", "Trilu"): (_open(14, ANY),),
    ("", "Round"): (_open(11, FLOATS),),
    ("", "Sign"): (_open(13, FLOATS_BF | INTEGERS),),
    ("", "Mod"): (Kernel(10, 12, FLOATS | WIDE), _open(13, FLOATS_BF | WIDE)),
    ("", "LRN"): (Kernel(1, 12, FLOATS), _open(13, FLOATS)),
    ("", "ThresholdedRelu"): (_open(10, FLOATS),),
    ("", "OneHot"): (_open(11, _INDEX, output=_HALF | {"int64"}),),
    ("", "NonZero"): tuple(
        Kernel(a, b, _HALF | _INDEX | _BOOL | {"uint8"}, output=frozenset({"int64"})) for a, b in ((9, 12), (13, 13))
    ),
    ("", "Dropout"): (Kernel(10, 11, FLOATS), _open(12, FLOATS), _open(13, FLOATS_BF)),
    # of what they hand on any type will do; their bodies are looked at like the main graph
    ("", "If"): tuple(Kernel(a, b, _BOOL, output=ANY) for a, b in ((1, 10), (11, 12), (13, 18), (19, 19))),
    ("", "Loop"): tuple(
        Kernel(a, b, frozenset({"int64"}), output=ANY) for a, b in ((1, 10), (11, 12), (13, 18), (19, 19))
    ),
    ("", "Scan"): tuple(Kernel(a, b, ANY, output=ANY) for a, b in ((9, 10), (11, 15), (16, 18), (19, 19))),
    (CONTRIB, "QuantizeLinear"): (_open(1, frozenset({"float16"}), output=_EIGHT),),
    (CONTRIB, "DequantizeLinear"): (
        _open(1, _EIGHT, others=((1, frozenset({"float16"})),), output=frozenset({"float16"})),
    ),
    (CONTRIB, "MatMulNBits"): (
        _open(1, _HALF | {"bfloat16"}, others=((1, frozenset({"uint8"})), (2, _HALF | {"bfloat16"}))),
    ),
    (CONTRIB, "GatherBlockQuantized"): (
        _open(
            1,
            frozenset({"int4", "uint4", "uint8"}),
            others=((1, _INDEX), (2, _HALF | {"bfloat16"})),
            output=_HALF | {"bfloat16"},
        ),
    ),
    (CONTRIB, "QAttention"): (
        _open(
            1, INT8, others=((1, INT8),), output=_HALF, source=f"{DOCUMENT}; attention_quantization.cc: zero points 0"
        ),
    ),
    (CONTRIB, "QOrderedMatMul"): (_open(1, INT8, others=((1, frozenset({"float32"})),), output=INT8),),
    **{
        (CONTRIB, op): (_open(1, FLOATS_BF),)
        for op in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "FusedMatMul", "MultiHeadAttention", "Attention")
    },
    **{
        (CONTRIB, op): (_open(1, _HALF | {"bfloat16"}),)
        for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "RotaryEmbedding")
    },
}
"""(Domain, operator) -> its kernels."""

ABSENT: dict[str, str] = {
    "QLinearConv": "no integer convolution",
    "ConvInteger": "no integer convolution",
    "QLinearMatMul": "MatMulInteger is the only integer product",
    "QGemm": "MatMulInteger is the only integer product",
    "QLinearAdd": "Add computes in float there",
    "QLinearMul": "Mul computes in float there",
    "QLinearConcat": "Concat moves int8 as it is",
    "QLinearSoftmax": "Softmax computes in float there",
    "QLinearSigmoid": "Sigmoid computes in float there",
    "QLinearLeakyRelu": "LeakyRelu computes in float there",
    "QLinearAveragePool": "pools compute in float there",
    "QLinearGlobalAveragePool": "pools compute in float there",
    "QLinearWhere": "Where selects floats there",
    "DynamicQuantizeLinear": "scales found at run time are the CPU provider's",
    "DynamicQuantizeMatMul": "scales found at run time are the CPU provider's",
    "DynamicQuantizeLSTM": "scales found at run time are the CPU provider's",
    "MatMulIntegerToFloat": "it is a fusion of the CPU provider",
    "QEmbedLayerNormalization": "embeddings are read by GatherBlockQuantized there",
}
"""Quantized operators that the section does not name -> what there is instead. Issues 24807, 12229 and 11201 of
microsoft/onnxruntime show them on the CPU with copies."""


def kernel_of(domain: str, op: str, version: int, types: tuple[str, ...], output: str) -> Kernel | None:
    """The kernel for a node, or None; an empty type is one that is not known, and fits.

    Args:
        domain: "" for ONNX's own.
        op: operator.
        version: of the operator (its since_version), not of the operator set.
        types: numpy names of the input types.
        output: that of the first output.
    """
    for kernel in KERNELS.get((domain, op), ()):
        asked: tuple[tuple[str, frozenset[str]], ...] = (
            (types[0] if types else "", kernel.types),
            (output, kernel.output or kernel.types),
        )
        asked += tuple((types[i], allowed) for i, allowed in kernel.others if i < len(types))
        if kernel.first <= version <= kernel.last and all(not kind or kind in allowed for kind, allowed in asked):
            return kernel
    return None


def lack(domain: str, op: str, version: int, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """What a node misses: "" nothing, else how grave it is as a severity of `Finding`.

    "E": a kernel of its version and types; "W": a row in the table; "I": either, of integers of shapes, which belong
    on the CPU. Constants become weights, and of `ABSENT` another rule speaks.

    Args:
        domain: "" for ONNX's own.
        op: operator.
        version: of the operator.
        inputs: names of the element types; empty for one that is not known.
        outputs: likewise.
    """
    output = "" if domain == "" and op in ("Cast", "ConstantOfShape") else (*outputs, "")[0]  # those give any type
    if op in ABSENT or (domain, op) == ("", "Constant") or kernel_of(domain, op, version, inputs, output) is not None:
        return ""
    if all(kind in _SHAPES for kind in (*inputs, *outputs)):
        return "I"
    return "E" if (domain, op) in KERNELS else "W"
