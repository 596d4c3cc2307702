"""The whole-model steps that onnx's C++ code does: shape inference and conversion to another opset.

That code copies what it gets several times and stops at 2 GiB, so it gets a skeleton: the larger weights go in as
inputs and come back as what they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir  # noqa: TID251  this is the wall

from onnxq.customs import STAND_IN, stand_in
from onnxq.errors import ModelError
from onnxq.graph.normal import normalize
from onnxq.graph.signatures import signature_problem
from onnxq.inference import inferred

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

_SKELETON_BYTES = 1024
"""Weights up to this size stay: shape inference reads those that are shapes, axes and the like."""

_BLIND, _SEEING = (13, 14), 15
"""onnx computes no values of what comes from a Shape before opset 15; all that infers shapes is the same from 13 on."""


_SHAPED = {"Reshape": 1, "ConstantOfShape": 0}
"""Operators whose output has the shape that such an input says."""

_ROUNDS = 16
"""How often shapes are inferred again at most, from ranks that the last time made known."""

_ALIKE = {"Scaler": "Cast", "Normalizer": "Cast", "Imputer": "Identity"}
"""Operators of ai.onnx.ml without inference of their own, which keep the shape of what they read, and what says so in
their stead: the first two write float32 of any type."""


def in_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes, those of bodies too, in topological order, and nothing else changed.

    Raises:
        ModelError: its nodes form a cycle.
    """
    model = ir.from_proto(proto)
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the model's nodes form a cycle", "Export the model again.") from error
    return ir.to_proto(model)


def infer_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> None:
    """Fill in types and shapes, given those of some inputs, as far as onnx's inference gets; the rest stays unknown."""
    for value in model.graph.inputs:
        if (dims := inputs.get(str(value.name))) is not None:
            value.shape = ir.Shape(dims)
    _infer(model, blind=not inputs)
    for _ in range(_ROUNDS):
        if not _rank_by_length(model):
            break
        _infer(model, blind=not inputs)
    for value in model.graph.outputs:
        _mend_rank(value)


def _infer(model: ir.Model, *, blind: bool) -> None:
    proto = _skeleton(model)[0]
    _show_alike(proto.graph)
    for entry in () if blind else proto.opset_import:
        if not entry.domain and entry.version in _BLIND:
            entry.version = _SEEING
    try:
        proto = inferred(proto)
    except Exception:  # noqa: BLE001  the C++ code raises several types; unknown shapes are no error
        return
    # onnx_ir's own pass would make tensors of sequences whose type was unknown, and takes quadratic time.
    found = {i.name: i.type for i in _infos(proto.graph)}
    for value in (v for node in model.graph.all_nodes() for v in node.outputs if v.name and v.name in found):
        kind = ir.serde.deserialize_type_proto_for_type(found[str(value.name)])
        shape = ir.serde.deserialize_type_proto_for_shape(found[str(value.name)])
        value.type = value.type if kind is None else kind
        value.shape = value.shape if shape is None else shape


def _rank_by_length(model: ir.Model) -> bool:
    """Give what is made in a computed shape its rank, which is the length of that shape; whether there was any.

    onnx knows no rank where it does not know the sizes, nor of anything that is made from there on.
    """
    found = False
    for node in model.graph.all_nodes():
        place = _SHAPED.get(node.op_type, len(node.inputs))
        length = None if node.domain or place >= len(node.inputs) else _length(node.inputs[place])
        if length is None:
            continue
        for made in (v for v in node.outputs if v.shape is None and v.type is not None):  # one, or none at all
            made.shape = ir.Shape([None] * length)
            found = True
    return found


def _length(value: ir.Value | None) -> int | None:
    """How many numbers a list of such has, where that is known."""
    shape = None if value is None else value.shape
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def _show_alike(graph: onnx.GraphProto) -> None:
    """Put what inference knows in the place of operators that keep the shape and have no inference, bodies included."""
    from onnx import TensorProto, helper

    for node in graph.node:
        if node.domain == "ai.onnx.ml" and node.op_type in _ALIKE:
            node.domain, node.op_type = "", _ALIKE[node.op_type]
            del node.attribute[:]
            node.attribute.extend([helper.make_attribute("to", TensorProto.FLOAT)] if node.op_type == "Cast" else [])
        for body in (a.g for a in node.attribute if a.HasField("g")):
            _show_alike(body)


