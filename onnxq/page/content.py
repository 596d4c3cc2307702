"""What a report page tells, as one value: gathered from an inventory, a comparison, a plan and histograms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq.histogram import Histogram
from onnxq.inventory import is_low
from onnxq.numerics import INT8, INT8_ASYMMETRIC, UINT8
from onnxq.page.budget import search_of
from onnxq.page.histograms import drawn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from onnxq.comparison import Comparison, TensorError
    from onnxq.inventory import Holding, Inventory
    from onnxq.numerics import QType, Range
    from onnxq.page.budget import Search
    from onnxq.page.histograms import Drawn

MOST_LAYERS = 4000
MOST_HISTOGRAMS = 400
"""Of longer lists the worst are shown, and the page says how many are left out: it stays below 3 MB."""

MOST_REASONS = 200
NOTHING = Histogram.empty()


@dataclass(frozen=True)
class Row:
    """One layer: a node of the quantized model, with the error of what it makes.

    `order` is its place in the model, `error` None where it was not compared, `reason` the plan's, empty without one.
    """

    order: int
    name: str
    op_type: str
    precision: str
    macs: int
    tensor: str
    error: TensorError | None
    reason: str


@dataclass(frozen=True)
class Picture:
    """A quantized tensor with its histogram; `chosen` names the calibrator of its range, where the plan says it."""

    tensor: str
    kind: str
    readers: tuple[str, ...]
    drawn: Drawn
    chosen: str = ""


@dataclass(frozen=True)
class Reason:
    """Why nodes stay in float: how many of which operators, and the multiply-accumulates of them all."""

    text: str
    nodes: int
    macs: int
    operators: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Content:
    """The whole page.

    Attributes:
        title: the quantized model's file name.
        reference: the float model's.
        bytes_before: size of the float model with its external data.
        bytes_after: of the quantized one.
        low_share: share of MACs on quantized operands.
        macs: precision -> multiply-accumulates.
        outputs: errors of the model outputs, worst first; empty where nothing was measured.
        measured: on what, as a sentence.
        rows: the layers in graph order, of very many the worst.
        all_rows: how many layers there are.
        pictures: histograms, in graph order.
        all_pictures: how many there are.
        search: what a search for a budget found.
        reasons: what stays in float, by reason, the most work first.
        notes: what the plan notes.
        target: the target, "" when not known.
        recipe: the recipe as TOML.
    """

    title: str
    reference: str
    bytes_before: int
    bytes_after: int
    low_share: float
    macs: Mapping[str, int]
    outputs: tuple[TensorError, ...]
    measured: str
    rows: tuple[Row, ...]
    all_rows: int
    pictures: tuple[Picture, ...]
    all_pictures: int
    search: Search
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    target: str = ""
    recipe: str = ""

    @property
    def weights_only(self) -> bool:
        """Whether there are nodes that read narrow weights and compute in float."""
        return any("weight" in kind for kind in self.macs)


@dataclass(frozen=True)
class Files:
    """Names and sizes of the two models."""

    reference: str
    quantized: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Known:
    """What is known beside the quantized model, as far as it is.

    Attributes:
        plan: the plan as `<output>.plan.json` has it.
        histograms: tensor -> histogram of its values in the float model.
        measured: on what the errors were measured, as a sentence.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    measured: str = ""


