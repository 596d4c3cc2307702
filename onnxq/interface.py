"""The integer interface of a model: inputs and outputs that are codes, and what their numbers mean.

It is written into the model's metadata, so that whoever feeds the model needs no other file:

    onnxq.input.<name>.scale, .zero_point, .float_type     q = clip(round(x / scale) + zero_point), halves to even
    onnxq.output.<name>.scale, .zero_point, .float_type    y = (q - zero_point) * scale

`.scale_type` stands beside them where Q or DQ computed in another type than `.float_type`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.dtypes import NUMBERS
from onnxq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Feed = Mapping[str, npt.NDArray[Any]]


SIZES = frozenset({"Shape", "Size"})
"""Operators that read no values of an input."""

_CODES = ("int8", "uint8", "int16", "uint16")


@dataclass(frozen=True)
class Port:
    """A model input or output in integers.

    Attributes:
        kind: "input" or "output".
        name: its name.
        dtype: numpy name of its codes' type.
        scale: the step between two codes.
        zero_point: the code of 0.
        float_type: numpy name of the type it had before.
        scale_type: numpy name of the type of its Q's or DQ's scale, in which those computed.
    """

    kind: str
    name: str
    dtype: str
    scale: float
    zero_point: int
    float_type: str = "float32"
    scale_type: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The port without its kind and name, as plain values; `scale_type` where it is another than `float_type`."""
        return {
            "dtype": self.dtype,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "float_type": self.float_type,
            **({} if self.scale_type == self.float_type else {"scale_type": self.scale_type}),
        }


def record(graph: Graph, ports: Iterable[Port]) -> None:
    """Write the ports into the model's metadata."""
    for port in ports:
        said = {k: str(v) for k, v in port.to_dict().items() if k != "dtype"}
        graph.model.metadata_props.update({f"{_prefix(port.kind, port.name)}.{k}": v for k, v in said.items()})


def ports(graph: Graph) -> tuple[Port, ...]:
    """The model's integer inputs, then outputs, of which the metadata tells; empty for models without.

    Raises:
        ModelError: what the metadata says of one is no number.
    """
    ends = (("input", graph.inputs), ("output", graph.outputs))
    return described(
        graph.model.metadata_props,
        ((kind, str(v.name), graph.dtype(v)) for kind, values in ends for v in values),
    )


def described(metadata: Mapping[str, str], ends: Iterable[tuple[str, str, str | None]]) -> tuple[Port, ...]:
    """Those of the ends, given as (kind, name, numpy name of the type), that are codes the metadata explains.

    Raises:
        ModelError: what it says of one is no number.
    """
    found = (_read(metadata, kind, name, dtype) for kind, name, dtype in ends)
    return tuple(port for port in found if port is not None)


def with_float_ends(graph: Graph) -> Graph:
    """The model with float inputs and outputs of the same names: Q and DQ stand again. Itself where all are float.

    Raises:
        ModelError: the metadata cannot be read.
    """
    if not ports(graph):
        return graph
    made = graph.copy()
    known = {(port.kind, port.name): port for port in ports(graph)}
    for value in made.inputs:
        if (port := known.get(("input", str(value.name)))) is not None:
            users, read = made.users(value), value
            if port.scale_type != port.float_type:
                to = {"to": NUMBERS[port.scale_type]}
                read = made.add("Cast", [value], name=f"{port.name}_real", attributes=to, like=value)
                made.retype(read, port.scale_type)
            codes = made.add("QuantizeLinear", [read, *_steps(made, port)], name=f"{port.name}_codes", like=value)
            made.replace_uses(value, codes, users)
            made.retype(value, port.float_type)
    for value in made.outputs:
        if (port := known.get(("output", str(value.name)))) is not None and made.dtype(value) == port.dtype:
            real = made.add("DequantizeLinear", [value, *_steps(made, port)], name=f"{port.name}_real", like=value)
            made.retype(real, port.scale_type)
            if port.scale_type != port.float_type:
                to = {"to": NUMBERS[port.float_type]}
                real = made.add("Cast", [real], name=f"{port.name}_narrow", attributes=to, like=real)
                made.retype(real, port.float_type)
            made.replace_output(value, real)
    return made


def coded(feed: Feed, found: Iterable[Port]) -> Feed:
    """A feed of the float model as the codes that the integer inputs take."""
    made = dict(feed)
    for port in found:
        if port.kind == "input" and port.name in made:
            info = np.iinfo(port.dtype)
            q = np.rint(np.asarray(made[port.name], np.float32) / np.float32(port.scale)) + port.zero_point
            made[port.name] = np.clip(q, info.min, info.max).astype(port.dtype)
    return made


def widened_input(graph: Graph, value: Value) -> Value:
    """What is read of an input: where that is float16 and read through one Cast to float32, what the Cast makes."""
    readers = [node for node, _ in graph.users(value) if node.op_type not in SIZES]
    if graph.dtype(value) != "float16" or value.is_graph_output() or len(readers) != 1:
        return value
    return made if _widens(graph, readers[0]) and not (made := readers[0].outputs[0]).is_graph_output() else value


def widened_output(graph: Graph, value: Value) -> Value:
    """What an output is made of: where that is float16 and a Cast makes it of a float32, what the Cast reads."""
    cast = graph.producer(value, "Cast")
    source = None if cast is None else cast.inputs[0]
    if graph.dtype(value) != "float16" or source is None or graph.dtype(source) != "float32":
        return value
    return value if source.is_graph_input() or graph.is_const(source) or graph.users(value) else source


def _widens(graph: Graph, node: Node) -> bool:
    return node.op_type == "Cast" and not graph.in_body(node) and graph.dtype(node.outputs[0]) == "float32"


def _prefix(kind: str, name: str) -> str:
    return f"onnxq.{kind}.{name}"


def _read(said: Mapping[str, str], kind: str, name: str, dtype: str | None) -> Port | None:
    prefix = _prefix(kind, name)
    if f"{prefix}.scale" not in said or dtype not in _CODES:
        return None
    try:
        scale, zero_point = float(said[f"{prefix}.scale"]), int(said.get(f"{prefix}.zero_point", "0"))
    except ValueError as error:
        text = f"the model's metadata {prefix}.scale and .zero_point are no numbers: {error}"
        raise ModelError(text, "Quantize it again.") from error
    float_type = said.get(f"{prefix}.float_type", "float32")
    scale_type = said.get(f"{prefix}.scale_type", float_type)
    if not 0.0 < scale < math.inf or not {float_type, scale_type} <= {"float32", "float16"}:
        raise ModelError(f"the model's metadata {prefix}.* make no sense", "Quantize it again.")
    return Port(kind, name, dtype, scale, zero_point, float_type, scale_type)


def _steps(graph: Graph, port: Port) -> tuple[Value, Value]:
    scale = graph.constant(f"{port.name}_{port.kind}_scale", np.array(port.scale, port.scale_type))
    return scale, graph.constant(f"{port.name}_{port.kind}_zero_point", np.array(port.zero_point, port.dtype))
