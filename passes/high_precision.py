"""Bring what is not quantized from float32 to float16 or bfloat16, for strongly typed backends.

Every node of the main graph is either in the chosen type or stays in float32: where it is told to, where its operator
has no such type or the type of what it reads is not known, and where it owns bodies. Casts stand where the two meet,
one per tensor and direction. Model inputs and outputs stay in float32, unless asked for. A Q/DQ pair takes the type
of what follows it, because a backend reads the type of an int8 layer from the scale of its DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.dtypes import NUMBERS
from onnxq.numerics import along, numpy_type
from onnxq.patterns.chains import MASKING, masks
from onnxq.patterns.islands import islands
from onnxq.patterns.ranges import SMALLEST_SCALE
from onnxq.schemas import Slots, slots

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

FILL = -32752.0
"""What finite numbers below float16's range become. They fill masks; two masks may be added and stay finite."""


@dataclass(frozen=True)
class HighPrecision:
    """Convert a lowered graph.

    Attributes:
        dtype: "float16" or "bfloat16".
        keep: names of nodes that stay in float32.
        keep_io: whether float inputs and outputs of the model stay in float32.
    """

    dtype: str
    keep: frozenset[str]
    keep_io: bool = True

    def __call__(self, graph: Graph) -> int:
        """Return how many nodes now compute in the type."""
        work = _Work(graph, self.dtype, self.keep, islands(graph), frozenset(masks(graph)))
        for value in () if self.keep_io else graph.inputs:
            work.convert_input(value)
        for node in graph.nodes:
            work.convert(node)
        for value in graph.outputs:
            work.convert_output(value, half=not self.keep_io)
        work.drop_casts()
        return work.count


def _needs_float32(graph: Graph, node: Node) -> bool:
    """Whether ONNX Runtime refuses the operator in half precision though ONNX allows it."""
    scatters = node.op_type in ("ScatterElements", "ScatterND") and not node.domain
    reduces = scatters and graph.attribute(node, "reduction", "none") != "none"
    return reduces or node.op_type == "MeanVarianceNormalization"


