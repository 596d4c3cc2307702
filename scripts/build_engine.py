"""From a float model to a timed TensorRT engine: onnxq quantizes, Polygraphy builds and runs.

python scripts/build_engine.py models/digits/digits.onnx --data models/digits/calib.npz

Writes <name>.int8.onnx and, where TensorRT is installed, <name>.plan into --out, and prints how long one inference
takes. Exit status: 0 built and timed, 1 failed, 2 usage, 3 skipped: the model is written, but there is no TensorRT
here to build it with.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq import api
from onnxq.data import input_specs
from onnxq.errors import OnnxqError, RecipeError
from onnxq.monitor import Monitor
from onnxq.recipe import Recipe
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.data import InputSpec

    Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

BUILT, FAILED, USAGE, SKIPPED = 0, 1, 2, 3

# Only up to 10 may the builder choose types beside the pairs; from 10.12 on it is deprecated, in 11 gone.
WEAKLY_TYPED = ("tensorrt@8", "tensorrt@8+dla", "tensorrt@10+dla")


def default_target() -> str:
    """The target of the TensorRT that is installed, the newest where there is none."""
    if importlib.util.find_spec("tensorrt") is None:
        return "tensorrt"
    import tensorrt  # type: ignore[import-not-found,unused-ignore]  # not installed everywhere

    name = f"tensorrt@{tensorrt.__version__.partition('.')[0]}"
    return name if name in TARGETS else "tensorrt"


def quantized(model: Path, data: str | None, target: str, out: Path) -> tuple[Path, tuple[InputSpec, ...], Shapes]:
    """Quantize; return the file written, the model's inputs, and the smallest and largest shape seen of each."""
    recipe = Recipe(target=target)
    monitor = Monitor(warn=lambda text: print(f"note: {text}", file=sys.stderr))
    ready = api.prepared(model, recipe, monitor)
    statistics = api.measured(ready, data, monitor)
    graph, plan = api.lowered(ready, statistics, monitor)
    path = out / api.default_output(model, recipe)
    api.export(graph, path)
    print(f"wrote {path}: {plan.int8_share():.1%} of the multiply-accumulates in int8, for {target}")
    return path, input_specs(graph), {} if statistics is None else statistics.shapes


def build(model: Path, inputs: tuple[InputSpec, ...], shapes: Shapes, target: str) -> Any:  # noqa: ANN401  no types
    """A Polygraphy loader of the engine; nothing is built before it is called."""
    from polygraphy.backend.trt import (  # noqa: TID251  onnxq does not need it, who builds engines does
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        Profile,
    )

    profile = Profile()
    for spec in inputs:
        smallest, largest = shapes.get(spec.name, (_fixed(spec), _fixed(spec)))
        profile.add(spec.name, min=smallest, opt=largest, max=largest)
    weak = target in WEAKLY_TYPED
    types = {"int8": True, "fp16": True} if weak else {}
    dla = {"use_dla": True, "allow_gpu_fallback": True} if target.endswith("+dla") else {}
    network = NetworkFromOnnxPath(str(model), strongly_typed=not weak)
    return EngineFromNetwork(network, CreateConfig(profiles=[profile], **types, **dla))


def timed(engine: Any, inputs: tuple[InputSpec, ...], shapes: Shapes, runs: int) -> list[float]:  # noqa: ANN401  no types
    """Milliseconds of each of `runs` inferences on random numbers of the largest shapes, after ten to warm up."""
    from polygraphy.backend.trt import TrtRunner  # noqa: TID251  as above

    rng = np.random.default_rng(0)
    feed = {
        spec.name: np.asarray(rng.normal(size=shapes.get(spec.name, (_fixed(spec),) * 2)[1])).astype(spec.dtype)
        for spec in inputs
    }
    taken = []
    with TrtRunner(engine) as runner:
        for _ in range(10 + runs):
            runner.infer(feed)
            taken.append(1e3 * runner.last_inference_time())
    return taken[10:]


def _fixed(spec: InputSpec) -> tuple[int, ...]:
    """The input's shape as the model has it, 1 for what it leaves open."""
    return tuple(d if isinstance(d, int) else 1 for d in spec.shape or ())


def main() -> int:
    """Quantize, build, time; return the exit status."""
    parser = argparse.ArgumentParser(description="Quantize a model with onnxq, build and time it with TensorRT.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", help="calibration data, as for `onnxq quantize`; without it only weights are int8")
    parser.add_argument("--target", default=default_target(), choices=TARGETS)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for what is written")
    parser.add_argument("--runs", type=int, default=100, help="how many inferences are timed")
    asked = parser.parse_args()
    try:
        path, inputs, shapes = quantized(asked.model, asked.data, asked.target, asked.out)
    except OnnxqError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return USAGE if isinstance(error, RecipeError) else FAILED
    if importlib.util.find_spec("tensorrt") is None:
        print("skipped: tensorrt is not installed here, so no engine was built; install it and run this again")
        return SKIPPED
    from polygraphy.backend.trt import SaveEngine  # noqa: TID251  as above

    plan = path.with_suffix(".plan")
    engine = SaveEngine(build(path, inputs, shapes, asked.target), str(plan))()
    taken = timed(engine, inputs, shapes, asked.runs)
    print(f"wrote {plan}: {np.median(taken):.3f} ms median, {min(taken):.3f} ms least of {len(taken)} inferences")
    return BUILT


if __name__ == "__main__":
    sys.exit(main())
