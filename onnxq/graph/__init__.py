"""The model while onnxq works on it, behind the one wall around onnx_ir (and graphsurgeon, for exchange).

`graph` holds the verbs, `validity` what a model must be to be taken in, `normal` the form it then has, `convert`
the steps that onnx's own code does, `digest` what makes two models the same.
"""

from __future__ import annotations

from onnxq.graph.graph import Attribute, Dim, Graph, Node, Value, normalized
from onnxq.graph.validity import check_proto, tensor_bytes

__all__ = ["Attribute", "Dim", "Graph", "Node", "Value", "check_proto", "normalized", "tensor_bytes"]
