"""What layers do, and what they cost in float, by the shapes of data: a model's own may be unknown and say little.

Their multiply-accumulates, which integers would do in less time; and on ONNX Runtime's CPU provider the values, too,
that are quantized on the way into integer nodes and dequantized on the way out of them.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from onnxq.placement.ort_cpu import MACS_PER_ELEMENT
from onnxq.placement.ort_cpu_points import Island
from onnxq.placement.weighted import macs
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.graph import Graph
    from onnxq.plan import Plan
    from onnxq.statistics import Bounds
    from onnxq.targets.target import Target

    Shapes = Mapping[str, Sequence[int]]
    """Tensor -> its shape in a sample."""


_ROUNDS = 8
"""How often what hangs on sizes is computed at most, from those that the last time made known."""


def sized(graph: Graph, plan: Plan) -> set[str]:
    """The tensors whose shapes say all of it: what layers read and write, and what is quantized."""
    weighted = get_target(plan.target).weighted
    ends = [v for n in graph.nodes if n.op_type in weighted for v in (n.inputs[0], n.outputs[0])]
    return {*plan.points, *(str(v.name) for v in ends if v is not None)}


def work(graph: Graph, plan: Plan, shapes: Shapes) -> dict[str, int]:
    """Node of the main graph -> its multiply-accumulates, of the weighted operators that have any."""
    target = get_target(plan.target)
    weighted = (node for node in graph.nodes if node.op_type in target.weighted)
    found = {node.name or "": macs(graph, node, target, shapes) for node in weighted}
    return {name: count for name, count in found.items() if count}


def work_seen(graph: Graph, target: Target, seen: Mapping[str, Bounds], fold: Callable[[Graph], int]) -> dict[str, int]:
    """Node -> its multiply-accumulates in a run on the largest inputs, in bodies for each time that they run.

    Args:
        graph: as it is observed.
        target: whose weighted operators count.
        seen: input -> (smallest, largest) size of every dimension.
        fold: computes what hangs on known sizes alone, and gives back whether there was any: that of a Resize or
            Expand may be computed from those of the inputs.

    Returns:
        Empty where the graph knows the shapes of its inputs, and so as much as data can tell.
    """
    if all(graph.size(value) is not None for value in graph.inputs):
        return {}
    sized, sizes = graph.copy(), {name: largest for name, (_, largest) in seen.items()}
    sized.infer_shapes(sizes)
    for _ in range(_ROUNDS):
        if not fold(sized):
            break
        sized.infer_shapes(sizes)
    found = {node.name or "": macs(part, node, target) for part in sized.parts() for node in part.nodes}
    return {name: count for name, count in found.items() if count}


def cost(graph: Graph, plan: Plan, before: Plan, shapes: Shapes) -> float:
    """What a plan costs beside another of the same model that leaves less in float, in multiply-accumulates.

    At least those that are float in it alone; and with them `MACS_PER_ELEMENT` for each value more at the borders of
    integers. Layers whose borders need fewer conversions in float are no cheaper for that.
    """
    done = work(graph, plan, shapes)
    left = [sum(count for name, count in done.items() if name not in _integers(each)) for each in (plan, before)]
    values = [_border(graph, each, shapes) for each in (plan, before)]
    return left[0] - left[1] + MACS_PER_ELEMENT * max(values[0] - values[1], 0)


def _integers(plan: Plan) -> set[str]:
    return {d.node for d in plan.decisions if d.quantized}


def _border(graph: Graph, plan: Plan, shapes: Shapes) -> int:
    """Values that are quantized on the way into integer nodes or dequantized on the way out."""
    names = _integers(plan)
    tensors = Island(graph, get_target(plan.target), set(names)).border([n for n in graph.nodes if n.name in names])
    sizes = (shapes.get(str(value.name), graph.shape(value) or ()) for value in tensors)
    return sum(prod(d if isinstance(d, int) else 1 for d in shape) for shape in sizes)
