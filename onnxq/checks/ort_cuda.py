"""`onnxq check --target ort-cuda`: does every node have a CUDA kernel, and what computes on integers? Rules C1 to C7.

Static: from the table of kernels and from how the provider's product and its fusions are written. Where a CUDA device
is at hand, `scripts/bench_gpu.py` asks the provider itself.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from onnxq.checks import build, coverage, validity
from onnxq.checks.finding import Breach, Finding, error, note, warning
from onnxq.checks.index import CONVS, DQ, WEIGHTED, integer, is_onnx, is_qdq
from onnxq.checks.ort_cuda_kernels import ABSENT, DOCUMENT, KERNELS, lack
from onnxq.checks.versions import TENSORRT_11
from onnxq.formats.grammar import SMALLEST_BLOCK
from onnxq.operators import RECURRENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from onnx import ModelProto, NodeProto

    from onnxq.checks.build import Shapes
    from onnxq.checks.index import Model

ALIGNED = 32
PRODUCTS = frozenset({"MatMul", "Gemm"})


def absent(model: Model) -> Iterator[Breach]:
    """No quantized operator falls to the CPU provider for want of a CUDA kernel."""
    for node in model.nodes:
        if node.op_type in ABSENT:
            yield error(
                node, f"{node.op_type} has no CUDA kernel and falls to the CPU provider: {ABSENT[node.op_type]}"
            )


def kernels(model: Model) -> Iterator[Breach]:
    """Every node has a CUDA kernel for its version and types (I for integers of shapes, which belong on the CPU)."""
    for node in model.nodes:
        domain = "" if is_onnx(node) else node.domain
        inputs, outputs = ([_type(model, name) for name in side] for side in (node.input, node.output))
        missed = lack(domain, node.op_type, _version(model, node), tuple(inputs), tuple(outputs))
        if not missed:
            continue
        said = ", ".join(dict.fromkeys(filter(None, (*inputs, *outputs)))) or "unknown types"
        if (domain, node.op_type) not in KERNELS:
            text = f"{node.op_type} is in no row of the table of CUDA kernels"
        else:
            text = f"{node.op_type} of version {_version(model, node)} on {said} has no CUDA kernel"
        if missed == "I":
            yield note(node, f"{text}; integers of shapes are the CPU's business")
        elif missed == "W":
            yield warning(node, text)
        else:
            yield error(node, f"{text} and falls to the CPU provider")


def fake(model: Model) -> Iterator[Breach]:
    """No float operator reads a dequantized activation: its Q and DQ are kernels that make nothing faster."""
    for node in model.op(*WEIGHTED):
        maker = model.dequantizer(node.input[0])
        if maker is not None and not model.constant(node.input[0]):
            yield warning(node, f"fake quantization: {node.op_type} computes in float, Q and DQ are extra kernels")


def aligned(model: Model) -> Iterator[Breach]:
    """K and N of a MatMulInteger are multiples of 32."""
    for node in model.op("MatMulInteger"):
        shape = model.shapes.get(node.input[1]) or ()
        odd = [f"{name} {size}" for name, size in zip("KN", shape[-2:], strict=False) if size and size % ALIGNED]
        if odd:
            yield warning(node, f"{', '.join(odd)}: no multiple of {ALIGNED}, so each call copies both operands")


def zero_points(model: Model) -> Iterator[Breach]:
    """Zero points of a MatMulInteger are absent or 0: they are read in CPU memory, others cost a reduction."""
    for node in model.op("MatMulInteger"):
        for name in filter(None, node.input[2:]):
            array = model.array(name)
            if array is None:
                yield warning(node, f"zero point {name} is computed: copied to the CPU on every call")
            elif array.any():
                yield warning(node, f"zero point {name} is not 0: sums of rows or columns on every call")


def whole_tables(model: Model) -> Iterator[Breach]:
    """No Gather reads a dequantized constant: the whole table would be dequantized on every call."""
    for node in model.op("Gather"):
        if model.dequantizer(node.input[0]) is not None and model.constant(node.input[0]):
            yield warning(node, f"the whole table {node.input[0]} is dequantized on every call")


def weights_fuse(model: Model) -> Iterator[Breach]:
    """A dequantized weight fuses with its product to MatMulNBits (I); where it cannot, it is dequantized each call."""
    for node in model.op(*WEIGHTED):
        maker = model.producers.get(node.input[1])
        if maker is None or maker.op_type != DQ or not model.constant(node.input[1]):
            continue
        if model.dequantizer(node.input[0]) is not None and not model.constant(node.input[0]):
            continue  # `fake` has spoken
        why = why_apart(model, node, maker)
        if why is None:
            yield note(node, "weight-only: fuses to MatMulNBits")
        else:
            yield warning(node, f"its weight is dequantized on every call: {why}")


def why_apart(model: Model, node: NodeProto, maker: NodeProto) -> str | None:
    """Why ONNX Runtime does not fuse a weight's DequantizeLinear with the product; None when it does.

    Its DQMatMulToMatMulNBits selector: a matrix, one scale (a scalar), a scale per column (axis 1), or blocks along
    axis 0 of a power of two of at least 16; a Gemm without transA, transB and alpha. An axis counted from the end, as
    -1 for 1, is another one to it (1.31 and before).
    """
    if node.op_type in CONVS:
        return "no kernel convolves with narrow weights"
    shape, scales = model.shapes.get(maker.input[0]) or (), model.shapes.get(maker.input[1]) or ()
    if len(shape) != 2:
        return f"it has rank {len(shape)}"
    alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
    if node.op_type == "Gemm" and (integer(node, "transA", 0) or integer(node, "transB", 0) or alpha != 1.0):
        return "a Gemm with transA, transB or alpha"
    return _why_scales(maker, scales, columns=shape[1])


def _why_scales(maker: NodeProto, scales: Sequence[int | None], columns: int | None) -> str | None:
    size, axis = integer(maker, "block_size", 0), integer(maker, "axis", 1)
    wrong = {
        f"its axis is written as {axis}, which is not read as {axis + 2}": axis < 0 and bool(scales),
        "its one scale is a vector, not a scalar": tuple(scales) == (1,) and columns != 1,
        f"blocks of {size} along axis {axis}": size and (axis != 0 or size < SMALLEST_BLOCK or size & (size - 1)),
        f"scales along axis {axis}": not size and bool(scales) and axis != 1,
    }
    return next((why for why, holds in wrong.items() if holds), None)


RULES: Mapping[str, tuple[Callable[[Model], Iterator[Breach]], str, str]] = {
    "C1": (absent, "Quantize the float model again with --target ort-cuda.", DOCUMENT),
    "C2": (kernels, "Choose another opset or float type for the model, or accept the copies to the CPU.", DOCUMENT),
    "C3": (
        fake,
        "Quantize with --target ort-cuda, which writes MatMulInteger; keep convolutions in fp16.",
        "QDQ selectors",
    ),
    "C4": (
        aligned,
        "Pad the weight's columns offline; keep the layer in fp16 when K is the odd one.",
        "integer_gemm.cc",
    ),
    "C5": (zero_points, "Quantize symmetrically, zero point 0.", "matmul_integer.cc"),
    "C6": (whole_tables, "Gather first, or use GatherBlockQuantized.", "QDQ selectors"),
    "C7": (
        weights_fuse,
        "Store the weight as [K, N] with scales along N (axis 1, not -1), or blocks of 16, 32 ... along K (axis 0).",
        "QDQ selectors",
    ),
}
"""Id -> (what finds breaches, what to do, source)."""


def check(
    proto: ModelProto, base_dir: str, shapes: Shapes = build.NO_SHAPES
) -> tuple[tuple[Finding, ...], coverage.Summary]:
    """Findings of C1 to C7, errors first, and the shares of multiply-accumulates. The model is not changed."""
    if disorder := validity.unsorted(proto.graph):
        return tuple(map(_disordered, disorder)), coverage.Summary({}, {}, ())
    # the index wants a version; no rule here asks for it
    graphs = list(build.graphs(proto, base_dir, TENSORRT_11, shapes))
    found = [
        Finding(name, b.severity, b.where, b.message, hint, source, b.op)
        for name, (find, hint, source) in RULES.items()
        for graph in graphs
        for b in find(graph)
    ]
    return tuple(sorted(found, key=lambda f: "EWI".index(f.severity))), _summary(graphs)


def _disordered(b: Breach) -> Finding:
    return Finding("C0", b.severity, b.where, b.message, "Export the model again.", "ONNX specification", b.op)


def _version(model: Model, node: NodeProto) -> int:
    """The operator's own version in the model's operator set; 1 for other domains."""
    from onnx import defs

    if not is_onnx(node):
        return 1
    try:
        return int(defs.get_schema(node.op_type, model.opset).since_version)
    except defs.SchemaError:
        return model.opset


def _type(model: Model, name: str) -> str:
    """Numpy's name of a tensor's element type; empty when it is not known."""
    from onnx import TensorProto

    kind = model.types.get(name)
    named = "" if not kind else str(TensorProto.DataType.Name(kind)).lower()
    return {"float": "float32"}.get(named, named)


def _summary(graphs: list[Model]) -> coverage.Summary:
    work: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for model in graphs:
        for node in model.nodes:
            kind = _precision(model, node)
            if kind is not None:
                work[kind] += coverage.macs(model, node)
                nodes[kind] += 1
    return coverage.Summary(dict(work.most_common()), dict(nodes.most_common()), ())


def _precision(model: Model, node: NodeProto) -> str | None:
    """What a product or convolution computes in; None for other nodes."""
    if node.op_type == "MatMulInteger":
        return "int8"
    if node.op_type in ("QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm"):
        return "CPU"
    if node.op_type == "MatMulNBits":
        return f"{_type(model, node.output[0]) or 'unknown'}, narrow weights"
    if node.op_type not in WEIGHTED | RECURRENT or not is_onnx(node):
        return None
    ends = (*node.output, node.input[0])  # of a recurrent operator the first output may be left out
    kind = next(filter(None, (_type(model, name) for name in ends)), "unknown")
    return f"{kind}, narrow weights" if _narrow(model, node) else kind


def _narrow(model: Model, node: NodeProto) -> bool:
    maker: Any = model.producers.get(node.input[1])
    fuses = maker is not None and is_qdq(maker) and maker.op_type == DQ  # ONNX Runtime's own DequantizeLinear too
    return fuses and model.dequantizer(node.input[0]) is None and why_apart(model, node, maker) is None
