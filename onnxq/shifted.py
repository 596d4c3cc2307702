"""Tensors of the float model that a quantized one holds with a constant added to them.

Where a zero point became constants in biases (`onnxq.passes.centre_codes`), tensors have other values than in the
float model, and other names. The model's metadata tells which stands for which:

    onnxq.shifted.<name> = {"tensor": t, "shift": c}                         x = t - c
    onnxq.shifted.<name> = {"tensor": t, "shift": c, "low": 0, "high": h}    x = clip(t - c, 0, h); h may be left out

The second is what a Relu or Clip made that is now the end of a quantizer's range.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnxq.graph import Graph, Value

_PREFIX = "onnxq.shifted."


@dataclass(frozen=True)
class Shifted:
    """A tensor of the float model, and what stands for it.

    Attributes:
        name: of the float model's tensor x.
        tensor: of the quantized model's.
        shift: what was added to x.
        high: x is clipped at 0 and at this, which may be inf; None where nothing is.
    """

    name: str
    tensor: str
    shift: float
    high: float | None = None


def record(graph: Graph, found: Iterable[Shifted]) -> None:
    """Write them into the model's metadata."""
    for one in found:
        said: dict[str, object] = {"tensor": one.tensor, "shift": one.shift}
        if one.high is not None:
            said |= {"low": 0, **({"high": one.high} if math.isfinite(one.high) else {})}
        graph.model.metadata_props[f"{_PREFIX}{one.name}"] = json.dumps(said)


def shifted_tensors(metadata: Mapping[str, str]) -> tuple[Shifted, ...]:
    """What the metadata tells of, empty for most models.

    Raises:
        ModelError: it tells nothing that makes sense.
    """
    return tuple(_read(key, text) for key, text in metadata.items() if key.startswith(_PREFIX))


def with_float_tensors(graph: Graph) -> Graph:
    """The model with the float model's tensors computed beside those that stand for them; itself where none do.

    Raises:
        ModelError: the metadata cannot be read.
    """
    found = shifted_tensors(graph.model.metadata_props)
    if not found:
        return graph
    made = graph.copy()
    values = {str(v.name): v for v in made.values()}
    for one in found:
        value = values.get(one.tensor)
        if value is None or one.name in values:
            continue
        value = in_float32(made, value, one.name)
        shift = made.constant(f"{one.name}/shift", np.array(one.shift, np.float32))
        value = made.add("Sub", [value, shift], name=f"{one.name}/unshifted", like=value)
        if one.high is not None:
            ends = [made.constant(f"{one.name}/end", np.array(end, np.float32)) for end in (0.0, one.high)]
            value = made.add("Clip", [value, *ends], name=f"{one.name}/clipped", like=value)
        value.name = one.name  # which is free, or a node's
    return made


def in_float32(graph: Graph, value: Value, name: str) -> Value:
    """The value, behind a Cast where it has another type; `name` begins the Cast's."""
    if graph.dtype(value) == "float32":
        return value
    cast = graph.add("Cast", [value], name=f"{name}/whole", attributes={"to": _FLOAT})
    graph.retype(cast, "float32")
    return cast


_FLOAT = 1
"""ONNX's number of float32."""


def _read(key: str, text: str) -> Shifted:
    try:
        said = json.loads(text)
        high = float(said.get("high", math.inf)) if "low" in said else None
        return Shifted(key.removeprefix(_PREFIX), str(said["tensor"]), float(said["shift"]), high)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"the model's metadata {key} makes no sense: {text[:80]!r}", "Quantize it again.") from error
