"""Weight formats and methods on MiniLM: SQNR of its output; error of its weights in 4 bits beside Gaussian ones.

    python scripts/bench_minilm.py [outputs] [weights]

`outputs`: of every scheme the SQNR of the token embeddings on texts that chose nothing, and the size of the file.
`weights`: the mean squared error over the mean square, in dB, of all product weights in blocks of 64 with one float32
scale each: what QLoRA (Dettmers et al. 2023) compares as int4, FP4 and NF4. E2M1 and E3M0 are FP4's two layouts there,
fp4 is what bitsandbytes has; int4 has codes -7 to 7, int4* the 16 codes -8 to 7 with the extreme value at -8.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxq import Recipe, api, intake
from onnxq.formats.codebooks import LEVELS, nearest

ROOT = Path(__file__).resolve().parent.parent
MINILM = ROOT / ".cache" / "models" / "minilm"
FORMATS = ("int4/block:32", "int3/block:32", "nf4/block:64", "uint4/block:32")
METHODS = ("nearest", "gptq", "awq")
SAMPLES = 32
CALIB = str(MINILM / "calib")
BLOCK = 64
E3M0 = (0.0, *(2.0**e for e in range(-2, 5)))
TABLES: dict[str, tuple[float, ...]] = {
    "int4": tuple(range(-7, 8)),
    "int4*": tuple(range(-8, 8)),
    "E2M1": LEVELS["mxfp4"],
    "E3M0": (*E3M0, *(-x for x in E3M0)),
    "fp4": LEVELS["fp4"],
    "nf4": LEVELS["nf4"],
}


def held_out() -> list[dict[str, npt.NDArray[np.int64]]]:
    """Give texts without their padding: what stands there is nobody's result."""
    with np.load(MINILM / "eval" / "queries.npz") as held:
        arrays = {name: held[name][:SAMPLES] for name in held.files}
    lengths = arrays["attention_mask"].sum(axis=1)
    return [{name: array[i : i + 1, :length] for name, array in arrays.items()} for i, length in enumerate(lengths)]


def outputs() -> None:
    """Print a row for each format and method."""
    model = MINILM / "minilm.onnx"
    print("| weights | method | SQNR dB | file, MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "q.onnx"
        for text in FORMATS:
            for method in METHODS:
                recipe = Recipe(target="ort-cpu", weights=text, weight_method=method)
                data = None if method == "nearest" else CALIB
                api.export(api.quantize(model, data, recipe)[0], out)
                found = api.compare(model, out, held_out())
                print(
                    f"| {text} | {method} | {found.outputs[0].sqnr_db:.1f} | {out.stat().st_size / 1e6:.1f} |",
                    flush=True,
                )


def error(w: npt.NDArray[np.float64], name: str) -> float:
    """Noise over signal of blocks [count, 64] in dB, their scale the largest magnitude over the largest level."""
    levels = TABLES[name]
    furthest = np.take_along_axis(w, np.abs(w).argmax(axis=1)[:, None], 1)
    scale = furthest / min(levels) if name == "int4*" else np.abs(furthest) / max(levels)
    scale = np.where(scale == 0, 1, scale)
    back = np.array(levels)[nearest(w / scale, levels)] * scale
    return float(10 * np.log10(np.square(back - w).sum() / np.square(w).sum()))


def weights() -> None:
    """Print the errors on Gaussian weights and on those of MiniLM's products, block by block along K."""
    graph = intake.load(MINILM / "minilm.onnx")
    matrices = [graph.const(n.inputs[1]) for n in graph.nodes if n.op_type in ("MatMul", "Gemm")]
    held = [m.T.reshape(-1, BLOCK) for m in matrices if m is not None and m.ndim == 2 and len(m) % BLOCK == 0]
    sets = {
        "Gaussian": np.random.default_rng(0).normal(size=(200_000, BLOCK)),
        "Student t, 5": np.random.default_rng(0).standard_t(5, size=(200_000, BLOCK)),
        "MiniLM": np.concatenate(held).astype(np.float64),
    }
    print(f"| weights | {' | '.join(TABLES)} |\n|---|{'---|' * len(TABLES)}")
    for name, w in sets.items():
        print(f"| {name} | {' | '.join(f'{error(w, t):.2f}' for t in TABLES)} |", flush=True)


if __name__ == "__main__":
    for part in sys.argv[1:] or ("outputs", "weights"):
        {"outputs": outputs, "weights": weights}[part]()
