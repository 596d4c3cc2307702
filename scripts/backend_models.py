"""Every model of the onnx package's backend tests through `onnxq.quantize`, for every target and mode.

    python scripts/backend_models.py [--column NAME ...] [--every 1] [--offset 0] [--reasons]

Each is quantized with the data of its own test, once as a user would and once with every node asked for by a rule, so
that layers too small to gain are quantized too. What comes out is the float model's function within BOUND_DB (signal
to quantization noise of every float output on the test's own input; other outputs equal, but for the DLA, whose
comparisons and the like read rounded values), or a refusal with its reason.
A quantized model must pass onnx.checker, and for TensorRT show no error under `onnxq check`. --every 50 takes the
fiftieth part of the models, by the hash of their names, and --offset another one of these parts. Exit status 1 where
something else came out.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

import onnxq
from onnxq import Recipe, Rule, api, files
from onnxq.errors import DataError, ModelError, OnnxqError, PassError
from onnxq.monitor import SILENT
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
BOUND_DB = 20.0
"""Of int8 weights and activations with ranges from the very data; 4-bit weights are not asked for here."""

COLUMNS: dict[str, dict[str, str]] = {
    "tensorrt": {"target": "tensorrt"},
    "tensorrt@10": {"target": "tensorrt@10"},
    "tensorrt@8": {"target": "tensorrt@8"},
    "tensorrt weight-only": {"target": "tensorrt", "mode": "weight-only"},
    "ort-cpu": {"target": "ort-cpu"},
    "ort-cpu qoperator": {"target": "ort-cpu", "format": "qoperator"},
    "ort-cpu dynamic": {"target": "ort-cpu", "mode": "dynamic"},
    "ort-cpu weight-only": {"target": "ort-cpu", "mode": "weight-only"},
    "ort-cuda": {"target": "ort-cuda"},
    "ort-cuda weight-only": {"target": "ort-cuda", "mode": "weight-only"},
    "tensorrt@10+dla": {"target": "tensorrt@10+dla"},
}
"""Name -> options of the recipe."""

ALL = Rule(nodes="*", quantize=True)

KNOWN = {
    "test_attention_4d_softcap_neginf_mask_poison_expanded": "its V holds 1000 where the mask hides it and at most 1 "
    "elsewhere: one int8 scale for V leaves nothing of the rest; only a rule quantizes this product",
}
"""Models beyond the bound -> why no int8 form keeps it."""


@dataclass
class Case:
    """A model, and the inputs of its own tests."""

    name: str
    model: onnx.ModelProto
    feeds: list[dict[str, Any]]


@dataclass
class Outcome:
    """What came of all models in one column: kinds of results, and what should not have come."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lowest: list[tuple[float, str]] = field(default_factory=list)


def cases(every: int, offset: int = 0) -> Iterator[Case]:
    """The models, or the part of them whose names' hashes say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making onnx's cases overflows on purpose
        found = sorted((c for kind in KINDS for c in load_model_tests(kind=kind)), key=lambda c: c.name)
    for case in found:
        if int(hashlib.sha256(case.name.encode()).hexdigest(), 16) % every != offset:
            continue
        if case.model is not None:
            names = [i.name for i in case.model.graph.input]
            sets = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets or ()]
            yield Case(case.name, case.model, [s for s in sets if all(isinstance(a, np.ndarray) for a in s.values())])
        else:
            folder = Path(str(case.model_dir))
            yield Case(case.name, onnx.load(folder / "model.onnx"), list(_stored(folder)))


def _stored(folder: Path) -> Iterator[dict[str, Any]]:
    graph = onnx.load(folder / "model.onnx").graph
    weights = {w.name for w in graph.initializer}
    names = [i.name for i in graph.input if i.name not in weights]
    for inside in sorted(folder.glob("test_data_set_*")):
        arrays = [
            onnx.numpy_helper.to_array(onnx.TensorProto.FromString((inside / f"input_{i}.pb").read_bytes()))
            for i in range(len(names))
            if (inside / f"input_{i}.pb").exists()
        ]
        if len(arrays) == len(names):
            yield dict(zip(names, arrays, strict=True))


def outputs(model: bytes | Path, feed: dict[str, Any], *, as_written: bool = False) -> dict[str, Any] | None:
    """The model's outputs, pairs run in float if `as_written`; None where ONNX Runtime cannot load or run it."""
    try:
        session = Session(model, as_written=as_written)
        return dict(zip(session.outputs, session.run({n: feed[n] for n in session.inputs}), strict=True))
    except (ModelError, DataError, KeyError):
        return None


def decibels(exact: Any, found: Any) -> float:  # noqa: ANN401  whatever a model gives
    """SQNR; infinite for equal values, which those that are no floats must be; the least of a sequence's tensors."""
    if isinstance(exact, list) and isinstance(found, list) and len(exact) == len(found):
        return min((decibels(a, b) for a, b in zip(exact, found, strict=True)), default=np.inf)
    if not isinstance(exact, np.ndarray) or exact.dtype.kind not in "fV":
        same = np.array_equal(exact, found) if isinstance(exact, np.ndarray) else repr(exact) == repr(found)
        return np.inf if same else -np.inf
    if exact.shape != found.shape:
        return -np.inf
    a, b = exact.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return -np.inf
    close = (a == b) | np.isnan(a)
    signal, noise = np.square(a[np.isfinite(a)]).sum(), np.square((a - b)[~close]).sum()
    return np.inf if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))


