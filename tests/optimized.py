"""What ONNX Runtime makes of a graph."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from onnxq.graph import Graph


CPUINFO = Path("/proc/cpuinfo")
SATURATES = CPUINFO.exists() and not re.search("vnni|asimd", CPUINFO.read_text())
"""Whether ONNX Runtime's integer products saturate on this machine, unless it loads the model in its exact form. It
cannot do that with layers that share a weight (see `onnxq.runtime`)."""


def operators(graph: Graph) -> list[str]:
    """The operators after the CPU provider's optimizations, in order."""
    import onnxruntime as ort  # noqa: TID251  asked for what it writes, outside the engine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
