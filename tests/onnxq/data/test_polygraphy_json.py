from __future__ import annotations

import base64
import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_samples import F64, IDS, ROWS, X, fails, values
from polygraphy.json import Decoder, load_json, save_json  # noqa: TID251  the oracle: Polygraphy's own writer

from onnxq.data import InputSpec, open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_polygraphy_json(tmp_path: Path) -> None:
    save_json([{"x": row[None], "ids": np.array([[i, -i]])} for i, row in enumerate(ROWS)], str(tmp_path / "d.json"))
    source = open_source(tmp_path / "d.json", [X, IDS])
    assert values(source) == [[row.tolist()] for row in ROWS]
    assert values(source, "ids") == [[[i, -i]] for i in range(5)]


def test_the_types_and_orders_that_polygraphy_writes_come_back(tmp_path: Path) -> None:
    fortran, small = np.asfortranarray(ROWS), np.array([[-128, 127]], np.int8)
    for array in (fortran, ROWS.astype(F64) / 3, ROWS > 3, small, np.array(2.5, np.float16)):
        save_json([{"x": array}], str(tmp_path / "d.json"))
        (feed,) = open_source(tmp_path / "d.json", [InputSpec("x", array.dtype, None)])
        np.testing.assert_array_equal(feed["x"], array, strict=True)


def test_a_torch_tensor_is_refused_before_anything_decodes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    decoded: list[Any] = []
    monkeypatch.setitem(Decoder.polygraphy_registered, "Tensor", decoded.append)  # stands for torch.load
    tensor = {"tensor": "gAJ9", "polygraphy_class": "Tensor"}
    path.write_text(json.dumps([{"x": tensor}]))
    load_json(str(path))
    assert len(decoded) == 1  # Polygraphy's reader of whole files does decode it
    for value in (tensor, {**tensor, "array": "AAAA"}, {"array": tensor}, [tensor]):
        path.write_text(json.dumps([{"x": value}]))
        with fails(DataError, "d.json, sample 0: input 'x' is not a numpy array", "not torch tensors"):
            list(open_source(path, [X]))
    assert len(decoded) == 1


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:  # noqa: ANN401  pickle's own type
            return os.mkdir, (str(tmp_path / "sprung"),)

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    record = {"array": base64.b64encode(stream.getvalue()).decode(), "polygraphy_class": "ndarray"}
    (tmp_path / "d.json").write_text(json.dumps([{"x": record}]))
    with fails(DataError, "d.json, sample 0: input 'x' cannot be decoded", "from arrays of numbers") as caught:
        list(open_source(tmp_path / "d.json", [X]))
    assert "unsafely" not in str(caught.value)  # numpy's advice to allow pickle is not passed on
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{", "cannot be read as JSON"),
        ('{"x": 1}', "is not a list of feeds"),
        ("[[1]]", "sample 0: is of type list, not a mapping"),
        (
            '[{"x": {"tensor": "gAJ9", "polygraphy_class": "Tensor"}}]',
            "sample 0: input 'x' is not a numpy array",
        ),
        (
            '[{"x": {"array": "????", "polygraphy_class": "ndarray"}}]',
            "sample 0: input 'x' cannot be decoded",
        ),
        (
            '[{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}]',
            "sample 0: input 'x' cannot be decoded",
        ),
        ("[]", "holds no samples"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with fails(DataError, "d.json", says):
        list(open_source(tmp_path / "d.json", [X]))
