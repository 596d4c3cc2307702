"""Report pages for files: what a comparison or a quantization run found, as one HTML file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq import api, files, intake, page
from onnxq.collect import sample_hash
from onnxq.data import Source
from onnxq.errors import OnnxqError
from onnxq.inventory import look_at
from onnxq.monitor import QUIET, Monitor
from onnxq.smallest import Smallest, copied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.comparison import Comparison
    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.histogram import Histogram
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.statistics import Statistics

PICKED = 32
"""Calibration samples on which `onnxq quantize --report` measures: enough for a picture, a part of the run's time."""


def compared(reference: Path, quantized: Path, data: object, recipe: Recipe, monitor: Monitor = QUIET) -> Comparison:
    """Every layer compared, with histograms of the float model's tensors that the quantized one quantizes.

    Raises:
        OnnxqError: see `onnxq.api.compare`.
    """
    wanted = {tensor.stands_for for tensor in look_at(quantized).tensors if not tensor.weight}
    return api.compare(reference, quantized, data, recipe, layers=True, histograms=wanted, monitor=monitor)


def comparison_page(reference: Path, quantized: Path, found: Comparison, data: str, version: str) -> str:
    """The page of a comparison; `version` is onnxq's.

    The plan is taken from beside the quantized model, where `onnxq quantize` writes it.
    """
    known = page.Known(
        _plan_beside(quantized),
        found.histograms,
        measured=f"Measured on {_samples(found.samples)} of {Path(data).name}.",
    )
    return _page((reference, quantized), found, known, version)


def run_page(
    reference: Path,
    quantized: Path,
    plan: Mapping[str, Any],
    histograms: Mapping[str, Histogram],
    found: Comparison | None = None,
    *,
    held_back: bool = False,
    version: str,
) -> str:
    """The page of a quantization run; `found` is from `measured`, where there was data, held back or not."""
    text = "Errors were not measured; onnxq compare --report does it."
    if found is not None:
        flatters = ", which flatters a little; onnxq compare --report measures on other data"
        data = "held-back data" if held_back else f"calibration data{flatters}"
        text = f"Measured on {_samples(found.samples)} of the {data}."
    return _page((reference, quantized), found, page.Known(plan, histograms, text), version)


def measured(
    reference: Path, quantized: Graph, data: object, recipe: Recipe, monitor: Monitor = QUIET
) -> Comparison | None:
    """Every layer compared on some of the data: `PICKED` samples, the same ones in any order of the data.

    None, with a warning, where the models cannot be run: a model that is written must not fail for its report.
    """
    monitor.stage("Measuring for the report", None)
    graph = intake.load(reference)
    try:
        source = intake.open_data(data, graph, recipe, Monitor(warn=monitor.warn))
        picked = Source.of(_picked(source))
        return api.compare(graph, quantized, picked, recipe, layers=True, monitor=Monitor(warn=monitor.warn))
    except OnnxqError as error:
        monitor.warn(f"the report is without errors of layers: {error.message}")
        return None


def run_histograms(plan: Plan, statistics: Statistics | None) -> dict[str, Histogram]:
    """Quantized tensor -> histogram of the values that told its range."""
    seen = {} if statistics is None else statistics.tensors
    return {p.tensor: seen[p.observe] for p in plan.points.values() if p.observe in seen}


def _page(models: tuple[Path, Path], found: Comparison | None, known: page.Known, version: str) -> str:
    reference, quantized = models
    stock = look_at(quantized, {} if found is None else found.shapes)
    sizes = files.model_bytes(reference), files.model_bytes(quantized)
    content = page.gather(page.Files(reference.name, quantized.name, *sizes), stock, found, known)
    return page.render(content, version)


def _picked(source: Source) -> list[Feed]:
    """The samples of the smallest hashes."""
    kept: Smallest[Feed] = Smallest(PICKED)
    for _, feed in source.samples():
        kept.offer(sample_hash(feed), partial(copied, feed))
    return kept.values()


def _plan_beside(quantized: Path) -> dict[str, Any]:
    """`<name>.plan.json` beside the model; empty where there is none, or it is something else."""
    try:
        plan = json.loads(quantized.with_suffix(".plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    nodes = plan.get("nodes") if isinstance(plan, dict) else None
    whole = isinstance(nodes, dict) and all(isinstance(node, dict) for node in nodes.values())
    return plan if whole and isinstance(plan.get("notes", []), list) else {}


def _samples(count: int) -> str:
    return "one sample" if count == 1 else f"{count} samples"
