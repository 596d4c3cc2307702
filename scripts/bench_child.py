"""One measured job of `bench.py`, in a process of its own: its time and memory are the process's.

    python scripts/bench_child.py METHOD MODEL SAMPLES LENGTH

METHOD is one of METHODS. Every method draws the same samples, one at a time: standard normal numbers for float
inputs, 0 and 1 for integers, batch 1, any other free axis LENGTH long.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    import onnxq

    Feed = dict[str, npt.NDArray[Any]]

BINS = 2048


def feeds(session: Any, samples: int, length: int) -> Iterator[Feed]:  # noqa: ANN401  onnxruntime has no types
    """Give what `random:N` gives, without onnxq."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {
        i.name: [d if isinstance(d, int) else (length if axis else 1) for axis, d in enumerate(i.shape)]
        for i in session.get_inputs()
    }
    whole = {i.name: "int" in i.type for i in session.get_inputs()}
    for _ in range(samples):
        yield {
            name: rng.integers(0, 2, shape) if whole[name] else rng.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        }


def forward(model: Path, samples: int, length: int) -> None:
    """Run the float model: what no calibration can do without."""
    import onnxruntime  # noqa: TID251  measured bare, outside the engine

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for feed in feeds(session, samples, length):
        session.run(None, feed)


def quantize(model: Path, samples: int, length: int) -> None:
    """Do all of `onnxq quantize`, as the command line does it."""
    from onnxq import api

    recipe = _recipe(model, length)
    with tempfile.TemporaryDirectory() as folder:
        ready = api.prepared(model, recipe)
        graph, _ = api.lowered(ready, api.observe(ready, f"random:{samples}"))
        api.export(graph, Path(folder) / "int8.onnx")


def calibrate(model: Path, samples: int, length: int) -> None:
    """Do all of `onnxq calibrate`."""
    from onnxq import api

    with tempfile.TemporaryDirectory() as folder:
        found = api.calibrate(model, f"random:{samples}", _recipe(model, length))
        found.save(Path(folder) / "statistics.npz")


def minmax(model: Path, samples: int, length: int) -> None:
    """Do all of `onnxq calibrate --calibrator minmax`: bounds alone."""
    from onnxq import api

    with tempfile.TemporaryDirectory() as folder:
        found = api.calibrate(model, f"random:{samples}", replace(_recipe(model, length), calibrator="minmax"))
        found.save(Path(folder) / "statistics.npz")


def ort_minmax(model: Path, samples: int, length: int) -> None:
    """ONNX Runtime's quantize_static with its default calibration."""
    from onnxruntime import quantization  # noqa: TID251  the other side of the comparison

    with tempfile.TemporaryDirectory() as folder:
        quantization.quantize_static(model, Path(folder) / "int8.onnx", _reader(model, samples, length))


def ort_entropy(model: Path, samples: int, length: int) -> None:
    """ONNX Runtime's entropy calibration with as many bins as the original; no quantization after it."""
    _ort_calibrator(model, samples, length, "Entropy", {"num_bins": BINS, "num_quantized_bins": 128})


def ort_percentile(model: Path, samples: int, length: int) -> None:
    """ONNX Runtime's percentile calibration with as many bins; no quantization after it."""
    _ort_calibrator(model, samples, length, "Percentile", {"num_bins": BINS})


def _ort_calibrator(model: Path, samples: int, length: int, method: str, options: dict[str, int]) -> None:
    from onnxruntime.quantization import CalibrationMethod, calibrate  # noqa: TID251  as above

    with tempfile.TemporaryDirectory() as folder:
        made = calibrate.create_calibrator(
            model,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
            extra_options=options,
        )
        made.collect_data(_reader(model, samples, length))
        made.compute_data()


def modelopt(model: Path, samples: int, length: int) -> None:
    """ModelOpt's int8 quantization of files, its defaults."""
    _peer("modelopt_int8", model, samples, length)


def onnxsim(model: Path, samples: int, length: int) -> None:
    """Onnxsim's quantize_static behind its simplify."""
    _peer("onnxsim_static", model, samples, length)


def _peer(variant: str, model: Path, samples: int, length: int) -> None:
    import onnxruntime  # noqa: TID251  as above
    from peers import VARIANTS

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    data = list(feeds(session, samples, length))
    del session
    _, function, options = VARIANTS[variant]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        shutil.copyfile(model, source)
        function(source, data, Path(folder) / "int8.onnx", **options)


def _reader(model: Path, samples: int, length: int) -> Any:  # noqa: ANN401  as above
    import onnxruntime  # noqa: TID251  as above
    from onnxruntime.quantization import CalibrationDataReader  # noqa: TID251  as above

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # as above
        """The feeds, one by one."""

        def __init__(self) -> None:
            session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
            self._feeds = feeds(session, samples, length)

        def get_next(self) -> Feed | None:
            """Give the next feed, or None."""
            return next(self._feeds, None)

    return Reader()


def _recipe(model: Path, length: int) -> onnxq.Recipe:
    import onnxq

    shapes = f"input_ids:1x{length},attention_mask:1x{length},token_type_ids:1x{length}"
    return onnxq.Recipe(effort="fast", shapes=shapes if "bert" in model.stem or "minilm" in model.stem else "")


METHODS: dict[str, Callable[[Path, int, int], None]] = {
    "forward": forward,
    "quantize": quantize,
    "calibrate": calibrate,
    "ort_minmax": ort_minmax,
    "minmax": minmax,
    "ort_entropy": ort_entropy,
    "ort_percentile": ort_percentile,
    "modelopt": modelopt,
    "onnxsim": onnxsim,
}


def main() -> None:
    """Do the one job."""
    method, model, samples, length = sys.argv[1:]
    METHODS[method](Path(model), int(samples), int(length))


if __name__ == "__main__":
    main()
