"""What a measurement of sensitivity and a search within a budget found: plain values, for the plan and for pages."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onnxq.shares import percent


@dataclass(frozen=True)
class GroupError:
    """What one group of layers costs quantized.

    Attributes:
        name: the group's first layer.
        nodes: its layers, which turn to float together.
        macs: their multiply-accumulates.
        share: those of the whole model's, 0 to 1.
        own_db: SQNR at the layers' outputs with only this group quantized, the worst of them; None where
            the quantized graph has no such tensor.
        output_db: SQNR at the model's outputs with only this group quantized, the worst of them; inf when equal.
        accumulated_db: SQNR at the layers' outputs with every group quantized; None as above.
        ratios: noise over signal of each float output with only this group quantized, as `output_db`.
        together: how many groups it was measured with, itself among them. Where that is not 1, `output_db` and
            `ratios` are an estimate: its share, by the groups' own errors, of what they make together.
    """

    name: str
    nodes: tuple[str, ...]
    macs: int
    share: float
    own_db: float | None
    output_db: float
    accumulated_db: float | None
    ratios: tuple[float, ...] = ()
    together: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is infinite is None. `together` is left out where it is 1."""
        return _alone(_finite(asdict(self)))


@dataclass(frozen=True)
class Sensitivity:
    """What each group of layers costs, in the model's order.

    Attributes:
        groups: one entry a group.
        samples: how many samples it was measured on, none of which calibrated.
        int8_db: SQNR of the model with every group quantized, its worst output.
        passes: forward passes over these samples that it took; results read from an earlier run took none.
    """

    groups: tuple[GroupError, ...]
    samples: int
    int8_db: float
    passes: int

    @property
    def worst(self) -> tuple[GroupError, ...]:
        """The groups, the one that costs the model's outputs most first."""
        return tuple(sorted(self.groups, key=lambda g: (g.output_db, g.name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, worst first; what is infinite is None."""
        head = {"samples": self.samples, "int8_db": self.int8_db, "passes": self.passes}
        return _finite(head) | {"groups": [g.to_dict() for g in self.worst]}


@dataclass(frozen=True)
class Verdict:
    """What the held-back samples say of one goal.

    Attributes:
        goal: the goal in words.
        value: what was measured.
        bound: where `value` may truly lie, on its bad side, with 99 % confidence.
        met: whether the bound holds the goal.
        unit: of both numbers; empty for a metric's drop.
    """

    goal: str
    value: float
    bound: float
    met: bool
    unit: str = "dB"

    def __str__(self) -> str:
        said = f"{self.value:.4g} {self.unit}".strip()
        if self.bound == self.value:  # nothing varied from sample to sample, which is no proof
            return said
        return f"{said} (99 % sure: {'>=' if self.bound < self.value else '<='} {self.bound:.4g})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is infinite is None."""
        return _finite(asdict(self))


@dataclass(frozen=True)
class Latency:
    """Latency over that of the float model, from runs in turns: the median of the one over the median of the other.

    low and high are the quartiles of the quantized model's runs over the float model's median.
    """

    ratio: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Prediction:
    """Time over that of the model in float16, by the peak rates of a GPU and not by any run."""

    ratio: float
    gpu: str

    def __str__(self) -> str:
        return f"{self.ratio:.2f}"


@dataclass(frozen=True)
class Tried:
    """One choice of groups in float that was measured.

    Attributes:
        reverted: names of the groups in float, with the format of weights that stay narrow.
        mac_share: share of the multiply-accumulates that stay quantized, 0 to 1.
        sqnr_db: SQNR on the samples that the search goes by.
        drop: how much the metric fell there, in the budget's terms; None without a metric.
        verdicts: what the held-back samples said of it, where they were asked.
        latency: of the model in the form that is shipped, where that was asked for.
        predicted: its time on a GPU by the roofline, where that is what the target is for.
    """

    reverted: tuple[str, ...]
    mac_share: float
    sqnr_db: float
    drop: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    latency: Latency | None = None
    predicted: Prediction | None = None

    @property
    def met(self) -> bool:
        """Whether the held-back samples confirmed it."""
        return bool(self.verdicts) and all(v.met for v in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is infinite is None."""
        return _finite(asdict(self)) | {"verdicts": [v.to_dict() for v in self.verdicts], "met": self.met}


@dataclass(frozen=True)
class Reverted:
    """A group that a budget sent back to float.

    Attributes:
        name: the group's first layer.
        nodes: its layers.
        share: of the model's multiply-accumulates, 0 to 1.
        output_db: SQNR of the model with only this group quantized, on the samples that the search goes by.
        weights: the format that its weights keep; empty for float.
        together: as in `GroupError`; where that is not 1, `output_db` is an estimate.
    """

    name: str
    nodes: tuple[str, ...]
    share: float
    output_db: float
    weights: str = ""
    together: int = 1

    @property
    def reason(self) -> str:
        """Why, for a person."""
        kept = f"; its weights stay, in {self.weights}" if self.weights else ""
        left = f"leaves the model {self.output_db:.1f} dB"
        if self.together > 1:
            left = f"is taken to leave the model {self.output_db:.1f} dB, measured with {self.together - 1} next to it"
        return f"quantized alone it {left}, for {percent(self.share)} of the MACs{kept}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is infinite is None."""
        return _alone(_finite(asdict(self))) | {"reason": self.reason}


@dataclass(frozen=True)
class Budget:
    """How a budget was kept.

    Attributes:
        verdicts: of each goal, on the held-back samples.
        held_back: how many samples those were.
        reverted: the groups in float, the most harmful for its MACs first.
        mac_share: share of the multiply-accumulates left quantized, 0 to 1.
        tried: every choice of groups that was measured, most quantized first.
        sensitivity: what each group costs; None when everything could stay quantized.
        of_calibration: whether the held-back samples are a part of the calibration data, not evaluation data.
    """

    verdicts: tuple[Verdict, ...]
    held_back: int
    reverted: tuple[Reverted, ...]
    mac_share: float
    tried: tuple[Tried, ...]
    sensitivity: Sensitivity | None = None
    of_calibration: bool = False

    @property
    def pareto(self) -> tuple[Tried, ...]:
        """Those tried that no other beats both in MACs and in SQNR, most quantized first."""
        found: list[Tried] = []
        for one in sorted(self.tried, key=lambda t: (-t.mac_share, -t.sqnr_db)):
            if not found or one.sqnr_db > found[-1].sqnr_db:
                found.append(one)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the plan's file."""
        return {
            "goals": [v.to_dict() for v in self.verdicts],
            "held_back_samples": self.held_back,
            "of_calibration_data": self.of_calibration,
            "mac_share_int8": self.mac_share,
            "reverted": [r.to_dict() for r in self.reverted],
            "pareto": [t.to_dict() for t in self.pareto],
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }


def _finite(table: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities."""
    return {k: _plain(v) for k, v in table.items()}


def _alone(table: dict[str, Any]) -> dict[str, Any]:
    """Nothing said of others where there were none."""
    return {k: v for k, v in table.items() if (k, v) != ("together", 1)}


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a field holds
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
