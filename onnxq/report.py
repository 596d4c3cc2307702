"""What a run tells: the plan as JSON, a summary, and the exact next command."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.intake import open_inputs, unknown_shapes
from onnxq.linear import BIASED
from onnxq.operators import RECURRENT
from onnxq.patterns.ranges import LIMIT
from onnxq.placement.dla import FALLS_BACK
from onnxq.targets import get_target
from onnxq.targets.oldest import oldest_runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from onnxq.comparison import Comparison
    from onnxq.graph import Graph, Node
    from onnxq.plan import Decision, Plan
    from onnxq.recipe import Recipe
    from onnxq.statistics import Statistics

    Seen = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Input -> the smallest and the largest shape that the data had."""


@dataclass(frozen=True)
class Summary:
    """The figures of one run.

    Attributes:
        weighted: how many nodes carry weights or multiply matrices.
        int8: how many of those run in int8; without calibration data, how many have int8 weights.
        computed: whether they compute in int8; without calibration data they only store their weights so.
        mac_share: share of the multiply-accumulates in int8.
        bytes_before: size of the input with its external data.
        bytes_after: size of the output with its external data.
        reasons: (reason, op type, how many) of the weighted nodes left in float.
        others: the same for the other nodes.
        fallback: (op type, how many) of the nodes that a DLA leaves to the GPU, most frequent first.
        stored: narrowest type of the stored weights.
        number: what most of the quantized ones compute in.
        sized: whether the model, `--shapes` or data told every size by which work is counted, batches aside.
    """

    weighted: int
    int8: int
    computed: bool
    mac_share: float
    bytes_before: int
    bytes_after: int
    reasons: tuple[tuple[str, str, int], ...]
    others: tuple[tuple[str, str, int], ...]
    fallback: tuple[tuple[str, int], ...] = ()
    stored: str = "int8"
    number: str = "int8"
    sized: bool = True


def summarize(plan: Plan, bytes_before: int = 0, bytes_after: int = 0, *, sized: bool = True) -> Summary:
    """Count what the plan does; `sized` as in `Summary`."""
    weighted_ops = RECURRENT | set(get_target(plan.target).weighted)
    weighted = [d for d in plan.decisions if d.op_type in weighted_ops]
    reasons = plan.reasons() if plan.mode != "float" else _kept_wide(plan)
    return Summary(
        weighted=len(weighted),
        int8=sum(d.quantized or _halved(d, plan) for d in weighted),
        computed=bool(plan.points or plan.kept or not plan.weights or plan.mode == "dynamic"),
        mac_share=plan.int8_share() if plan.mode != "float" else _halved_share(plan),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        reasons=tuple(r for r in reasons if r[1] in weighted_ops),
        others=tuple(r for r in reasons if r[1] not in weighted_ops),
        stored=min(plan.weights, key=lambda w: w.bits).format.type if plan.weights else "int8",
        number=plan.float_type if plan.mode == "float" else _usual(weighted),
        fallback=tuple(Counter(d.op_type for d in plan.decisions if FALLS_BACK in d.reason).most_common()),
        sized=sized,
    )


def _halved(decision: Decision, plan: Plan) -> bool:
    """Whether mode float brought the node to its type."""
    return plan.mode == "float" and decision.dtype == plan.float_type


def _halved_share(plan: Plan) -> float:
    return sum(d.macs for d in plan.decisions if _halved(d, plan)) / plan.macs if plan.macs else 0.0


def _kept_wide(plan: Plan) -> list[tuple[str, str, int]]:
    """(reason, op type, how many) of what mode float leaves in float32."""
    counts = Counter((d.reason, d.op_type) for d in plan.decisions if not _halved(d, plan))
    return [(reason, op, count) for (reason, op), count in counts.most_common()]


def _usual(weighted: Sequence[Decision]) -> str:
    """What most of the quantized ones compute in."""
    found = Counter(d.precision for d in weighted if d.quantized).most_common(1)
    return found[0][0] if found else "int8"


def plan_json(plan: Plan, recipe: Recipe, statistics: Statistics | None) -> str:
    """The plan with what it was made from, for `<output>.plan.json`. The same run gives the same text."""
    seen = (
        {"samples": statistics.samples, "digest": f"{statistics.seen:016x}", "model": statistics.model}
        if statistics is not None
        else None
    )
    return json.dumps({"recipe": recipe.to_toml(), "data": seen, **plan.to_dict()}, indent=1, allow_nan=False) + "\n"


def comparison_json(found: Comparison) -> str:
    """The comparison as JSON, worst first.

    JSON has no infinities: equal tensors have "sqnr_db" null and "max_abs" 0; those that are NaN or infinite in only
    one of the models have both null.
    """
    tensors = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(error).items()}
        for error in found.worst
    ]
    return json.dumps({"samples": found.samples, "tensors": tensors}, indent=1, allow_nan=False) + "\n"


EXACT = "options.add_session_config_entry('session.x64quantprecision', '1')  # or quantize with --reduce-range"
"""What keeps the sums of uint8 x int8 products from saturating, see docs/onnxruntime.md."""

