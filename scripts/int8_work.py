"""The share of a model's multiply-accumulates that runs on int8 data: one counting for the graphs of every tool.

Counted are Conv, ConvTranspose, Gemm, MatMul, LSTM, the products of a MultiHeadAttention (which are float in a
QAttention too) and the integer operators that stand for them, by the shapes of one run. A float operator counts as int8
when both of its operands come out of a DequantizeLinear of 8 bits, over operators that only move data; what a runtime
does with that is another question, see `onnxq check`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    import numpy.typing as npt

INTEGER = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}
INTEGER |= {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QAttention": 1}
"""Operator -> the position of its weight."""
FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVING = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Identity", "Pad", "Cast")
EIGHT = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def share(path: Path, feed: dict[str, npt.NDArray[Any]]) -> float:
    """int8 MACs over all MACs of a run with this feed, 0 to 1."""
    model = onnx.load(path)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {t.name: t for t in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    nodes = [n for n in graph.node if n.op_type in (*FLOAT, *INTEGER, "LSTM", "MultiHeadAttention")]
    dims = _dims(model, [name for n in nodes for name in (*n.input, n.output[0]) if name], feed)
    total = eight = 0
    for node in nodes:
        macs = _macs(node, dims)
        total += macs
        operands = node.input[:2]
        if node.op_type == "QAttention":  # beside the products that make them Q K^T, and with V: [B, S, N H]
            total += int(2 * np.prod(dims[node.output[0]]) * dims[node.output[0]][1])
        if node.op_type in INTEGER or all(_is_eight(name, makers, constants) for name in operands):
            eight += macs
    return eight / total if total else 0.0


def _dims(model: onnx.ModelProto, names: list[str], feed: dict[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Shape of each of these tensors in a run, without any optimization."""
    import onnxruntime as ort  # noqa: TID251  a measurement of files, beside the engine

    known = {t.name: tuple(t.dims) for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    wanted = [n for n in dict.fromkeys(names) if n not in known and n not in feed]
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        onnx.save_model(probe, Path(folder) / "probe.onnx")
        session = ort.InferenceSession(str(Path(folder) / "probe.onnx"), options, providers=["CPUExecutionProvider"])
        found = session.run(wanted, feed)
    return known | {n: a.shape for n, a in feed.items()} | {n: a.shape for n, a in zip(wanted, found, strict=True)}


def _macs(node: onnx.NodeProto, dims: dict[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one node."""
    weight = dims[node.input[INTEGER.get(node.op_type, 1)]]
    if node.op_type == "MultiHeadAttention":  # Q K^T, and with V: Q [B, S, N H] and K [B, L, N H]
        return int(2 * np.prod(dims[node.input[0]]) * weight[1])
    if node.op_type == "QAttention":  # Q, K and V: [B, S, C] and [C, 3 N H]
        return int(np.prod(dims[node.input[0]]) * weight[1])
    if node.op_type == "LSTM":
        steps, batch, inputs = dims[node.input[0]]
        return int(steps * batch * np.prod(weight[:2]) * (inputs + weight[1] // 4))
    if node.op_type == "ConvTranspose":
        return int(np.prod(dims[node.input[0]]) * np.prod(weight[1:]))
    if "Conv" in node.op_type:
        return int(np.prod(dims[node.output[0]]) * np.prod(weight[1:]))
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return int(np.prod(dims[node.output[0]]) * (weight[-1] if turned else weight[-2] if len(weight) > 1 else weight[0]))


def _is_eight(name: str, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in MOVING:
        name = node.input[0]
        node = makers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return False
    if len(node.input) > 2 and node.input[2] in constants:
        return constants[node.input[2]].data_type in EIGHT
    if node.input[0] in constants:
        return constants[node.input[0]].data_type in EIGHT
    return True  # int8 or uint8: QuantizeLinear without a zero point writes uint8
