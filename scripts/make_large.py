"""Write a synthetic transformer of any size, its weights in one file of external data, without holding it in memory.

    python scripts/make_large.py FOLDER [--gigabytes 3] [--width 2048]

Weights are random, one file `model.data` beside `model.onnx`; every layer has weights of its own, so that nothing can
be stored once for several. Input `tokens`: float32 [1, 8, width].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

TOKENS = 8


def make(folder: Path, gigabytes: float, width: int) -> Path:
    """Write the model; return its path."""
    rng = np.random.default_rng(0)
    layers = max(1, round(gigabytes * 1e9 / (4 * 8 * width * width)))
    nodes, tensors, value = [], [], "tokens"
    with (folder / "model.data").open("wb") as file:

        def product(source: str, name: str, rows: int, columns: int) -> str:
            values = rng.standard_normal((rows, columns), np.float32)
            values *= np.float32(rows**-0.5)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in (("location", "model.data"), ("offset", file.tell()), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(text))
            values.tofile(file)
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [source, name], [f"{name}.out"], name=f"{name}.product"))
            return f"{name}.out"

        for layer in range(layers):
            name = f"layer{layer}"
            wide = product(value, f"{name}.up", width, 4 * width)
            nodes.append(helper.make_node("Relu", [wide], [f"{name}.relu"], name=f"{name}.act"))
            down = product(f"{name}.relu", f"{name}.down", 4 * width, width)
            value = f"{name}.sum"
            last = f"layer{layer - 1}.sum" if layer else "tokens"
            nodes.append(helper.make_node("Add", [last, down], [value], name=f"{name}.add"))
    shape = [1, TOKENS, width]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("tokens", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--width", type=int, default=2048)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(make(args.folder, args.gigabytes, args.width))


if __name__ == "__main__":
    main()
