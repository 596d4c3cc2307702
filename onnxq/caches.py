"""Calibration caches: TensorRT's calib.cache and the table of ONNX Runtime's TensorRT provider.

Both belong to implicit quantization, which ended with TensorRT 10. Reading them keeps ranges that were measured for
it; writing them serves builders of TensorRT 8 and 10 that still want one.

Sources: caches written by TensorRT 8 and 10; onnxruntime's `ReadDynamicRange` and `write_calibration_table`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxq.errors import RecipeError, StatisticsError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

Scales = Mapping[str, np.float32]
Layout = Literal["tensorrt", "ort"]

ALGORITHMS = {
    "entropy2": "EntropyCalibration2",
    "entropy": "EntropyCalibration",
    "minmax": "MinMaxCalibration",
}
"""Name on the command line -> name in a header. A builder refuses a cache of another algorithm than its own."""

CODES = 127
"""amax = CODES * scale: implicit int8 is symmetric."""

_HEADER = re.compile(r"TRT-(\d+)-(\S+)")
_ENTRY = re.compile(r"(?s)(.+): ([0-9a-fA-F]{1,8})\s*")  # greedy: the last ": " ends the name, which may hold others
_VERSION = re.compile(r"(\d{1,2})\.(\d+)\.(\d+)(?:\.\d+)?|(\d{4}|\d{6})")


@dataclass(frozen=True)
class Cache:
    """Scales of a model's tensors, for symmetric int8 with one scale a tensor: x ≈ scale * q.

    Attributes:
        algorithm: as in the header, such as "EntropyCalibration2"; empty from a table of ONNX Runtime.
        version: digits as in the header, such as "8601"; empty from a table of ONNX Runtime.
        scales: tensor name -> scale, float32, positive and finite; amax is 127 times as much.
        unusable: tensors whose scale in the file was zero, negative, infinite or NaN.

    Raises:
        StatisticsError: a scale is not positive and finite, or a name is empty.
    """

    algorithm: str
    version: str
    scales: Scales
    unusable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinity, and is refused below
            scales = {name: np.float32(scale) for name, scale in self.scales.items()}
        for name, scale in scales.items():
            if not name or not _usable(scale):
                raise StatisticsError(
                    f"tensor {name!r} has the scale {scale} in a calibration cache",
                    "Every tensor needs a name, and a positive, finite scale.",
                )
        object.__setattr__(self, "scales", MappingProxyType(scales))

    def amax(self, name: str) -> float:
        """The tensor's largest representable |x|, exact in float64; KeyError when the cache lacks it."""
        return CODES * float(self.scales[name])


def version_code(version: str) -> str:
    """The digits of a header for "8.6.1" or "8601": 1000 major + 100 minor + patch, from 10 on 10000 major.

    NvInferVersion.h, NV_TENSORRT_VERSION.

    Raises:
        RecipeError: it is no version, or of a TensorRT without calibration caches.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise RecipeError(f"{version!r} is no TensorRT version", "Write it as 8.6.1 or as in a header, 8601.")
    if found[4]:
        code = int(found[4])
    else:
        major, minor, patch = (int(found[i]) for i in (1, 2, 3))
        code = major * (10000 if major >= 10 else 1000) + minor * 100 + patch
    if code >= 110000:
        raise RecipeError(
            f"TensorRT {version} reads no calibration cache: implicit int8 ended with TensorRT 10",
            "Make a model with Q/DQ nodes instead: `onnxq quantize`.",
        )
    return str(code)


def read_cache(path: str | os.PathLike[str]) -> Cache:
    """Read a cache of either kind; what it holds tells which.

    Raises:
        StatisticsError: not readable, or neither of the two.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StatisticsError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    if b"\0" in data[:64]:  # the offsets in front of a flatbuffer; text has none
        return parse_ort_table(data, str(path))
    try:
        return parse_cache(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise StatisticsError(f"{path} is not UTF-8 text, and no table of ONNX Runtime", _WHAT) from error


def write_cache(cache: Cache, path: str | os.PathLike[str], layout: Layout = "tensorrt") -> None:
    """Write a cache, whole or not at all: for TensorRT, or as ONNX Runtime's table ("ort").

    Raises:
        StatisticsError: it cannot be written in this layout.
        OutputError: the file cannot be written.
    """
    from onnxq.files import write_aside  # loads onnx, which reading need not

    data = cache_text(cache).encode() if layout == "tensorrt" else ort_table(cache)
    write_aside(Path(path), lambda target: target.write_bytes(data))


# -- TensorRT's text ------------------------------------------------------------------------------------------


def parse_cache(text: str, where: str = "calibration cache") -> Cache:
    """The cache in a text: `TRT-<version>-<algorithm>`, then `<tensor>: <hex>`, big-endian float32 of the scale.

    Lines end in LF or CRLF; blank ones do not count. Fewer than 8 digits stand for leading zeros. `where` names the
    text in errors.

    Raises:
        StatisticsError: a line that is neither, or two scales for one tensor.
    """
    lines = [(at, raw.removesuffix("\r")) for at, raw in enumerate(text.split("\n"), 1) if raw.strip()]
    header = _HEADER.fullmatch(lines[0][1].strip()) if lines else None
    if header is None:
        at, line = lines[0] if lines else (1, "")
        raise StatisticsError(f"{where}, line {at}: {line[:60]!r} is no header of a calibration cache", _WHAT)
    scales: dict[str, np.float32] = {}
    for at, line in lines[1:]:
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise StatisticsError(
                f"{where}, line {at}: {line[:60]!r} is not `<tensor>: <up to 8 hex digits>`",
                "The file was cut short or edited by hand. Repair the line, or leave it out.",
            )
        scale = np.float32(struct.unpack(">f", bytes.fromhex(entry[2].zfill(8)))[0])
        _add(scales, entry[1], scale, f"{where}, line {at}")
    return _cache(header[2], header[1], scales)


def cache_text(cache: Cache) -> str:
    """The cache as TensorRT writes it; `parse_cache` gives the same scales back, bit for bit.

    Raises:
        StatisticsError: the cache names no algorithm and version, or a tensor's name holds a line break.
    """
    header = f"TRT-{cache.version}-{cache.algorithm}"
    if _HEADER.fullmatch(header) is None:
        raise StatisticsError(
            f"version {cache.version!r} and algorithm {cache.algorithm!r} make no header of a calibration cache",
            f"Give digits such as 8601 and one of {', '.join(ALGORITHMS.values())}.",
        )
    if broken := [name for name in cache.scales if "\n" in name]:
        raise StatisticsError(f"tensor {broken[0]!r} has a line break in its name", "Rename it in the model.")
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in cache.scales.items()]
    return "\n".join([header, *lines]) + "\n"


