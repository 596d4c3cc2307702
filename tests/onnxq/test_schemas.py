from __future__ import annotations

import pytest
from onnx import defs

from onnxq.schemas import slots


@pytest.mark.parametrize(
    ("op", "version", "dtype", "takes", "gives"),
    [
        ("Relu", 17, "float16", [True], [True]),
        ("Relu", 13, "bfloat16", [True], [True]),
        ("Where", 17, "float16", [False, True, True], [True]),  # the condition is bool
        ("Gather", 17, "float16", [True, False], [True]),
        ("Resize", 19, "float16", [True, True, False, False], [True]),  # scales are float32, sizes integers
        ("Shape", 17, "float16", [True], [False]),
        ("ArgMax", 17, "float16", [True], [False]),
        ("TopK", 17, "float16", [True, False], [True, False]),
        ("ConstantOfShape", 17, "float16", [False], [False]),  # an attribute says its type
        ("Range", 17, "float16", [False, False, False], [False]),
        ("NonMaxSuppression", 17, "float16", [False] * 5, [False]),
        ("Gemm", 9, "bfloat16", [False] * 3, [False]),  # bfloat16 came with 13
        ("QuantizeLinear", 13, "float16", [False] * 3, [False]),  # half-precision scales came with 19
        ("QuantizeLinear", 19, "float16", [True, True, False], [False]),
        ("DequantizeLinear", 19, "float16", [False, True, False], [True]),
        ("LSTM", 17, "float16", [True, True, True, True, False, True, True, True], [True, True, True]),
    ],
)
def test_slots_of_operators(op: str, version: int, dtype: str, takes: list[bool], gives: list[bool]) -> None:
    found = slots(op, "", version, dtype)
    assert found is not None
    assert [found.takes(i) for i in range(len(takes))] == takes
    assert [found.gives(i) for i in range(len(gives))] == gives


def test_the_last_input_repeats_only_where_it_is_variadic() -> None:
    concat, add = slots("Concat", "", 17, "float16"), slots("Add", "", 17, "float16")
    assert concat is not None
    assert add is not None
    assert concat.takes(7)
    assert not add.takes(2)


@pytest.mark.parametrize(("op", "domain"), [("NoSuchOperator", ""), ("Gelu", "com.microsoft"), ("QLinearAdd", "x.y")])
def test_unknown_operators(op: str, domain: str) -> None:
    assert slots(op, domain, 17, "float16") is None


def test_what_follows_is_what_the_schema_says() -> None:
    """For every operator: what takes the type shares a type parameter that has both; oracle: the schema, read anew."""
    seen = 0
    for schema in defs.get_all_schemas():
        if schema.domain or schema.deprecated:
            continue
        found = slots(schema.name, "", schema.since_version, "float16")
        assert found is not None
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for index, formal in enumerate(schema.inputs):
            kinds = allowed.get(formal.type_str, [formal.type_str])
            assert found.takes(index) == ("tensor(float16)" in kinds and "tensor(float)" in kinds), schema.name
            seen += found.takes(index)
        for index, formal in enumerate(schema.outputs):
            if found.gives(index):
                assert any(i.type_str == formal.type_str for i in schema.inputs), schema.name
    assert seen > 150
