from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from data_samples import F32, X, fails
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import InputSpec
from onnxq.data.preprocess import EXAMPLE, Preprocess, parse_preprocess, with_preprocess
from onnxq.errors import OnnxqError, RecipeError

IMAGE = InputSpec("image", F32, ("N", 3, 8, 8))
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.uint8)


def test_the_example_is_what_it_says() -> None:
    assert parse_preprocess(EXAMPLE) == Preprocess(
        resize=256,
        crop=(224, 224),
        scale=Fraction(1, 255),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layout="NCHW",
    )


def test_sizes_are_height_by_width_and_spaces_do_not_matter() -> None:
    how = parse_preprocess(" letterbox=480x640 , crop=32 ,mean=[ 1 , 2,3], color=bgr, layout=hwc ")
    assert (how.letterbox, how.crop, how.mean, how.layout) == ((480, 640), (32, 32), (1.0, 2.0, 3.0), "HWC")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not KEY=VALUE"),
        ("resize", "is not KEY=VALUE"),
        ("resise=3", "Did you mean 'resize'?"),
        ("resize=0", "is no size"),
        ("crop=99999999", "is no size"),
        ("crop=3x4x5", "is no size"),
        ("scale=1/0", "no factor above 0"),
        ("scale=-1", "no factor above 0"),
        ("scale=1e999", "no factor above 0"),
        ("mean=[]", "holds no numbers"),
        ("mean=[1,x]", "holds no numbers"),
        ("mean=1e999", "holds no numbers"),
        ("scale=1/1e999999999", "no factor above 0"),
        ("mean=[1,2]", "has 2 numbers"),
        ("std=[1,0,1]", "std holds 0"),
        ("resize=3,resize=4", "given twice"),
        ("resize=3,letterbox=4", "both say the size"),
        ("layout=CWH", "unknown layout"),
        ("layout=HW", "has no channels"),
        ("filter=cubic", "Did you mean 'bicubic'?"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with fails(RecipeError, says):
        parse_preprocess(text)


def test_digits_that_would_fill_the_memory_are_not_written_out() -> None:
    assert parse_preprocess("mean=1e-999999999").mean == (0.0,)


@given(st.text(st.sampled_from("resizecroplaymn=,[]0123/x. -é"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_preprocess(text)
    except OnnxqError as error:
        assert error.hint  # noqa: PT017  it says what to do


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
def test_numbers_are_those_of_the_formula_in_the_layout(layout: str) -> None:
    how = parse_preprocess(f"scale=1/255,mean=[0.5,0.25,0.125],std=[0.5,1,2],layout={layout}")
    found = how.numbers(PIXELS, F32)
    wanted = (PIXELS.astype(np.float64) / 255 - [0.5, 0.25, 0.125]) / [0.5, 1, 2]
    axes = {"N": None, "C": 2, "H": 0, "W": 1}
    wanted = wanted.transpose([a for letter in layout if (a := axes[letter]) is not None])
    np.testing.assert_array_equal(found, (wanted[None] if "N" in layout else wanted).astype(np.float32))
    assert found.flags.c_contiguous


def test_numbers_take_the_type_of_a_float_input_and_pixels_stay_whole() -> None:
    assert parse_preprocess("scale=1/255").numbers(PIXELS, np.dtype(np.float16)).dtype == np.float16
    assert parse_preprocess("resize=4").numbers(PIXELS, F32).dtype == np.uint8
    shifted = parse_preprocess("mean=128").numbers(PIXELS, np.dtype(np.int8))
    np.testing.assert_array_equal(shifted[0], PIXELS.transpose(2, 0, 1).astype(np.int16) - 128)
    gray = parse_preprocess("color=gray,layout=NHW").numbers(PIXELS[..., :1], F32)
    assert gray.shape == (1, 4, 5)


def test_the_input_is_the_one_of_the_layouts_rank_or_the_one_named() -> None:
    inputs = (X, IMAGE)
    assert [s.preprocess is not None for s in with_preprocess(inputs, "resize=8")] == [False, True]
    other = InputSpec("other", F32, ("N", 3, 4, 4))
    assert [s.preprocess is not None for s in with_preprocess((other, IMAGE), "resize=8,input=image")] == [False, True]
    with fails(RecipeError, "no input of rank 4", "input=NAME", "'x'"):
        with_preprocess((X,), "resize=8")
    with fails(RecipeError, "2 inputs of rank 4"):
        with_preprocess((IMAGE, other), "resize=8")
    with fails(RecipeError, "no input 'imag'", "Did you mean 'image'?"):
        with_preprocess((IMAGE,), "resize=8,input=imag")