def gather(files: Files, stock: Inventory, found: Comparison | None, known: Known = Known()) -> Content:
    """Bring together what the page tells."""
    nodes: Mapping[str, Any] = known.plan.get("nodes") or {}
    rows = list(_rows(stock, found, {name: str(node.get("reason", "")) for name, node in nodes.items()}))
    drawable = [t for t in stock.tensors if not t.weight and known.histograms.get(t.stands_for, NOTHING).amax > 0]
    return Content(
        title=files.quantized,
        reference=files.reference,
        bytes_before=files.bytes_before,
        bytes_after=files.bytes_after,
        low_share=stock.low_share(),
        macs=stock.macs(),
        outputs=() if found is None else found.outputs,
        measured=known.measured,
        rows=tuple(sorted(sorted(rows, key=_badness)[:MOST_LAYERS], key=lambda row: row.order)),
        all_rows=len(rows),
        pictures=tuple(_pictures(drawable[:MOST_HISTOGRAMS], known)),
        all_pictures=len(drawable),
        search=search_of(known.plan),
        reasons=tuple(_reasons(nodes.values())[:MOST_REASONS]),
        notes=tuple(str(note) for note in known.plan.get("notes", ())),
        target=str(known.plan.get("target", "")),
        recipe=str(known.plan.get("recipe", "")),
    )


def _rows(stock: Inventory, found: Comparison | None, reasons: Mapping[str, str]) -> Iterator[Row]:
    """The layers; behind them tensors that were compared and that no layer in float makes, as integer operators' do."""
    errors = {} if found is None else {e.tensor: e for e in found.errors}
    for order, layer in enumerate(stock.layers):
        made = [errors.pop(name) for name in layer.outputs if name in errors]
        error = min(made, key=lambda e: (not e.output, e.sqnr_db), default=None)
        tensor = layer.outputs[0] if error is None else error.tensor
        reason = reasons.get(layer.name, "")
        yield Row(order, layer.name, layer.op_type, layer.precision, layer.macs, tensor, error, reason)
    for order, (tensor, error) in enumerate(errors.items(), len(stock.layers)):
        yield Row(order, tensor, "", "unknown", 0, tensor, error, "")


def _badness(row: Row) -> tuple[float, int]:
    """Worst first: by error, then by work."""
    return (math.inf if row.error is None else row.error.sqnr_db, -row.macs)


def _pictures(tensors: Iterable[Holding], known: Known) -> Iterator[Picture]:
    planned = known.plan.get("tensors")
    for tensor in tensors:
        picture = drawn(known.histograms[tensor.stands_for], _qtype(tensor), _used(tensor))
        said = planned.get(tensor.stands_for) if isinstance(planned, dict) else None
        chosen = str(said.get("calibrator") or "") if isinstance(said, dict) else ""
        if picture is not None:
            yield Picture(tensor.stands_for, tensor.kind, tensor.readers, picture, chosen)


def _qtype(tensor: Holding) -> QType | None:
    """The grid that calibrators choose a range for; None for types that they do not know."""
    if tensor.kind == "int8":
        return INT8 if tensor.zero_point == 0 and not tensor.shift else INT8_ASYMMETRIC
    return UINT8 if tensor.kind == "uint8" else None


def _used(tensor: Holding) -> Range | None:
    """The range that the model's one scale covers."""
    qtype = _qtype(tensor)
    if qtype is None or tensor.scales != 1 or tensor.zero_point is None:
        return None
    if tensor.low is None or not math.isfinite(tensor.low) or tensor.low <= 0:
        return None
    if qtype.symmetric:
        return -qtype.qmax * tensor.low, qtype.qmax * tensor.low
    low, high = ((limit - tensor.zero_point) * tensor.low for limit in (qtype.qmin, qtype.qmax))
    return low - tensor.shift, high - tensor.shift


def _reasons(nodes: Iterable[Mapping[str, Any]]) -> list[Reason]:
    operators: dict[str, Counter[str]] = {}
    work: Counter[str] = Counter()
    for node in nodes:
        if not is_low(str(node.get("precision", "unknown"))):
            reason, macs = str(node.get("reason", "")), node.get("macs", 0)
            operators.setdefault(reason, Counter())[str(node.get("op", ""))] += 1
            work[reason] += macs if isinstance(macs, int) else 0
    made = [
        Reason(reason, counts.total(), work[reason], tuple(sorted(counts.items(), key=lambda c: (-c[1], c[0]))))
        for reason, counts in operators.items()
    ]
    return sorted(made, key=lambda r: (-r.macs, -r.nodes, r.text))
