"""Where NVIDIA ModelOpt puts Q/DQ pairs and onnxq does not, and the other way round, as a table for docs/placement.md.

    python scripts/compare_placement.py [MODEL ...]      quantize with both, print the tables

Models: those of scripts/export_architectures.py and scripts/export_minilm.py, and models/digits. Both tools get a copy
with its free dimensions fixed, in .cache/peers/placement; the originals are only read. ModelOpt runs in the
environment that `python scripts/peers.py modelopt` makes, once a model: what is there is kept.

A use is one input of one node; it counts as quantized when a per-tensor Q/DQ pair of an activation makes it. What is
not quantized stays fp32 with both. Digits and MiniLM are calibrated with each tool's default on their calibration
sets, the architectures with random weights by minmax on invented samples. "cost" is the SQNR that onnxq's model loses
when it quantizes a pattern's uses as well, with onnxq's own ranges, over held-out samples (real tokens only).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import peers
from subjects import ROOT, SUBJECTS, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onnxq.api import Prepared
    from onnxq.graph import Graph, Node
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe, Rule

OUT = ROOT / ".cache" / "peers" / "placement"
BATCH, SAMPLES = 4, 64
PAIR = ("QuantizeLinear", "DequantizeLinear")
Feed = dict[str, npt.NDArray[Any]]


BATCHES = {"digits": 64}  # samples of a batch; BATCH with the others
NAMES = ("digits", "glyphs", "ocr_rec", "resnet50", "mobilenet_v2", "vit_b16", "bert_base", "minilm")


def calibration(name: str) -> Feed:
    """All calibration samples, stacked, texts padded to one length."""
    return stacked(SUBJECTS[name].calibration(SAMPLES))


def held_out(name: str) -> Feed:
    """Samples that no tool was calibrated on."""
    feed = stacked(SUBJECTS[name].unseen())
    return {key: array[-SAMPLES:] for key, array in feed.items()}


def batches(name: str, feed: Feed) -> Iterator[Feed]:
    """The samples in whole batches of the model's size."""
    size = BATCHES.get(name, BATCH)
    count = len(next(iter(feed.values())))
    for start in range(0, count - size + 1, size):
        yield {k: v[start : start + size] for k, v in feed.items()}


def fixed(name: str) -> Path:
    """A copy of the model whose inputs have the subject's sizes."""
    import onnx

    path = OUT / f"{name}.float.onnx"
    if not path.exists():
        model = onnx.load(SUBJECTS[name].path)
        one = next(batches(name, calibration(name)))
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, one[value.name].shape, strict=True):
                dim.Clear()
                dim.dim_value = size
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        onnx.save_model(onnx.shape_inference.infer_shapes(model), path)
    return path


# -- the two tools ------------------------------------------------------------------------------------------


def peer(name: str) -> None:
    """Quantize with ModelOpt; runs inside its environment."""
    peers.modelopt(
        fixed(name),
        list(batches(name, calibration(name))),
        OUT / f"{name}.modelopt.onnx",
        calibration_method="max" if SUBJECTS[name].invented else "entropy",
        high_precision_dtype="fp32",
    )
    print(f"{name}: ModelOpt {version('nvidia-modelopt')}")


def with_uses(plan: Plan, graph: Graph, uses: list[tuple[str, int]]) -> Plan:
    """The plan with more quantized uses, each tensor with a scale of its own."""
    from onnxq.plan import Point

    nodes = {str(n.name): n for n in graph.nodes}
    points = dict(plan.points)
    for node, index in uses:
        if node in nodes and (value := nodes[node].inputs[index]) is not None:
            name = str(value.name)
            point = points.get(name, Point(name, (), name, name))
            points[name] = replace(point, uses=(*point.uses, (node, index)))
    return replace(plan, points=points)


# -- what is quantized --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One quantized input of a node: the node, the position, and which of the patterns of PATTERNS it belongs to."""

    node: str
    index: int
    pattern: str


def quantized_uses(graph: Graph, labels: dict[str, str]) -> dict[tuple[str, int], Use]:
    """Every use of an activation that arrives through a per-tensor Q/DQ pair. `labels`: node -> its composite."""
    found = {}
    for node in graph.nodes:
        for index, value in enumerate(node.inputs):
            quantize = graph.producer(_input(graph.producer(value, "DequantizeLinear")), "QuantizeLinear")
            source = _input(quantize)
            if source is not None and not graph.is_const(source):
                kind = labels.get(str(node.name), "")
                found[str(node.name), index] = Use(str(node.name), index, _pattern(graph, node, kind))
    return found


def _input(node: Node | None) -> Any:  # noqa: ANN401  a Value, which only the graph package names
    return None if node is None else node.inputs[0]


def _pattern(graph: Graph, node: Node, kind: str) -> str:
    """What the use is about, in words that the table prints."""
    if node.op_type == "MatMul" and kind == "Softmax attention":
        return "attention products"
    if node.op_type == "Mul" and kind == "squeeze-excite":
        return "squeeze-excite gate"
    if node.op_type == "Add":
        return "residual Add" if _behind(graph, node) == "Conv" else "residual Add behind a MatMul"
    return {"Shape": "Shape", "Conv": "Conv", "Gemm": "MatMul, Gemm", "MatMul": "MatMul, Gemm"}.get(
        node.op_type, node.op_type
    )


def _behind(graph: Graph, node: Node) -> str:
    """Which of Conv and MatMul is nearest above one of the node's inputs, pairs and constant operands aside."""
    for value in node.inputs:
        maker = graph.producer(value)
        while maker is not None and maker.op_type in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Add",
            "BatchNormalization",
        ):
            maker = graph.producer(next((v for v in maker.inputs if not graph.is_const(v)), None))
        if maker is not None and maker.op_type in ("Conv", "MatMul"):
            return maker.op_type
    return ""


