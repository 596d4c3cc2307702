"""The model while onnxq works on it, behind the one wall around onnx_ir (and graphsurgeon, for exchange).

`graph` holds the verbs, `edits` how they find a place, `values` what is known of a value; `validity` what a model must
be to be taken in, `normal` the form it then has, `apart` large weights left in their file, `shelf` those in files of
our own; `convert` the steps that onnx's own code does, `digest` what makes two models the same, `beginning` other
inputs than a model has.
"""

from __future__ import annotations

from onnxq.graph.beginning import begin_at, fix_shapes, remove_unread_inputs
from onnxq.graph.convert import in_order
from onnxq.graph.graph import Attribute, Graph, Node, Value
from onnxq.graph.normal import Body, lowest_ir_version, normalize
from onnxq.graph.sharing import share
from onnxq.graph.signatures import axes_problem
from onnxq.graph.validity import check_proto, tensor_bytes
from onnxq.graph.values import Dim

__all__ = [
    "Attribute",
    "Body",
    "Dim",
    "Graph",
    "Node",
    "Value",
    "axes_problem",
    "begin_at",
    "check_proto",
    "fix_shapes",
    "in_order",
    "lowest_ir_version",
    "normalize",
    "remove_unread_inputs",
    "share",
    "tensor_bytes",
]
