"""The proof: what is lost is found, counts and shares are right, and latency is a ratio."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from click.testing import CliRunner  # noqa: TID251  as a user calls it
from graphs import graph_of
from placing import net
from real_models import DIGITS
from wrapping import in_if

import onnxq
from onnxq import proof as words
from onnxq import runtime
from onnxq.cli_views import check
from onnxq.errors import DataError, ModelError, ProviderError, RecipeError
from onnxq.executed import Executed
from onnxq.proving import prove
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.graph import Graph

F32 = np.float32


def conv(tail: str, **more: npt.ArrayLike) -> Graph:
    """A convolution behind its pairs, then `tail` that makes y of c."""
    text = f"""(float[1,4,6,6] x) => (float[Q] y) {{ q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z)
               wd = DequantizeLinear<axis=0>(w, ws, wz) c = Conv(xd, wd) {tail} }}"""
    codes = np.random.default_rng(0).integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
    weights: dict[str, npt.ArrayLike] = {
        "w": codes,
        "ws": np.full(8, 0.01, F32),
        "wz": np.zeros(8, np.int8),
        "s": F32(0.03),
        "z": np.uint8(128),
    }
    return graph_of(text, 17, **weights, **more)


def test_a_float_model_has_nothing_to_lose() -> None:
    found = prove(net("float[1,4,6,6] x", "c = Conv(x, w) y = Tanh(c)", w=(8, 4, 3, 3)))
    assert found.legal
    assert found.mac_share() == 0.0
    assert {n.runs for n in found.nodes} == {"float"}


def test_a_layer_that_fuses_is_an_integer_kernel() -> None:
    found = prove(conv("o = QuantizeLinear(c, s, z) y = DequantizeLinear(o, s, z)"))
    assert found.legal
    (layer,) = [n for n in found.nodes if n.runs == "integer"]
    assert layer.op_type == "QLinearConv"
    assert layer.macs == 8 * 4 * 9 * 16  # weight values times output pixels
    assert found.mac_share() == 1.0


def test_a_layer_without_a_pair_behind_it_is_lost() -> None:
    found = prove(conv("y = Tanh(c)"))
    assert [n.op_type for n in found.lost] == ["FusedConv"]  # with the Tanh
    assert not found.legal
    assert found.lost[0].runs == "float behind DQ"
    assert found.lost[0].macs == 8 * 4 * 9 * 16
    assert "Conv" in words.lines(found)[0]


def test_an_operator_without_a_kernel_between_pairs_is_not_called_lost_but_seen() -> None:
    tail = "o = QuantizeLinear(c, s, z) d = DequantizeLinear(o, s, z) y = Tanh(d)"
    found = prove(conv(tail))
    assert found.legal  # nothing says that a Tanh should run in integers
    assert ("float behind DQ", "Tanh") in [(n.runs, n.op_type) for n in found.nodes]


def test_an_addition_between_pairs_of_no_fusing_kind_is_lost() -> None:
    # A constant beside the pairs: the provider adds in float.
    tail = """o = QuantizeLinear(c, s, z) d = DequantizeLinear(o, s, z) a = Add(d, k) r = QuantizeLinear(a, s, z)
              y = DequantizeLinear(r, s, z)"""
    found = prove(conv(tail, k=np.linspace(1, 2, 8, dtype=F32).reshape(8, 1, 1)))
    assert [n.op_type for n in found.lost] == ["Add"]


@pytest.mark.parametrize("quantized", [False, True])
def test_a_product_of_two_activations_is_lost_where_its_result_is_quantized_too(*, quantized: bool) -> None:
    """What an attention multiplies in float may come from pairs that are there for others."""
    tail = "p = QuantizeLinear(m, s, z) y = DequantizeLinear(p, s, z)" if quantized else "y = Softmax(m)"
    text = f"""(float[2,8,4] x, float[2,8,6] v) => (float[Q] y) {{
        q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) h = Mul(xd, half)
        t = Transpose<perm = [0, 2, 1]>(h) o = QuantizeLinear(v, s, z) vd = DequantizeLinear(o, s, z)
        m = MatMul(t, vd) {tail} }}"""
    found = prove(graph_of(text, 17, s=F32(0.03), z=np.uint8(128), half=F32(0.5)))
    products = [n for n in found.nodes if n.op_type == "FusedMatMul"]
    assert [n.runs for n in products] == ["float behind DQ"]
    assert [n.lost for n in products] == [quantized]


def test_shares_add_up_and_the_table_holds_every_node() -> None:
    found = prove(conv("o = QuantizeLinear(c, s, z) y = DequantizeLinear(o, s, z)"))
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert {n.name for n in found.nodes} == set(found.shares)
    assert sum(count for _, _, count, _, _ in found.groups()) == len(found.nodes) == len(words.rows(found, every=True))
    assert next(iter(found.groups()))[:2] == ("integer", "QLinearConv")
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["summary"]["lost"] == []
    assert len(plain["nodes"]) == len(found.nodes)


def test_the_median_run_of_a_node_counts() -> None:
    events = [{"name": "a", "dur": d} for d in (10, 10, 1000)] + [{"name": "b", "dur": 30}]
    assert words._shares(events) == {"a": 0.25, "b": 0.75}


def test_latency_is_a_ratio_with_quartiles_around_it() -> None:
    small, large = (net(f"float[1,{n},{n}] x", "y = MatMul(x, w)", w=(n, n)) for n in (384, 384))
    found = prove(small, reference=large)
    assert found.latency is not None
    assert found.latency.low <= found.latency.ratio <= found.latency.high
    assert "latency" in words.lines(found)[-1]


@pytest.mark.parametrize(("target", "error"), [("tensorrt", RecipeError), ("ort-gpu", RecipeError)])
def test_other_targets_cannot_be_proved(target: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=target):
        prove(DIGITS / "digits.onnx", target)


def test_dynamic_inputs_want_shapes_and_missing_files_are_said() -> None:
    graph = net("float[N, L, 16] x", "y = MatMul(x, w)", w=(16, 16))
    with pytest.raises(DataError, match="dynamic axes"):
        prove(graph)
    assert prove(graph, shapes="x:2x8x16").nodes[0].macs == 2 * 8 * 16 * 16
    with pytest.raises(ModelError):
        prove("no such model.onnx")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from onnxq.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_command_line_says_what_is_lost_with_status_3(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    onnx.save_model(conv("y = Tanh(c)").to_proto(), bad)
    done = command("check", str(bad), "--target", "ort-cpu")
    assert done.returncode == 3, done.stderr
    assert "lost:" in done.stdout
    as_json = command("check", str(bad), "--target", "ort-cpu", "--json")
    assert as_json.returncode == 3
    assert len(json.loads(as_json.stdout)["summary"]["lost"]) == 1


def test_the_command_line_proves_and_measures(tmp_path: Path) -> None:
    good = tmp_path / "good.onnx"
    model = DIGITS / "digits.onnx"
    graph, _ = onnxq.quantize(model, DIGITS / "calib.npz", Recipe(target="ort-cpu"))
    graph.save(good)
    done = command("check", str(good), "--target", "ort-cpu", "--measure", "--float", str(model))
    assert done.returncode == 0, done.stderr
    assert "QLinearConv" in done.stdout
    assert "latency" in done.stdout.splitlines()[-1]
    assert command("check", str(good), "--target", "ort-cpu", "--measure").returncode == 2


def test_measuring_is_for_onnx_runtime_and_wants_both_models() -> None:
    done = command("check", str(DIGITS / "digits.onnx"), "--measure", "--float", str(DIGITS / "digits.onnx"))
    assert done.returncode == 2
    assert "--measure is for ort-cpu and ort-cuda" in done.stderr


def test_without_a_gpu_the_rules_for_cuda_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(_: str) -> None:
        raise ProviderError("CUDAExecutionProvider could not be started", "Check the CUDA libraries.")

    monkeypatch.setattr(runtime, "try_provider", no_gpu)
    graph, _ = onnxq.quantize(net("float[4,64] x", "y = MatMul(x, w)", w=(64, 64)), None, Recipe(target="ort-cuda"))
    model, runner = str(tmp_path / "m.onnx"), CliRunner()
    graph.save(model)
    done = runner.invoke(check, [model, "--target", "ort-cuda"])
    assert done.exit_code == 0, done.output
    assert "not run: CUDAExecutionProvider could not be started" in done.output
    as_json = runner.invoke(check, [model, "--target", "ort-cuda", "--json"])
    assert json.loads(as_json.stdout)["proof"] is None
    with pytest.raises(ProviderError):
        prove(model, "ort-cuda")


def test_nodes_that_another_provider_runs_are_named() -> None:
    events = [
        {"name": "a", "dur": 1, "args": {"provider": "CUDAExecutionProvider"}},
        {"name": "b", "dur": 1, "args": {"provider": "CPUExecutionProvider"}},
    ]
    elsewhere = words._elsewhere(events, "cuda")
    assert elsewhere == {"b": "CPUExecutionProvider"}
    nodes = tuple(Executed(name, "Relu", "float", 0, lost=False) for name in "ab")
    found = words.Proof("cuda", nodes, {}, elsewhere=elsewhere)
    assert "on CPUExecutionProvider: 1 Relu" in words.lines(found)
    assert [node.get("provider") for node in found.to_dict()["nodes"]] == [None, "CPUExecutionProvider"]


def test_nodes_of_bodies_are_proved_too() -> None:
    bare = net("float[N,64] x", "y = MatMul(x, w)", w=(64, 64))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 64)).astype(F32), "cond": np.array(taken)} for taken in (True, False)]
    graph, _ = onnxq.quantize(in_if(bare), feeds, Recipe(target="ort-cpu"))
    found = prove(graph, data=feeds[:1])
    assert [n.runs for n in found.nodes if n.op_type == "MatMulIntegerToFloat"] == ["integer", "integer"]
    assert found.mac_share() == 1.0
    assert sum(found.shares.values()) == pytest.approx(1.0)  # an If's own time is that of its branch, counted once
    taken = next(n for n in found.nodes if n.op_type == "MatMulIntegerToFloat" and n.macs)
    assert taken.macs == 4 * 64 * 64


@pytest.mark.parametrize("runs", ["float behind DQ", "integer"])
def test_pairs_of_another_form_are_told(runs: str) -> None:
    nodes = (Executed("q", "QuantizeLinear", "conversion", 0, False), Executed("m", "MatMul", runs, 10, False))
    told = [line for line in words.lines(words.Proof("cpu", nodes, {})) if "--target ort-cpu" in line]
    assert len(told) == (runs != "integer")
    assert not any("--target" in line for line in words.lines(words.Proof("cpu", nodes[1:], {})))


@pytest.mark.parametrize(("opset", "kept"), [(13, 1), (12, 0)])
def test_an_axis_where_the_opset_has_none_goes(opset: int, kept: int) -> None:
    """ONNX Runtime 1.31 writes axis = 1 at the pairs of a model of opset 12 from Quark, and does not read them."""
    node = onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1)
    other = onnx.helper.make_node("Flatten", ["y"], ["f"], axis=1)
    quantized = onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["m"], domain="com.microsoft", axis=1)
    graph = onnx.helper.make_graph([node, other, quantized], "g", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    words._without_axis(model)
    assert [len(n.attribute) for n in model.graph.node] == [kept, 1, 1]
