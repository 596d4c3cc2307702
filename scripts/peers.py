"""Quantize the models of subjects.py with other tools, each in a throw-away environment of its own.

    python scripts/peers.py [TOOL ...] [--model NAME ...] [--samples 32] [--limit SECONDS]

TOOL: onnxruntime, modelopt, onnxsim, quark; without one, all. Without a model, digits. Results lie in
.cache/peers/<model>-<samples>/<variant>.onnx, with the seconds it took or the error beside it in <variant>.json; what
is there is kept. Environments are .venv-peers/<tool>; NVIDIA ModelOpt and Quark bring torch, several GB where pip's
default build is one for GPUs. All tools calibrate on the same feeds; what each variant is called with is below.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import traceback
import venv
from typing import TYPE_CHECKING, Any

from subjects import ROOT, SUBJECTS, stacked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from subjects import Feed

OUT = ROOT / ".cache" / "peers"
PACKAGES = {
    "onnxruntime": ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0"),
    "modelopt": ("nvidia-modelopt[onnx]==0.47.0", "torch==2.13.0"),
    "onnxsim": ("onnxsim==0.8.1", "onnxruntime==1.31.1"),
    "quark": ("amd-quark==0.13", "torch==2.13.0", "onnxruntime==1.28.0"),
}


# -- how each tool is called: (model, feeds, output, options) ---------------------------------------------------


def reader(feeds: list[Feed]) -> Any:  # noqa: ANN401  onnxruntime has no types
    """The feeds, one by one, as ONNX Runtime's tool and those built on it take them."""
    from onnxruntime.quantization import CalibrationDataReader  # noqa: TID251  another tool's own environment

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # no type information
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

        def __len__(self) -> int:
            return len(feeds)

    return Reader()


def ort_static(model: Path, feeds: list[Feed], out: Path, **options: Any) -> None:  # noqa: ANN401  of quantize_static
    """`quantize_static`, behind its own preprocessing as its documentation asks."""
    from onnxruntime import quantization as tool  # noqa: TID251  as above

    kinds = {"activation_type": tool.QuantType, "weight_type": tool.QuantType, "quant_format": tool.QuantFormat}
    kinds["calibrate_method"] = tool.CalibrationMethod
    chosen = {key: kinds[key][value] if key in kinds else value for key, value in options.items()}
    tool.quantize_static(_preprocessed(model), out, reader(feeds), **chosen)


def ort_dynamic(model: Path, _feeds: list[Feed], out: Path, **options: Any) -> None:  # noqa: ANN401  as above
    """`quantize_dynamic`."""
    from onnxruntime.quantization import quantize_dynamic  # noqa: TID251  as above

    quantize_dynamic(_preprocessed(model), out, **options)


