"""The scales of a quantized model as plain values, for a fine-tuning run to start from.

    {"format": "onnxq scales 1", "tensors": {NAME: {"kind": "activation", "dtype": "int8", "axis": null,
     "scale": [0.1], "zero_point": [0], "amax": [12.7], "readers": ["/fc/Gemm"]}}}

amax is max(|lo|, |hi|) of what the grid covers, with the code -128 of a symmetric int8 grid left out: 127 scale, as
pytorch-quantization and ModelOpt have it. Names are those of the float tensors, and so are scales, where factors went
from one DequantizeLinear to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import ModelError
from onnxq.lifting import lifted_by
from onnxq.smoothed import stand_ins

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node

FORMAT = "onnxq scales 1"
_LIMITS = {"int8": (-127, 127), "uint8": (0, 255), "int16": (-32767, 32767), "uint16": (0, 65535), "int4": (-7, 7)}


def scales(graph: Graph) -> dict[str, Any]:
    """Every tensor of the main graph that a DequantizeLinear with constant scales makes.

    Blocks, and types but 4, 8 and 16-bit integers, are left out: fake quantization has no parameters for them.

    Raises:
        ModelError: there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.domain:
            continue
        entry = _entry(graph, node)
        if entry is None:
            continue
        name, said = entry
        readers = [str(user.name) for user, _ in graph.users(node.outputs[0])]
        found.setdefault(name, said)["readers"] += readers
    if not found:
        raise ModelError(
            "the model holds no Q/DQ pairs of integers with constant scales",
            "Give a model in int8, int16 or int4. Blocks, float8 and tables of levels have no parameters of this kind.",
        )
    return {"format": FORMAT, "tensors": dict(sorted(found.items()))}


def _entry(graph: Graph, node: Node) -> tuple[str, dict[str, Any]] | None:
    scale, codes = graph.const(node.inputs[1]), node.inputs[0]
    kind = graph.dtype(node.inputs[2]) if len(node.inputs) > 2 else graph.dtype(codes)
    maker = graph.producer(codes, "QuantizeLinear")
    if maker is not None and len(maker.inputs) > 2:
        kind = graph.dtype(maker.inputs[2])  # an omitted zero point is 0 in the type of the QuantizeLinear's
    if scale is None or codes is None or kind not in _LIMITS or graph.attribute(node, "block_size", 0):
        return None
    source = codes if maker is None else maker.inputs[0]
    if source is None or (maker is None and not graph.is_const(codes)):
        return None
    lifted = lifted_by(graph, node.outputs[0]) if graph.is_const(source) else 0
    given = None if maker is None else graph.const(maker.inputs[1])
    channels = given is not None and given.size < scale.size  # those of a layer's rows, which hold their inverse
    scale = scale if given is None or channels else given  # a factor behind the pair may be in the DequantizeLinear
    zero = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    zeros = np.broadcast_to(0.0 if zero is None else zero.astype(np.float64).reshape(-1), scale.size)
    flat: npt.NDArray[np.float64] = np.ldexp(scale.astype(np.float64), -lifted).reshape(-1)
    low, high = _LIMITS[kind]
    amax = np.maximum(np.abs(low - zeros), np.abs(high - zeros)) * flat
    said = {
        "kind": "weight" if graph.is_const(source) else "activation",
        "dtype": kind,
        "axis": None if scale.size == 1 else int(graph.attribute(node, "axis", 1)),
        "scale": [float(s) for s in flat],
        "zero_point": [int(z) for z in zeros],
        "amax": [float(a) for a in amax],
        "readers": [],
    }
    name = stand_ins(graph.model.metadata_props).get(str(source.name)) if channels else None
    return name or str(source.name).removesuffix("_quantized").removesuffix("_lifted" if lifted else ""), said
