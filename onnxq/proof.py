"""Proof: what ONNX Runtime really runs of a quantized model, node by node, after its own optimizations.

The optimizer of the provider writes its result; that file is read here, and run as it stands for the times.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq.errors import ModelError
from onnxq.executed import Executed, bodies, every_node, executed
from onnxq.outcome import Latency
from onnxq.runtime import PROVIDERS, Session
from onnxq.scratch import Scratch
from onnxq.shares import percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from onnx import ModelProto

    Feed = Mapping[str, npt.NDArray[Any]]

WARM, RUNS = 3, 20
"""Runs before the clock counts, and runs that count."""


@dataclass(frozen=True)
class Proof:
    """What runs, in execution order.

    Attributes:
        provider: ONNX Runtime's name of where it was optimized for.
        nodes: those of the optimized model.
        shares: node name -> share of the time of all nodes.
        latency: against the float model, where that was asked for.
        elsewhere: node name -> the provider that ran it, where it is another one.
    """

    provider: str
    nodes: tuple[Executed, ...]
    shares: Mapping[str, float]
    latency: Latency | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> tuple[Executed, ...]:
        """Nodes that all of their inputs say are int8, and that run in float all the same."""
        return tuple(node for node in self.nodes if node.lost)

    @property
    def legal(self) -> bool:
        """Whether nothing that is quantized runs in float."""
        return not self.lost

    def mac_share(self) -> float:
        """Share of the multiply-accumulates in integer kernels; 0 when there are none."""
        total = sum(node.macs for node in self.nodes)
        return sum(n.macs for n in self.nodes if n.runs == "integer") / total if total else 0.0

    def groups(self) -> list[tuple[str, str, int, int, float]]:
        """(how it runs, op type, nodes, MACs, share of time), integers first, then by time."""
        found: dict[tuple[str, str], list[Executed]] = {}
        for node in self.nodes:
            found.setdefault((node.runs, "..." if node.runs == "not run" else node.op_type), []).append(node)
        rows = [
            (runs, op, len(members), sum(n.macs for n in members), sum(self.shares.get(n.name, 0.0) for n in members))
            for (runs, op), members in found.items()
        ]
        order = ("integer", "moves int8", "int8 weight", "conversion", "float behind DQ", "float", "other", "not run")
        return sorted(rows, key=lambda row: (order.index(row[0]), -row[4], -row[3], row[1]))

    def to_dict(self) -> dict[str, Any]:
        """The proof as plain values: {summary, nodes}."""
        summary = {"provider": self.provider, "lost": [n.name for n in self.lost], "mac_share": self.mac_share()}
        latency = None if self.latency is None else asdict(self.latency)
        nodes = [
            asdict(node)
            | {"time_share": self.shares.get(node.name)}
            | ({"provider": self.elsewhere[node.name]} if node.name in self.elsewhere else {})
            for node in self.nodes
        ]
        return {"summary": summary | {"latency": latency}, "nodes": nodes}


def prove(
    model: Path, feed: Feed, *, provider: str = "cpu", reference: Path | None = None, floats: Feed | None = None
) -> Proof:
    """Optimize the model for a provider, run it, and report what runs.

    Args:
        model: the quantized model.
        feed: what it is run on.
        provider: "cpu" or "cuda".
        reference: the float model, for the latency ratio.
        floats: what that is run on, where it is not the same feed.

    Raises:
        ModelError: ONNX Runtime cannot load a model.
        DataError: it fails on the feed.
    """
    import onnx

    with Scratch() as folder:
        written = folder / "optimized.onnx"
        Session(model, (provider,), as_deployed=True, write_to=written)
        try:
            proto = onnx.load(str(written))
        except OSError as error:
            raise ModelError(f"ONNX Runtime wrote no optimized model of {model}", "Is it larger than 2 GB?") from error
        _without_axis(proto)
        known = {node.name for node in every_node(onnx.load(str(model), load_external_data=False).graph)}
        inserted = set()
        for index, node in enumerate(every_node(proto.graph)):
            own = node.name in known
            node.name = f"{index}:{node.name or node.op_type}"  # the profile knows nodes by name only
            inserted |= set() if own else {node.name}
        events = _profile(proto.SerializeToString(), provider, feed, folder)
    nodes = executed(proto, _seen(proto, events, feed), inserted)
    holders = {node.name for node in every_node(proto.graph) if bodies(node)}  # their time is that of what they hold
    latency = None if reference is None else measure(reference, model, feed, provider=provider, floats=floats)
    return Proof(
        provider, nodes, _shares([e for e in events if e["name"] not in holders]), latency, _elsewhere(events, provider)
    )


def measure(
    reference: Path,
    model: Path,
    feed: Feed,
    *,
    provider: str = "cpu",
    runs: int = RUNS,
    floats: Feed | None = None,
    custom_ops: Sequence[str] = (),
) -> Latency:
    """Latency of the model over that of the reference; the two run in turns, so that both see the same machine.

    `floats` is what the reference is run on, where that is not the same feed; `custom_ops` are libraries of both.

    Raises:
        ModelError: ONNX Runtime cannot load a model.
        DataError: it fails on the feed.
    """
    sessions = tuple(Session(each, (provider,), as_deployed=True, custom_ops=custom_ops) for each in (reference, model))
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(WARM + runs):
        for session, own, mine in zip(sessions, (floats or feed, feed), times, strict=True):
            begun = time.perf_counter()
            session.run(own)
            if index >= WARM:
                mine.append(time.perf_counter() - begun)
    base = statistics.median(times[0])
    low, middle, high = statistics.quantiles(times[1], n=4)
    return Latency(middle / base, low / base, high / base, runs)


def _without_axis(model: ModelProto) -> None:
    """Take `axis` off Q and DQ below opset 13, where there is none: ONNX Runtime writes it, and refuses to read it."""
    if next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 13) >= 13:
        return
    for node in every_node(model.graph):
        if node.domain in {"", "ai.onnx"} and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            kept = [each for each in node.attribute if each.name != "axis"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _profile(model: bytes, provider: str, feed: Feed, folder: Path) -> list[dict[str, Any]]:
    """Node events of some runs, a node's name as `name`. The model is optimized already, and runs as it stands."""
    session = Session(model, (provider,), optimize=False, as_deployed=True, profile_to=folder / "profile")
    for _ in range(WARM + RUNS):
        session.run(feed)
    suffix = "_kernel_time"
    return [
        event | {"name": event["name"].removesuffix(suffix)}
        for event in json.loads(session.end_profile().read_text())
        if event.get("cat") == "Node" and event["name"].endswith(suffix)
    ]


