"""Measure what target ort-cuda emits, where ONNX Runtime finds a GPU; without one, say so and end with status 0.

    python scripts/bench_gpu.py [--model NAME ...] [--batch 1 8 32] [--tokens 4 16 128] [--runs 30] [--dry-run]

For every model, form and batch size: nodes off the CUDA provider, the operators that the provider really runs, the
median latency as a ratio to float32 and to float16, and how far the output is from float32. Inputs and outputs stay
on the device; all forms run in turns, so that a clock that drifts drifts for all. Only ratios may be compared with
other machines. The table goes into docs/benchmarks.md, and `onnxq.modes` follows it.

`--dry-run` goes the same way on the CPU provider, to see that all of it works; its times say nothing of a GPU.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu import MODELS, is_there, may_measure, options

from onnxq import api, intake, pipeline
from onnxq.errors import ModelError, RecipeError
from onnxq.numerics import sqnr_db
from onnxq.passes.high_precision import HighPrecision
from onnxq.precision import with_float_types
from onnxq.recipe import Recipe, Rule

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph

    Feed = dict[str, npt.NDArray[Any]]

NAMES = {"minilm": "minilm/minilm.onnx", "bert_base": "bert_base.onnx", "vit_b16": "vit_b16.onnx"}
NAMES |= {"resnet50": "resnet50.onnx"}
SMALL = {name: f"{name}.onnx" for name in ("bert_small", "vit_small", "resnet_small")}  # for a dry run
PIXELS = 224
WARM = 5
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SHOWN = ("MatMulInteger", "MatMulNBits", "GatherBlockQuantized", "MatMul", "FusedMatMul", "Gemm", "Conv")

FORMS: dict[str, dict[str, Any]] = {
    "static": {},
    "static, the rest in fp32": {"high_precision": "fp32"},
    "Q/DQ as for TensorRT": {"target": "tensorrt@10", "high_precision": "fp16"},
    "static, 1x1 Conv too": {"rules": (Rule(ops=("Conv",), quantize=True),)},
    "weight-only 8": {"mode": "weight-only"},
    "weight-only 8, blocks of 32": {"mode": "weight-only", "block_size": 32},
    "weight-only 4, blocks of 32": {"mode": "weight-only", "weight_bits": 4},
}
"""Name of a form -> its choices beside the target."""


@dataclass
class Run:
    """One form of one model at one batch size.

    Attributes:
        form: its name.
        bound: a session with everything on the device, and its binding.
        seconds: of every measured run.
        outside: nodes that are not on the CUDA provider, by operator.
        inside: the operators of interest after optimization.
        output: the first output.
    """

    form: str
    bound: tuple[Any, Any]
    seconds: list[float]
    outside: Counter[str]
    inside: Counter[str]
    output: npt.NDArray[Any]


@dataclass(frozen=True)
class Device:
    """Where it runs: the name of the memory, and the provider that all nodes should be on."""

    memory: str
    provider: str


def is_text(graph: Graph) -> bool:
    """Whether the model reads tokens."""
    return any(graph.dtype(value) in ("int64", "int32") for value in graph.inputs)


def feed_of(graph: Graph, batch: int, tokens: int) -> Feed:
    """Standard normal numbers, ones for integers (tokens and masks)."""
    rng = np.random.default_rng(0)
    found: Feed = {}
    for value in graph.inputs:
        text = graph.dtype(value) in ("int64", "int32")
        shape = [
            batch,
            *(d if isinstance(d, int) else tokens if text else PIXELS for d in (graph.shape(value) or ())[1:]),
        ]
        kind = np.dtype(graph.dtype(value))
        found[str(value.name)] = np.ones(shape, kind) if text else rng.normal(size=shape).astype(kind)
    return found


def forms(path: Path, folder: Path) -> dict[str, Path]:
    """Every form of the model that exists, written to files."""
    ready = api.prepared(path, Recipe(target="ort-cuda", mode="weight-only"))
    made = {"fp32": path, "fp16": folder / "fp16.onnx"}
    graph = ready.graph.copy()
    plan = with_float_types(graph, replace(ready.plan, points={}, weights=(), joins=()), {})
    pipeline.run(graph, (HighPrecision("float16", frozenset(plan.float32)),))
    api.export(graph, made["fp16"])
    calibration = feed_of(ready.graph, 2, 16)
    for number, (name, choices) in enumerate(FORMS.items()):
        try:
            static = choices.get("mode", "static") == "static"
            recipe = Recipe(**{"target": "ort-cuda", **choices})
            graph, _ = api.quantize(path, [calibration] if static else None, recipe)
        except (ModelError, RecipeError) as error:  # nothing to quantize, or no convolution for the rule
            sys.stdout.write(f"{path.stem}, {name}: {error.message}\n")
            continue
        made[name] = folder / f"form{number}.onnx"
        api.export(graph, made[name])
    return made


def start(form: str, path: Path, feed: Feed, folder: Path, device: Device) -> Run:
    """A session on the device, its inputs and outputs bound there; where its nodes went, and what they became."""
    import onnx
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(path), options, providers=list(dict.fromkeys([device.provider, CPU])))
    outside: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != device.provider:
            outside.update(node.op_type for node in part.get_nodes())
    seen = Counter(n.op_type for n in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device.memory, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device.memory)
    for _ in range(WARM):
        session.run_with_iobinding(binding)
    output = binding.copy_outputs_to_cpu()[0].astype(np.float32)
    inside = Counter({op: seen[op] for op in (*SHOWN, "MemcpyToHost", "MemcpyFromHost") if seen[op]})
    return Run(form, (session, binding), [], outside, inside, output)


def measure(runs: list[Run], count: int) -> None:
    """Run all forms in turns."""
    for _ in range(count):
        for run in runs:
            session, binding = run.bound
            begun = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            run.seconds.append(time.perf_counter() - begun)


def table(name: str, size: str, runs: list[Run]) -> list[str]:
    """One line for each form, as docs/benchmarks.md has them."""
    medians = {run.form: statistics.median(run.seconds) for run in runs}
    lines = []
    for run in runs:
        ratios = [f"{medians[run.form] / medians[base]:.2f}" for base in ("fp32", "fp16")]
        noise = f"{sqnr_db(runs[0].output, run.output):.1f}"
        inside = ", ".join(f"{count} {op}" for op, count in run.inside.items())
        outside = ", ".join(f"{count} {op}" for op, count in run.outside.most_common(4)) or "none"
        lines.append(f"| {name} | {size} | {run.form} | {' | '.join(ratios)} | {noise} | {inside} | {outside} |")
    return lines


def main() -> None:
    """Measure, and print the table."""
    parser = options(str(__doc__), [*NAMES, *SMALL], list(NAMES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4, 16, 128], help="lengths of a text")
    parser.add_argument("--runs", type=int, default=30)
    given = parser.parse_args()
    if not may_measure(dry_run=given.dry_run):
        return
    device = Device("cpu", CPU) if given.dry_run else Device("cuda", CUDA)
    sys.stdout.write("| model | batch x tokens | form | / fp32 | / fp16 | SQNR dB | kernels | on another provider |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
    for name in given.model:
        path = MODELS / (NAMES | SMALL)[name]
        if not is_there(path):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = forms(path, Path(folder))
            graph = intake.load(path)
            lengths = given.tokens if is_text(graph) else [0]
            for batch, tokens in itertools.product(given.batch, lengths):
                feed = feed_of(graph, batch, tokens)
                runs = [start(form, file, feed, Path(folder), device) for form, file in made.items()]
                measure(runs, given.runs)
                size = f"{batch} x {tokens}" if tokens else str(batch)
                sys.stdout.write("\n".join(table(name, size, runs)) + "\n")


if __name__ == "__main__":
    main()
