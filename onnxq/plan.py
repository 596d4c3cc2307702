"""Plan: what is quantized, how, and why the rest is not.

A value: `onnxq.placement.tensorrt` makes it, `onnxq.choose` resolves it, passes carry it out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.added import Added
from onnxq.formats import Format
from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.operators import RECURRENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.interface import Port
    from onnxq.numerics import QType, QuantParams, Range
    from onnxq.outcome import Budget
    from onnxq.pointwise import Pointwise
    from onnxq.statistics import Judged, Rounded


INT8 = Format("int8", "channel")
"""What a weight is stored in unless something else was asked for."""


@dataclass(frozen=True)
class Point:
    """An activation that gets a Q/DQ pair in front of some of its uses.

    Attributes:
        tensor: its name.
        uses: (node name, input index) of every use behind the pair.
        observe: the tensor whose values tell its range: itself, or the one it is a moved copy of.
        group: points of one group share one scale.
        calibrator: a rule's calibrator, else None.
        protected: clipping would change its meaning (outputs of Sigmoid, Softmax and the like).
        dtype: numpy name of its float type, which its scale takes.
        range: chosen (lo, hi); None until resolved.
        chosen: name of the calibrator that gave the range.
        params: quantization parameters; None until resolved.
        output: whether the model output of that name is behind the pair too.
        bounds: what the Relu or Clip that makes it leaves; its range reaches no further.
        qtype: its grid where a rule asks for another than the target's.
        behind: the activation, or the addition that is cut off, that alone reads it: its range is chosen for what that
            makes of it.
        also: other tensors whose values tell its range too: what a Concat put into it.
        axis: its channel axis where each channel may have a grid of its own, at no cost.
    """

    tensor: str
    uses: tuple[tuple[str, int], ...]
    observe: str
    group: str
    calibrator: str | None = None
    protected: bool = False
    dtype: str = "float32"
    range: Range | None = None
    chosen: str | None = None
    params: QuantParams | None = None
    output: bool = False
    bounds: Range = (-math.inf, math.inf)
    qtype: QType | None = None
    behind: Pointwise | Added | None = None
    also: tuple[str, ...] = ()
    axis: int | None = None

    @property
    def observed(self) -> tuple[str, ...]:
        """All tensors whose values tell its range."""
        return (self.observe, *self.also)


@dataclass(frozen=True)
class WeightPoint:
    """A weight that is stored quantized for some of its uses.

    Attributes:
        tensor: its name.
        uses: (node name, input index) of every use that reads it quantized.
        axis: the output-channel axis, None for one scale.
        format: type and what shares a scale; blocks lie along the reduction axis (an embedding's last).
        qtype: its grid where that is not the target's for weights: that of a scalar added to an activation.
        rounded: its codes where they were chosen; None where each is the nearest.
    """

    tensor: str
    uses: tuple[tuple[str, int], ...]
    axis: int | None
    format: Format = INT8
    qtype: QType | None = None
    rounded: Rounded | None = None

    @property
    def bits(self) -> int:
        """Of the range that codes use: 3 for int3, which is stored in 4."""
        return self.format.kind.width or self.format.kind.bits

    @property
    def block_size(self) -> int | None:
        """Values that share a scale, None where there are no blocks."""
        return self.format.block_size


@dataclass(frozen=True)
class Decision:
    """What becomes of one node: `reason` is why it stays in float, or what makes it int8.

    dtype: the type it computes in when it is not int8, and its scales' type when it is.
    number: the type of its quantized inputs.
    macs: multiply-accumulates of one run by the shapes of the data, or dimensions that none told counted as 1; 0 for
        nodes without any.
    """

    node: str
    op_type: str
    quantized: bool
    reason: str
    macs: int = 0
    dtype: str = "float32"
    number: str = "int8"

    @property
    def precision(self) -> str:
        """What it computes in: int8, another quantized type, or its floating-point type."""
        return self.number if self.quantized else self.dtype


FEW_STEPS = 16
"""A range more than so many times as wide as a tensor's own leaves it 3 bits and the sign."""


@dataclass(frozen=True)
class Narrow:
    """A tensor that keeps few steps of a scale that it shares.

    A range n times as wide as needed costs 20 log10 n dB: the step grows by n, and with it the error.

    Attributes:
        tensor: its name.
        times: how many times as wide as its own the range is.
    """

    tensor: str
    times: float

    def __str__(self) -> str:
        keeps = f"{self.times:.3g} times as wide and keeps {127 / self.times:.2g} of 127 steps"
        return f"{self.tensor}: shares a scale with tensors of a range {keeps}. {_ALONE}"


_ALONE = "A rule that excludes what joins them gives it a scale of its own"
_NAMED = 3
"""Narrow tensors that are named in a warning."""


@dataclass(frozen=True)
class Plan:
    """The whole plan.

    Attributes:
        target: the target's name.
        points: tensor name -> where its Q/DQ pair goes.
        weights: the weights to store quantized.
        decisions: one per node.
        kept: tensors that were quantized in the model already.
        joins: (node, input index, tensor): uses that join a pair the model already has.
        notes: what the user should know.
        narrow: the tensors that keep few steps of a scale that they share.
        probes: tensors that are observed only to see whether they fit the floating-point type.
        float_type: numpy's name of the type of what is not quantized.
        float32: node name -> why it stays in float32 when that type is another.
        mode: "static", "dynamic" or "weight-only".
        modes: body ("If_0/then_branch") -> its mode where that is another.
        budget: how the recipe's budget was kept, and what went back to float for it; None without one.
        interface: the inputs and outputs that are integers, once carried out.
        judged: how near the float model it is by the samples that judged an effort; None where nothing was judged.
        as_written: whether that is of the model as it is written, and not of one with float32 around int8.
        remarks: what was done that is worth knowing, and no reason to look.
    """

    target: str
    points: Mapping[str, Point]
    weights: tuple[WeightPoint, ...]
    decisions: tuple[Decision, ...]
    kept: tuple[str, ...] = ()
    joins: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = ()
    narrow: tuple[Narrow, ...] = ()
    probes: tuple[str, ...] = ()
    float_type: str = "float32"
    float32: Mapping[str, str] = field(default_factory=dict)
    mode: str = "static"
    modes: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None
    interface: tuple[Port, ...] = ()
    remarks: tuple[str, ...] = ()
    judged: Judged | None = None
    as_written: bool = False

    @property
    def observe(self) -> tuple[str, ...]:
        """Names of the tensors whose values must be seen, without repeats."""
        wanted = [p for p in self.points.values() if p.range is None]
        pools = [name for p in wanted if isinstance(p.behind, Added) for name in p.behind.pool or ()]
        return tuple(dict.fromkeys([*(name for p in wanted for name in p.observed), *pools]))

    @property
    def resolved(self) -> bool:
        """Whether every point has its parameters."""
        return all(p.params is not None for p in self.points.values())

    @property
    def skipped(self) -> dict[str, str]:
        """Node name -> why it stays in float."""
        return {d.node: d.reason for d in self.decisions if not d.quantized}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should be told, many narrow tensors as one, of which the plan has the details."""
        notes = (*self.notes, *self.idle)
        if len(self.narrow) <= _NAMED:
            return (*notes, *map(str, self.narrow))
        few = f"share a scale with tensors of a range over {FEW_STEPS} times as wide and keep fewer than 8 of 127 steps"
        named = f"{', '.join(one.tensor for one in self.narrow[:_NAMED])}, ... (the plan has them all)"
        return (*notes, f"{len(self.narrow)} tensors {few}: {named}. {_ALONE}")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all nodes."""
        return sum(d.macs for d in self.decisions)

    def int8_share(self) -> float:
        """Share of the multiply-accumulates that run in int8, 0 when there are none."""
        return sum(d.macs for d in self.decisions if d.quantized) / self.macs if self.macs else 0.0

    def reasons(self) -> list[tuple[str, str, int]]:
        """(reason, op type, how many) of the nodes left in float, most frequent first."""
        counts = Counter((d.reason, d.op_type) for d in self.decisions if not d.quantized)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [(reason, op, count) for (reason, op), count in ordered]

    @property
    def empty(self) -> bool:
        """Whether nothing is quantized, though it should be."""
        points = self.points and not self._integers  # a DLA wants a pair on every tensor, between integers too
        return self.mode != "float" and not (self.weights or points or self.kept)

    @property
    def _integers(self) -> Counter[str]:
        """Operators that compute on integers in the model already, and how many there are of each."""
        return Counter(d.op_type for d in self.decisions if d.op_type.startswith(_INTEGER))

    def why_empty(self) -> str:
        """Why nothing is quantized, for a person."""
        if self._integers:
            nodes = ", ".join(f"{count} {op}" for op, count in self._integers.most_common())
            return f"It computes on integers already ({nodes}): quantize the float model that it was made from."
        reasons = self._reasons_of_layers(5)
        if not reasons:
            return "It holds no Conv, ConvTranspose, Gemm or MatMul."
        return f"Its weighted operators stay in float: {reasons}."

    @property
    def idle(self) -> tuple[str, ...]:
        """What to say of a model that gains no speed: all its layers stay in float, whatever else has pairs."""
        layers = [d for d in self.decisions if d.op_type in _WEIGHTED]
        if self.mode != "static" or self.kept or not layers or any(d.quantized for d in layers):
            return ()
        many = "its one layer stays" if len(layers) == 1 else f"all {len(layers)} layers stay"
        what = "--mode weight-only stores weights alone in few bits; a rule with quantize = true insists on small ones"
        return (f"NO LAYER RUNS IN INT8: {many} in float ({self._reasons_of_layers(3)}). {what}",)

    def _reasons_of_layers(self, most: int) -> str:
        """Why layers stay in float, the most frequent reasons first; empty where none does."""
        found = [r for r in self.reasons() if r[1] in _WEIGHTED]
        return "; ".join(f"{count} {op}: {reason}" for reason, op, count in found[:most])

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for `<output>.plan.json`."""
        return {
            "target": self.target,
            "mode": self.mode,
            **({"bodies": dict(self.modes)} if self.modes else {}),
            "float_type": self.float_type,
            "tensors": {p.tensor: _tensor_dict(p) for p in self.points.values()},
            "weights": [_weight_dict(w) for w in self.weights],
            "nodes": {
                d.node: {"op": d.op_type, "precision": d.precision, "reason": d.reason}
                | ({"macs": d.macs} if d.macs else {})
                for d in self.decisions
            },
            "already_quantized": list(self.kept),
            "notes": [*self.notes, *self.idle, *map(str, self.narrow), *self.remarks],
            **({"interface": _interface_dict(self.interface)} if self.interface else {}),
            **({"judged": _judged_dict(*self.judged, as_written=self.as_written)} if self.judged else {}),
        } | ({"budget": self.budget.to_dict()} if self.budget else {})


_INTEGER = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_WEIGHTED = RECURRENT | {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def _weight_dict(weight: WeightPoint) -> dict[str, Any]:
    said = {"tensor": weight.tensor, "axis": weight.axis, "uses": [list(u) for u in weight.uses]}
    narrow = {"bits": weight.bits, "block_size": weight.block_size, "format": str(weight.format)}
    return said | {key: value for key, value in narrow.items() if value not in (8, None, str(INT8))}


def _judged_dict(sqnr_db: float, samples: int, *, as_written: bool) -> dict[str, Any]:
    return {"sqnr_db": round(sqnr_db, 2), "samples": samples, "as_written": as_written}


def _interface_dict(interface: tuple[Port, ...]) -> dict[str, Any]:
    return {f"{kind}s": {p.name: p.to_dict() for p in interface if p.kind == kind} for kind in ("input", "output")}


def _tensor_dict(point: Point) -> dict[str, Any]:
    said: dict[str, Any] = {"uses": [list(u) for u in point.uses], "observed": point.observe, "group": point.group}
    if point.output:
        said["output"] = True
    if point.also:
        said["also_observed"] = list(point.also)
    if point.params is not None and point.range is not None:
        said |= {
            "range": [float(point.range[0]), float(point.range[1])],
            "scale": point.params.scale.tolist(),
            "zero_point": point.params.zero_point.astype(np.int32).tolist(),
            "dtype": point.params.qtype.dtype,
            "calibrator": point.chosen,
        }
        said |= {} if point.params.axis is None else {"axis": point.params.axis}
        if point.params.qtype == INT8_ASYMMETRIC:  # written as x - shift, see passes/centre_codes.py
            said |= {"zero_point": 0, "shift": -said["zero_point"] * said["scale"]}
    return said