def _seen(model: ModelProto, events: Sequence[Mapping[str, Any]], feed: Feed) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Activation -> (element type in ONNX Runtime's words, shape)."""
    names = {"float32": "float", "float64": "double"}
    found = {name: (names.get(array.dtype.name, array.dtype.name), array.shape) for name, array in feed.items()}
    outputs = {node.name: [name for name in node.output if name] for node in every_node(model.graph)}
    for event in events:
        made = [next(iter(one.items())) for one in event["args"].get("output_type_shape", ()) if one]
        for tensor, (kind, shape) in zip(outputs.get(event["name"], ()), made, strict=False):
            found[tensor] = (kind, tuple(shape))
    return found


def _shares(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Node -> share of the time. Of a node's runs the median counts: one that was interrupted says nothing."""
    spent: dict[str, list[float]] = {}
    for event in events:
        spent.setdefault(event["name"], []).append(float(event["dur"]))
    medians = {name: statistics.median(each) for name, each in spent.items()}
    total = sum(medians.values())
    return {name: micros / total for name, micros in medians.items()} if total else {}


def _elsewhere(events: Sequence[Mapping[str, Any]], provider: str) -> dict[str, str]:
    """Node -> the provider that ran it, where that is not the one it was optimized for."""
    ran = {e["name"]: str(e["args"].get("provider", PROVIDERS[provider])) for e in events}
    return {name: where for name, where in ran.items() if where != PROVIDERS[provider]}


# -- in words --------------------------------------------------------------------------------------------------

HEADER = ("runs as", "operator", "nodes", "MACs", "time")


def rows(proof: Proof, *, every: bool = False) -> list[tuple[str, str, str, str, str]]:
    """The cells of a table: a row for each kind of node, or for each node with `every`."""
    if every:
        found = [(n.runs, n.op_type, n.name, n.macs, proof.shares.get(n.name, 0.0)) for n in proof.nodes]
    else:
        found = [(runs, op, str(count), macs, share) for runs, op, count, macs, share in proof.groups()]
    total = sum(node.macs for node in proof.nodes) or 1
    return [
        (runs, op, who, percent(macs / total) if macs else "", percent(share)) for runs, op, who, macs, share in found
    ]


def lines(proof: Proof) -> list[str]:
    """What was lost, and the sums."""
    said = [f"lost: {n.name} ({n.op_type}) is between Q/DQ pairs, but runs in float" for n in proof.lost]
    for where in dict.fromkeys(proof.elsewhere.values()):
        fell = [n for n in proof.nodes if proof.elsewhere.get(n.name) == where]
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(n.op_type for n in fell).items())
        said.append(f"on {where}: {kinds}")
    said.append(
        f"{percent(proof.mac_share())} of the multiply-accumulates in integer kernels, {len(proof.lost)} nodes lost"
    )
    if not proof.mac_share() and any(node.op_type == "QuantizeLinear" for node in proof.nodes):
        said.append(f"what --target ort-{proof.provider} writes has the form that runs as integers here; this has not")
    if (ratio := proof.latency) is not None:
        quartiles = f"{ratio.low:.2f} to {ratio.high:.2f}"
        said.append(
            f"latency {ratio.ratio:.3f} of the float model's (quartiles {quartiles}, {ratio.runs} runs in turns)"
        )
    return said
