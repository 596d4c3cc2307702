"""What the command line prints of plans and runs, as text: tables by rich, and the lines below them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnxq.shares import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from onnxq.comparison import Comparison, TensorError
    from onnxq.interface import Port
    from onnxq.inventory import Holding, Inventory
    from onnxq.outcome import Budget, GroupError, Sensitivity
    from onnxq.plan import Plan
    from onnxq.report import Summary
    from onnxq.timing import Stage


def result(plan: Plan, summary: Summary, written: Sequence[Path]) -> Iterator[str]:
    """What was written: the model, then its external data if it has any, which must go where the model goes."""
    if count := len(plan.kept):
        yield f"{'1 tensor was' if count == 1 else f'{count} tensors were'} quantized already, and kept so"
    yield from summary_lines(summary)
    if plan.judged is not None:
        half = "" if plan.as_written or plan.float_type == "float32" else plan.float_type
        yield judged(*plan.judged, half, ends=bool(plan.interface) and not plan.as_written)
    sizes = f"{size(summary.bytes_before)} -> {size(summary.bytes_after)}"
    model, *others = map(str, written)
    yield f"wrote {model} ({sizes}), {', '.join(others)}"
    yield from (f"note: {remark}" for remark in plan.remarks)


def judged(sqnr_db: float, samples: int, half: str = "", *, ends: bool = False) -> str:
    """How near a quantized model is by what judged it; with float32 in place of `half`, and of codes at the `ends`."""
    where = f"at the worst output, on {samples} samples of the calibration data held back to judge"
    wide = [half] * bool(half) + ["inputs and outputs"] * ends
    return f"SQNR {sqnr_db:.1f} dB {where}" + (f", with {' and '.join(wide)} still in float32" if wide else "")


def summary_lines(summary: Summary) -> Iterator[str]:
    """What stays in float and why, what a DLA leaves to the GPU, and how much is quantized."""
    if summary.reasons:
        yield "weighted operators left in float:"
        yield table(("count", "operator", "reason"), [(str(n), op, reason) for reason, op, n in summary.reasons])
    if summary.fallback:
        nodes = ", ".join(f"{count} {op}" for op, count in summary.fallback)
        yield f"not for DLA, falls back to the GPU: {nodes}"
    share = _share(summary)
    yield (
        f"{summary.number}: {share}"
        if summary.computed
        else f"{summary.stored} weights only, all computed in float: {share}"
    )


def _share(summary: Summary) -> str:
    known = summary.sized or summary.mac_share in (0.0, 1.0)  # none and all are so whatever the sizes
    told = "" if known else ", counted with 1 for every size that the model leaves open (--shapes)"
    if known and summary.computed and summary.int8 and summary.mac_share < _LITTLE:
        told = ": hardly any of the work gets faster"
    return f"{summary.int8} of {summary.weighted} weighted operators, {percent(summary.mac_share)} of their MACs{told}"


def decisions(plan: Plan, *, every: bool) -> str:
    """A table of what becomes of the nodes; of those that are int8 or could be, when not of `every` one."""
    shown = [d for d in plan.decisions if every or d.macs or d.quantized]
    rows = [(d.number if d.quantized else "float", d.op_type, d.node, d.reason) for d in shown]
    return table(("precision", "operator", "node", "reason"), rows)


def times(stages: Sequence[Stage]) -> str:
    """Where the time of a run went: its stages, and what they were spent on, of which some ran beside another."""
    total = sum(stage.seconds for stage in stages) or 1.0
    rows: list[tuple[str, str, str]] = []
    for stage in stages:
        rows.append((f"{stage.seconds:.2f}", f"{stage.seconds / total:.0%}", stage.name))
        rows += [(f"{seconds:.2f}", "", f"  of it {part}") for part, seconds in stage.parts if seconds >= _SEEN_S]
    return table(("seconds", "share", "stage"), rows)


_LITTLE = 0.05
"""Share of the multiply-accumulates below which nobody will notice that they are quantized."""

_SEEN_S = 0.005
"""Parts that took less are not printed."""

_OPERATORS = 8
"""Operators that a line names."""

_SHOWN = 30
"""Rows of a long table that are printed unless all are asked for."""


def comparison(found: Comparison, *, every: bool) -> Iterator[str]:
    """The outputs, then the layers, if they were compared, worst first."""
    rows = [(*_error(e), "" if e.top1 is None else percent(e.top1, 2), e.tensor) for e in found.outputs]
    if rows:
        yield table(("SQNR dB", "cosine", "max error", "max value", "top-1", "output"), rows)
    layers = [e for e in found.worst if not e.output]
    if layers:
        shown = layers if every else layers[:_SHOWN]
        yield table(("SQNR dB", "cosine", "max error", "max value", "layer"), [(*_error(e), e.tensor) for e in shown])
        if len(shown) < len(layers):
            yield f"the worst {len(shown)} of {len(layers)} layers; --verbose shows all"
    yield f"over {found.samples} samples"


def _error(error: TensorError) -> tuple[str, ...]:
    return f"{error.sqnr_db:.2f}", f"{error.cosine:.6f}", f"{error.max_abs:.4g}", f"{error.amax:.4g}"


def inventory(found: Inventory, file: str, total: int, *, every: bool) -> Iterator[str]:
    """What a quantized model holds: bytes by type, nodes by precision, scales of tensors; `every` node too."""
    made = f", made by {found.producer}" if found.producer else ""
    yield f"{file}: {size(total)}, opset {found.opset}{made}"
    rows = [(kind, str(count), size(held)) for kind, count, held in found.sizes]
    yield table(("stored as", "constants", "size"), rows)
    yield table(("precision", "nodes", "MACs", "share", "operators"), list(_precisions(found)))
    if every:
        nodes = [(x.precision, x.op_type, f"{x.macs:,}" if x.macs else "", x.name) for x in found.layers]
        yield table(("precision", "operator", "MACs", "node"), nodes)
    if found.tensors:
        shown = found.tensors if every else found.tensors[:_SHOWN]
        header = ("type", "granularity", "scale", "zero point", "size", "tensor", "read by")
        yield table(header, [_holding(tensor, every=every) for tensor in shown])
        if len(shown) < len(found.tensors):
            yield f"{len(shown)} of {len(found.tensors)} quantized tensors; --verbose shows all, and every node"
    if found.quantized:
        counted = "" if found.sized else ", counted with 1 for every size that the model leaves open"
        yield f"quantized: {percent(found.low_share())} of the MACs compute on quantized operands{counted}"
    else:
        yield "nothing in it is quantized"
    yield from interface(found.interface)


def _precisions(found: Inventory) -> Iterator[tuple[str, ...]]:
    work, total = found.macs(), sum(layer.macs for layer in found.layers)
    kinds = Counter(layer.precision for layer in found.layers)
    for kind, count in sorted(kinds.items(), key=lambda item: (-work.get(item[0], 0), -item[1], item[0])):
        ops = Counter(layer.op_type for layer in found.layers if layer.precision == kind).most_common()
        said = ", ".join(f"{n} {op}" for op, n in ops[:_OPERATORS]) + (", ..." if len(ops) > _OPERATORS else "")
        macs = work.get(kind, 0)
        yield kind, str(count), f"{macs:,}" if macs else "", percent(macs / total) if macs else "", said


def _holding(tensor: Holding, *, every: bool) -> tuple[str, ...]:
    scale = "by other nodes" if tensor.weight else "at run time"
    if tensor.low is not None and tensor.high is not None:
        scale = f"{tensor.low:.4g}" if tensor.scales == 1 else f"{tensor.low:.4g} to {tensor.high:.4g}"
    form = tensor.granularity if tensor.scales <= 1 else f"{tensor.granularity}: {tensor.scales}"
    held = size(tensor.size) if tensor.size else ""
    unknown = "varies" if tensor.scales else ""
    zero = unknown if tensor.zero_point is None else str(tensor.zero_point)
    readers = tensor.readers if every else tensor.readers[:1]
    more = f" and {len(tensor.readers) - len(readers)} more" if len(readers) < len(tensor.readers) else ""
    name = tensor.tensor if not tensor.shift else f"{tensor.tensor} = {tensor.stands_for} {tensor.shift:+.4g}"
    return tensor.kind, form, scale, zero, held, name, ", ".join(readers) + more


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headers, as wide as the terminal, or 160 characters where there is none."""
    from rich.box import SIMPLE_HEAD  # noqa: TID251  behind the wall, where it is needed
    from rich.console import Console  # noqa: TID251  likewise
    from rich.table import Table  # noqa: TID251  likewise
    from rich.text import Text  # noqa: TID251  likewise

    made = Table(*header, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell, overflow="fold") for cell in row))
    console = Console()
    console.width = console.width if console.is_terminal else 160
    with console.capture() as captured:
        console.print(made)
    return captured.get().removesuffix("\n")


