"""Statistics: what was observed of every tensor. Adds up exactly, is saved without pickle, belongs to one model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from onnxq import npz
from onnxq.channels import ChannelRange
from onnxq.errors import StatisticsError
from onnxq.formats import Format
from onnxq.formats.stored import Stored
from onnxq.histogram import Histogram, arrays_of
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import numpy_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    Part: TypeAlias = "Statistics | str | os.PathLike[str]"

FORMAT = 1
_SEEN_MODULUS = 2**64
_NAME = itemgetter(0)

Bounds = tuple[tuple[int, ...], tuple[int, ...]]
"""The smallest and the largest size seen of every dimension."""


Judged = tuple[float, int]
"""(SQNR in dB at the worst output of what an effort made of a model, on how many of the samples that judge)."""


class Reach(NamedTuple):
    """How far a tensor's finite values went."""

    min: float
    max: float

    @property
    def amax(self) -> float:
        """Largest |x|; 0 when there was no finite value."""
        return max(-self.min, self.max, 0.0) if self.min <= self.max else 0.0


@dataclass(frozen=True, eq=False)
class Factor:
    """A tensor x was exchanged for x' = (x - shift) / scale, both float32 of shape (channels,); see `onnxq.rescaling`.

    Raises:
        ValueError: the shapes differ, or a scale is not positive and finite.
    """

    scale: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.scale.ndim != 1 or self.scale.shape != self.shift.shape:
            raise ValueError(f"scales of shape {self.scale.shape}, shifts of shape {self.shift.shape}")
        if not (np.isfinite(self.scale) & (self.scale > 0) & np.isfinite(self.shift)).all():
            raise ValueError("a scale is not positive, or a factor is not finite")

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        if not isinstance(other, Factor):
            return NotImplemented
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)

    def __hash__(self) -> int:
        return hash((self.scale.tobytes(), self.shift.tobytes()))


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight's codes, rounded with regard to its inputs; see `onnxq.improvement.rounding`.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32, of the weight: () or one for each output channel.
        input_scale: of the layer's input, for which codes were chosen; (layers,) where several share the weight.
        limit: the largest code that was allowed.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    input_scale: npt.NDArray[np.float32]
    limit: int = 127

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        if not isinstance(other, Rounded):
            return NotImplemented
        pairs = ((self.codes, other.codes), (self.scale, other.scale), (self.input_scale, other.input_scale))
        return self.limit == other.limit and all(np.array_equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.codes.tobytes(), self.scale.tobytes()))