def _preprocessed(model: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: TID251  as above

    out = model.with_suffix(".preprocessed.onnx")
    if not out.exists():
        quant_pre_process(_modern(model), out, skip_symbolic_shape=True)
    return out


def _modern(model: Path) -> Path:
    """The model at opset 13 or above: below, what `per_channel` writes does not load."""
    import onnx

    loaded = onnx.load(model)
    if next(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) >= 13:
        return model
    out = model.with_suffix(".opset13.onnx")
    onnx.save_model(onnx.version_converter.convert_version(loaded, 13), out)
    return out


def modelopt(model: Path, feeds: list[Feed], out: Path, **options: Any) -> None:  # noqa: ANN401  of its quantize
    """ModelOpt takes one array an input, and one shape: texts are padded for it."""
    from modelopt.onnx.quantization import quantize

    data = stacked(feeds)
    shapes = {key: (array.shape[0] // len(feeds), *array.shape[1:]) for key, array in data.items()}
    source = out.with_suffix(".input.onnx")  # it writes into the file that it is given
    shutil.copyfile(model, source)
    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data=data,
        calibration_shapes=",".join(f"{key}:{'x'.join(map(str, shape))}" for key, shape in shapes.items()),
        calibration_eps=["cpu"],
        output_path=str(out),
        **options,
    )


def onnxsim(model: Path, feeds: list[Feed], out: Path, **options: Any) -> None:  # noqa: ANN401  of the function
    """One of onnxsim's functions, by its name, behind its `simplify`; with `smooth`, behind its SmoothQuant as well."""
    import onnx
    import onnxsim as tool

    function, smooth = options.pop("function", "quantize_static"), options.pop("smooth", False)
    start = tool.simplify(str(_modern(model)))[0]  # without it the BatchNorms keep most of a network in float
    start = tool.apply_smoothquant(start, feeds) if smooth else start
    onnx.save_model(getattr(tool, function)(start, feeds, **options), out)


def quark(model: Path, feeds: list[Feed], out: Path, **options: Any) -> None:  # noqa: ANN401  see below
    """Quark's A8W8 or, with `smooth`, SmoothQuant before it; `cle`: cross-layer equalization; `uint8` activations."""
    import quark.onnx as tool

    activation = tool.UInt8Spec() if options.get("uint8") else tool.Int8Spec()
    algorithms = [tool.SmoothQuantConfig()] if options.get("smooth") else []
    algorithms += [tool.CLEConfig()] if options.get("cle") else []
    config = tool.QConfig(
        global_config=tool.QLayerConfig(activation=activation, weight=tool.Int8Spec()),
        algo_config=algorithms,
        extra_options={"ForceQuantizeNoInputCheck": True, "AlignSlice": False, "FoldRelu": True, "AlignConcat": True},
    )
    tool.ModelQuantizer(config).quantize_model(str(model), str(out), reader(feeds))


# -- the variants ------------------------------------------------------------------------------------------------

PER_CHANNEL = {"per_channel": True}
SYMMETRIC = {
    **PER_CHANNEL,
    "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
Variant = tuple[str, "Callable[..., None]", dict[str, Any]]
VARIANTS: dict[str, Variant] = {
    "ort_static": ("onnxruntime", ort_static, {}),
    "ort_static_per_channel": ("onnxruntime", ort_static, PER_CHANNEL),
    "ort_symmetric": ("onnxruntime", ort_static, SYMMETRIC),
    "ort_symmetric_percentile": ("onnxruntime", ort_static, {**SYMMETRIC, "calibrate_method": "Percentile"}),
    "ort_uint8": ("onnxruntime", ort_static, {**PER_CHANNEL, "activation_type": "QUInt8"}),
    "ort_uint8_per_tensor": ("onnxruntime", ort_static, {"activation_type": "QUInt8"}),
    "ort_uint8_7bit": ("onnxruntime", ort_static, {**PER_CHANNEL, "activation_type": "QUInt8", "reduce_range": True}),
    "ort_uint8_entropy": (
        "onnxruntime",
        ort_static,
        {**PER_CHANNEL, "activation_type": "QUInt8", "calibrate_method": "Entropy"},
    ),
    "ort_uint8_operators": ("onnxruntime", ort_static, {"activation_type": "QUInt8", "quant_format": "QOperator"}),
    "ort_uint8_linear": (
        "onnxruntime",
        ort_static,
        {**PER_CHANNEL, "activation_type": "QUInt8", "op_types_to_quantize": ["Conv", "MatMul", "Gemm"]},
    ),
    "ort_dynamic": ("onnxruntime", ort_dynamic, {}),
    "ort_dynamic_per_channel": ("onnxruntime", ort_dynamic, PER_CHANNEL),
    "modelopt_int8": ("modelopt", modelopt, {}),
    "modelopt_int8_fp32": ("modelopt", modelopt, {"high_precision_dtype": "fp32"}),
    "modelopt_int8_fp32_max": (
        "modelopt",
        modelopt,
        {"high_precision_dtype": "fp32", "calibration_method": "max"},
    ),
    "modelopt_int8_dq_only": ("modelopt", modelopt, {"dq_only": True}),
    "onnxsim_static": ("onnxsim", onnxsim, {}),
    "onnxsim_static_mse": ("onnxsim", onnxsim, {"method": "mse"}),
    "onnxsim_static_smooth": ("onnxsim", onnxsim, {"smooth": True}),
    "onnxsim_static_full": ("onnxsim", onnxsim, {"full_graph": True}),
    "onnxsim_qoperator": ("onnxsim", onnxsim, {"function": "quantize_qoperator"}),
    "quark_a8w8": ("quark", quark, {}),
    "quark_a8w8_smooth": ("quark", quark, {"smooth": True}),
    "quark_a8w8_cle": ("quark", quark, {"cle": True}),
    "quark_uint8": ("quark", quark, {"uint8": True}),
}


def of(tool: str) -> list[str]:
    """The variants of a tool."""
    return [variant for variant, (owner, _, _) in VARIANTS.items() if owner == tool]


# -- running them ------------------------------------------------------------------------------------------------


def made(variant: str, model: str, samples: int, limit: float | None = None) -> tuple[Path | str, float]:
    """The quantized file, or why there is none, and the seconds it took; made in the tool's environment if missing.

    `limit` are the seconds after which the tool is stopped, which is why there is none then.
    """
    folder = folder_of(model, samples)
    note = folder / f"{variant}.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        python = environment(VARIANTS[variant][0])
        command = (str(python), __file__, "--inside", variant, model, str(samples))
        log = folder / f"{variant}.log"
        with log.open("wb") as output:
            try:
                subprocess.run(command, check=False, stdout=output, stderr=output, cwd=folder, timeout=limit)
            except subprocess.TimeoutExpired:
                note.write_text(json.dumps({"error": f"took more than {limit:g} s", "seconds": limit}))
        if not note.exists():
            note.write_text(json.dumps({"error": log.read_text()[-200:], "seconds": 0.0}))
    found = json.loads(note.read_text())
    return found["error"] or folder / f"{variant}.onnx", found["seconds"]


def folder_of(model: str, samples: int) -> Path:
    """Where the files of a model and a number of samples are."""
    return OUT / f"{model}-{samples}"


def _inside(variant: str, model: str, samples: int) -> None:
    """What runs in the tool's environment."""
    _, function, options = VARIANTS[variant]
    folder = folder_of(model, samples)
    source = folder / "float.onnx"
    if not source.exists():
        shutil.copyfile(SUBJECTS[model].path, source)
    feeds = SUBJECTS[model].calibration(samples)
    begun, error = time.perf_counter(), ""
    try:
        function(source, feeds, folder / f"{variant}.onnx", **options)
    except Exception as failure:  # noqa: BLE001  a tool that fails is a row of the table
        traceback.print_exc()
        error = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    seconds = time.perf_counter() - begun
    (folder / f"{variant}.json").write_text(json.dumps({"error": error, "seconds": seconds}))


def environment(tool: str) -> Path:
    """The Python of the tool's environment, made when it is not there."""
    folder = ROOT / ".venv-peers" / tool
    python, marker = folder / "bin" / "python", folder / "complete"
    if not marker.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[tool]], check=True)
        marker.touch()
    return python


def main() -> None:
    """Make the models named on the command line, each in its tool's environment."""
    if sys.argv[1:2] == ["--inside"]:
        variant, model, samples = sys.argv[2:]
        _inside(variant, model, int(samples))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", choices=[*PACKAGES, []], metavar="TOOL")
    parser.add_argument("--model", action="append", default=[], choices=SUBJECTS)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop a tool after so long on one setting")
    args = parser.parse_args()
    for model in args.model or ["digits"]:
        for tool in args.tools or PACKAGES:
            for variant in of(tool):
                path, seconds = made(variant, model, args.samples, args.limit)
                print(f"{model}, {variant}: {path} ({seconds:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
