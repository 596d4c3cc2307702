"""onnxq: int8 quantization of ONNX models that TensorRT and ONNX Runtime really run in int8.

Names are loaded when they are first used, so that `import onnxq` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.api import calibrate, check, compare, make_plan, quantize
    from onnxq.caches import Cache, read_cache, write_cache
    from onnxq.checks import Finding, Report
    from onnxq.errors import (
        AccuracyError,
        DataError,
        ModelError,
        OnnxqError,
        OutputError,
        PassError,
        RecipeError,
        StatisticsError,
    )
    from onnxq.exchange import make_cache
    from onnxq.graph import Graph
    from onnxq.histogram import Histogram
    from onnxq.outcome import Budget, Sensitivity
    from onnxq.parts import Running
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe, Rule
    from onnxq.search import Evaluation, sensitivity
    from onnxq.statistics import Statistics, merge

__version__ = "0.1.0"

_HOMES = {
    "calibrate": "api",
    "check": "api",
    "compare": "api",
    "make_cache": "exchange",
    "make_plan": "api",
    "merge": "statistics",
    "quantize": "api",
    "Cache": "caches",
    "read_cache": "caches",
    "write_cache": "caches",
    "sensitivity": "search",
    "Budget": "outcome",
    "AccuracyError": "errors",
    "DataError": "errors",
    "Evaluation": "search",
    "ModelError": "errors",
    "OnnxqError": "errors",
    "OutputError": "errors",
    "PassError": "errors",
    "RecipeError": "errors",
    "StatisticsError": "errors",
    "Finding": "checks",
    "Report": "checks",
    "Graph": "graph",
    "Histogram": "histogram",
    "Plan": "plan",
    "Running": "parts",
    "Recipe": "recipe",
    "Rule": "recipe",
    "Sensitivity": "outcome",
    "Statistics": "statistics",
}

__all__ = [
    "AccuracyError",
    "Budget",
    "Cache",
    "DataError",
    "Evaluation",
    "Finding",
    "Graph",
    "Histogram",
    "ModelError",
    "OnnxqError",
    "OutputError",
    "PassError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "Rule",
    "Running",
    "Sensitivity",
    "Statistics",
    "StatisticsError",
    "calibrate",
    "check",
    "compare",
    "make_cache",
    "make_plan",
    "merge",
    "quantize",
    "read_cache",
    "sensitivity",
    "write_cache",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whichever public name is asked for
    if name in _HOMES:
        return getattr(import_module(f"onnxq.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'onnxq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