# -- ONNX Runtime's flatbuffer ---------------------------------------------------------------------------------


def ort_table(cache: Cache) -> bytes:
    """The flatbuffer `TrtTable { dict: [KeyValue { key, value: string }] }`, value = amax as a decimal number.

    The provider reads values with std::stof, which throws outside of float32's normal range, and an infinite one
    breaks its build: amax is clipped to that range.
    """
    import flatbuffers  # type: ignore[import-untyped]  # ships no types

    builder = flatbuffers.Builder(1024)
    rows = []
    for name in cache.scales:
        key, value = builder.CreateString(name), builder.CreateString(repr(_for_stof(cache.amax(name))))
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, value, 0)
        rows.append(builder.EndObject())
    builder.StartVector(4, len(rows), 4)
    for row in reversed(rows):  # a flatbuffer is written from its end
        builder.PrependUOffsetTRelative(row)
    entries = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, entries, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def parse_ort_table(data: bytes, where: str = "table") -> Cache:
    """The cache in a flatbuffer as `ort_table` and ONNX Runtime's `write_calibration_table` write it.

    Raises:
        StatisticsError: it is no such table, or holds two values for one tensor.
    """
    try:
        with np.errstate(over="ignore"):  # infinity is unusable, and listed as such
            rows = [(name, np.float32(float(value) / CODES)) for name, value in _ort_entries(data)]
    except (struct.error, LookupError, ValueError, TypeError, OverflowError) as error:
        raise StatisticsError(f"{where} is no calibration table of ONNX Runtime, or damaged", _WHAT) from error
    scales: dict[str, np.float32] = {}
    for name, scale in rows:
        _add(scales, name, scale, where)
    return _cache("", "", scales)


def _ort_entries(data: bytes) -> Iterable[tuple[str, str]]:
    """(key, value) of every row; whatever damage makes flatbuffers raise."""
    from flatbuffers import encode, packer
    from flatbuffers.table import Table  # type: ignore[import-untyped]  # ships no types

    root = Table(data, encode.Get(packer.uoffset, data, 0))
    field = root.Offset(4)
    if not field:
        raise ValueError("no entries")
    for index in range(root.VectorLen(field)):
        row = Table(data, root.Indirect(root.Vector(field) + 4 * index))
        key, value = (row.String(row.Offset(slot) + row.Pos).decode() for slot in (4, 6))
        yield key, value


def _for_stof(amax: float) -> float:
    limits = np.finfo(np.float32)
    return min(max(amax, float(limits.tiny)), float(limits.max))


# -- both ------------------------------------------------------------------------------------------------------


def _add(scales: dict[str, np.float32], name: str, scale: np.float32, where: str) -> None:
    if name in scales and scales[name] != scale:
        raise StatisticsError(
            f"{where}: a second scale, {scale}, for tensor {name!r}, which has {scales[name]}",
            "Two caches were joined. Leave one line out.",
        )
    scales[name] = scale


def _cache(algorithm: str, version: str, scales: Scales) -> Cache:
    usable = {name: scale for name, scale in scales.items() if _usable(scale)}
    return Cache(algorithm, version, usable, tuple(sorted(scales.keys() - usable.keys())))


def _usable(scale: np.float32) -> bool:
    return bool(np.isfinite(scale) and scale > 0)


_WHAT = "Give TensorRT's calib.cache (it begins with TRT-<version>-<algorithm>) or ONNX Runtime's .flatbuffers table."
