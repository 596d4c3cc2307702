"""Whole models put inside a body of If, Loop or Scan, which must then be quantized as they were outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxq.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import NodeProto, ValueInfoProto

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


def in_if(graph: Graph, *, outside: bool = False) -> Graph:
    """`cond` chooses between the model and one with the same names and other weights; `outside` shares the weights."""
    model = graph.to_proto()
    cond = helper.make_tensor_value_info("cond", BOOL, [])
    weights = list(model.graph.initializer)
    then_branch, else_branch = _body(model, [], [] if outside else weights), _body(model, [], _halved(weights))
    node = helper.make_node(
        "If", ["cond"], _results(model), name="choice", then_branch=then_branch, else_branch=else_branch
    )
    node.attribute.sort(key=lambda a: a.name, reverse=True)  # the first branch keeps the names
    return _around(model, [node], [cond, *model.graph.input], weights if outside else [])


def in_loop(graph: Graph, times: int = 2) -> Graph:
    """The model run some times on the same input; its outputs stacked."""
    model = graph.to_proto()
    state = [helper.make_tensor_value_info("step", INT64, []), helper.make_tensor_value_info("go", BOOL, [])]
    body = _body(model, state, list(model.graph.initializer))
    body.node.append(helper.make_node("Identity", ["go"], ["go_on"], name="go_on"))
    body.output.insert(0, helper.make_tensor_value_info("go_on", BOOL, []))
    node = helper.make_node("Loop", ["times", ""], _results(model), name="again", body=body)
    return _around(model, [node], model.graph.input, [numpy_helper.from_array(np.array(times), "times")])


def in_scan(graph: Graph) -> Graph:
    """The model run on each slice of inputs that have one more axis."""
    model = graph.to_proto()
    names = [v.name for v in model.graph.input]
    body = _body(model, model.graph.input, list(model.graph.initializer))
    node = helper.make_node(
        "Scan", [f"{n}/all" for n in names], _results(model), name="each", body=body, num_scan_inputs=len(names)
    )
    return _around(model, [node], [_stacked(v) for v in model.graph.input], [])


def _results(model: ModelProto) -> list[str]:
    return [f"{v.name}/out" for v in model.graph.output]


def _body(model: ModelProto, inputs: Sequence[ValueInfoProto], weights: Sequence[TensorProto]) -> GraphProto:
    outputs = [helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, None) for v in model.graph.output]
    return helper.make_graph(list(model.graph.node), "body", list(inputs), outputs, list(weights))


def _halved(weights: Sequence[TensorProto]) -> list[TensorProto]:
    arrays = {w.name: numpy_helper.to_array(w) for w in weights}
    return [numpy_helper.from_array(a / 2 if a.dtype == np.float32 else a, n) for n, a in arrays.items()]


def _stacked(value: ValueInfoProto) -> ValueInfoProto:
    shape = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(f"{value.name}/all", value.type.tensor_type.elem_type, ["T", *shape])


def _around(
    model: ModelProto, nodes: list[NodeProto], inputs: Sequence[ValueInfoProto], weights: Sequence[TensorProto]
) -> Graph:
    kinds = [v.type.tensor_type.elem_type for v in model.graph.output]
    outputs = [helper.make_tensor_value_info(n, k, None) for n, k in zip(_results(model), kinds, strict=True)]
    made = helper.make_graph(nodes, "around", list(inputs), outputs, list(weights))
    whole = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Graph.from_proto(whole)
