"""The user's metric: a function of samples and outputs that returns one number.

    def accuracy(feeds, outputs):
        return np.mean([o["logits"].argmax() == f["label"] for f, o in zip(feeds, outputs)])

`feeds` is a list of the samples, each a dict of arrays by name: the model's inputs, and what `--labels` names.
`outputs` is a list of the same length and order: of each sample a dict of every output of the model by name. A sample
is a batch of one where the model's batch is free, else what the model takes at once. The arrays are read-only. The
function is called with the float model's outputs and with quantized ones, on all samples and on parts of them, so it
must be a function of its arguments alone. It returns a finite number.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.data.paths import existing
from onnxq.data.scripts import run_script
from onnxq.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxq.data import Feed
    from onnxq.search.noise import Outputs

CONTRACT = "It is called as metric(feeds, outputs), lists of dicts of arrays, and returns one number: docs/budget.md."


@dataclass(frozen=True)
class Metric:
    """A metric and what messages call it."""

    name: str
    function: Callable[..., Any]

    def __call__(self, feeds: Sequence[Feed], outputs: Sequence[Outputs]) -> float:
        """The metric's value.

        Raises:
            DataError: the function raises, or what it returns is no finite number.
        """
        try:
            value = self.function([dict(f) for f in feeds], [dict(o) for o in outputs])
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            where = _line(error)
            names = ", ".join(map(repr, outputs[0])) if outputs else "none"
            raise DataError(
                f"metric {self.name} failed{where}: {type(error).__name__}: {error}",
                f"{CONTRACT} The outputs are {names}; the samples hold {', '.join(map(repr, feeds[0]))}.",
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            said = f"{type(value).__name__}" + (f" of shape {list(value.shape)}" if hasattr(value, "shape") else "")
            raise DataError(f"metric {self.name} returned {said}, not one number", CONTRACT) from error
        if not math.isfinite(number):
            raise DataError(
                f"metric {self.name} returned {number} on {len(outputs)} samples",
                "It must be finite: leave out of it what has no value, or give more samples.",
            )
        return number


def load_metric(text: str) -> Metric:
    """The function of `script.py:function`; the script runs here, once.

    Raises:
        RecipeError: the text is of another form.
        DataError: the script is missing or fails, or has no such function.
    """
    if not text:
        raise RecipeError(
            "max_drop needs a metric", f"Give script.py:function, or a function in Evaluation. {CONTRACT}"
        )
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise RecipeError(f"metric {text!r} is not of the form script.py:function", CONTRACT)
    path = existing(file)
    names = run_script(path)
    if name not in names:
        near = difflib.get_close_matches(name, [n for n, v in names.items() if callable(v)], n=1)
        hint = f"Did you mean {path}:{near[0]}? {CONTRACT}" if near else f"Define {name}(feeds, outputs) there."
        raise DataError(f"{path}: defines no {name!r}", hint)
    found = names[name]
    if not callable(found):
        raise DataError(f"{path}: {name!r} is of type {type(found).__name__}, not a function", CONTRACT)
    return Metric(text, found)


def _line(error: BaseException) -> str:
    """Where in the user's file it was raised."""
    trace, where = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__:
            where = f" at {code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where
