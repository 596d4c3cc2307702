"""The proof for whatever the caller has: a file or a model in memory, and data in any of its forms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq import proof, runtime
from onnxq.checks.build import read
from onnxq.data import input_specs, open_source, parse_shapes, with_preprocess
from onnxq.errors import ModelError, RecipeError
from onnxq.intake import load
from onnxq.interface import coded, ports, with_float_ends
from onnxq.scratch import Scratch
from onnxq.targets.oldest import oldest_runtime

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.proof import Proof

    Model = Any

PROVIDER_OF = {"ort-cpu": "cpu", "ort-cuda": "cuda"}
"""Target -> the provider of ONNX Runtime that runs it."""


def prove(
    model: Model,
    target: str = "ort-cpu",
    data: object = "random:1",
    *,
    shapes: str = "",
    preprocess: str = "",
    reference: Model | None = None,
) -> Proof:
    """What ONNX Runtime really runs of a quantized model, optimized for the target's provider; see `onnxq.proof`.

    Args:
        model: quantized, by whatever tool: a path, a Graph or a ModelProto.
        target: ort-cpu or ort-cuda.
        data: the first sample is what it is run on; nothing is calibrated. That of the float model, where inputs are
            codes, which are made of it.
        shapes: sizes of dynamic inputs, as a recipe has them.
        preprocess: how images become the input, as a recipe has it.
        reference: the float model, to measure latency against.

    Raises:
        RecipeError: the target is none of ONNX Runtime's.
        ProviderError: its provider is not there.
        ModelError: ONNX Runtime cannot load a model, or is too old for it.
        DataError: the data does not fit.
    """
    if target not in PROVIDER_OF:
        raise RecipeError(f"{target} cannot be proved", f"Targets of ONNX Runtime: {', '.join(PROVIDER_OF)}.")
    runtime.try_provider(PROVIDER_OF[target])
    sizes = parse_shapes(shapes) if shapes else None
    graph = load(model)
    _refuse_too_new(graph)
    specs = input_specs(with_float_ends(graph))
    if preprocess:
        specs = with_preprocess(specs, preprocess)
    feed = next(iter(open_source(data, specs, shapes=sizes)))
    own = coded(feed, ports(graph))
    with Scratch() as folder:
        compared = None if reference is None else _on_disk(reference, folder / "float.onnx")
        quantized = _on_disk(model, folder / "quantized.onnx")
        try:
            return proof.prove(quantized, own, provider=PROVIDER_OF[target], reference=compared, floats=feed)
        except ModelError:
            for given in (model, reference):  # a version too new is looked for after the fact: it takes parsing
                _refuse_format(given)
            raise


def _refuse_too_new(graph: Graph) -> None:
    needs, here = oldest_runtime(graph), runtime.version()
    if here < needs:
        raise ModelError(
            f"the model needs ONNX Runtime {needs[0]}.{needs[1]} or later, and this is {here[0]}.{here[1]}",
            "Update onnxruntime. Older ones lack its opset, its file format or a form of an operator, as tables in"
            ' bytes, which a rule with ops = ["Gather"] and quantize = false leaves in float.',
        )


def _refuse_format(model: Model | None) -> None:
    """A file is run as it stands; what `load` makes of it is in an older version of the file format."""
    if not isinstance(model, str | os.PathLike):
        return
    found = read(model).ir_version
    if not runtime.reads_format(found):
        major, minor = runtime.version()
        raise ModelError(
            f"{model} is in version {found} of ONNX's file format, which ONNX Runtime {major}.{minor} does not read",
            "Update onnxruntime, or save the model with `ir_version = 10`; `onnxq quantize` writes one that is read.",
        )


def _on_disk(model: Model, path: Path) -> Path:
    """The file of a model, as it is where it comes from one."""
    if isinstance(model, str | os.PathLike):
        return Path(model)
    load(model).save(path, check=False)
    return path
