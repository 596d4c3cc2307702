from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_samples import F32, X, fails
from PIL import Image  # noqa: TID251  makes the files

from onnxq.data import InputSpec, open_source, with_preprocess
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.data import Source

IMAGE = InputSpec("image", F32, ("N", 3, "h", "w"))
RNG = np.random.default_rng(3)


def pixels(height: int = 6, width: int = 9, channels: tuple[int, ...] = (3,)) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, (height, width, *channels)).astype(np.uint8)


def images(source: object, how: str = "layout=NCHW", spec: InputSpec = IMAGE) -> Source:
    return open_source(source, with_preprocess([spec], how))


def one(folder: Path, how: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    Image.fromarray(array).save(folder / "a.png")
    (feed,) = images(folder, how)
    return feed["image"]


def test_a_folder_of_images_is_read_in_natural_order_at_any_depth(tmp_path: Path) -> None:
    wanted = [pixels() for _ in range(4)]
    for name, array in zip(("2/a.png", "10/b.PNG", "10/c2.bmp", "10/c10.png"), wanted, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "10" / "notes.txt").write_text("not an image")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "t.png").write_bytes(b"hidden")
    source = images(tmp_path)
    found = [feed["image"] for feed in source]
    assert source.length == 4
    for array, feed in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(feed, array.transpose(2, 0, 1)[None].astype(np.float32))
        assert feed.dtype == np.float32


def test_steps_are_those_of_torchvision(tmp_path: Path) -> None:
    """Resize: shorter side exact, longer rounded down; then the middle."""
    array = pixels(20, 31)
    found = one(tmp_path, "resize=10,crop=8x9,scale=1/255", array)
    small = np.asarray(Image.fromarray(array).resize((15, 10), Image.Resampling.BILINEAR))  # 10 * 31 / 20 = 15.5
    wanted = small[1:9, 3:12].astype(np.float64) / 255
    np.testing.assert_array_equal(found[0], wanted.transpose(2, 0, 1).astype(np.float32))


def test_a_letterbox_keeps_the_aspect_ratio_in_the_middle(tmp_path: Path) -> None:
    array = np.full((10, 20, 3), 7, np.uint8)
    found = one(tmp_path, "letterbox=8x8", array)[0, 0]
    assert found.shape == (8, 8)
    assert (found[2:6] == 7).all()
    assert (found[:2] == 114).all()
    assert (found[6:] == 114).all()


def test_colours(tmp_path: Path) -> None:
    array = pixels()
    np.testing.assert_array_equal(one(tmp_path, "color=bgr,layout=NCHW", array)[0], array[..., ::-1].transpose(2, 0, 1))
    alpha = np.concatenate([array, pixels(channels=(1,))], axis=2)
    np.testing.assert_array_equal(one(tmp_path, "layout=NCHW", alpha)[0], array.transpose(2, 0, 1))
    gray = pixels(channels=())
    np.testing.assert_array_equal(one(tmp_path, "layout=NCHW", gray)[0], np.stack([gray] * 3))


def test_images_without_a_stated_preprocessing_are_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    with fails(DataError, "preprocessing is not stated", "--preprocess 'resize=256,crop=224"):
        open_source(tmp_path, [IMAGE])
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 2, 2), np.float32))  # arrays come first
    with fails(DataError, "holds arrays", "Leave it out"):
        images(tmp_path)
    with fails(DataError, "list: holds arrays"):
        images([{"image": np.zeros((1, 3, 2, 2), np.float32)}])


def test_a_model_of_several_inputs_wants_more_than_images(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    with fails(DataError, "also wants 'x'", ".npz"):
        open_source(tmp_path, with_preprocess([X, IMAGE], "layout=NCHW"))


def write(image: Any, kind: str) -> bytes:  # noqa: ANN401  Pillow's, or an array
    file = io.BytesIO()
    (image if hasattr(image, "save") else Image.fromarray(image)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read as an image"),
        (b"GIF89a" + bytes(20), "cannot be read as an image"),
        (write(pixels(40, 40), "PNG")[:-900], "cannot be read as an image"),
        (write(pixels(40, 40), "JPEG")[:-400], "cannot be read as an image"),
        (write(RNG.integers(0, 9999, (4, 4)).astype(np.uint16), "PNG"), "not of 8 bits"),
        (write(pixels(2, 2), "PNG"), "where a crop of 4 x 4"),
    ],
)
def test_a_bad_image_is_named_and_others_are_read(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "b 2.png").write_bytes(data)
    for name in ("b1.png", "b3.png"):
        Image.fromarray(pixels()).save(tmp_path / name)
    source = images(tmp_path, "crop=4,layout=NCHW")
    with fails(DataError, "b 2.png", says):
        list(source)
    told: list[DataError] = []
    assert len(list(type(source)(source.name, source.inputs, source.read, bad=told.append))) == 2
    assert len(told) == 1


def test_an_image_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with fails(DataError, "decompression bomb"):
        one(tmp_path, "layout=NCHW", pixels())


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with fails(DataError, "Pillow, which is not installed", "onnxq[images]"):
        images(tmp_path)