@dataclass
class _Work:
    graph: Graph
    dtype: str
    keep: frozenset[str]
    islands: set[int]  # ids of the nodes that run on int8
    masks: frozenset[str]  # names of the tensors that are added to a Softmax's input
    half: set[int] = field(default_factory=set)  # ids of the values that are in the type by now
    made: dict[tuple[int, bool], Value] = field(default_factory=dict)
    count: int = 0

    def convert_input(self, value: Value) -> None:
        """Make a float32 model input one of the type."""
        if self._is_float(value):
            self._mark(value)

    def convert_output(self, value: Value, *, half: bool) -> None:
        """Give a float model output its type; its name and its readers stay."""
        if (self._is_float(value) and half) or (id(value) in self.half and not half):
            self.graph.replace_output(value, self.cast(value, half=half))

    def convert(self, node: Node) -> None:
        """Give the node and its outputs their type; nodes come in topological order."""
        if node.op_type == "QuantizeLinear" and not node.domain:
            self._convert_quantize(node)
        elif node.op_type == "DequantizeLinear" and not node.domain:
            self._convert_dequantize(node)
        elif node.op_type == "Cast" and self._becomes_half(node):
            self._convert_cast(node)
        elif self._narrows(node) and id(node.inputs[0]) in self.half:
            pass  # it hands on what it reads
        else:
            self._convert_other(node)

    def drop_casts(self) -> None:
        """Drop the Casts at the ends of a model that was in the type already."""
        for node in self.graph.nodes:
            if self._narrows(node) and self.graph.dtype(node.inputs[0]) == self.dtype:
                self.graph.bypass(node)

    def _narrows(self, node: Node) -> bool:
        """Whether it is a Cast to the type."""
        return node.op_type == "Cast" and not node.domain and self.graph.attribute(node, "to") == NUMBERS[self.dtype]

    def _becomes_half(self, node: Node) -> bool:
        """Whether the node can and may compute in the type."""
        found = self._slots(node)
        if found is None or node.name in self.keep or any(True for _ in self.graph.bodies(node)):
            return False
        if id(node) in self.islands or _needs_float32(self.graph, node) or not self._typed(node, found):
            return False
        if self._shifts_for_float32(node):
            return False
        if node.op_type == "Cast":
            return bool(self.graph.attribute(node, "to") == NUMBERS["float32"]) and not self._is_float(node.inputs[0])
        floats = [i for i, v in enumerate(node.outputs) if self._is_float(v) and (v.uses() or v.is_graph_output())]
        return all(found.gives(i) for i in floats) and (bool(floats) or self._reads_half(node, found))

    def _shifts_for_float32(self, node: Node) -> bool:
        """Whether it adds a constant for QuantizeLinears that read float32 in any case: the type would round it."""
        users = [user for user, _ in self.graph.users(node.outputs[0])]
        shifts = node.op_type == "Add" and any(self.graph.size(v) == 1 and self.graph.is_const(v) for v in node.inputs)
        return (
            shifts
            and bool(users)
            and all(u.op_type == "QuantizeLinear" and not self._holds(u.inputs[1]) for u in users)
        )

    def _typed(self, node: Node, found: Slots) -> bool:
        """Whether all element types are known: what a custom operator or a sequence gives may be float32."""
        read = (v for i, v in enumerate(node.inputs) if v is not None and found.takes(i))
        made = (v for v in node.outputs if v.uses() or v.is_graph_output())
        return all(self.graph.dtype(v) is not None for v in (*read, *made))

    def _reads_half(self, node: Node, found: Slots) -> bool:
        return any(v is not None and id(v) in self.half and found.takes(i) for i, v in enumerate(node.inputs))

    def _slots(self, node: Node) -> Slots | None:
        version = self.graph.domains.get(node.domain, 0)
        return slots(node.op_type, node.domain, version, self.dtype) if version else None

    def _is_float(self, value: Value | None) -> bool:
        return value is not None and id(value) not in self.half and self.graph.dtype(value) == "float32"

    def _convert_other(self, node: Node) -> None:
        found = self._slots(node) if self._becomes_half(node) else None
        for index, value in enumerate(node.inputs):
            if value is not None:
                self._read(node, index, value, half=found is not None and found.takes(index))
        for body_node in self.graph.bodies(node):
            for index, value in enumerate(body_node.inputs):
                if value is not None and id(value) in self.half:
                    self.graph.set_input(body_node, index, self.cast(value, half=False, before=node))
        if found is not None:
            self.count += 1
            for index, value in enumerate(node.outputs):
                if found.gives(index) and self._is_float(value):
                    self._mark(value)

    def _convert_cast(self, node: Node) -> None:
        """An integer cast to float is cast to the type directly."""
        self.graph.set_attribute(node, "to", NUMBERS[self.dtype])
        self._mark(node.outputs[0])
        self.count += 1

    def _convert_quantize(self, node: Node) -> None:
        """The scale has the input's type. A scale that the type cannot hold needs a float32 input."""
        value = node.inputs[0]
        if value is None or (not self._is_float(value) and id(value) not in self.half):
            return
        self._read_scale_in_float32(node)
        readers = [user for user, _ in self.graph.users(node.outputs[0]) if user.op_type == "DequantizeLinear"]
        follows = bool(readers) and all(self._kind(reader) != "float" for reader in readers)
        if self.graph.is_const(value) or not follows or not self._holds(node.inputs[1]):
            self._read(node, 0, value, half=follows and self.graph.is_const(value))
        if node.inputs[0] is not None and id(node.inputs[0]) in self.half:
            self._narrow_scale(node)

    def _convert_dequantize(self, node: Node) -> None:
        self._read_scale_in_float32(node)
        stored = self.graph.is_const(node.inputs[1]) and self.graph.attribute(node, "output_dtype") is None
        if self._is_float(node.outputs[0]) and stored and self._fits(node) and self._kind(node) == "half":
            self._narrow_dequantize(node)
            self._mark(node.outputs[0])

    def _fits(self, node: Node) -> bool:
        """Whether a DequantizeLinear's scales have all digits in the type, or its codes can be of larger ones."""
        small = self.dtype == "float16" and bool((self._scale(node) < SMALLEST_SCALE).any())
        return not small or (self.graph.is_const(node.inputs[0]) and not self.graph.attribute(node, "block_size", 0))

    def _narrow_dequantize(self, node: Node) -> None:
        """Give it scales in the type; stored codes of scales that would be raised are rounded to what they become."""
        codes, scale = node.inputs[0], self._scale(node)
        array = self.graph.const(codes) if codes is not None else None
        if codes is not None and array is not None and self.dtype == "float16" and (scale < SMALLEST_SCALE).any():
            zero = self.graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
            axis = self.graph.attribute(node, "axis", 1)
            self.graph.set_input(
                node, 0, self.graph.constant(f"{codes.name}_raised", _raised(array, scale, zero, axis))
            )
        self._narrow_scale(node)

    def _scale(self, node: Node) -> npt.NDArray[Any]:
        scale = self.graph.const(node.inputs[1])
        assert scale is not None  # noqa: S101  it was asked before
        return scale

    def _kind(self, dequantize: Node) -> str:
        """What a DequantizeLinear feeds: "half" when anything computes in the type, "island", or "float"."""
        users = [(u, i) for u, i in self.graph.users(dequantize.outputs[0]) if not self.graph.in_body(u)]
        # a scale that is stored in few bits itself is computed in float32: half precision would spoil small ones
        users = [(u, i) for u, i in users if not (u.op_type == "DequantizeLinear" and i == 1)]
        if any(self._may_be_half(user, index) for user, index in users):
            return "half"
        return "island" if any(id(user) in self.islands for user, _ in users) else "float"

    def _may_be_half(self, node: Node, index: int) -> bool:
        found = self._slots(node)
        return found is not None and found.takes(index) and self._becomes_half(node)

    def _holds(self, scale: Value | None) -> bool:
        """Whether the type holds the scale exactly, as `precision.with_float_types` has arranged where it could."""
        array = self.graph.const(scale)
        return array is not None and bool(np.array_equal(self._narrow(array).astype(np.float32), array))

    def _read_scale_in_float32(self, node: Node) -> None:
        """A scale that the model computes was made for float32 data."""
        scale = node.inputs[1]
        if scale is not None and not self.graph.is_const(scale):
            self._read(node, 1, scale, half=False)

    def _narrow_scale(self, node: Node) -> None:
        scale = node.inputs[1]
        array = self.graph.const(scale)
        if scale is None or array is None or array.dtype != np.float32:
            return
        key = (id(scale), True)
        if key not in self.made:
            self.made[key] = self._constant(f"{scale.name}_{self.dtype}", self._narrow(array), half=True)
        self.graph.set_input(node, 1, self.made[key])

    def _narrow(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.dtype == "float16":
            # Below the smallest normal number the type loses digits and backends may flush to zero.
            return np.asarray(np.clip(array, np.finfo(np.float16).tiny, np.finfo(np.float16).max), np.float16)
        return np.asarray(array, numpy_type(self.dtype))

    def _read(self, node: Node, index: int, value: Value, *, half: bool) -> None:
        """Let the node read the value in the wanted type."""
        if (half and self._is_float(value)) or (not half and id(value) in self.half):
            self.graph.set_input(node, index, self.cast(value, half=half, before=node))

    def cast(self, value: Value, *, half: bool, before: Node | None = None) -> Value:
        """The value in the other type: a converted weight, or one Cast shared by all readers."""
        key = (id(value), half)
        if key not in self.made:
            array = self.graph.const(value)
            if array is not None:
                self.made[key] = self._constant(f"{value.name}_{self.dtype}", self._converted(array), half=half)
            else:
                self.made[key] = self._cast_node(value, half=half, before=before)
        return self.made[key]

    def _converted(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.dtype == "float16":
            # A mask's -3e38 would become -inf, and 0 times it NaN; a bound of 3e38 bounds nothing.
            held = np.where(np.isfinite(array) & (array < np.finfo(np.float16).min), FILL, array)
            held = np.where(np.isfinite(held), np.minimum(held, np.finfo(np.float16).max), held)
            return np.asarray(held, np.float16)
        return np.asarray(array, numpy_type(self.dtype))

    def _constant(self, name: str, array: npt.NDArray[Any], *, half: bool) -> Value:
        made = self.graph.constant(name, array)
        if half:
            self.half.add(id(made))
        return made

    def _cast_node(self, value: Value, *, half: bool, before: Node | None) -> Value:
        kind = self.dtype if half else "float32"
        dequantize = self.graph.producer(value, "DequantizeLinear")
        stored = dequantize is not None and self.graph.is_const(dequantize.inputs[1])
        if dequantize is not None and stored and (not half or self._fits(dequantize)):
            made = self._dequantized_again(dequantize, value, kind)
        else:
            to = NUMBERS[kind]
            # Behind a model input the first reader may stand anywhere; behind a producer the Cast stands right there.
            place = before if value.producer() is None else None
            if half and self.dtype == "float16" and self._is_mask(value):
                value = self._floored(value, place)
            made = self.graph.add(
                "Cast", [value], name=f"{value.name}_{kind}", attributes={"to": to}, like=value, before=place
            )
        self.graph.retype(made, kind)
        if half:
            self.half.add(id(made))
        return made

    def _is_mask(self, value: Value) -> bool:
        """Whether the value goes into a Softmax and may be -3e38: a model input, or made by masking operators."""
        maker = value.producer()
        masking = maker is None or maker.op_type in MASKING or any(True for _ in self.graph.bodies(maker))
        return masking and str(value.name) in self.masks

    def _floored(self, value: Value, place: Node | None) -> Value:
        """The mask with its -3e38 raised to what the type holds, as in constants."""
        lowest = self.graph.constant(f"{value.name}_lowest", np.array(FILL, np.float32))
        return self.graph.add("Max", [value, lowest], name=f"{value.name}_floored", like=value, before=place)

    def _dequantized_again(self, node: Node, value: Value, kind: str) -> Value:
        """A second DequantizeLinear in the other type is free, and keeps int8 in front of its reader."""
        said = {name: self.graph.attribute(node, name) for name in ("axis", "block_size")}
        made = self.graph.add(
            "DequantizeLinear",
            node.inputs,
            name=f"{value.name}_{kind}",
            attributes={name: number for name, number in said.items() if number is not None},
            like=value,
        )
        again = made.producer()
        assert again is not None  # noqa: S101  it was just added
        if kind == "float32":
            stored = self._scale(again).astype(np.float32)
            self.graph.set_input(again, 1, self._constant(f"{value.name}_scale_{kind}", stored, half=False))
        else:
            self._narrow_dequantize(again)
        return made

    def _mark(self, value: Value) -> None:
        self.half.add(id(value))
        self.graph.retype(value, self.dtype)


def _raised(
    codes: npt.NDArray[Any], scale: npt.NDArray[Any], zero: npt.NDArray[Any] | None, axis: int
) -> npt.NDArray[Any]:
    """Codes of the same numbers, rounded, with scales of float16's least normal number where they are smaller."""

    def spread(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        wide = array.astype(np.float64)
        return along(wide, codes.ndim, axis) if wide.size > 1 else wide.reshape(())

    by, start = np.minimum(spread(scale) / SMALLEST_SCALE, 1.0), np.zeros(()) if zero is None else spread(zero)
    return np.asarray(np.rint((codes.astype(np.float64) - start) * by + start), codes.dtype)
