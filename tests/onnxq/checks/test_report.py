"""The report, the public function and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import onnx
import pytest
from check_graphs import CONV, const, io, model, pair
from onnx import TensorProto, helper
from real_models import DIGITS

import onnxq
from onnxq import dtypes
from onnxq.checks import CHECKS, check, text
from onnxq.checks.versions import VERSIONS, get_version
from onnxq.numerics import FLOAT8, numpy_type

if TYPE_CHECKING:
    from pathlib import Path

LEGAL = CONV.replace("c =", "y =")
REFUSED = f"{pair('xd', 'x')} y = Conv(xd, w)"


def test_findings_come_worst_first() -> None:
    found = check(model(REFUSED, extra=("int8 z = {3}",))).findings
    assert [f.severity for f in found] == sorted((f.severity for f in found), key="EWI".index)
    assert {f.severity for f in found} == {"E", "W", "I"}
    assert all(f.hint == CHECKS[f.id].hint and f.source == CHECKS[f.id].source for f in found)
    assert str(found[0]).startswith("P4 E xd_q: zero point z is not zero")


def test_severities_are_those_of_the_table() -> None:
    for name in (f"P{number}" for number in range(1, 37)):
        rule = CHECKS[name]
        assert set(rule.severity.split("/")) <= {"E", "W", "I"}
        assert rule.rule.endswith(".")
        assert rule.hint.endswith(".")
    assert list(CHECKS) == [f"P{number}" for number in range(1, 37)]


def test_targets() -> None:
    assert check(model(LEGAL)).target == "tensorrt@11"
    assert get_version("tensorrt") is VERSIONS["tensorrt@11"]
    assert [get_version(f"tensorrt@{major}").major for major in (8, 10, 11)] == [8, 10, 11]
    with pytest.raises(onnxq.RecipeError, match="Did you mean 'tensorrt@11'"):
        check(model(LEGAL), "tensorrt@111")


def test_element_types_are_those_of_onnx() -> None:
    named = {name: value for name, value in vars(dtypes).items() if isinstance(value, int)}
    assert named == {name: TensorProto.DataType.Value(name) for name in named}
    assert len(named) == 9
    # both ways, by onnx's own table
    assert {n: helper.np_dtype_to_tensor_dtype(numpy_type(n)) for n in dtypes.NUMBERS} == dtypes.NUMBERS
    for name in ("int8", "uint4", "int2", *FLOAT8):
        assert helper.np_dtype_to_tensor_dtype(numpy_type(name)) == TensorProto.DataType.Value(
            name.upper().replace("_", "")
        )


def test_the_public_function_takes_all_kinds_of_models(tmp_path: Path) -> None:
    proto = model(LEGAL)
    onnx.save_model(proto, tmp_path / "m.onnx")
    reports = [onnxq.check(given) for given in (proto, tmp_path / "m.onnx", str(tmp_path / "m.onnx"))]
    assert reports[0] == reports[1] == reports[2]
    assert isinstance(reports[0], onnxq.Report)
    graph = onnxq.check(onnxq.Graph.from_proto(proto), "tensorrt@10")
    assert [f.id for f in graph.findings] == [f.id for f in check(proto, "tensorrt@10").findings]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.onnx", b"hello", "is not an ONNX model, or is cut short"),
        ("b.onnx", b"", "is empty"),
        ("c.ort", bytes(4) + b"ORTM" + bytes(50), "not an ONNX model but one in ONNX Runtime's own format"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(onnxq.ModelError, match=message):
            onnxq.check(tmp_path / name)
    with pytest.raises(onnxq.ModelError, match="is a folder"):
        onnxq.check(tmp_path)
    with pytest.raises(onnxq.ModelError, match="cannot be read"):
        onnxq.check(tmp_path / "d.onnx")


def test_long_lists_are_cut_unless_all_is_wanted() -> None:
    found = check(
        model(" ".join(f"q{n} = QuantizeLinear(x, s, k)" for n in range(9)) + " y = Relu(x)", extra=("int8 k = {1}",))
    )
    shown, every = text.rows(found, every=False), text.rows(found, every=True)
    assert [row[3] for row in shown if row[1] == "P4"][-1] == "and 4 more; --verbose for all"
    assert len([row for row in every if row[1] == "P4"]) == 9
    assert dict(text.advice(found))["P4"] == CHECKS["P4"].hint


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxq.cli", *map(str, arguments)]
    code = "import sys; from onnxq.cli import main; sys.argv[0] = 'onnxq'; main()"
    return subprocess.run([sys.executable, "-c", code, *command[3:]], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("body", "status"), [(LEGAL, 0), (f"{pair('xd', 'x')} y = Conv(xd, w)", 0)])
def test_warnings_do_not_fail_the_command(body: str, status: int, tmp_path: Path) -> None:
    onnx.save_model(model(body), tmp_path / "m.onnx")
    done = run("check", tmp_path / "m.onnx", "--target", "tensorrt@10")
    assert done.returncode == status, done.stderr
    assert "tensorrt@10: 0 errors" in done.stdout


def test_errors_do(tmp_path: Path) -> None:
    onnx.save_model(model(REFUSED, extra=("int8 z = {3}",)), tmp_path / "m.onnx")
    done = run("check", tmp_path / "m.onnx", "--json")
    assert done.returncode == 3, done.stderr
    read = json.loads(done.stdout)
    assert read == onnxq.check(tmp_path / "m.onnx").to_dict()
    assert read["summary"]["errors"] == 2
    assert {"id", "severity", "where", "message", "hint", "source", "op"} == set(read["findings"][0])
    human = run("check", tmp_path / "m.onnx", "--quiet")
    assert human.returncode == 3
    assert "P4: Quantize symmetrically" in human.stdout
    assert run("check", tmp_path / "m.onnx", "--target", "tensorrt@9").returncode == 2
    assert run("check", tmp_path / "none.onnx").returncode == 1


def test_what_we_write_for_the_digits_is_legal() -> None:
    graph, plan = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz")
    found = onnxq.check(graph, "tensorrt@10")
    assert found.legal
    assert found.summary.nodes["int8"] == sum(d.quantized for d in plan.decisions if d.macs)


def test_stored_weights_in_the_whole_file_are_not_read(tmp_path: Path) -> None:
    """A model whose external weights are 3 GB of nothing: sparse on disk, never loaded."""
    proto = model("y = MatMul(x, big)", "(float[1,32768] x) => (float[1,24576] y)", (const("float[1] big"),))
    big = next(tensor for tensor in proto.graph.initializer if tensor.name == "big")
    big.Clear()
    big.name, big.data_type, big.data_location = "big", TensorProto.FLOAT, TensorProto.EXTERNAL
    big.dims.extend([32768, 24576])
    big.external_data.add(key="location", value="big.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(32768 * 24576 * 4)
    found = onnxq.check(tmp_path / "m.onnx", "tensorrt@10")
    assert found.legal
    assert found.summary.macs == {"fp32": 32768 * 24576}


@pytest.mark.parametrize("target", ["tensorrt", "ort-cuda"])
def test_work_is_counted_by_given_shapes_and_open_ones_are_told(target: str, tmp_path: Path) -> None:
    def told(image: str, given: str = "") -> tuple[int, str]:
        onnx.save_model(model(LEGAL, io(f"float[{image}] x", f"float[{image}] y")), tmp_path / "m.onnx")
        report = onnxq.check(tmp_path / "m.onnx", target, given)
        return sum(report.summary.macs.values()), next(text.summary(report, every=False))

    known, line = told("1,8,4,4")
    assert "leaves open" not in line
    assert told("N,8,4,4") == (known, line)  # an open batch changes no share
    assert told("N,8,H,W", "x:1x8x4x4") == (known, line)
    fewer, line = told("N,8,H,W")
    assert fewer == known // 16
    assert "counted with 1 for every size that the model leaves open" in line
    for wrong in ("x:1x7x4x4", "z:1", "x:1x8x4"):
        with pytest.raises(onnxq.RecipeError):
            told("N,8,H,W", wrong)
