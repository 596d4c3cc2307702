"""Feeds from image files, through a preprocessing that the user states. Pillow decodes them: extra `onnxq[images]`."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from onnxq.data.paths import natural, plain_files
from onnxq.data.preprocess import COLORS, EXAMPLE, LETTERBOX_GRAY
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxq.data.feeds import Array, InputSpec
    from onnxq.data.preprocess import Preprocess, Size

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # Pillow's others may start programs (EPS)
_EIGHT_BITS = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))


_LOOKED_AT = 20_000
"""Files among which there is an image in a folder of images."""


def is_images(text: str) -> bool:
    """Whether the text is a folder of images, at whatever depth; of a huge one without, not everything is looked at."""
    path = Path(text)
    return path.is_dir() and any(_is_image(found) for found in islice(plain_files(path), _LOOKED_AT))


def open_images(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """The images of a folder and the folders in it, each one feed, in natural order of their names.

    Raises:
        DataError: no preprocessing is stated, the model has other inputs than the image, or Pillow is missing.
    """
    spec = image_input(inputs, text)
    if len(inputs) > 1:
        others = ", ".join(repr(s.name) for s in inputs if s is not spec)
        hint = "Put each sample's arrays into one .npz, a row of Parquet or a WebDataset tar."
        raise DataError(f"{text}: holds only images, but the model also wants {others}", hint)
    root = Path(text)
    files = sorted(
        filter(_is_image, plain_files(root)),
        key=lambda path: [natural(Path(part)) for part in path.relative_to(root).parts],
    )

    def read() -> Iterator[Sample]:
        yield from ((str(path), _one_feed(path, spec)) for path in files)

    return Source(text, inputs, read, len(files))


def image_input(inputs: Sequence[InputSpec], where: str) -> InputSpec:
    """The input that images become.

    Raises:
        DataError: no preprocessing is stated, or Pillow, which decodes images, is missing.
    """
    spec = next((s for s in inputs if s.preprocess is not None), None)
    if spec is None:
        hint = f"Give the one that the model was trained with, for example --preprocess '{EXAMPLE}'."
        raise DataError(f"{where}: holds images, and their preprocessing is not stated", hint)
    _pillow(where)
    return spec


def decoded(file: Path | IO[bytes], spec: InputSpec, where: str) -> Array:
    """An image as the input's array.

    Raises:
        DataError: it is damaged, of an unknown format or depth, or smaller than the crop.
    """
    image, how = _pillow(where), spec.preprocess
    assert how is not None  # noqa: S101  `image_input` gave the spec
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file that can be read all the same
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(file, formats=_FORMATS) as opened:
                if opened.mode not in _EIGHT_BITS:
                    raise ValueError(f"its pixels are of mode {opened.mode}, not of 8 bits")  # noqa: TRY301  as others
                shown = opened.convert("L" if how.color == "gray" else "RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        hint = "Open it in a viewer; write it anew as PNG or JPEG."
        raise DataError(f"{where}: cannot be read as an image: {error}", hint) from error
    pixels = np.asarray(_sized(image, shown, how, where), np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], COLORS[how.color])  # gray ones have two axes
    return how.numbers(pixels[..., ::-1] if how.color == "bgr" else pixels, spec.dtype)


def _sized(image: Any, shown: Any, how: Preprocess, where: str) -> Any:  # noqa: ANN401  Pillow's, which is optional
    """The image resized or letterboxed, then cropped."""
    sample = getattr(image.Resampling, how.filter.upper())
    if how.resize is not None:
        height, width = _resized(how.resize, shown.height, shown.width)
        shown = shown.resize((width, height), sample)
    if how.letterbox is not None:
        shown = _letterboxed(image, shown, how.letterbox, sample)
    if how.crop is None:
        return shown
    height, width = how.crop
    if shown.height < height or shown.width < width:
        says = f"{where}: is {shown.height} x {shown.width} where a crop of {height} x {width} is taken"
        raise DataError(says, "Resize to the crop's size or more, or leave this image out with --skip-bad.")
    top, left = round((shown.height - height) / 2), round((shown.width - width) / 2)
    return shown.crop((left, top, left + width, top + height))


def _resized(size: int | Size, height: int, width: int) -> Size:
    """Height and width after `resize`; a longer side is rounded down, as by torchvision."""
    if not isinstance(size, int):
        return size
    if height <= width:
        return size, size * width // height
    return size * height // width, size


def _letterboxed(image: Any, shown: Any, size: Size, sample: Any) -> Any:  # noqa: ANN401  Pillow's, which is optional
    height, width = size
    ratio = min(height / shown.height, width / shown.width)
    inner = max(1, round(shown.height * ratio)), max(1, round(shown.width * ratio))
    whole = image.new(shown.mode, (width, height), (LETTERBOX_GRAY,) * len(shown.getbands()))
    whole.paste(shown.resize(inner[::-1], sample), ((width - inner[1]) // 2, (height - inner[0]) // 2))
    return whole


def _one_feed(path: Path, spec: InputSpec) -> dict[str, Array] | DataError:
    """The image of a file as a feed, or what is wrong with it."""
    try:
        return {spec.name: decoded(path, spec, str(path))}
    except DataError as error:
        return error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _pillow(where: str) -> Any:  # noqa: ANN401  a module that need not be there
    try:
        from PIL import Image  # noqa: TID251  this is the wall
    except ImportError as error:
        raise DataError(
            f"{where}: images need Pillow, which is not installed", "pip install 'onnxq[images]'"
        ) from error
    return Image
