"""Print what ONNX files hold and whether ONNX Runtime gives finite outputs on small random input.

    python scripts/describe_model.py MODEL.onnx [...]         needs onnx, onnxruntime

Exit status 1 when a model fails to load, to run or to stay finite.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 0
FREE_DIM = 2  # stands for a free dimension that has no better value below
TOKENS = 16
TOKEN_LIMIT = 100  # integer inputs stay below: within every vocabulary here
FREE_SHAPES = {  # input name -> sizes of its free dimensions
    "image": (FREE_DIM, 3, 224, 224),
    "input": (FREE_DIM, 576),  # silero: 64 samples of context, 512 new ones
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (FREE_DIM, TOKENS)),
}
SAMPLE_RATE = 16000


def nodes(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[int, onnx.NodeProto]]:
    """Yield (depth, node) over `graph` and the bodies of its If, Loop and Scan nodes; depth 0 is the top."""
    for node in graph.node:
        yield depth, node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes(body, depth + 1)


def histogram(counts: Counter[str]) -> str:
    """Write `counts` on one line, most frequent first."""
    return ", ".join(f"{op} {count}" for op, count in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def signature(values: Any) -> str:  # noqa: ANN401 -- a repeated protobuf field has no public type
    """Write graph inputs or outputs as `name type[dims]`."""
    return ", ".join(
        f"{value.name} {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()}"
        f"[{','.join(d.dim_param or str(d.dim_value or '?') for d in value.type.tensor_type.shape.dim)}]"
        for value in values
    )


def describe(path: Path) -> None:
    """Print size, opsets, inputs, outputs, operator counts and peculiarities of the model at `path`."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    top, inner = Counter[str](), Counter[str]()
    for depth, node in nodes(graph):
        (inner if depth else top)[node.op_type] += 1
    stored = {tensor.name for tensor in graph.initializer}
    companions = sorted(path.parent.glob(f"{path.name}.data*"))
    size = sum(file.stat().st_size for file in (path, *companions))
    print(f"{path}: {size / 1e6:.2f} MB" + (f" with {len(companions)} data file(s)" if companions else ""))
    print(f"  ir {model.ir_version}, opset", {o.domain or "ai.onnx": o.version for o in model.opset_import})
    print("  in ", signature(value for value in graph.input if value.name not in stored))
    print("  out", signature(graph.output))
    print(f"  {sum(top.values())} nodes: {histogram(top)}")
    if inner:
        print(f"  {sum(inner.values())} nodes in bodies: {histogram(inner)}")
    listed = sum(value.name in stored for value in graph.input)
    print(
        f"  {len(stored)} initializers ({listed} also listed as inputs), {len(model.functions)} functions, "
        f"{len(graph.value_info)} value infos, {sum(not node.name for node in graph.node)} unnamed nodes"
    )


def feed(session: Any) -> dict[str, np.ndarray]:  # noqa: ANN401 -- ONNX Runtime ships no types
    """Make one random input per model input; attention masks are ones, rates and states are sane."""
    rng = np.random.default_rng(SEED)
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        free = FREE_SHAPES.get(value.name, (FREE_DIM,) * len(value.shape))
        shape = [d if isinstance(d, int) else free[axis] for axis, d in enumerate(value.shape)]
        if value.type != "tensor(int64)":
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif value.name in {"attention_mask", "token_type_ids"}:
            feeds[value.name] = np.full(shape, value.name == "attention_mask", dtype=np.int64)
        elif value.name == "sr":
            feeds[value.name] = np.full(shape, SAMPLE_RATE, dtype=np.int64)
        else:
            feeds[value.name] = rng.integers(1, TOKEN_LIMIT, shape)
    return feeds


def runs(path: Path) -> bool:
    """Run the model once on the CPU, print its outputs' shapes and ranges; False when anything goes wrong."""
    import onnxruntime  # noqa: TID251 -- a script looks at files outside the engine

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = session.run(None, feed(session))
    except Exception as error:  # noqa: BLE001 -- ONNX Runtime raises many kinds, all mean the same here
        print(f"  FAILS: {error}")
        return False
    for value, output in zip(session.get_outputs(), outputs, strict=True):
        print(f"  ran: {value.name} {list(output.shape)} in [{output.min():.4g}, {output.max():.4g}]")
    return all(bool(np.isfinite(output).all()) for output in outputs)


def main() -> None:
    """Describe and try every model given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    good = True
    for path in parser.parse_args().models:
        describe(path)
        good = runs(path) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
