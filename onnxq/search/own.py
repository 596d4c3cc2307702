"""The own errors of all layers at once: each of the quantized layers reads what the float model computes.

The quantized graph is cut at every tensor that it has in common with the float model and that a layer is computed from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.graph import begin_at, remove_unread_inputs
from onnxq.shifted import shifted_tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    import numpy.typing as npt

    from onnxq.graph import Graph

    Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Apart:
    """A quantized graph whose layers do not hang on one another.

    Attributes:
        graph: its inputs are tensors of the float model, its outputs what the layers make.
        reads: input -> the tensor of the float model, and the constant that is added to it (`onnxq.shifted`).
        makes: output -> the tensor of the float model that it stands for.
    """

    graph: Graph
    reads: Mapping[str, tuple[str, float]]
    makes: Mapping[str, str]

    def feed(self, floats: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs, of what the float model computes."""
        found = {}
        for name, (tensor, shift) in self.reads.items():
            array = floats[tensor]
            found[name] = array if shift == 0.0 else array + np.asarray(shift, array.dtype)
        return found


def apart(whole: Graph, floats: Graph, layers: Collection[str]) -> Apart:
    """Cut a quantized graph so that each layer reads exact values.

    Args:
        whole: the quantized graph; it is not changed.
        floats: the float model.
        layers: names of what the layers make. Those that the quantized graph lacks are passed over.
    """
    graph = whole.copy()
    types = {str(v.name): floats.dtype(v) for v in floats.values()}
    known = {name: (name, 0.0) for name in types}
    known |= {s.tensor: (s.name, s.shift) for s in shifted_tensors(graph.model.metadata_props) if s.name in types}
    values = {str(v.name): v for v in graph.values()}
    made = {name: values[name] for name in layers if name in values and values[name].producer() is not None}
    exact = {n: v for n, v in values.items() if n in known and _fits(graph.dtype(v), types[known[n][0]])}
    for name, value in exact.items():
        graph.retype(value, str(types[known[name][0]]))  # what becomes an input must have a type
    begin_at(graph, list(exact))
    graph.set_outputs(list(made.values()))
    graph.remove_unused()
    remove_unread_inputs(graph)
    reads = {str(v.name): known[str(v.name)] for v in graph.inputs}
    return Apart(graph, reads, {str(value.name): name for name, value in made.items()})


def _fits(found: str | None, wanted: str | None) -> bool:
    """Whether a tensor of this type, None where it is unknown, can be given as one of the wanted type."""
    return wanted is not None and found in (wanted, None)
