"""Counting as part of the model on the CPU: a node behind every observed tensor looks at it as soon as it is made.

So a tensor is read while it is in cache, and nobody holds it longer than the model itself does. Putting the tensors of
ResNet-50 out and looking at them costs a quarter of its forward pass, this way hardly anything. The nodes are compiled
(csrc/nodes.c). The model is run as ONNX Runtime optimized it to put these tensors out, so their values have the same
bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.ahead import at_once, cores
from onnxq.blocked import leave_in_blocks, optimized, pays
from onnxq.collect import observable, session_for
from onnxq.counting import BINS, NODES
from onnxq.errors import ModelError, RecipeError
from onnxq.files import weight_bytes
from onnxq.histogram import Histogram, bounds_alone
from onnxq.runtime import Session
from onnxq.scratch import Scratch
from onnxq.seen import asked_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import onnx

    from onnxq.data import Feed
    from onnxq.graph import Graph

MOST_WEIGHTS = 256_000_000
"""Bytes of weights, which ONNX Runtime writes to a file once more."""

_FLOAT, _INT64, _DOUBLE = 1, 7, 11
_FOUND, _SIDES = "onnxq/found/", "onnxq/sides/"
"""What outputs are called before the name of the tensor that they tell of."""


@dataclass(frozen=True)
class OnCpu:
    """Runs the prepared model and returns counts; what the nodes cannot count comes as the tensor.

    Attributes:
        most: so many samples may run at once.
    """

    most: int
    _graph: Graph
    _names: tuple[str, ...]
    _session: Session
    _folder: Scratch

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs."""
        return self._session.inputs

    def each(self, feeds: Sequence[Feed]) -> Iterator[list[list[Any]]]:
        """The observed tensors themselves for each feed: to tell whether samples of a batch are independent."""
        yield from session_for(self._graph, self._names, ("cpu",)).each(feeds)

    def observed(self, feed: Feed) -> dict[str, npt.NDArray[Any] | Histogram]:
        """What was found of the tensors of one sample.

        Raises:
            DataError: as `Session.run`.
        """
        outputs = self._session.run({name: feed[name] for name in self.inputs}, self._session.outputs)
        made = dict(zip(self._session.outputs, outputs, strict=True))
        computed = {name for name in self._names if name in made or _FOUND + name in made}  # labels may have such names
        return {name: _found(name, made) if name in computed else feed[name].copy() for name in self._names}


def on_cpu(
    graph: Graph, tensors: Sequence[str], bounds: Sequence[str], providers: Sequence[str], custom_ops: Sequence[str]
) -> OnCpu | None:
    """What runs the prepared model so; None where it cannot be done, or where counting beside the next run is better.

    Args:
        graph: prepared.
        tensors: of which histograms are made.
        bounds: of which bounds are.
        providers: as `collect`.
        custom_ops: as `collect`.
    """
    names = asked_for(tensors, bounds)
    if NODES is None or tuple(providers) != ("cpu",) or custom_ops or not pays(graph, names):
        return None
    most = at_once(graph, names, cores(), passing=True)
    if weight_bytes(graph) > MOST_WEIGHTS or most == 1 < cores():  # one thread counts for all
        return None
    try:
        folder = Scratch()
        session = counting_session(graph, names, set(tensors), folder.path, max(1, cores() // most))
    except (OSError, ModelError, RecipeError):  # nowhere to write it, or the library is not for this ONNX Runtime
        return None
    return OnCpu(most, graph, names, session, folder)


def counting_session(graph: Graph, names: Sequence[str], counted: set[str], folder: Path, threads: int) -> Session:
    """A session whose outputs tell of the named tensors, of those `counted` all; its weights lie in the folder.

    Raises:
        ModelError: ONNX Runtime cannot load the model, or does not know the nodes.
        RecipeError: the library of the nodes cannot be loaded.
        OSError: the folder cannot hold the model.
    """
    proto = optimized(observable(graph, names), folder, threads=threads, apart=True)[1]
    leave_in_blocks(proto.graph)
    add_nodes(proto, counted)
    path = folder / "counting.onnx"
    path.write_bytes(proto.SerializeToString())
    return Session(path, as_written=True, optimize=False, in_order=True, threads=threads, custom_ops=[str(NODES)])


def add_nodes(model: onnx.ModelProto, counted: set[str]) -> None:
    """Put a node behind each float32 output that a node of the main graph makes; what it finds is put out instead.

    Args:
        model: changed in place.
        counted: outputs of which values are counted; of the others only bounds are looked at.
    """
    from onnx import helper

    looked = {value.name for value in model.graph.output if value.type.tensor_type.elem_type == _FLOAT}
    nodes, made, outputs = list(model.graph.node), set[str](), []
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.append(node)
        for name in [name for name in node.output if name in looked]:
            made.add(name)
            told = [_FOUND + name, _SIDES + name] if name in counted else [_FOUND + name]
            model.graph.node.append(
                helper.make_node("Counts" if name in counted else "Bounds", [name], told, domain="onnxq")
            )
            for output, kind, size in zip(
                told, (_DOUBLE, _INT64), (7 if name in counted else 5, 2 * BINS), strict=False
            ):
                outputs.append(helper.make_tensor_value_info(output, kind, [size]))
    plain = [value for value in model.graph.output if value.name not in made]
    del model.graph.output[:]
    model.graph.output.extend([*outputs, *plain])
    model.opset_import.append(helper.make_opsetid("onnxq", 1))


def _found(name: str, outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | Histogram:
    if name in outputs:
        return outputs[name]
    low, high, *counts = outputs[_FOUND + name].tolist()
    nan, pos_inf, neg_inf, *others = (int(count) for count in counts)
    if not others:
        return bounds_alone(low, high, nan, pos_inf, neg_inf)
    zeros, exponent = others
    positive, negative = outputs[_SIDES + name].reshape(2, BINS)
    return Histogram(exponent, positive, negative, zeros, nan, pos_inf, neg_inf, low, high)
