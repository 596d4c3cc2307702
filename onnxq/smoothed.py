"""Tensors of the float model that a quantized one holds smoothed, x' = (x - c) / s with c and s per channel.

`onnxq.passes.smooth` gives them other names. The model's metadata tells which stands for which, and the factors once
for all tensors that share them, as little-endian float32 in base64:

    onnxq.smoothed.<name>  = {"tensor": t, "factors": f, "axis": -1}     x = t s + c
    onnxq.smoothed.<name>  = {..., "scaled": true}                       x = t s
    onnxq.factors.<f>      = {"scale": s, "shift": c}                    left out where they are all 1, or 0

A tensor may have a constant added on top of that (`onnxq.shifted`): then that one tells what stands for t.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq import shifted
from onnxq.errors import ModelError
from onnxq.shifted import in_float32
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from onnxq.graph import Graph, Value

_PREFIX, _FACTORS = "onnxq.smoothed.", "onnxq.factors."

MOST = 16_384
"""Characters of factors that are written at most: those of 1536 channels, or 3072 without a shift. Whoever loads the
model reads its metadata whole and keeps it, and viewers print it; of wider tensors the float values are not told."""

_STEPS = 2
"""A tensor is smoothed as what a node makes, then as what takes the shift of what that reads, then shifted."""

_DIMENSIONS = 64
"""More than any tensor has."""


@dataclass(frozen=True)
class Smoothed:
    """A tensor of the float model, and what stands for it.

    Attributes:
        name: of the float model's tensor x.
        tensor: of the quantized model's, x'.
        axis: the channel axis, counted from the end: -1 is the last.
        scaled: it is x / s: the shift has no part in it.

    Raises:
        ValueError: the axis is no such number.
    """

    name: str
    tensor: str
    axis: int
    scaled: bool = False

    def __post_init__(self) -> None:
        if not -_DIMENSIONS <= self.axis < 0:
            raise ValueError(f"channel axis {self.axis}")


def record(graph: Graph, found: Iterable[Smoothed], name: str, factor: Factor) -> None:
    """Write them into the model's metadata, unless the factors are too long; `name` is that of the factors."""
    both = (("scale", factor.scale, 1.0), ("shift", factor.shift, 0.0))
    said = {name: _text(array) for name, array, neutral in both if np.any(array != neutral)}
    if not 0 < sum(map(len, said.values())) <= MOST:
        return
    graph.model.metadata_props[f"{_FACTORS}{name}"] = json.dumps(said)
    for one in found:
        entry: dict[str, object] = {"tensor": one.tensor, "factors": name, "axis": one.axis}
        entry |= {"scaled": True} if one.scaled else {}
        graph.model.metadata_props[f"{_PREFIX}{one.name}"] = json.dumps(entry)


def smoothed_tensors(metadata: Mapping[str, str]) -> dict[Smoothed, Factor]:
    """What the metadata tells of, empty for most models.

    Raises:
        ModelError: it tells nothing that makes sense.
    """
    found = (_read(metadata, key, text) for key, text in metadata.items() if key.startswith(_PREFIX))
    return dict(found)


def stand_ins(metadata: Mapping[str, str]) -> dict[str, str]:
    """Tensor of the quantized model -> the float model's that it stands for, shifted or smoothed or both.

    Raises:
        ModelError: the metadata cannot be read.
    """
    told: list[Smoothed | shifted.Shifted] = [*smoothed_tensors(metadata), *shifted.shifted_tensors(metadata)]
    direct = {one.tensor: one.name for one in told if one.tensor != one.name}
    found = dict(direct)
    for _ in range(_STEPS):
        found = {tensor: direct.get(name, name) for tensor, name in found.items()}
    return found


def with_float_tensors(graph: Graph) -> Graph:
    """The model with the float model's tensors computed beside those that stand for them; itself where none do.

    Raises:
        ModelError: the metadata cannot be read.
    """
    found = smoothed_tensors(graph.model.metadata_props)
    made = shifted.with_float_tensors(graph)
    made = made.copy() if found and made is graph else made
    values = {str(v.name): v for v in made.values()}
    while ready := [
        one for one in found if one.tensor in values and one.name not in values
    ]:  # one may stand for another
        for one in ready:
            value = in_float32(made, values[one.tensor], one.name)
            value = _with(made, "Mul", value, one, found[one].scale)
            value = value if one.scaled else _with(made, "Add", value, one, found[one].shift)
            value.name = one.name  # which is free, or a node's
            values[one.name] = value
    return made


def with_smoothed_tensors(reference: Graph, quantized: Graph, wanted: Collection[str]) -> Graph:
    """The float model with x' beside x, for those x' of the quantized one that are wanted.

    Raises:
        ModelError: the quantized model's metadata cannot be read.
    """
    told = smoothed_tensors(quantized.model.metadata_props)
    found = {one: factor for one, factor in told.items() if one.tensor in wanted}
    made = reference.copy() if found else reference
    values = {str(v.name): v for v in made.values()}
    for one, factor in found.items():
        if one.name in values and one.tensor not in values:
            value = in_float32(made, values[one.name], one.tensor)
            value = value if one.scaled else _with(made, "Sub", value, one, factor.shift)
            value = _with(made, "Div", value, one, factor.scale)
            value.name = one.tensor  # likewise
    return made


def _with(graph: Graph, op: str, value: Value, one: Smoothed, numbers: Any) -> Value:  # noqa: ANN401  an array
    constant = graph.constant(f"{one.name}/{op.lower()}", numbers.reshape(-1, *(1,) * (-1 - one.axis)))
    return graph.add(op, [value, constant], name=f"{one.name}/{op.lower()}_made", like=value)


def _text(array: Any) -> str:  # noqa: ANN401  an array
    return b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _array(text: str) -> Any:  # noqa: ANN401  an array
    return np.frombuffer(b64decode(text, validate=True), "<f4").astype(np.float32)


def _read(metadata: Mapping[str, str], key: str, text: str) -> tuple[Smoothed, Factor]:
    try:
        said = json.loads(text)
        name, axis = str(said["factors"]), int(said["axis"])
        told = json.loads(metadata[f"{_FACTORS}{name}"])
        found = {k: _array(told[k]) for k in ("scale", "shift") if k in told}
        size = max(array.size for array in found.values())
        factor = Factor(found.get("scale", np.ones(size, np.float32)), found.get("shift", np.zeros(size, np.float32)))
        one = Smoothed(key.removeprefix(_PREFIX), str(said["tensor"]), axis, bool(said.get("scaled", False)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"the model's metadata {key} makes no sense: {text[:80]!r}", "Quantize it again.") from error
    return one, factor
