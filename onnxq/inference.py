"""onnx's shape inference, in stretches where a model has many bodies.

For each body onnx copies the table of all that is known around it, so that a model of thousands of If nodes took time
as the square of them. A stretch is a model of its own, of a hundred bodies and the nodes among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MOST_BODIES = 100
"""Of one stretch; a model that has no more of them is one stretch."""


def inferred(proto: ModelProto, *, strict: bool = False, data_prop: bool = True) -> ModelProto:
    """The model with the types and shapes that onnx's inference finds, in bodies too.

    Args:
        proto: with nodes in order; it is not changed.
        strict: what does not fit is an error, as in onnx.checker's full check.
        data_prop: values of shapes are computed and used, as far as onnx does so.

    Raises:
        onnx.shape_inference.InferenceError: with `strict`, a type or shape does not fit.
    """
    from onnx import shape_inference

    def infer(part: ModelProto) -> ModelProto:
        return shape_inference.infer_shapes(part, check_type=strict, strict_mode=strict, data_prop=data_prop)

    if not in_stretches(proto):
        return infer(proto)
    nodes = tuple(proto.graph.node)
    whole = _without_nodes(proto)
    known = {v.name: v for v in (*whole.graph.value_info, *whole.graph.output, *whole.graph.input)}
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    for stretch in _stretches(nodes):
        carried = _carried(nodes, stretch, makers, known) if data_prop else []
        part = _part(proto, [nodes[index] for index in (*carried, *stretch)], known, weights)
        found = infer(part).graph
        known |= {v.name: v for v in (*found.value_info, *found.output)}
        whole.graph.node.extend(found.node[len(carried) :])
    _declare(whole.graph, known)
    return whole


def check_fully(model: ModelProto | Path, proto: ModelProto | None = None) -> None:
    """onnx.checker's full check, of a file too; `proto` is what it holds, needed where that has many bodies.

    Shapes that bodies declare and no run has pass: exporters write a scalar, say, for what a branch makes of one
    element, and runtimes, which find shapes for themselves, warn of it at most.

    Raises:
        onnx.checker.ValidationError: it is not valid.
        onnx.shape_inference.InferenceError: a type, or a shape of the main graph, does not fit.
    """
    from onnx import ModelProto, checker, load, shape_inference

    proto = model if isinstance(model, ModelProto) else proto
    apart = proto if proto is not None and in_stretches(proto) else None
    try:
        checker.check_model(model, full_check=apart is None)
        if apart is not None:
            inferred(apart, strict=True, data_prop=False)  # what a full check adds
    except shape_inference.InferenceError:
        bare = load(model, load_external_data=False) if proto is None else proto
        inferred(_without_shapes(bare), strict=True, data_prop=False)


def _without_shapes(proto: ModelProto) -> ModelProto:
    """The model without what its bodies declare of shapes."""
    from onnx import ModelProto

    bare = ModelProto()
    bare.CopyFrom(proto)
    for body in (body for node in bare.graph.node for body in _bodies(node)):
        for value in (*body.input, *body.output, *body.value_info):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return bare


def ranked(proto: ModelProto) -> list[str]:
    """Stand in for the main graph's inputs and outputs that declare no rank, in place; return the inputs' names.

    onnx.checker refuses a model for them that runs everywhere. An input becomes an element of a sequence, which may be
    of any rank, and an output the shape of what it was.
    """
    from onnx import TensorProto, helper

    graph, made = proto.graph, []
    inputs, outputs = ([v for v in ends if _no_rank(v)] for ends in (graph.input, graph.output))
    names = [value.name for value in inputs]
    for value in inputs:
        name, every = value.name, f"{value.name}/every"
        value.CopyFrom(helper.make_tensor_sequence_value_info(every, value.type.tensor_type.elem_type, None))
        made.append(helper.make_node("Constant", [], [f"{name}/index"], value_int=0))
        made.append(helper.make_node("SequenceAt", [every, f"{name}/index"], [name]))
    nodes = [*made, *graph.node]
    for value in outputs:
        nodes.append(helper.make_node("Shape", [value.name], [f"{value.name}/shape"]))
        value.CopyFrom(helper.make_tensor_value_info(f"{value.name}/shape", TensorProto.INT64, [None]))
    if names or outputs:
        del graph.node[:]
        graph.node.extend(nodes)
    return names


def _no_rank(value: ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def in_stretches(proto: ModelProto) -> bool:
    """Whether the model has so many bodies, and neither local functions nor sparse weights to be divided with it."""
    held = sum(1 for node in proto.graph.node for _ in _bodies(node))
    return held > MOST_BODIES and not proto.functions and not proto.graph.sparse_initializer


def _stretches(nodes: Sequence[NodeProto]) -> Iterator[range]:
    """Indices of the nodes of each stretch."""
    start = held = 0
    for index, node in enumerate(nodes):
        held += sum(1 for _ in _bodies(node))
        if held >= MOST_BODIES:
            yield range(start, index + 1)
            start, held = index + 1, 0
    if start < len(nodes):
        yield range(start, len(nodes))


def _without_nodes(proto: ModelProto) -> ModelProto:
    from onnx import ModelProto

    whole = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    whole.graph.name = proto.graph.name
    for field in ("input", "output", "initializer", "sparse_initializer", "value_info"):
        getattr(whole.graph, field).extend(getattr(proto.graph, field))
    return whole


def _part(
    proto: ModelProto,
    nodes: Sequence[NodeProto],
    known: Mapping[str, ValueInfoProto],
    weights: Mapping[str, TensorProto],
) -> ModelProto:
    """A model of these nodes; what they read is an input, of the type that is known, or a weight."""
    from onnx import ModelProto

    part = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    part.graph.name = proto.graph.name
    part.graph.node.extend(nodes)
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in _reads(node) if name not in made)
    part.graph.initializer.extend(weights[name] for name in read if name in weights)
    part.graph.input.extend(known[name] for name in read if name in known)
    part.graph.value_info.extend(known[name] for name in made if name in known)
    return part


def _carried(
    nodes: Sequence[NodeProto], stretch: range, makers: Mapping[str, int], known: Mapping[str, ValueInfoProto]
) -> list[int]:
    """Indices of the nodes before a stretch that compute integers for it: shapes, whose values are inferred too."""
    from onnx import TensorProto

    found: set[int] = set()
    names = [name for index in stretch for name in _reads(nodes[index])]
    while names:
        name = names.pop()
        index = makers.get(name, stretch.start)
        integers = name in known and known[name].type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)
        if index < stretch.start and index not in found and integers and not any(_bodies(nodes[index])):
            found.add(index)
            names.extend(nodes[index].input)
    return sorted(found)


def _declare(graph: GraphProto, known: Mapping[str, ValueInfoProto]) -> None:
    """Write what is known of activations to where it belongs."""
    outputs = [known[value.name] for value in graph.output]
    ends = {value.name for value in (*graph.input, *outputs)}
    del graph.output[:], graph.value_info[:]
    graph.output.extend(outputs)
    graph.value_info.extend(value for name, value in known.items() if name not in ends)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes, and those inside them."""
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield body
            for inner in body.node:
                yield from _bodies(inner)


def _reads(node: NodeProto) -> Iterator[str]:
    """What a node and those in its bodies read; what the bodies make themselves too."""
    yield from node.input
    for body in _bodies(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from inner.input
