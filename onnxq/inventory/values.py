"""What is found in a model, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onnxq.dtypes import FLOATS
from onnxq.inventory.types import NAMES

if TYPE_CHECKING:
    from onnxq.interface import Port


@dataclass(frozen=True)
class Holding:
    """One quantized tensor.

    Attributes:
        tensor: its name; of a pair, that of what goes into the QuantizeLinear.
        kind: the type of its codes.
        weight: whether it is a constant.
        granularity: "per tensor", "per channel, axis 0" or "blocks of 32, axis 0"; "codes" of a weight that other
            operators than DequantizeLinear make of them.
        scales: how many scales it has; 0 where the graph computes them.
        low: the smallest scale; None when there is none to read.
        high: the largest.
        zero_point: the zero point where all are the same, else None.
        size: stored bytes; 0 for activations, and for weights that are stored in float.
        readers: labels of the nodes that read it quantized.
        stands_for: the float model's tensor that it is with a constant added; else its own name.
        shift: that constant.
    """

    tensor: str
    kind: str
    weight: bool
    granularity: str
    scales: int
    low: float | None
    high: float | None
    zero_point: int | None
    size: int = 0
    readers: tuple[str, ...] = ()
    stands_for: str = ""
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.stands_for:
            object.__setattr__(self, "stands_for", self.tensor)


@dataclass(frozen=True)
class Layer:
    """One node that computes; Q, DQ and conversions between float types are left out.

    Attributes:
        name: its name, or that of its output.
        op_type: its operator.
        precision: "int8", "fp8 (e4m3)", ... when it computes in it; "int8 weight" when it computes in float; else the
            float type, "unknown" when nothing tells it.
        macs: multiply-accumulates of one run, dimensions that are not known counted as 1.
        outputs: names of the tensors it makes, and behind them those that are the same in another float type, and of
            the float model's tensors those for which they stand, shifted or smoothed.
    """

    name: str
    op_type: str
    precision: str
    macs: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """All of it; nodes and tensors in graph order, bodies of If, Loop and Scan behind the graph that holds them."""

    producer: str
    opset: int
    layers: tuple[Layer, ...]
    tensors: tuple[Holding, ...]
    sizes: tuple[tuple[str, int, int], ...]
    """(type, tensors, bytes) of the constants, the most bytes first."""
    interface: tuple[Port, ...] = ()
    """Inputs and outputs that are codes, with their scales."""
    sized: bool = True
    """Whether sizes of all inputs are known, batches aside; where not, shares of the work tell little."""

    @property
    def quantized(self) -> bool:
        """Whether anything in it is."""
        return bool(self.tensors) or any(is_low(layer.precision) for layer in self.layers)

    def macs(self) -> dict[str, int]:
        """Precision -> multiply-accumulates, most first."""
        counts: Counter[str] = Counter()
        for layer in self.layers:
            counts[layer.precision] += layer.macs
        return {kind: count for kind, count in counts.most_common() if count}

    def low_share(self) -> float:
        """Share of the multiply-accumulates that compute on quantized operands; 0 when there are none."""
        counts = self.macs()
        total = sum(counts.values())
        return sum(count for kind, count in counts.items() if is_low(kind)) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The inventory as plain values."""
        return {
            "producer": self.producer,
            "opset": self.opset,
            "macs": self.macs(),
            "sizes": [{"type": kind, "tensors": count, "bytes": size} for kind, count, size in self.sizes],
            "nodes": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "interface": [asdict(port) for port in self.interface],
        }


def is_low(precision: str) -> bool:
    """Whether a node of this precision computes on quantized operands."""
    return precision not in {NAMES[kind] for kind in FLOATS} | {"float64", "unknown"} and "weight" not in precision
