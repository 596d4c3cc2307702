"""What a quantized model holds, whichever tool made it: precision of nodes, scales of tensors, bytes by type.

Read from the file alone, by the index that the checks use: weights stay where they are, scales are read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.checks import build
from onnxq.checks.finding import label
from onnxq.checks.index import is_qdq
from onnxq.checks.validity import reads_ahead
from onnxq.checks.versions import get_version
from onnxq.errors import ModelError
from onnxq.graph import in_order
from onnxq.interface import described
from onnxq.inventory.decoding import decoded_from
from onnxq.inventory.holdings import holdings as holdings_of
from onnxq.inventory.holdings import joined
from onnxq.inventory.layers import layers as layers_of
from onnxq.inventory.types import NAMES, stored_bytes
from onnxq.inventory.values import Holding, Inventory, Layer, is_low
from onnxq.shifted import shifted_tensors
from onnxq.smoothed import stand_ins

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from onnx import ModelProto

    from onnxq.checks.build import Shapes
    from onnxq.checks.index import Model
    from onnxq.interface import Port
    from onnxq.shifted import Shifted

__all__ = ["NAMES", "Holding", "Inventory", "Layer", "is_low", "look_at", "take_stock"]


def look_at(path: str | os.PathLike[str], shapes: Shapes = build.NO_SHAPES) -> Inventory:
    """The inventory of a file; `shapes` as for `take_stock`.

    Raises:
        ModelError: it cannot be read, is no ONNX model, or as for `take_stock`.
    """
    return take_stock(build.read(path), str(Path(path).parent), shapes)


def take_stock(proto: ModelProto, base_dir: str = "", shapes: Shapes = build.NO_SHAPES) -> Inventory:
    """Look through a model; it is not changed.

    Args:
        proto: the model.
        base_dir: folder of its external data.
        shapes: of tensors, as they were when it ran, where the file leaves them open: work is counted with them.

    Raises:
        ModelError: its nodes form a cycle, or read what nothing makes.
    """
    if any(reads_ahead(proto.graph)):
        proto = in_order(proto)
    if lost := next(reads_ahead(proto.graph), None):
        node, name, _ = lost
        raise ModelError(f"node {label(node)!r} reads {name}, which no earlier node makes", "Export the model again.")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    others = stand_ins(metadata)
    shapes = {**shapes, **{tensor: shapes[name] for tensor, name in others.items() if name in shapes}}
    models = [_sized(model, shapes) for model in build.graphs(proto, base_dir, get_version("tensorrt"))]
    both = [(model, decoded_from(model)) for model in models]
    layers = [found for model, decoded in both for found in layers_of(model, decoded)]
    tensors = [found for model, decoded in both for found in holdings_of(model, decoded)]
    shifted = {one.tensor: one for one in shifted_tensors(metadata)}
    layers = [_told(layer, others) for layer in layers]
    tensors = [_shifted(tensor, shifted) for tensor in tensors]
    producer = " ".join(filter(None, [proto.producer_name, proto.producer_version]))
    return Inventory(
        producer,
        models[0].opset,
        tuple(layers),
        tuple(joined(tensors)),
        _sizes(models),
        _interface(proto, metadata),
        sized=not build.open_inputs(proto, shapes),
    )


def _sized(model: Model, shapes: Shapes) -> Model:
    """The model with these shapes, which its Q and DQ nodes hand on, and back what adds a bias to a product."""
    if not shapes or not model.main:
        return model
    known = dict(shapes)
    for node in model.nodes:
        if is_qdq(node) and node.input[0] in known:
            known.setdefault(node.output[0], known[node.input[0]])
        elif node.op_type == "Add" and node.output[0] in known:
            made = [name for name in node.input if not model.constant(name)]
            flat = all(len(model.shapes.get(name, ())) == 1 for name in node.input if name not in made)
            if len(made) == 1 and flat:
                known.setdefault(made[0], known[node.output[0]])
    return replace(model, shapes={**model.shapes, **known})


def _told(layer: Layer, others: Mapping[str, str]) -> Layer:
    """The layer with the float model's tensors for which its outputs stand."""
    found = [others[name] for name in layer.outputs if name in others]
    return replace(layer, outputs=tuple(dict.fromkeys((*layer.outputs, *found))))


def _shifted(tensor: Holding, shifted: Mapping[str, Shifted]) -> Holding:
    one = shifted.get(tensor.tensor)
    return tensor if one is None else replace(tensor, stands_for=one.name, shift=one.shift)


def _interface(proto: ModelProto, metadata: Mapping[str, str]) -> tuple[Port, ...]:
    ends = (("input", proto.graph.input), ("output", proto.graph.output))
    kinds = ((kind, v.name, NAMES.get(v.type.tensor_type.elem_type)) for kind, values in ends for v in values)
    return described(metadata, kinds)


def _sizes(models: Iterable[Model]) -> tuple[tuple[str, int, int], ...]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen = {id(tensor): tensor for model in models for tensor in build.own(model.constants).values()}
    for tensor in seen.values():
        kind = NAMES.get(tensor.data_type, "other")
        counts[kind] += 1
        sizes[kind] += stored_bytes(kind, tuple(tensor.dims))
    return tuple((kind, counts[kind], size) for kind, size in sorted(sizes.items(), key=lambda item: (-item[1], item)))
