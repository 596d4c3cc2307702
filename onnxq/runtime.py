"""ONNX Runtime behind one wall: sessions for collecting, comparing and folding."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxq.dtypes import BFLOAT16
from onnxq.errors import DataError, ModelError, ProviderError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

Array = "npt.NDArray[Any]"
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


ELEMENTS: dict[str, str] = {
    **{f"tensor({name})": name for name in ("float16", "bfloat16", "bool")},
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
"""ONNX Runtime's name of a type -> numpy's name of the elements'."""


@dataclass(frozen=True)
class Loadable:
    """A model that is loaded without a copy of its larger weights.

    Attributes:
        model: serialized.
        folder: where the files of its external data lie; None where there are none.
        arrays: weight -> its values, of those that are given in place of the files the model names for them.
    """

    model: bytes
    folder: Path | None = None
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Session:
    """A loaded model. Outputs come as a tuple in the order they were asked for.

    `as_written` keeps Q/DQ pairs as they are in place of integer kernels: on x64 CPUs without VNNI those add pairs of
    products in 16 bits, which saturate, and cost 3 to 17 dB that no other machine loses.
    `as_deployed` is a session as a user's code gets it, for what it runs and how long that takes; all others are exact
    on such CPUs, and their threads do not spin.
    `custom_ops` are shared libraries that export RegisterCustomOps. `output_types` gives numpy's name of the element
    type of every output, None for what is no tensor of numbers. `threads` work on one run, all cores where it is 0; the
    one that calls is among them. `write_to` is where the optimized model goes, with `weights_apart` its larger weights
    to a file beside it, of that name and ".data". `in_order` runs the nodes in the order in which they are written.
    `profile_to` is the beginning of the name of the profile that `end_profile` writes.
    """

    def __init__(  # noqa: PLR0913  each is a choice of its own
        self,
        model: Path | bytes | Loadable,
        providers: Sequence[str] = ("cpu",),
        *,
        optimize: bool = True,
        as_written: bool = False,
        as_deployed: bool = False,
        custom_ops: Sequence[str] = (),
        write_to: Path | None = None,
        weights_apart: bool = False,
        in_order: bool = False,
        profile_to: Path | None = None,
        threads: int = 0,
    ) -> None:
        import onnxruntime as ort  # noqa: TID251  this is the wall; 0.1 s that `import onnxq` need not pay

        def made(*, exact: bool) -> Any:  # noqa: ANN401  ONNX Runtime ships no types
            options = ort.SessionOptions()
            # What fails is raised as well; of the exact form it is tried again, and nobody need read of it.
            options.log_severity_level = 4 if exact else 3
            options.add_session_config_entry(_EXACT, "1" if exact else "0")
            options.intra_op_num_threads = threads
            if not as_deployed:
                # Threads that wait by spinning take the cores from whoever counts or compares meanwhile.
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            if as_written:
                options.add_session_config_entry("session.disable_quant_qdq", "1")
            if write_to is not None:
                _write(options, write_to, apart=weights_apart)
            _arrange(options, optimize=optimize, in_order=in_order)
            if profile_to is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(profile_to)
            for library in custom_ops:
                _register(options, library)
            # Not copied: they live as long as the session.
            self._given = _give(model, options) if isinstance(model, Loadable) else []
            return options

        names = provider_names(providers)
        missing = [n for n in names if n not in ort.get_available_providers()]
        if missing:
            raise ProviderError(
                f"ONNX Runtime here has no {missing[0]}",
                f"Available: {', '.join(ort.get_available_providers())}. Install the matching onnxruntime package.",
            )
        loaded = model.model if isinstance(model, Loadable) else model
        self._session = _start(loaded, made, names, exact=not as_deployed)
        if names[0] not in self._session.get_providers():
            raise ProviderError(
                f"{names[0]} could not be started; ONNX Runtime would have used the CPU silently",
                "Check the CUDA and cuDNN libraries, or ask for --providers cpu.",
            )
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self._narrow = frozenset(i.name for i in self._session.get_inputs() if i.type == "tensor(bfloat16)")
        self._wide = any(o.type == "tensor(bfloat16)" for o in self._session.get_outputs())
        self.output_types = {o.name: ELEMENTS.get(o.type) for o in self._session.get_outputs()}

    def run(self, feed: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> list[Any]:
        """Run one feed. Outputs in bfloat16 come as float32, which holds it.

        Raises:
            DataError: ONNX Runtime refuses the feed or fails on it.
        """
        given = {k: np.asarray(v, order="C") for k, v in feed.items()}  # ascontiguousarray gives a scalar an axis
        try:
            if self._narrow or self._wide:
                return self._run_bfloat16(given, outputs)
            return list(self._session.run(outputs, given))
        except Exception as error:  # ONNX Runtime raises its own types, and RuntimeError
            raise DataError(
                f"ONNX Runtime failed on the data: {_one_line(error)}",
                "Do the shapes and values fit the model? "
                + ", ".join(f"{k}: {v.dtype}{list(v.shape)}" for k, v in feed.items()),
            ) from error

    def _run_bfloat16(self, feed: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None) -> list[Any]:
        """The same through ONNX Runtime's own values: its Python takes and gives no arrays of bfloat16."""
        import onnxruntime as ort  # noqa: TID251  this is the wall

        def given(name: str, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401  ONNX Runtime ships no types
            if array.dtype.kind in "OU":
                return _texts(array)
            if name not in self._narrow:
                return ort.OrtValue.ortvalue_from_numpy(array)
            bits = array.astype(ml_dtypes.bfloat16).view(np.uint16)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)

        def read(value: Any) -> Any:  # noqa: ANN401  ONNX Runtime ships no types
            if value.data_type() != "tensor(bfloat16)":
                return value.numpy()
            shape = tuple(value.shape())
            held = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
            return np.frombuffer(held, ml_dtypes.bfloat16).astype(np.float32).reshape(shape)

        values = {name: given(name, array) for name, array in feed.items()}
        return [read(value) for value in self._session.run_with_ort_values(outputs or self.outputs, values)]

    def each(self, feeds: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Iterator[list[list[Any]]]:
        """All outputs for each feed, in one list: what runs a model in parts gives one for each.

        Raises:
            DataError: as for `run`.
        """
        yield [self.run(feed, self.outputs) for feed in feeds]

    def end_profile(self) -> Path:
        """Stop profiling; the file that holds the profile."""
        return Path(self._session.end_profiling())


def _texts(array: npt.NDArray[Any]) -> Any:  # noqa: ANN401  ONNX Runtime ships no types
    """Strings as ONNX Runtime's own value, which its Python makes of no array: what a model gives that holds them."""
    import onnxruntime as ort  # noqa: TID251  this is the wall
    from onnx import TensorProto, helper, numpy_helper

    held = numpy_helper.from_array(array.astype(object), "held")
    given = helper.make_tensor_value_info("given", TensorProto.STRING, array.shape)
    graph = helper.make_graph([helper.make_node("Identity", ["held"], ["given"])], "texts", [], [given], [held])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run_with_ort_values(["given"], {})[0]


def try_provider(provider: str) -> None:
    """Run a model of one node there.

    Raises:
        ProviderError: ONNX Runtime was built without the provider, or it does not start here.
    """
    import onnxruntime as ort  # noqa: TID251  this is the wall

    ort.set_default_logger_severity(4)  # what cannot be loaded is said once, below
    try:
        Session(_probe(ir_version=8), (provider,)).run({"x": np.zeros(1, np.float32)})
    except (ModelError, DataError) as error:  # a driver that does not fit
        raise ProviderError(f"{PROVIDERS[provider]} does not run: {error.message}", error.hint) from error
    finally:
        ort.set_default_logger_severity(2)


def reads_format(ir_version: int) -> bool:
    """Whether the ONNX Runtime here loads models in this version of the file format: a model of one node tells."""
    try:
        Session(_probe(ir_version), optimize=False)
    except ModelError:
        return False
    return True


def _probe(ir_version: int) -> bytes:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString())


DRIVER = Path("/proc/driver/nvidia/version")
"""What is there where Linux has loaded NVIDIA's driver."""


def unused_gpu(providers: Sequence[str]) -> bool:
    """Whether there is a GPU that ONNX Runtime here can use, and none of the providers does."""
    if not DRIVER.exists() or {"cuda", "tensorrt"} & set(providers):
        return False
    import onnxruntime as ort  # noqa: TID251  this is the wall

    return PROVIDERS["cuda"] in ort.get_available_providers()


def provider_names(providers: Sequence[str]) -> list[str]:
    """ONNX Runtime's provider names for onnxq's short ones, the CPU last."""
    unknown = [p for p in providers if p not in PROVIDERS]
    if unknown:
        raise RecipeError(f"unknown provider {unknown[0]!r}", f"Known: {', '.join(PROVIDERS)}.")
    names = [PROVIDERS[p] for p in providers]
    return names if PROVIDERS["cpu"] in names else [*names, PROVIDERS["cpu"]]


def version() -> tuple[int, int]:
    """(major, minor) of the ONNX Runtime that is installed."""
    import onnxruntime as ort  # noqa: TID251  this is the wall

    major, minor, *_ = str(ort.__version__).split(".")
    return int(major), int(minor)


def _start(
    model: Path | bytes, made: Callable[..., Any], names: Sequence[str], *, exact: bool, without: Sequence[str] = ()
) -> Any:  # noqa: ANN401  untyped
    """A session with the options that are `made`.

    `exact`: one whose integer products do not saturate, where ONNX Runtime can make it.

    On x64 CPUs without VNNI it adds pairs of uint8 x int8 products in 16 bits, and what a model computes must not
    depend on the machine it is judged on. The exact form cannot load some models whose layers share an int8 weight
    (1.31: "Attempt to replace the existing tensor"); they are loaded without. So are those that an optimizer makes
    invalid: 1.31 takes the Cast to float32 in front of a LayerNorm into it, whose types then differ. `without` names
    optimizers to leave out. What is to run as deployed is not helped so.
    """
    import onnxruntime as ort  # noqa: TID251  this is the wall

    source = model if isinstance(model, bytes) else str(model)
    options = made(exact=exact)
    try:
        return ort.InferenceSession(source, options, providers=names, disabled_optimizers=list(without))
    except Exception as error:  # ONNX Runtime raises its own types, and RuntimeError
        if exact and "replace the existing tensor" in str(error):
            return _start(model, made, names, exact=False, without=without)
        if exact and not without and f"/{_NORMS[0]}/" in str(error):
            return _start(model, made, names, exact=exact, without=_NORMS)
        hint = "Does the float model run by itself? Try it with onnxruntime.InferenceSession."
        if "NOT_IMPLEMENTED" in str(error):
            hint = "Its CPU provider lacks most operators in bfloat16. A model in float32 runs, or --providers cuda."
        raise ModelError(f"ONNX Runtime cannot load the model: {_one_line(error)}", hint) from error


_NORMS = ("LayerNormFusion", "LayerNormFusionL1", "LayerNormFusionL2")
_EXACT = "session.x64quantprecision"
_APART = "session.optimized_model_external_initializers_file_name"
_FOLDER = "session.model_external_initializers_file_folder_path"


def _arrange(options: Any, *, optimize: bool, in_order: bool) -> None:  # noqa: ANN401  ONNX Runtime ships no types
    """Which nodes are run, and in which order."""
    import onnxruntime as ort  # noqa: TID251  this is the wall

    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED


def _write(options: Any, path: Path, *, apart: bool) -> None:  # noqa: ANN401  ONNX Runtime ships no types
    """Have the optimized model written to that file, its larger weights to one beside it if `apart`."""
    options.optimized_model_filepath = str(path)
    if apart:
        options.add_session_config_entry(_APART, f"{path.name}.data")


def _give(model: Loadable, options: Any) -> list[Any]:  # noqa: ANN401  ONNX Runtime ships no types
    """Tell the options where the model's weights are; return what they must not outlive."""
    import onnxruntime as ort  # noqa: TID251  this is the wall

    if model.folder is not None:
        options.add_session_config_entry(_FOLDER, str(model.folder))
    given = [ort.OrtValue.ortvalue_from_numpy(array) for array in model.arrays.values()]
    if given:
        options.add_external_initializers(list(model.arrays), given)
    return [*given, *model.arrays.values()]


def _register(options: Any, library: str) -> None:  # noqa: ANN401  ONNX Runtime ships no types
    try:
        # a bare name is looked for where the system's libraries are
        options.register_custom_ops_library(str(Path(library).absolute()) if Path(library).exists() else library)
    except Exception as error:  # ONNX Runtime raises its own types, and RuntimeError
        raise RecipeError(
            f"the custom-operator library {library} cannot be loaded: {_one_line(error)}",
            "Give the path of a shared library that exports RegisterCustomOps, built for this system.",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
