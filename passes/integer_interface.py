"""Turn float inputs and outputs into codes: drop the Q at an input and the DQ at an output.

    x -> Q(s, z) -> ...  becomes  x in integers -> ...        ... -> DQ(s, z) -> y  becomes  ... -> y in integers

Readers of an input that are not behind its Q read a DequantizeLinear of the codes. What the numbers mean goes into
the model's metadata (`onnxq.interface`). An end without such a node stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxq.interface import SIZES, Port, record, widened_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value

_FLOATS = ("float32", "float16")


def integer_interface(graph: Graph) -> int:
    """Make every float input and output that has one Q or DQ at its end an integer one; return how many."""
    ports = [*_inputs(graph), *_outputs(graph)]
    record(graph, ports)
    graph.remove_unused()  # pairs of which nothing but the codes is read now
    return len(ports)


def _inputs(graph: Graph) -> Iterator[Port]:
    for value in graph.inputs:
        read = widened_input(graph, value)
        readers = [u for u, i in graph.users(read) if _is(u, "QuantizeLinear") and not i and not graph.in_body(u)]
        known = [(q, _port(graph, "input", value, q)) for q in readers]
        port = next((p for _, p in known if p is not None), None)
        if port is None:
            continue
        same = [q for q, p in known if p == port]
        others = [(u, i) for u, i in graph.users(read) if u not in same and u.op_type not in SIZES]
        if others:
            steps = same[0].inputs[1:]
            real = graph.add("DequantizeLinear", [value, *steps], name=f"{value.name}_real", like=read)
            graph.replace_uses(read, real, others)
        for q in same:
            graph.replace_uses(q.outputs[0], value)
            graph.remove(q)
        graph.retype(value, port.dtype)
        yield port
        if value.is_graph_output():
            yield replace(port, kind="output")


def _outputs(graph: Graph) -> Iterator[Port]:
    for value in graph.outputs:
        cast = graph.producer(value, "Cast")  # from half precision
        real = value if cast is None else cast.inputs[0]
        dequantize = graph.producer(real, "DequantizeLinear")
        port = None if dequantize is None else _port(graph, "output", value, dequantize)
        codes = None if dequantize is None else dequantize.inputs[0]
        if port is None or codes is None or graph.is_const(codes):
            continue
        if codes.is_graph_input() or codes.is_graph_output() or graph.producer(codes) is None:
            codes = graph.add("Identity", [codes], name=f"{port.name}_codes", like=codes)
        graph.retype(codes, port.dtype)
        graph.replace_output(value, codes)
        _quantize_half(graph, graph.producer(codes, "QuantizeLinear"))
        yield port


def _is(node: Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _port(graph: Graph, kind: str, value: Value, node: Node) -> Port | None:
    """The port that a Q or DQ at the end makes; None where the end or the node is no such thing."""
    float_type, scale, scale_type = graph.dtype(value), graph.scalar(node.inputs[1]), graph.dtype(node.inputs[1])
    zero_point = _zero_point(graph, node)
    if float_type not in _FLOATS or scale is None or scale_type not in _FLOATS or zero_point is None:
        return None
    return Port(kind, str(value.name), zero_point.dtype.name, scale, int(zero_point), float_type, scale_type)


def _zero_point(graph: Graph, node: Node) -> np.ndarray | None:
    """Of an integer Q or DQ with one scale; where none is written, 0 in the type of the codes."""
    written = node.inputs[2] if len(node.inputs) > 2 else None
    if written is None:
        maker = graph.producer(node.inputs[0], "QuantizeLinear")
        if _is(node, "DequantizeLinear") and maker is not None and len(maker.inputs) > 2:
            written = maker.inputs[2]
        else:
            kind = graph.dtype(node.inputs[0])
            return np.zeros((), kind) if kind in ("int8", "uint8") else None
    array = graph.const(written)
    plain = array is not None and array.size == 1 and array.dtype.kind in "iu"
    return array.reshape(()) if array is not None and plain else None


def _quantize_half(graph: Graph, quantize: Node | None) -> None:
    """Let an output's Q read half precision where a Cast to float32 stands before it and the scale fits."""
    cast = None if quantize is None else graph.producer(quantize.inputs[0], "Cast")
    scale = None if quantize is None else graph.const(quantize.inputs[1])
    if quantize is None or cast is None or scale is None or graph.dtype(cast.inputs[0]) != "float16":
        return
    with np.errstate(over="ignore"):
        narrow = scale.astype(np.float16)
    if float(narrow) == float(scale):
        graph.set_input(quantize, 0, cast.inputs[0])
        graph.set_input(quantize, 1, graph.constant(f"{quantize.outputs[0].name}_scale_half", narrow))