def _mend_rank(value: ir.Value) -> None:
    """Of an output that a Reshape makes: its rank is how long the Reshape's second input is, whatever the file says.

    Exporters write the rank of another program, runtimes do not mind, and onnx's check only where it is no output.
    """
    maker = value.producer()
    if maker is None or maker.op_type != "Reshape" or maker.domain or value.shape is None:
        return
    length = _length(maker.inputs[1]) if len(maker.inputs) > 1 else None  # an attribute before opset 5
    if length is not None and length != len(value.shape):
        value.shape = ir.Shape([None] * length)


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """What is known of the activations of a graph and of the bodies inside it; their names are unique."""
    yield from (*graph.value_info, *graph.output)
    for attribute in (a for node in graph.node for a in node.attribute):
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _infos(body)


def converted(old: ir.Model, version: int) -> ir.Model:
    """The model, which is used up, in another default-domain opset.

    Raises:
        ModelError: an operator has no conversion.
    """
    from onnx import version_converter

    proto, taken = _skeleton(old)
    stand_in(proto)
    opset = old.opset_imports.get("", 1)
    if (problem := signature_problem(proto.graph.node, opset)) is not None:
        raise ModelError(f"the model is not valid: {problem}", "Export it again; onnx.checker may say more.")
    try:
        graph = ir.from_proto(version_converter.convert_version(proto, version)).graph
    except Exception as error:  # the C++ code raises several types
        way = "later" if opset < version else "earlier"
        raise ModelError(
            f"the model cannot be brought from opset {opset} to {version}: {_why_not(proto, opset, version, error)}",
            f"Export the model again with opset {version} or {way}.",
        ) from error
    for value in tuple(graph.inputs):
        if (tensor := taken.get(str(value.name))) is not None:
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)
    for node in graph.all_nodes():
        node.domain = "" if node.domain == STAND_IN else node.domain
    _restore_remarks(graph, old.graph)
    model = ir.Model(
        graph,
        ir_version=max(old.ir_version, 7),
        producer_name=old.producer_name,
        producer_version=old.producer_version,
        domain=old.domain,
        model_version=old.model_version,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    model.opset_imports.update({**old.opset_imports, "": version})
    normalize(model)
    return model


def _why_not(proto: onnx.ModelProto, opset: int, version: int, error: Exception) -> str:
    """Why the converter failed, in words where they are known: it tells of newer opsets by its own assertions."""
    from onnx import defs

    if opset > defs.onnx_opset_version():
        return f"the installed onnx knows opsets up to {defs.onnx_opset_version()}"
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and defs.has(node.op_type, opset):
            since = defs.get_schema(node.op_type, opset).since_version
            if since > version:
                return f"node {node.name!r} is {node.op_type} as opset {since} has it, which the converter cannot write"
    return str(error).strip()


def _skeleton(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model with its larger weights turned into inputs, and those weights."""
    import onnx

    graph = model.graph
    taken = {
        str(name): value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _SKELETON_BYTES
    }
    for value in (v for part in model.graphs() for v in part.initializers.values()):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and taken.get(str(value.name)) is not tensor:
            value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]
    view = ir.GraphView(
        [*graph.inputs, *(graph.initializers[name] for name in taken)],
        graph.outputs,
        nodes=graph,
        initializers=[v for name, v in graph.initializers.items() if name not in taken],
        name=graph.name,
    )
    opsets = [onnx.helper.make_opsetid(k, v) for k, v in model.opset_imports.items()]
    inside = ir.to_proto(view)  # type: ignore[call-overload]  # it takes views; its annotations forgot them
    return onnx.ModelProto(ir_version=model.ir_version, graph=inside, opset_import=opsets), taken


def _restore_remarks(graph: ir.Graph, old: ir.Graph) -> None:
    """Documentation and metadata, which the converter drops; nodes are known by their (unique) names."""
    graph.doc_string = old.doc_string
    graph.metadata_props.update(old.metadata_props)
    before = {node.name: node for node in old.all_nodes()}
    for node in graph.all_nodes():
        if node.name and node.name in before:
            node.metadata_props.update(before[node.name].metadata_props)
            node.doc_string = node.doc_string or before[node.name].doc_string