def size(count: int) -> str:
    """Bytes as text: `12.3 kB` or `4.56 MB`."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def sensitivity(found: Sensitivity, *, every: bool) -> Iterator[str]:
    """The groups, the one that costs most first; 30 of them when not `every` one."""
    shown = found.worst if every else found.worst[:_SHOWN]
    rows = [(_cost(g), _db(g.own_db), _db(g.accumulated_db), percent(g.share), _group(g.nodes)) for g in shown]
    yield table(("at outputs dB", "own dB", "accumulated dB", "MACs", "group"), rows)
    more = f"; {len(found.groups)} groups, --verbose for all" if len(shown) < len(found.groups) else ""
    yield f"all quantized: {_db(found.int8_db)} dB, over {found.samples} samples that did not calibrate{more}"
    yield "at outputs: only this group quantized, SQNR of the model; own: of its layers; accumulated: all quantized"
    if any(g.together > 1 for g in found.groups):
        alone = sum(g.together == 1 for g in found.groups)
        yield "~ of N: an estimate: N groups next to each other were measured together; its share, by own errors"
        yield f"{alone} of {len(found.groups)} groups were measured alone: those that make most of the noise"


def interface(found: Sequence[Port]) -> Iterator[str]:
    """What the numbers of integer inputs and outputs mean."""
    for port in found:
        number = f"{port.kind} {port.name}: {port.dtype}, scale {port.scale:.9g}, zero point {port.zero_point}"
        how = "q = round(x / scale) + zero point" if port.kind == "input" else "y = (q - zero point) * scale"
        yield f"{number}; {how}"


def budget(found: Budget) -> Iterator[str]:
    """What was tried, what went back to float and why, and how the budget holds."""
    times = any(t.latency is not None for t in found.pareto)
    guesses = next((t.predicted for t in found.pareto if t.predicted is not None), None)
    if found.reverted or times:
        drops = any(t.drop is not None for t in found.pareto)
        timed = ("time / float (quartiles)",) if times else () if guesses is None else ("predicted time / fp16",)
        columns = ("drop",) if drops else (), timed
        header = ("SQNR dB", *columns[0], "MACs quantized", *columns[1], "groups in float", "")
        rows = [
            (
                _db(t.sqnr_db),
                *((f"{t.drop:.4g}",) if drops and t.drop is not None else ()),
                percent(t.mac_share, 2),
                *((str(t.latency if times else t.predicted),) if timed else ()),
                str(len(t.reverted)),
                "; ".join(f"held back: {v}" for v in t.verdicts),
            )
            for t in found.pareto
        ]
        yield "what the search found (Pareto: no other choice has both more quantized and less error):"
        yield table(header, rows)
        if guesses is not None:
            yield f"predicted, not measured: by the peak rates of an {guesses.gpu}, of layers with MACs alone"
    if found.reverted:
        yield "back in float for the budget:"
        yield table(("group", "reason"), [(_group(r.nodes), r.reason) for r in found.reverted])
    for verdict in found.verdicts:
        yield f"{verdict.goal} holds: {verdict} on {found.held_back} held-back samples"
    if found.of_calibration:
        yield "they are of the calibration data; on what the network was not trained on it may be less (--eval-data)"


def _group(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more"


def _cost(group: GroupError) -> str:
    said = _db(group.output_db)
    return said if group.together == 1 else f"~ {said} of {group.together}"


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