PLAIN = "options.add_session_config_entry('session.disable_quant_qdq', '1')  # onnxq compare does"
"""Keeps ONNX Runtime from computing b / (s_x s_w) in float16 for an int32 bias (`WeightBiasQuantization`, 1.23 on).
Layers whose bias that would spoil are in float32, but for those of a float16 model that could not be brought to it."""


def how_near(reference: Path, model: Path, recipe: Recipe, data: object) -> tuple[str, str]:
    """(what, command) that compares the file just written with the float model; `data` as for `next_steps`."""
    said = f"--data {_quoted(data)}" if isinstance(data, str) else "--data ..."
    for name in ("labels", "shapes", "preprocess", "custom_ops"):
        if value := getattr(recipe, name):
            said += f" --{name.replace('_', '-')} {_quoted(value)}"
    command = f"onnxq compare {_quoted(str(reference))} {_quoted(str(model))} {said}"
    return "how near it is to the float model, better on data that did not calibrate", command


def next_steps(
    plan: Plan, recipe: Recipe, graph: Graph, model: Path, statistics: Statistics | None, data: object = None
) -> list[tuple[str, str]]:
    """(what, command) for the file just written; `data` is what it was calibrated on, named where it is a path."""
    target = get_target(plan.target)
    seen = {} if statistics is None else dict(statistics.shapes)
    shapes, sizes = _shape_flags(graph, seen), _samples(graph, recipe, data) or _sizes(graph, seen)
    engine = _quoted(model.with_suffix(".plan").name)
    words = {"model": _quoted(str(model)), "engine": engine, "shapes": shapes, "sizes": sizes}
    words["oldest"] = "{}.{}".format(*oldest_runtime(graph))
    found = [(what.format(**words), command.format(**words)) for what, command in target.next_step.items()]
    saturates = target.placement == "ort-cpu" and plan.mode in ("static", "dynamic") and not recipe.reduce_range
    if target.placement == "tensorrt" and any(_overflows(graph, node) for node in graph.nodes):
        found.append(("to try it in ONNX Runtime, which would spoil its biases", PLAIN))
    return [*found, ("x64 CPUs without VNNI, where int8 sums saturate", EXACT)] if saturates else found


def _overflows(graph: Graph, node: Node) -> bool:
    """Whether a bias in float16, of a layer between two pairs, is more steps of the scales than float16 counts."""
    if node.op_type not in BIASED or len(node.inputs) < 3:
        return False
    bias, pairs = graph.const(node.inputs[2]), [graph.producer(v, "DequantizeLinear") for v in node.inputs[:2]]
    x, w = (None if pair is None else graph.const(pair.inputs[1]) for pair in pairs)
    user = graph.only_user(node.outputs[0])
    while user is not None and user.op_type in ("Relu", "Clip"):
        user = graph.only_user(user.outputs[0])
    if bias is None or bias.dtype != np.float16 or x is None or w is None or user is None:
        return False
    step = np.float64(x.min()) * (w if w.size == bias.size else w.min()).astype(np.float64)
    return user.op_type == "QuantizeLinear" and bool(np.max(np.abs(bias.astype(np.float64)) / step) > LIMIT)


def _shape_flags(graph: Graph, seen: Seen) -> str:
    """Trtexec's three shape flags when an input has dynamic dimensions, from the shapes that the data had."""
    dynamic = [v for v in graph.inputs if graph.size(v) is None]
    if not dynamic:
        return ""
    if any(str(v.name) not in seen for v in dynamic):
        return " --minShapes=... --optShapes=... --maxShapes=..."
    names, flags = [str(v.name) for v in dynamic], (("min", 0), ("opt", 1), ("max", 1))
    return "".join(f" --{kind}Shapes={_shapes(names, seen, end)}" for kind, end in flags)


def _samples(graph: Graph, recipe: Recipe, data: object) -> str:
    """`--data` for a check that runs the model, where random samples would not do or want sizes.

    Integers and texts choose branches and rows: a rate of 0 or 1 may be one that the model has no branch for.
    """
    chosen = any(graph.dtype(v) not in ("float32", "float16", "float64") for v in graph.inputs)
    if not isinstance(data, str) or data.startswith("random:") or recipe.labels or not (chosen or open_inputs(graph)):
        return " --data ..." if any(graph.dtype(v) == "object" for v in graph.inputs) else ""  # text is not made up
    return f" --data {_quoted(data)}" + (f" --preprocess {_quoted(recipe.preprocess)}" if recipe.preprocess else "")


def _sizes(graph: Graph, seen: Seen) -> str:
    """`--shapes` for a check that runs the model, when inputs leave open more than the batch; N is to be filled in."""
    wanted = open_inputs(graph)
    if not wanted:
        return ""
    known = wanted.keys() <= seen.keys()
    return f" --shapes {_shapes(wanted, seen, 1) if known else _quoted(unknown_shapes(graph, ()))}"


def _shapes(names: Iterable[str], seen: Seen, end: int) -> str:
    """The smallest (0) or largest (1) shapes of inputs, in one word of a command."""
    return _quoted(",".join(f"{name}:{'x'.join(map(str, seen[name][end]))}" for name in names))


def _quoted(text: str) -> str:
    return shlex.quote(text)
