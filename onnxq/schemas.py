"""What onnx's operator schemas say of types: which inputs and outputs of a node may be in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_NAMES = {"float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


@dataclass(frozen=True)
class Slots:
    """Which slots follow a change of the floating-point type.

    Attributes:
        inputs: per input, whether it may take the other type; the last one repeats for variadic operators.
        outputs: per output, whether its type follows that of such an input.
        variadic: whether the last input repeats.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    variadic: bool

    def takes(self, index: int) -> bool:
        """Whether this input may take the other type."""
        if index < len(self.inputs):
            return self.inputs[index]
        return self.variadic and self.inputs[-1]

    def gives(self, index: int) -> bool:
        """Whether this output's type follows."""
        return self.outputs[min(index, len(self.outputs) - 1)]


@lru_cache(maxsize=4096)
def slots(op_type: str, domain: str, version: int, dtype: str) -> Slots | None:
    """The slots of an operator that may be `dtype` ("float16", "bfloat16") in place of float32; None if unknown.

    Source: the type constraints of `onnx.defs`. An output whose type an attribute sets (Cast, RandomNormal) does
    not follow any input.
    """
    from onnx import defs

    try:
        schema = defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    both = {name for name, kinds in allowed.items() if {_NAMES[dtype], "tensor(float)"} <= kinds}
    read = {formal.type_str for formal in schema.inputs}
    return Slots(
        inputs=tuple(formal.type_str in both for formal in schema.inputs) or (False,),
        outputs=tuple(formal.type_str in both & read for formal in schema.outputs) or (False,),
        variadic=bool(schema.inputs) and schema.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic,
    )