# -- the tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One model: counts by (pattern, who), what the peer's patterns would cost in dB, and both tools' SQNR."""

    name: str
    counts: dict[tuple[str, str], int]
    costs: dict[str, float]
    sqnr: tuple[float, float]


def compared(name: str) -> Result:
    """Quantize with onnxq, read the peer's model, and set the one against the other."""
    from onnxq import api, intake
    from onnxq.patterns import find_patterns, labels

    ready = api.prepared(str(fixed(name)), _recipe(name))
    statistics = api.observe(ready, list(batches(name, calibration(name))))
    kinds = labels(find_patterns(ready.graph))
    ours, theirs = api.lowered(ready, statistics)[0], intake.load(str(OUT / f"{name}.modelopt.onnx"))
    a, b = quantized_uses(ours, kinds), quantized_uses(theirs, kinds)
    counts: dict[tuple[str, str], int] = {}
    for key, use in (b | a).items():
        who = "both" if key in a and key in b else "onnxq" if key in a else "ModelOpt"
        counts[use.pattern, who] = counts.get((use.pattern, who), 0) + 1
    judge = Judge(name)
    base = judge.sqnr(_saved(ours, name))
    more: dict[str, list[tuple[str, int]]] = {}
    for key in b.keys() - a.keys():
        more.setdefault(b[key].pattern, []).append(key)
    costs = {p: base - judge.sqnr(_saved(_quantized(name, ready, p, uses), name)) for p, uses in sorted(more.items())}
    return Result(name, counts, costs, (base, judge.sqnr(OUT / f"{name}.modelopt.onnx")))


def _recipe(name: str, *rules: Rule) -> Recipe:
    from onnxq.recipe import Recipe

    return Recipe(high_precision="fp32", calibrator="minmax" if SUBJECTS[name].invented else "auto", rules=rules)


def _quantized(name: str, ready: Prepared, pattern: str, uses: list[tuple[str, int]]) -> Graph:
    """The model with one more of the peer's patterns quantized."""
    from onnxq import api
    from onnxq.recipe import Rule

    if pattern == "attention products":  # a rule gives the softmax its fixed range
        ready = api.prepared(str(fixed(name)), _recipe(name, Rule(ops=("MatMul",), quantize=True)))
    else:
        ready = replace(ready, plan=with_uses(ready.plan, ready.graph, uses))
    return api.lowered(ready, api.observe(ready, list(batches(name, calibration(name)))))[0]


def _saved(graph: Graph, name: str) -> Path:
    from onnxq import api

    api.export(graph, OUT / f"{name}.onnxq.onnx")
    return OUT / f"{name}.onnxq.onnx"


class Judge:
    """Runs models over the held-out samples, without graph optimization: what the Q/DQ nodes say, and nothing else."""

    def __init__(self, name: str) -> None:
        self.feeds = list(batches(name, held_out(name)))
        self.reference = self._run(fixed(name))

    def sqnr(self, path: Path) -> float:
        """SQNR of the first output against the float model, in dB, over real tokens where there is a mask."""
        from onnxq.numerics import sqnr_db

        pairs = list(zip(self.reference, self._run(path), (self._real(f) for f in self.feeds), strict=True))
        return sqnr_db(*(np.concatenate([p[i][p[2]] for p in pairs]) for i in (0, 1)))

    def _real(self, feed: Feed) -> Any:  # noqa: ANN401  an index
        return feed["attention_mask"].astype(bool) if "attention_mask" in feed else slice(None)

    def _run(self, path: Path) -> list[npt.NDArray[Any]]:
        import onnxruntime as ort  # noqa: TID251  a measurement of files, beside the engine

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [session.run(None, feed)[0] for feed in self.feeds]


def tables(results: list[Result]) -> str:
    """Agreement by model, then the differences by pattern, in Markdown."""
    lines = [
        "| model | quantized uses in both | only onnxq | only ModelOpt | SQNR onnxq | SQNR ModelOpt |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        total = (sum(n for (_, w), n in r.counts.items() if w == who) for who in ("both", "onnxq", "ModelOpt"))
        lines.append(f"| {r.name} | {' | '.join(map(str, total))} | {' | '.join(f'{x:.1f} dB' for x in r.sqnr)} |")
    lines += ["", "| pattern | only | uses | cost for onnxq, in dB |", "|---|---|---|---|"]
    for pattern, who in sorted({key for r in results for key in r.counts if key[1] != "both"}):
        found = [r for r in results if (pattern, who) in r.counts]
        uses = ", ".join(f"{r.name} {r.counts[pattern, who]}" for r in found)
        costs = ", ".join(f"{r.name} {round(r.costs[pattern], 1) + 0.0:.1f}" for r in found if pattern in r.costs)
        lines.append(f"| {pattern} | {who} | {uses} | {costs} |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, compare, print."""
    wanted = sys.argv[1:]
    if wanted[:1] == ["--inside"]:
        peer(wanted[1])
        return
    if unknown := set(wanted) - set(NAMES):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    OUT.mkdir(parents=True, exist_ok=True)
    results = []
    for name in wanted or NAMES:
        if not (OUT / f"{name}.modelopt.onnx").exists():
            subprocess.run([peers.environment("modelopt"), __file__, "--inside", name], check=True, stdout=sys.stderr)
        results.append(compared(name))
    print(tables(results))


if __name__ == "__main__":
    main()
