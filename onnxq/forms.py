"""How a stored matrix is written in ONNX: nodes that any runtime can run, in front of the product that reads it.

integers, float8, ternary   DequantizeLinear(codes, scale, zero_point)
codebooks                   codes (uint4) -> Cast -> Gather(levels) -> Mul(scale) -> Reshape -> Transpose
 - mxfp4, mxfp8             scale = 2^(exponent - 127); the codes of mxfp8 are float8, and need no Gather
 - nvfp4                    scale = Cast(float8) * global
nvfp4 where float4 is read  DequantizeLinear(codes, DequantizeLinear(float8 scales, global), block_size 16) -> Transpose
 - double                   scale = DequantizeLinear(int8 codes, block_size 256) + mean
binary                      codes (uint8) -> BitShift -> BitwiseAnd(1) -> Reshape -> Cast -> Mul(2 scale) -> Sub(scale)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxq.formats.codebooks import CODEBOOKS, E8M0_BIAS, LEVELS, SCALE_BLOCK
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.formats.stored import Stored
    from onnxq.graph import Graph, Node, Value

FLOAT32, INT32 = 1, 6
QUANT_TYPES = {"fp4": 0, "nf4": 1}
"""Type -> MatMulBnb4's attribute."""
FLOAT4 = ("nvfp4",)
"""Types that are written in float4 where the runtime reads it."""


def write(graph: Graph, name: str, stored: Stored, dtype: str, *, float4: bool = False) -> Value:
    """Add the constants and nodes that give the matrix [K, N] back, as a value of `dtype`.

    `float4` says whether the runtime reads FLOAT4E2M1 codes, which need no table then.
    """
    if float4 and stored.format.type in FLOAT4:
        real = _float4(graph, name, stored)
    elif stored.format.type in CODEBOOKS:
        real = _codebook(graph, name, stored)
    elif stored.format.type == "binary":
        real = _binary(graph, name, stored)
    else:
        real = _affine(graph, name, stored)
    graph.retype(real, dtype)
    return real


def has_operator(stored: Stored) -> bool:
    """Whether com.microsoft MatMulBnb4 can hold the matrix: its blocks run over [N, K] without a break."""
    return stored.format.type in QUANT_TYPES and stored.shape[0] % (stored.format.block_size or 1) == 0


def write_operator(graph: Graph, name: str, stored: Stored, users: Sequence[Node]) -> None:
    """Replace MatMul and plain Gemm nodes by MatMulBnb4, which keeps the codes narrow in memory too.

    Two codes to a byte, the first in its high half; the order of levels is bitsandbytes', as in `codebooks.LEVELS`.
    """
    step = _Steps(graph, name)
    codes = stored.arrays["codes"].astype(np.uint8).reshape(-1, 2)
    packed = step.constant("quantized", codes[:, 0] << 4 | codes[:, 1])
    scale = step("Reshape", "absmax", [_scale(step, stored), step.shape([-1])])
    k, n = stored.shape
    said = {"K": k, "N": n, "block_size": stored.format.block_size or 0, "quant_type": QUANT_TYPES[stored.format.type]}
    for node in users:
        out = node.outputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], packed, scale]
        made = graph.add(
            "MatMulBnb4", inputs, name=f"{out.name}_product", before=node, attributes=said, like=out, domain=CONTRIB
        )
        if bias is not None:
            made = graph.add("Add", [made, bias], name=f"{out.name}_biased", before=node, like=out)
        graph.absorb(node, made)


def _affine(graph: Graph, name: str, stored: Stored) -> Value:
    arrays = stored.arrays
    inputs = [
        graph.constant(f"{name}_quantized", arrays["codes"]),
        graph.constant(f"{name}_scale", arrays["scale"]),
        graph.constant(f"{name}_zero_point", arrays["zero_point"]),
    ]
    size, granularity = stored.format.block_size, stored.format.granularity
    attributes = {"channel": {"axis": 1}, "block": {"axis": 0, "block_size": size or 0}}.get(granularity)
    return graph.add("DequantizeLinear", inputs, name=f"{name}_dequantized", attributes=attributes)


def _codebook(graph: Graph, name: str, stored: Stored) -> Value:
    step = _Steps(graph, name)
    codes = graph.constant(f"{name}_quantized", stored.arrays["codes"])
    if stored.format.type in LEVELS:
        levels = graph.constant(f"{name}_levels", np.array(LEVELS[stored.format.type], np.float32))
        index = step("Cast", "index", [codes], "int32", to=INT32)
        real = step("Gather", "levelled", [levels, index])
    else:
        real = step("Cast", "levelled", [codes], to=FLOAT32)
    scaled = step("Mul", "scaled", [real, _scale(step, stored)])
    k, n = stored.shape
    count, size = stored.arrays["codes"].shape[1:]
    flat = step("Reshape", "rows", [scaled, step.shape([n, count * size])])
    if count * size != k:  # what filled up the last block
        flat = step("Slice", "cut", [flat, *(step.shape([v]) for v in (0, k, 1))])
    return step("Transpose", "dequantized", [flat], perm=[1, 0])


