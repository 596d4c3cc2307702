from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from data_samples import I64, IDS, ROWS, X, fails, values, zoo

from onnxq.data import InputSpec, open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_model_zoo_folders_follow_the_order_of_the_inputs(tmp_path: Path) -> None:
    for i in (10, 2):
        zoo(tmp_path / f"test_data_set_{i}", np.full((1, 3), i, np.float32), np.array([[i, 0]]))
    (tmp_path / "test_data_set_2" / "output_0.pb").write_bytes(b"\xff")
    source = open_source(tmp_path, [X, IDS])
    assert source.length == 2
    assert values(source) == [[[2.0] * 3], [[10.0] * 3]]
    assert values(source, "ids") == [[[2, 0]], [[10, 0]]]
    assert values(open_source(tmp_path / "test_data_set_10", [X, IDS])) == [[[10.0] * 3]]
    with fails(DataError, "test_data_set_2: has 2 input_*.pb files for the model's 1 inputs"):
        list(open_source(tmp_path, [X]))


def test_eleven_model_zoo_inputs_are_not_sorted_as_text(tmp_path: Path) -> None:
    zoo(tmp_path / "test_data_set_0", *(np.array([i]) for i in range(11)))
    specs = [InputSpec(f"i{i}", I64, (1,)) for i in range(11)]
    (feed,) = open_source(tmp_path, specs)
    assert [feed[f"i{i}"].item() for i in range(11)] == list(range(11))


@pytest.mark.parametrize("name", ["", "ids"])
def test_sequences_optionals_and_damage_in_a_zoo_folder_are_refused(tmp_path: Path, name: str) -> None:
    zoo(tmp_path / "test_data_set_0", ROWS)
    path = tmp_path / "test_data_set_0" / "input_0.pb"
    whole = path.read_bytes()
    tensors = [np.ones((1, 3), np.float32)]
    sequence = onnx.numpy_helper.from_list(tensors, name or None)
    optional = onnx.numpy_helper.from_optional(tensors[0], name or None)
    empty = onnx.SequenceProto(name=name, elem_type=onnx.SequenceProto.TENSOR)
    for message in (
        sequence.SerializeToString(),
        optional.SerializeToString(),
        empty.SerializeToString(),
        whole[:-9],
    ):
        path.write_bytes(message)
        with fails(DataError, str(path), "tensor", "sequence and optional inputs are not supported"):
            list(open_source(tmp_path, [X]))