def _floats(value: Any) -> bool:  # noqa: ANN401  whatever a model gives
    return isinstance(value, np.ndarray) and value.dtype.kind in "fV"


def judged(case: Case, graph: Graph, exact: dict[str, Any] | None, target: str) -> tuple[str, float]:
    """What is to be said of a quantized model: a kind of result that begins with FAULT where it should not be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        files.save(graph, path, check=True)
        if target.startswith("tensorrt"):
            own = {f.id for f in _errors(case.model, target)}  # pairs that were in the model stay as they are
            errors = [f for f in _errors(path, target) if f.id not in own]
            if errors:
                return f"FAULT check: {errors[0]}", 0.0
        if exact is None:
            return "quantized; ONNX Runtime does not run the float model", np.inf
        found = outputs(path, case.feeds[0], as_written=target.startswith("tensorrt"))
    if found is None:
        return "FAULT ONNX Runtime does not run the quantized model", 0.0
    if list(found) != list(exact):
        return "FAULT other outputs", 0.0
    judged_on = [name for name in exact if not target.endswith("+dla") or _floats(exact[name])]
    lowest = min((decibels(exact[name], found[name]) for name in judged_on), default=np.inf)
    if lowest < BOUND_DB and case.name in KNOWN:
        return "quantized, beyond the bound for a known reason", lowest
    return ("quantized, within the bound", lowest) if lowest >= BOUND_DB else ("BELOW", lowest)


def _errors(model: Any, target: str) -> list[Any]:  # noqa: ANN401  a model in any form; findings
    return [f for f in api.check(model, target).findings if f.severity == "E"]


def run(
    case: Case, options: dict[str, str], rules: tuple[Rule, ...], exact: dict[str, Any] | None
) -> tuple[str, float]:
    """Quantize one model and judge it."""
    recipe = Recipe(effort="fast", calibrator="minmax", rules=rules, **options)  # type: ignore[arg-type]  # all are texts
    try:
        graph, _ = onnxq.quantize(case.model, case.feeds or "random:1", recipe, SILENT)
        return judged(case, graph, exact, recipe.target)
    except PassError as error:
        return f"FAULT PassError: {error.message}", 0.0
    except OnnxqError as error:
        ours = error.message.startswith("onnx.checker refuses the quantized model") and _passes_checker(case.model)
        return f"{'FAULT' if ours else 'refused:'} {error.message}", 0.0
    except Exception as error:  # noqa: BLE001  that is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"FAULT {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})", 0.0


def _passes_checker(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def short(reason: str) -> str:
    """A refusal without the names in it, so that equal ones count together."""
    return re.sub(r"'[^']*'|\d+|/\S+", "...", reason)[:110]


def column(found: list[tuple[Case, dict[str, Any] | None]], options: dict[str, str]) -> Outcome:
    """One column over all models."""
    outcome = Outcome()
    for case, exact in found:
        for rules in ((), (ALL,)):
            said, lowest = run(case, options, rules, exact)
            asked = "every node asked for" if rules else "as it comes"
            if said.startswith("refused: "):
                outcome.counts[f"{asked}: refused with a reason"] += 1
                outcome.reasons[short(said.removeprefix("refused: "))] += 1
            elif said.startswith(("FAULT", "BELOW")):
                outcome.counts[f"{asked}: {said.split()[0].lower()}"] += 1
                outcome.faults.append(f"{case.name} ({asked}): {said} {lowest:.1f} dB")
            else:
                outcome.counts[f"{asked}: {said}"] += 1
                outcome.lowest.append((lowest, case.name))
    return outcome


def main() -> None:
    """Print counts of every column, and each fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--column", action="append", choices=list(COLUMNS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--reasons", action="store_true", help="list the refusals too")
    options = parser.parse_args()
    found = [
        (c, outputs(c.model.SerializeToString(), c.feeds[0]) if c.feeds else None)
        for c in cases(options.every, options.offset)
    ]
    ran = sum(exact is not None for _, exact in found)
    print(f"{len(found)} models, of which ONNX Runtime runs {ran} in float on their own data", flush=True)
    bad = False
    for name in options.column or COLUMNS:
        outcome = column(found, COLUMNS[name])
        print(f"\n{name}")
        for what, count in sorted(outcome.counts.items()):
            print(f"{count:6d}  {what}")
        for fault in outcome.faults:
            print(f"        {fault}", flush=True)
        if options.reasons:
            for reason, count in outcome.reasons.most_common(25):
                print(f"        {count} x {reason}", flush=True)
        bad |= bool(outcome.faults)
    sys.exit(bad)


if __name__ == "__main__":
    main()