def _float4(graph: Graph, name: str, stored: Stored) -> Value:
    """NVFP4 in ONNX's own types, as ModelOpt writes it and TensorRT reads it: two levels of DequantizeLinear.

    Codes [N, K] and scales [N, K / 16] lie as a Linear layer's weight does; no zero points, which would be as large as
    the scales. The code of each level is E2M1's bit pattern.
    """
    step = _Steps(graph, name)
    rows, count, size = stored.arrays["codes"].shape
    bits = stored.arrays["codes"].astype(np.uint8).reshape(rows, count * size)
    codes = step.constant("quantized", bits.view(ml_dtypes.float4_e2m1fn))
    scales = stored.arrays["scale"].reshape(rows, count)
    whole = step.constant("global", stored.arrays["global"].reshape(()))
    scale = step("DequantizeLinear", "scales", [step.constant("scale", scales), whole])
    real = step("DequantizeLinear", "rows", [codes, scale], axis=1, block_size=size)
    return step("Transpose", "dequantized", [real], perm=[1, 0])


def _scale(step: _Steps, stored: Stored) -> Value:
    """Scales [N, blocks, 1]."""
    arrays = stored.arrays
    known = {n: step.constant(n, array) for n, array in arrays.items() if n not in ("codes", "scale_scale")}
    if "exponent" in arrays:
        real = step("Cast", "exponents", [known["exponent"]], to=FLOAT32)
        apart = step("Sub", "unbiased", [real, step.number(E8M0_BIAS)])
        return step("Pow", "scales", [step.number(2), apart])
    if "scale_scale" in arrays:
        steps = arrays["scale_scale"]
        blocks: dict[str, Any] = {"axis": 0, "block_size": SCALE_BLOCK}
        if steps.size == 1:  # ONNX Runtime reads a single scale as that of a tensor, and refuses blocks beside it
            steps, blocks = steps.reshape(()), {}
        inputs = [known["scale_codes"], *(step.constant(n, a) for n, a in _apart(steps))]
        apart = step("DequantizeLinear", "scale_apart", inputs, **blocks)
        flat = step("Add", "scale_flat", [apart, known["mean"]])
        return step("Reshape", "scales", [flat, step.shape([*arrays["codes"].shape[:2], 1])])
    if "global" in arrays:
        real = step("Cast", "scale_real", [known["scale"]], to=FLOAT32)
        return step("Mul", "scales", [real, known["global"]])
    return known["scale"]


def _binary(graph: Graph, name: str, stored: Stored) -> Value:
    step = _Steps(graph, name)
    codes, scale = stored.arrays["codes"], stored.arrays["scale"]
    packed = graph.constant(f"{name}_quantized", codes[:, None, :])
    shifts = graph.constant(f"{name}_shifts", np.arange(8, dtype=np.uint8).reshape(1, 8, 1))
    shifted = step("BitShift", "shifted", [packed, shifts], "uint8", direction="RIGHT")
    bits = step("BitwiseAnd", "bits", [shifted, graph.constant(f"{name}_one", np.array(1, np.uint8))], "uint8")
    k, n = stored.shape
    rows = step("Reshape", "rows", [bits, step.shape([8 * len(codes), n])], "uint8")
    if 8 * len(codes) != k:
        rows = step("Slice", "cut", [rows, *(step.shape([v]) for v in (0, k, 0))], "uint8")
    real = step("Cast", "real", [rows], to=FLOAT32)
    doubled = step("Mul", "doubled", [real, graph.constant(f"{name}_twice", (2 * scale).astype(np.float32))])
    return step("Sub", "dequantized", [doubled, graph.constant(f"{name}_scale", scale.astype(np.float32))])


def _apart(steps: npt.NDArray[Any]) -> tuple[tuple[str, npt.NDArray[Any]], ...]:
    return ("scale_scale", steps), ("scale_zero_point", np.zeros(steps.shape, np.int8))


class _Steps:
    """Adds nodes whose outputs are named after the weight."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __call__(
        self,
        op: str,
        what: str,
        inputs: list[Value],
        kind: str = "float32",
        **attributes: Any,  # noqa: ANN401  ONNX attributes
    ) -> Value:
        made = self.graph.add(op, inputs, name=f"{self.name}_{what}", attributes=attributes)
        self.graph.retype(made, kind)
        return made

    def constant(self, what: str, array: npt.NDArray[Any]) -> Value:
        return self.graph.constant(f"{self.name}_{what}", array)

    def number(self, value: float) -> Value:
        return self.graph.constant(f"{self.name}_number", np.array(value, np.float32))

    def shape(self, dims: list[int]) -> Value:
        return self.graph.constant(f"{self.name}_shape", np.array(dims, np.int64))