@dataclass(frozen=True)
class Statistics:
    """Observations of one prepared model over some samples; `a + b` is that of both, bit for bit in any order.

    Attributes:
        model: digest of the prepared model.
        tensors: tensor name -> histogram of its values.
        samples: how many samples were run.
        seen: sum modulo 2**64 of the samples' hashes: tells apart what was seen, whatever the order.
        shapes: input name -> (smallest, largest) size seen of every dimension.
        nonfinite: tensor name -> the (alphabetically first) sample in which it held NaN or infinity.
        smoothing: name of a site -> the factors that the model had taken when it was observed. `model` is the digest
            with them in it.
        weights: weight -> the codes and scales that were found for it from the data; see `onnxq.weights`.
        outliers: tensor -> the columns that were taken apart before the model was observed; see `onnxq.weights`.
        bounds: tensor name -> (smallest, largest) finite value, of tensors of which nothing else is asked.
        rounding: weight name -> the codes chosen for it.
        zero_points: names of the tensors that a symmetric target gives a zero point by a shift.
        spared: names of the layers that stay in float.
        widening: what ranges of least squared error are multiplied by.
        unseen: tensor -> values beyond those of samples that `smoothing` is of; ranges of least error count them too.
        alone: names of the tensors whose range of least error is for themselves, whatever activation reads them.
        summed: names of those whose range is for the addition that reads them (`onnxq.added`), not for themselves.
        channels: tensor -> the ranges of its channels, of those that have a grid for each.
        judged: how near the model then was, in float32 around int8; no file has it, as other recipes may follow.
    """

    model: str
    tensors: Mapping[str, Histogram] = field(default_factory=dict)
    samples: int = 0
    seen: int = 0
    shapes: Mapping[str, Bounds] = field(default_factory=dict)
    nonfinite: Mapping[str, str] = field(default_factory=dict)
    smoothing: Mapping[str, Factor] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: Mapping[str, Stored] = field(default_factory=dict)
    rounding: Mapping[str, Rounded] = field(default_factory=dict)
    outliers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    zero_points: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    widening: float = 1.0
    unseen: Mapping[str, Histogram] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    channels: Mapping[str, ChannelRange] = field(default_factory=dict)
    judged: Judged | None = field(default=None, compare=False)

    @property
    def improved(self) -> tuple[object, ...]:
        """What an effort chose from the data."""
        chosen = (dict(self.smoothing), dict(self.rounding), self.zero_points, self.spared, self.widening)
        return (*chosen, dict(self.unseen), self.alone, self.summed, dict(self.channels))

    @property
    def reach(self) -> dict[str, Reach]:
        """How far every observed tensor went."""
        counted = {name: Reach(h.min, h.max) for name, h in self.tensors.items()}
        return {name: Reach(*found) for name, found in self.bounds.items()} | counted

    @property
    def ranges(self) -> dict[str, Histogram]:
        """A histogram of every observed tensor, or one of its bounds where these are all that was kept: for minmax."""
        pairs = ((n, (low, high) if low <= high else ()) for n, (low, high) in self.bounds.items())
        return {name: Histogram.of(np.array(pair, np.float64)) for name, pair in pairs} | dict(self.tensors)

    @property
    def met(self) -> dict[str, bool]:
        """Whether a value of the observed tensor was seen, be it NaN: a branch may never be taken."""
        counted = {name: h.zeros > 0 or h.amax > 0.0 for name, h in self.tensors.items()}
        found = {name: low <= high for name, (low, high) in self.bounds.items()} | counted
        return {name: seen or name in self.nonfinite for name, seen in found.items()}

    def __add__(self, other: Statistics) -> Statistics:
        """Raises StatisticsError when they are of different models or tensors."""
        if self.improved != other.improved:
            raise StatisticsError(
                "these statistics are of one model improved in different ways",
                "What improves it is chosen from the data, so parts differ. Collect the parts with --effort fast.",
            )
        if dict(self.weights) != dict(other.weights):
            raise StatisticsError(
                "these statistics hold weights that were chosen from different data",
                "What one part's data chose is wrong for the other's: give `quantize` all of it as --data.",
            )
        if self.model != other.model:
            raise StatisticsError(
                f"these statistics are of different models ({self.model[:12]} and {other.model[:12]})",
                "Merge only files that were collected on the same model with the same target.",
            )
        ours, theirs = ({(n, "") for n in s.tensors} | {(n, "bounds") for n in s.bounds} for s in (self, other))
        if ours and theirs and ours != theirs:
            odd = min(ours ^ theirs)[0]
            raise StatisticsError(
                f"tensor {odd!r} was observed in only one of the two statistics",
                "Collect all shards with the same options.",
            )
        names = self.tensors or other.tensors
        empty = Histogram.empty()
        return replace(
            self,
            tensors={n: self.tensors.get(n, empty) + other.tensors.get(n, empty) for n in names},
            samples=self.samples + other.samples,
            seen=(self.seen + other.seen) % _SEEN_MODULUS,
            shapes=merge_shapes(self.shapes, other.shapes),
            nonfinite=_merge_names(self.nonfinite, other.nonfinite),
            bounds=_merge_bounds(self.bounds, other.bounds),
        )

    def check_model(self, digest: str) -> None:
        """Raise StatisticsError unless they were collected on the prepared model of this digest."""
        if self.model != digest:
            raise StatisticsError(
                f"the statistics belong to another model (digest {self.model[:12]}, this one is {digest[:12]})",
                "Collect them again with `onnxq calibrate` on this model and with this target: its graph or weights "
                "have changed, or another target prepared it in another way.",
            )

    def save(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write an .npz of plain arrays. The same statistics give the same bytes."""
        names = sorted(self.tensors)
        meta = {
            "format": FORMAT,
            "model": self.model,
            "samples": self.samples,
            "seen": self.seen,
            "tensors": names,
            "shapes": {k: [list(a), list(b)] for k, (a, b) in sorted(self.shapes.items())},
            "nonfinite": dict(sorted(self.nonfinite.items())),
            "outliers": {name: list(columns) for name, columns in sorted(self.outliers.items())},
            "zero_points": list(self.zero_points),
            **({"spared": list(self.spared)} if self.spared else {}),
            **({"widening": self.widening} if self.widening != 1.0 else {}),
            **({"unseen": sorted(self.unseen)} if self.unseen else {}),
            **{key: list(names) for key, names in (("alone", self.alone), ("summed", self.summed)) if names},
        }
        arrays = arrays_of(self.tensors, "") | arrays_of(self.unseen, "u")
        if self.bounds:
            ends = ((n, float(low).hex(), float(high).hex()) for n, (low, high) in self.bounds.items())
            meta["bounds"] = sorted(map(list, ends))  # hex reads back bit for bit, infinities too
        if self.smoothing:
            meta["smoothing"] = sorted(self.smoothing)
            for index, (_, factor) in enumerate(sorted(self.smoothing.items(), key=_NAME)):
                arrays |= {f"s{index}.scale": factor.scale, f"s{index}.shift": factor.shift}
        if self.weights:
            kept: list[list[Any]] = []
            for index, (name, found) in enumerate(sorted(self.weights.items(), key=_NAME)):
                kinds = {part: array.dtype.name for part, array in found.arrays.items()}
                kept.append([name, str(found.format), list(found.shape), kinds])
                arrays |= {f"w{index}.{part}": _plain(array) for part, array in found.arrays.items()}
            meta["weights"] = kept
        if self.rounding:
            meta["rounding"] = [[name, self.rounding[name].limit] for name in sorted(self.rounding)]
            for index, (_, codes) in enumerate(sorted(self.rounding.items(), key=_NAME)):
                arrays[f"r{index}.codes"], arrays[f"r{index}.scale"] = codes.codes, codes.scale
                arrays[f"r{index}.input"] = codes.input_scale
        if self.channels:
            meta["channels"] = sorted(self.channels)
            for index, (_, range_) in enumerate(sorted(self.channels.items(), key=_NAME)):
                arrays |= {f"c{index}.low": range_.low, f"c{index}.high": range_.high}
        text = json.dumps(meta | {"arrays": sorted(arrays)})
        arrays = {"meta": np.frombuffer(text.encode(), np.uint8), **arrays}
        npz.write(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | IO[bytes]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            StatisticsError: not readable or not such a file.
        """
        if isinstance(path, str | os.PathLike) and not Path(path).is_file():
            raise StatisticsError(f"{path} is not a file", "Make it with `onnxq calibrate`.")
        try:
            arrays = npz.read(path)
            found = _from_arrays(arrays) if "meta" in arrays else None
        except Exception as error:  # numpy, zipfile, zlib and json raise many types for damaged files
            raise StatisticsError(
                f"{path} is not a whole statistics file: {error}", "Make it again with `onnxq calibrate`."
            ) from error
        if found is None:
            raise StatisticsError(
                f"{path} is not a statistics file: it holds {', '.join(map(repr, sorted(arrays)[:5]))}",
                "If it is calibration data, give it as such (--data). `onnxq calibrate` makes statistics.",
            )
        return found


def merge(parts: Iterable[Part] | Part, monitor: Monitor = QUIET) -> Statistics:
    """The sum of statistics or statistics files, or one: the same, bit for bit, in any order. Equal parts count twice.

    Raises:
        StatisticsError: none given, or they do not belong together.
    """
    total: Statistics | None = None
    known: set[tuple[int, int]] = set()
    for index, part in enumerate((parts,) if isinstance(parts, str | os.PathLike | Statistics) else parts):
        found = part if isinstance(part, Statistics) else Statistics.load(part)
        if (key := (found.seen, found.samples)) in known:
            monitor.warn(f"{index if part is found else part}: of the same samples as one before it, which count twice")
        known.add(key)
        try:
            total = found if total is None else total + found
        except StatisticsError as error:
            where = "" if isinstance(part, Statistics) else f"{part} does not go with those before it: "
            raise StatisticsError(f"{where}{error.message}", error.hint) from error
    if total is None:
        raise StatisticsError("there are no statistics to merge", "Name at least one file.")
    return total


def is_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what `Statistics.save` writes, by its names alone."""
    return npz.first_name(path) == "meta"


def _from_arrays(arrays: dict[str, Any]) -> Statistics:
    meta = json.loads(arrays["meta"].tobytes().decode())
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, this onnxq reads {FORMAT}")
    if meta["arrays"] != sorted(arrays.keys() - {"meta"}):  # a damaged name in the archive looks like an empty side
        raise ValueError("arrays are missing")
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in arrays.items():
        index, _, part = key.partition(".")
        if part:
            grouped.setdefault(index, {})[part] = value
    return Statistics(
        meta["model"],
        {name: Histogram.from_arrays(grouped[str(i)]) for i, name in enumerate(meta["tensors"])},
        int(meta["samples"]),
        int(meta["seen"]),
        {k: (tuple(a), tuple(b)) for k, (a, b) in meta["shapes"].items()},
        dict(meta["nonfinite"]),
        {n: Factor(**grouped[f"s{i}"]) for i, n in enumerate(meta.get("smoothing", ()))},
        {str(n): (float.fromhex(low), float.fromhex(high)) for n, low, high in meta.get("bounds", ())},
        {str(n): _stored(grouped[f"w{i}"], *form) for i, (n, *form) in enumerate(meta.get("weights", ()))},
        {str(n): _rounded(grouped[f"r{i}"], int(limit)) for i, (n, limit) in enumerate(meta.get("rounding", ()))},
        {str(n): tuple(map(int, columns)) for n, columns in meta.get("outliers", {}).items()},
        tuple(map(str, meta.get("zero_points", ()))),
        tuple(map(str, meta.get("spared", ()))),
        float(meta.get("widening", 1.0)),
        {str(n): Histogram.from_arrays(grouped[f"u{i}"]) for i, n in enumerate(meta.get("unseen", ()))},
        tuple(map(str, meta.get("alone", ()))),
        tuple(map(str, meta.get("summed", ()))),
        {str(n): ChannelRange(**grouped[f"c{i}"]) for i, n in enumerate(meta.get("channels", ()))},
    )


def _rounded(arrays: dict[str, Any], limit: int) -> Rounded:
    return Rounded(arrays["codes"], arrays["scale"], arrays["input"], limit)


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Types that numpy's files do not know, 4 bits and float8, as the bytes that numpy holds them in."""
    return array if array.dtype.isbuiltin == 1 else np.ascontiguousarray(array).view(np.uint8)


def _stored(arrays: dict[str, Any], format_: str, shape: list[int], kinds: dict[str, str]) -> Stored:
    found = {part: arrays[part].view(numpy_type(kind)) for part, kind in kinds.items()}
    return Stored(Format.parse(format_), (int(shape[0]), int(shape[1])), found)


def _merge_bounds(
    a: Mapping[str, tuple[float, float]], b: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    none = (np.inf, -np.inf)
    pairs = {name: (a.get(name, none), b.get(name, none)) for name in {**a, **b}}
    return {name: (float(min(x[0], y[0])), float(max(x[1], y[1]))) for name, (x, y) in pairs.items()}


def merge_shapes(a: Mapping[str, Bounds], b: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Smallest and largest sizes of both; of an input whose rank varies, those of the largest rank."""
    merged = dict(a)
    for name, (low, high) in b.items():
        old_low, old_high = merged.get(name, (low, high))
        if len(old_low) == len(low):
            merged[name] = tuple(map(min, old_low, low)), tuple(map(max, old_high, high))
        elif len(old_low) < len(low):
            merged[name] = (low, high)
    return merged


def _merge_names(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    return {k: min(v for v in (a.get(k), b.get(k)) if v is not None) for k in sorted({*a, *b})}
