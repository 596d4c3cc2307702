"""How an image becomes an input of the model: stated by the user, in one text, and never guessed.

`resize=256,crop=224,scale=1/255,mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225],layout=NCHW`. The steps are taken
in the order of the fields of `Preprocess`, whatever the order of the text. `resize` and `crop` are those of
torchvision.transforms on Pillow images, `letterbox` is that of YOLO's exports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import RecipeError, known_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.data.feeds import Array, InputSpec

COLORS = {"rgb": 3, "bgr": 3, "gray": 1}
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NHW", "HW")
LETTERBOX_GRAY = 114
"""What fills the borders of a letterbox, as in YOLO's own preprocessing."""

EXAMPLE = "resize=256,crop=224,scale=1/255,mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225],layout=NCHW"
_SIDE = 65_535  # pixels
_SMALLEST, _LARGEST = 1e-9, 1e9
_SIZES = ("resize", "letterbox", "crop")

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Preprocess:
    """The steps from the pixels of an image to an input.

    Attributes:
        color: order of the channels.
        resize: the length of the shorter side, the aspect ratio kept; or height and width.
        letterbox: fitted into this height and width with the aspect ratio kept, centred, gray around it.
        crop: this height and width of the middle.
        filter: how `resize` and `letterbox` sample, Pillow's filters.
        scale: what each of 0 ... 255 is multiplied with.
        mean: subtracted after that, one for all channels or for each.
        std: divided by after that.
        layout: the order of the input's axes.
        input: name of the input; "" where the model has only one that an image fits.
    """

    color: str = "rgb"
    resize: int | Size | None = None
    letterbox: Size | None = None
    crop: Size | None = None
    filter: str = "bilinear"
    scale: Fraction = Fraction(1)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    input: str = ""

    def numbers(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        """(pixels * scale - mean) / std in float64, rounded once, in the layout.

        Args:
            pixels: uint8 of shape [height, width, channels], in the order of `color`.
            dtype: the input's type. Where it is not a float, the result is float32, for the caller to cast.
        """
        values = pixels
        if self.scale != 1 or self.mean or self.std:
            values = pixels * np.float64(self.scale.numerator) / np.float64(self.scale.denominator)
            values = (values - np.array(self.mean or (0.0,))) / np.array(self.std or (1.0,))
            values = values.astype(dtype if dtype.kind in "fV" else np.float32)  # V: bfloat16
        axes = [{"N": 0, "H": 1, "W": 2, "C": 3}[axis] for axis in self.layout]
        absent = tuple(axis for axis in range(4) if axis not in axes)
        kept = sorted(axes)
        return np.ascontiguousarray(np.squeeze(values[None], absent).transpose([kept.index(axis) for axis in axes]))


def parse_preprocess(text: str) -> Preprocess:
    """Read `key=value` pairs parted by commas; those inside brackets part numbers.

    Raises:
        RecipeError: a key is unknown or comes twice, or a value is none of its key.
    """
    said: dict[str, Any] = {}
    for pair in re.split(r"\s*,\s*(?![^\[]*\])", text.strip()):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise RecipeError(f"preprocess: {pair!r} is not KEY=VALUE", f"Write it as {EXAMPLE}.")
        if key not in _READERS:
            raise RecipeError(f"preprocess: unknown key {key!r}", known_names(key, _READERS))
        if key in said:
            raise RecipeError(f"preprocess: {key} is given twice", "Keep one of them.")
        said[key] = _READERS[key](key, value)
    return _checked(Preprocess(**said))


def with_preprocess(inputs: Sequence[InputSpec], text: str) -> tuple[InputSpec, ...]:
    """The inputs, with the preprocessing at the one that images become.

    Raises:
        RecipeError: the text is malformed, or it is not clear which input is meant.
    """
    how = parse_preprocess(text)
    rank = len(how.layout)
    fit = [s for s in inputs if not s.label and (s.shape is None or len(s.shape) == rank)]
    if how.input:
        fit = [s for s in inputs if not s.label and s.name == how.input]
    if len(fit) != 1:
        names = [s.name for s in inputs if not s.label]
        if how.input:
            raise RecipeError(f"preprocess: the model has no input {how.input!r}", known_names(how.input, names))
        what = f"no input of rank {rank}" if not fit else f"{len(fit)} inputs of rank {rank}"
        listed = ", ".join(map(repr, names))
        hint = f"Say which with input=NAME, and its axes with layout=. The model's inputs are {listed}."
        raise RecipeError(f"preprocess: the model has {what}, which layout {how.layout} has", hint)
    return tuple(replace(s, preprocess=how) if s is fit[0] else s for s in inputs)


def _checked(how: Preprocess) -> Preprocess:
    """The preprocessing itself.

    Raises:
        RecipeError: its parts do not go together.
    """
    channels = COLORS[how.color]
    for key in ("mean", "std"):
        if len(found := getattr(how, key)) not in (0, 1, channels):
            hint = f"Give one for all channels, or {channels} for color={how.color}."
            raise RecipeError(f"preprocess: {key} has {len(found)} numbers", hint)
    if 0.0 in how.std:
        raise RecipeError("preprocess: std holds 0", "Each channel is divided by its std.")
    if how.resize is not None and how.letterbox is not None:
        raise RecipeError("preprocess: resize and letterbox both say the size", "Keep one of them.")
    if "C" not in how.layout and channels != 1:
        raise RecipeError(f"preprocess: layout {how.layout} has no channels", "Add color=gray, or C to the layout.")
    return how


def _word(key: str, value: str) -> str:
    choices = {"color": COLORS, "filter": FILTERS, "layout": LAYOUTS}.get(key)
    value = value.upper() if key == "layout" else value
    if choices is not None and value not in choices:
        raise RecipeError(f"preprocess: unknown {key} {value!r}", known_names(value, choices))
    return value


def _size(key: str, value: str) -> int | Size:
    found = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", value)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or not all(1 <= side <= _SIDE for side in sides):
        hint = "Write 224, or 480x640 for height x width; each from 1 to 65,535."
        raise RecipeError(f"preprocess: {key}={value} is no size in pixels", hint)
    if len(sides) == 1 and key == "resize":
        return sides[0]
    return sides[0], sides[-1]


def _fraction(key: str, value: str) -> Fraction:
    above, slash, below = value.partition("/")
    try:
        found = _exact(above) / (_exact(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if found <= 0:
        raise RecipeError(f"preprocess: {key}={value} is no factor above 0", "Write it as 1/255 or 0.0039.")
    return found


def _numbers(key: str, value: str) -> tuple[float, ...]:
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return tuple(float(_exact(part)) for part in inside.split(","))
    except ValueError as error:
        hint = "Write one number, or one for each channel: [0.485,0.456,0.406]."
        raise RecipeError(f"preprocess: {key}={value} holds no numbers", hint) from error


def _exact(text: str) -> Fraction:
    """The number in a text; ValueError where it is none, or too large or small to be of an image."""
    near = float(text)
    if near == 0:
        return Fraction(0)
    if not _SMALLEST < abs(near) < _LARGEST:  # also: Fraction would write the digits of 1e999999999 out
        raise ValueError(text)
    return Fraction(text.strip())


_READERS = {
    f.name: _size if f.name in _SIZES else {"scale": _fraction, "mean": _numbers, "std": _numbers}.get(f.name, _word)
    for f in fields(Preprocess)
}
"""Key -> what reads its value."""
