"""`onnxq check`: will TensorRT take this file, and run it in int8? The rules P1 to P36, without TensorRT.

The rules are NVIDIA's guide on explicit quantization, NvInfer.h and the open-source parser, as far as they can be
read off a file; what runs in which precision is a prediction. Weights are never read, only scales and zero points.
Where shape inference does not know a shape or type, no rule speaks about it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.checks import (
    build,
    coverage,
    dla,
    grammar,
    operators,
    ort_cuda,
    placement,
    precision,
    residual,
    sizes,
    validity,
)
from onnxq.checks.finding import Finding
from onnxq.checks.versions import get_version
from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from onnx import ModelProto

    from onnxq.checks.build import Shapes
    from onnxq.checks.coverage import Summary
    from onnxq.checks.finding import Breach
    from onnxq.checks.index import Model

CUDA = "ort-cuda"

__all__ = ["CHECKS", "Check", "Finding", "Report", "check"]


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes:
        find: what finds its breaches in one graph; its docstring's first line is the rule.
        severity: those it can have.
        hint: what to do.
        source: where the rule comes from.
        gpu: whether it is about what a GPU fuses or gains: not held against a model for a DLA, whose regions run in
            int8 as a whole.
    """

    find: Callable[[Model], Iterator[Breach]]
    severity: str
    hint: str
    source: str
    gpu: bool = False

    @property
    def rule(self) -> str:
        """The rule in one line."""
        return (self.find.__doc__ or "").partition("\n")[0]


