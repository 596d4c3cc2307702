"""From statistics to a calibration cache and back into a quantized model, on the command line and in Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import graph_of

import onnxq
from onnxq.choose import CACHED
from onnxq.cli import main
from onnxq.exchange import without_scale
from onnxq.monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

rng = np.random.default_rng(5)

# Two convolutions around a Concat whose inputs must share a scale; one name holds ": ".
MODEL = """(float[N, 16, 8, 8] image) => (float[N, 32, 6, 6] y) {
    a = Conv<pads = [1, 1, 1, 1]>(image, w1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(image, w2)
    d = Sigmoid(c)
    joined = Concat<axis = 1>(b, d)
    y = Conv(joined, w3)
}"""
ODD = "layer: 1/out"


def weight(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = graph_of(MODEL, w1=weight(16, 16, 3, 3), w2=weight(16, 16, 3, 3), w3=weight(32, 32, 3, 3))
    proto = graph.to_proto()
    for node in proto.graph.node:
        node.input[:] = [ODD if name == "b" else name for name in node.input]
        node.output[:] = [ODD if name == "b" else name for name in node.output]
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=rng.normal(0, 2, (4, 16, 8, 8)).astype(np.float32))
    return tmp_path / "m.onnx"


@pytest.fixture
def statistics(model: Path) -> Path:
    path = model.parent / "all.npz"
    onnxq.calibrate(model, model.parent / "d.npz", all_tensors=True).save(path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `onnxq ARGUMENTS...`."""
    monkeypatch.setattr(sys, "argv", ["onnxq", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def scales(path: Path) -> dict[str, bytes]:
    """Activation scales of a quantized model, by the QuantizeLinear's input, as bytes."""
    graph = onnx.load(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {n.input[0]: arrays[n.input[1]].tobytes() for n in graph.node if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("calibrator", ["auto", "entropy", "minmax", "mse", "percentile", "legacy"])
@pytest.mark.parametrize("layout", ["tensorrt", "ort"])
def test_a_cache_gives_the_scales_of_its_statistics(
    calibrator: str, layout: str, model: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model.parent
    with_statistics = ("--statistics", statistics, "--calibrator", calibrator)
    assert run(monkeypatch, "export-cache", model, *with_statistics, "-o", folder / "c", "--layout", layout) == 0
    assert run(monkeypatch, "quantize", model, *with_statistics, "-o", folder / "s.onnx") == 0
    assert run(monkeypatch, "quantize", model, "--calibration-cache", folder / "c", "-o", folder / "c.onnx") == 0
    expected = scales(folder / "s.onnx")
    assert len(expected) >= 3
    assert scales(folder / "c.onnx") == expected
    _, plan = onnxq.quantize(model, onnxq.read_cache(folder / "c"))
    assert {p.chosen for p in plan.points.values()} == {CACHED}


def test_all_tensors_are_observed_and_exported(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model.parent
    data = ("--data", folder / "d.npz")
    assert run(monkeypatch, "calibrate", model, *data, "--all-tensors", "-o", folder / "all.npz") == 0
    assert "7 tensors, 4 samples" in capsys.readouterr().out
    header = ("--algorithm", "minmax", "--trt-version", "10.3.0", "--calibrator", "minmax")
    assert run(monkeypatch, "export-cache", model, "--statistics", folder / "all.npz", "-o", folder / "c", *header) == 0
    said = capsys.readouterr().out
    assert "7 tensors" in said
    assert "without a scale" not in said
    text = (folder / "c").read_text()
    assert text.startswith("TRT-100300-MinMaxCalibration\n")
    cache = onnxq.read_cache(folder / "c")
    assert set(cache.scales) == {"image", "a", ODD, "c", "d", "joined", "y"}
    with np.load(folder / "d.npz") as data_file:
        largest = np.float64(np.abs(data_file["image"]).max())
    assert cache.scales["image"] == np.float32(largest / 127)  # amax/127, from the data alone


def test_what_the_cache_lacks_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model.parent
    ten = ("--target", "tensorrt@10")  # 11 observes more, to know what fits float16
    assert run(monkeypatch, "calibrate", model, "--data", folder / "d.npz", "-o", folder / "few.npz", *ten) == 0
    assert run(monkeypatch, "export-cache", model, "--statistics", folder / "few.npz", "-o", folder / "c", *ten) == 0
    said = capsys.readouterr().out
    lacking = said.split("tensors of the model: ")[1].splitlines()[0].split(", ")
    assert lacking == sorted(
        {"image", "a", ODD, "c", "d", "joined", "y"} - onnxq.read_cache(folder / "c").scales.keys()
    )
    assert "y" in lacking


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (("--algorithm", "legacy"), 2, "unknown algorithm 'legacy'"),
        (("--trt-version", "11.0.0"), 2, "reads no calibration cache"),
        (("--trt-version", "latest"), 2, "'latest' is no TensorRT version"),
        (("--layout", "json"), 2, "json"),
        (("--layout", "ort", "--trt-version", "8.6.1"), 2, "--trt-version is for --layout tensorrt"),
        (("--layout", "ort", "--algorithm", "entropy2"), 2, "--algorithm is for --layout tensorrt"),
    ],
)
def test_wrong_options_are_usage_errors(
    flags: tuple[str, str],
    status: int,
    said: str,
    model: Path,
    statistics: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = model.parent / "c"
    assert run(monkeypatch, "export-cache", model, "--statistics", statistics, "-o", output, *flags) == status
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_without_data_every_missing_tensor_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / "c").write_text("TRT-8601-EntropyCalibration2\nimage: 0\nother: 3c010a14\n")
    output = model.parent / "q.onnx"
    assert run(monkeypatch, "quantize", model, "--calibration-cache", model.parent / "c", "-o", output) == 1
    said = capsys.readouterr().err
    points = onnxq.make_plan(model).points
    expected = ", ".join(sorted(f"{n} (zero or not finite there)" if n == "image" else n for n in points))
    assert f"no scale for {len(points)} of {len(points)} quantized tensors: {expected}" in said
    assert "--data or --statistics" in said
    assert not output.exists()


def test_a_damaged_cache_fails_with_its_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / "c").write_text("TRT-8601-EntropyCalibration2\nimage 3c010a14\n")
    assert run(monkeypatch, "quantize", model, "--calibration-cache", model.parent / "c") == 1
    assert "c, line 2: 'image 3c010a14'" in capsys.readouterr().err


def test_data_gives_only_what_the_cache_lacks(model: Path) -> None:
    heard: list[str] = []
    stages: list[str] = []
    monitor = Monitor(stage=lambda name, _: stages.append(name), warn=heard.append)
    cache = onnxq.Cache("EntropyCalibration2", "8601", {"image": np.float32(0.5)})
    graph, plan = onnxq.quantize(model, model.parent / "d.npz", monitor=monitor, cache=cache)
    assert plan.points["image"].range == (-63.5, 63.5)
    assert plan.points["image"].chosen == CACHED
    others = sorted(set(plan.points) - {"image"})
    assert others
    assert {plan.points[name].chosen for name in others}.isdisjoint({CACHED, None})
    _, measured = onnxq.quantize(model, model.parent / "d.npz")
    assert all(plan.points[name].range == measured.points[name].range for name in others)
    assert any(f"quantized tensors: {', '.join(others)}; " in text for text in heard)
    observed = len({plan.points[name].observe for name in others})
    assert any(stage.startswith(f"Observing {observed} tensors") for stage in stages)
    graph.save(model.parent / "q.onnx")  # which onnx.checker accepts


def test_one_group_takes_the_largest_cached_range(model: Path) -> None:
    plan = onnxq.make_plan(model)
    group = [p.tensor for p in plan.points.values() if p.group == plan.points["joined"].group]
    assert set(group) >= {ODD, "joined"}
    cache = onnxq.Cache("A", "1", {"image": np.float32(1), ODD: np.float32(0.25), "joined": np.float32(0.5)})
    _, resolved = onnxq.quantize(model, cache)
    assert {resolved.points[name].range for name in group} == {(-63.5, 63.5)}
    assert any("the largest" in note and f"{ODD} 31.75" in note for note in resolved.notes)
    lent = ", ".join(sorted(set(group) - {ODD, "joined"}))
    assert not lent or any(note.endswith(f"joined with: {lent}") for note in resolved.notes)


def test_a_moved_copy_takes_the_scale_of_its_source() -> None:
    graph = graph_of(
        """(float[1, 16, 8, 8] x) => (float[1, 64, 32] y) {
            r = Relu(x)
            flat = Reshape(r, shape)
            t = Transpose<perm = [0, 2, 1]>(flat)
            y = MatMul(t, w)
        }""",
        shape=np.array([1, 16, 64], np.int64),
        w=weight(16, 32),
    )
    plan = onnxq.make_plan(graph, onnxq.Recipe(target="tensorrt@10"))
    assert plan.observe == ("r",)
    _, resolved = onnxq.quantize(graph, onnxq.Cache("A", "1", {"r": np.float32(0.125)}))
    assert [float(p.params.scale) for p in resolved.points.values() if p.params is not None] == [0.125]


def test_folded_batch_norms_keep_their_own_scale() -> None:
    graph = graph_of(
        """(float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
            c = Conv(x, w1)
            n = BatchNormalization(c, scale, bias, mean, var)
            y = Conv(n, w2)
        }""",
        w1=weight(16, 16, 1, 1),
        w2=weight(16, 16, 1, 1),
        scale=np.full(16, 8, np.float32),
        bias=weight(16),
        mean=weight(16),
        var=np.ones(16, np.float32),
    )
    cache = onnxq.Cache("A", "1", {"x": np.float32(1), "c": np.float32(0.125), "n": np.float32(0.5)})
    _, plan = onnxq.quantize(graph, cache)
    assert {float(p.params.scale) for p in plan.points.values() if p.params is not None} == {1.0, 0.5}
    feeds = [{"x": rng.normal(size=(1, 16, 4, 4)).astype(np.float32)}]
    statistics = onnxq.calibrate(graph, feeds, all_tensors=True)
    made = onnxq.make_cache(graph, statistics, onnxq.Recipe(calibrator="minmax"))
    [n] = api_run(graph, feeds[0], "n")
    assert made.amax("n") == pytest.approx(float(np.abs(n).max()), rel=1e-5)
    assert "c" not in made.scales
    assert without_scale(graph, made) == ("c",)


def api_run(graph: onnxq.Graph, feed: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """The tensor as ONNX Runtime computes it in the model as it was given."""
    from onnxq.runtime import Session

    copy = graph.copy()
    value = copy.find(name)
    assert value is not None
    copy.set_outputs([value])
    return Session(copy.to_proto().SerializeToString(), optimize=False).run(feed)