CHECKS: Mapping[str, Check] = {
    "P1": Check(
        grammar.two_inputs,
        "E",
        "Give every QuantizeLinear and DequantizeLinear its scale; write the file again.",
        "onnx-tensorrt parser",
    ),
    "P2": Check(
        grammar.scale_constant,
        "E",
        "Store the scale as a float32, float16 or bfloat16 initializer: fold what computes it.",
        "onnx-tensorrt parser",
    ),
    "P3": Check(
        grammar.scale_positive,
        "E/W",
        "Calibrate with data that reaches this tensor, or leave it in float.",
        "onnx-tensorrt parser; ModelOpt",
    ),
    "P4": Check(
        grammar.zero_point_zero,
        "E",
        "Quantize symmetrically, zero point 0: `onnxq quantize --target tensorrt` does.",
        "onnx-tensorrt parser; NvInfer.h IQuantizeLayer",
    ),
    "P5": Check(
        grammar.known_type,
        "E/W",
        "Quantize activations and weights to int8, or take the release of TensorRT that has the type.",
        "onnx-tensorrt parser",
    ),
    "P6": Check(
        grammar.type_written,
        "W",
        "Write an int8 zero point: without one ONNX means uint8 and TensorRT int8.",
        "onnx-tensorrt parser; ONNX operators",
    ),
    "P7": Check(
        grammar.parameters_agree,
        "E",
        "Give scale and zero point one shape, and Q, zero point and DQ one type.",
        "onnx-tensorrt parser",
    ),
    "P8": Check(
        grammar.axis_exists, "E", "Write `axis`, and one scale for each element along it.", "onnx-tensorrt parser"
    ),
    "P9": Check(
        grammar.whole_blocks,
        "E",
        "Block along one axis, the last or the one before, in whole blocks.",
        "onnx-tensorrt parser; NvInfer.h",
    ),
    "P10": Check(
        grammar.vector_on_constant,
        "E",
        "One scale per activation tensor; per-channel scales are for weights.",
        "NvInfer.h IQuantizeLayer, IDequantizeLayer",
    ),
    "P11": Check(
        grammar.output_channel_axis,
        "E/W",
        "Scale along the output channels; ConvTranspose in groups or before 10: one scale.",
        "ModelOpt; ONNX Runtime; TensorRT#1694, #1934",
    ),
    "P12": Check(
        grammar.even_count,
        "E/W",
        "Pad the weight to an even number of values, or keep it in int8.",
        "onnx-tensorrt parser",
    ),
    "P13": Check(
        grammar.opset_known,
        "E/W",
        "Convert the model to an opset that fits, with onnx.version_converter.",
        "onnx-tensorrt parser; ModelOpt",
    ),
    "P14": Check(
        precision.float_types,
        "E",
        "Add a Cast, or give the scale the type of its tensor.",
        "NvInfer.h; onnx-tensorrt parser",
    ),
    "P15": Check(
        grammar.no_integer_operators,
        "E",
        "Quantize the float model again, into the Q/DQ form with operators of the ONNX domain.",
        "onnx-tensorrt operators.md",
    ),
    "P16": Check(
        operators.bias_float,
        "E",
        "Keep the bias in float, without Q and DQ; one value for each output channel.",
        "onnx-tensorrt parser; ModelOpt",
    ),
    "P17": Check(
        operators.conv_weight,
        "E/W",
        "Make the weight an initializer of rank 3 to 5, and kernel_shape agree with it.",
        "onnx-tensorrt parser",
    ),
    "P18": Check(operators.no_pool_indices, "E", "Export without return_indices.", "onnx-tensorrt operators.md"),
    "P19": Check(
        placement.pairs_whole,
        "W/I",
        "Put Q and DQ in pairs; before TensorRT 10 write weights as `--weight-form qdq`.",
        "TREx QDQLinter; guide, recommendation 1",
    ),
    "P20": Check(
        placement.both_operands,
        "W",
        "Quantize the input and the weight, or neither; a weight alone makes the file smaller, no more.",
        "guide, recommendation 1",
    ),
    "P21": Check(
        placement.fusion_whole, "W", "Move the pair behind the activation.", "guide, recommendations 2 and 3", gpu=True
    ),
    "P22": Check(
        residual.residual_identity,
        "W",
        "Remove the pair on the convolution's side of the addition; keep the one on the other side.",
        "guide, recommendation 4; ModelOpt #450",
        gpu=True,
    ),
    "P23": Check(
        residual.int8_in_and_out,
        "W",
        "Quantize all that the operator reads and what it writes, or nothing.",
        "guide, recommendation 5",
        gpu=True,
    ),
    "P24": Check(
        placement.concat_scales,
        "W",
        "Give all inputs of the Concat and its output one scale.",
        "ModelOpt; TensorRT#4366",
    ),
    "P25": Check(
        placement.one_pair_per_tensor, "W", "Keep one pair per tensor, shared by its readers.", "guide, limitations"
    ),
    "P26": Check(
        placement.needless_pairs,
        "W",
        "Remove the pair, or move it in front of the Pad.",
        "ModelOpt; TensorRT#2592",
        gpu=True,
    ),
    "P27": Check(
        sizes.conv_channels,
        "W/I",
        "Leave this convolution in float: it is not faster in int8.",
        "TREx ConvLinter; NvInfer.h setNbGroups; ModelOpt",
        gpu=True,
    ),
    "P28": Check(
        sizes.matrix_size, "W", "Leave this product in float: it is not faster in int8.", "ModelOpt", gpu=True
    ),
    "P29": Check(
        sizes.attention,
        "W",
        "Leave the attention's products in float; give the Softmax the range 0 to 1.",
        "ModelOpt",
        gpu=True,
    ),
    "P30": Check(
        precision.convolutions_write_int8,
        "W",
        "Quantize what reads the convolution, or accept the float output.",
        "TREx",
    ),
    "P31": Check(precision.one_low_type, "W", "Use one 8-bit type for the whole model.", "guide"),
    "P32": Check(
        precision.no_float32,
        "W",
        "Quantize with `--high-precision fp16`; what stays float32 then has its reason in the plan.",
        "TensorRT 11 migration guide",
    ),
    "P33": Check(
        precision.no_shapes_quantized,
        "E",
        "Remove Q and DQ from integers and from the computation of shapes.",
        "onnx-tensorrt parser",
    ),
    "P34": Check(
        validity.valid,
        "E/I",
        "Mend the model first: export it again, and keep its external data beside it.",
        "ONNX specification; onnx.checker",
    ),
    "P35": Check(coverage.coverage, "I", "`onnxq plan` says why its own placement leaves a node in float.", "onnxq"),
    "P36": Check(
        dla.every_tensor,
        "W",
        "Quantize with a `+dla` target; a rule may have left it out.",
        "ModelOpt #1661; TensorRT#2222",
    ),
}
"""Id -> rule. P1 to P22 are about what is taken and fused at all, P23 to P33 about speed, P34 and P35 the whole; P36 is
for DLAs."""


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        target: what it was checked for.
        findings: errors first, then warnings, then what is worth knowing; by rule and in graph order within.
        summary: the predictions for the whole model; empty where the graph is not in order (P34).
    """

    target: str
    findings: tuple[Finding, ...]
    summary: Summary
    sized: bool = True
    """Whether sizes of all inputs are known, batches aside; where not, shares of the work tell little."""

    def count(self, severity: str) -> int:
        """How many findings have this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def legal(self) -> bool:
        """Whether there are no errors."""
        return not self.count("E")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values: {summary, findings}."""
        counts = {"errors": self.count("E"), "warnings": self.count("W"), "notes": self.count("I")}
        summary = {"target": self.target, **counts, "sized": self.sized, **self.summary.to_dict()}
        return {"summary": summary, "findings": [vars(finding) for finding in self.findings]}


def check(
    model: ModelProto | str | os.PathLike[str],
    target: str = "tensorrt",
    base_dir: str | None = None,
    shapes: Shapes = build.NO_SHAPES,
) -> Report:
    """Hold all rules against a model and its subgraph bodies; the model is not changed.

    Args:
        model: path or onnx.ModelProto, quantized by whatever tool; external data need not be loaded.
        target: a key of `onnxq.checks.versions.VERSIONS`, or ort-cuda, whose rules are C1 to C7.
        base_dir: folder of external data; that of the path, or the current one, when None.
        shapes: of inputs, where the model leaves them open: work is counted with them.

    Raises:
        ModelError: the file cannot be read or is no ONNX model.
        RecipeError: there is no such target.
    """
    from onnxq.graph import axes_problem  # it loads onnx, which `import onnxq.checks` does not

    version = None if target == CUDA else get_version(target)
    if isinstance(model, str | os.PathLike):
        base_dir = str(Path(model).parent) if base_dir is None else base_dir
        model = build.read(model)
    if (problem := axes_problem(model.graph)) is not None:
        raise ModelError(f"the model is not valid: {problem}", "Export it again.")
    folder = base_dir or ""
    if version is None:
        return Report(target, *ort_cuda.check(model, folder, shapes), sized=not build.open_inputs(model, shapes))
    # Without order there is no walking up and down the graph: only P34 speaks then.
    disorder = next(validity.reads_ahead(model.graph), None)
    graphs = [build.surroundings(model, folder, version)]
    if disorder is None:
        graphs = list(build.graphs(model, folder, version, shapes))
    found = [
        Finding(name, breach.severity, breach.where, breach.message, rule.hint, rule.source, breach.op)
        for name, rule in CHECKS.items()
        if not (rule.gpu and version.every_tensor)
        for graph in graphs
        for breach in rule.find(graph)
    ]
    found.sort(key=lambda finding: "EWI".index(finding.severity))  # stable: rules and graph order stay
    return Report(version.name, tuple(found), coverage.summarize(graphs), not build.open_inputs(model, shapes))
