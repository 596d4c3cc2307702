from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from data_samples import F32, F64, FIXED, IDS, ROWS, X, fails
from graphs import graph_of
from onnx.tools import update_model_dims

from onnxq import api
from onnxq.data import InputSpec, check_feed, label_specs, split_batch
from onnxq.errors import DataError
from onnxq.monitor import SILENT
from onnxq.recipe import Recipe


def test_feeds_are_checked_for_names() -> None:
    spec = InputSpec("images", F32, (1,))
    with fails(DataError, "here: unknown input 'image'", "Did you mean 'images'?"):
        check_feed({"image": [1.0]}, [spec], "here")
    with fails(DataError, "here: unknown input 'y'; the model's inputs are 'images', 'ids'"):
        check_feed({"images": [1.0], "ids": [1], "y": 1}, [spec, IDS], "here")
    with fails(DataError, "if it is a label that a metric reads: --labels y"):
        check_feed({"images": [1.0], "y": 1}, [spec], "here")
    with fails(DataError, "here: no array for the label 'y'", "It holds 'images'."):
        check_feed({"images": [1.0]}, [spec, *label_specs(["y"])], "here")
    with fails(DataError, "here: no array for input 'ids'", "'images', 'ids'"):
        check_feed({"images": [1.0]}, [spec, IDS], "here")
    with fails(DataError, "here: unknown input 3"):
        check_feed({3: [1.0]}, [spec], "here")


def test_feeds_are_checked_for_shapes() -> None:
    with fails(DataError, "here: input 'x' has shape [3]; the model takes [N, 3]", "rank 1, not 2", "np.newaxis"):
        check_feed({"x": ROWS[0]}, [X], "here")
    with fails(DataError, "rank 3, not 2", "Reshape"):
        check_feed({"x": ROWS[None]}, [X], "here")
    with fails(DataError, "axis 0 is 5, not 2"):
        check_feed({"x": ROWS}, [FIXED], "here")
    with fails(DataError, "here: input 'x' is not an array"):
        check_feed({"x": [[1.0], [1.0, 2.0]]}, [X], "here")


def test_a_checked_feed_is_contiguous_and_keeps_scalars() -> None:
    specs = [InputSpec("s", F32, ()), InputSpec("x", F32, (3, "N"))]
    feed = check_feed({"x": ROWS.T, "s": np.float32(2)}, specs, "here")
    assert list(feed) == ["s", "x"]
    assert feed["s"].shape == ()
    assert feed["x"].flags.c_contiguous
    np.testing.assert_array_equal(feed["x"], ROWS.T)


def test_a_batch_is_split_only_where_every_input_allows_it() -> None:
    feed: dict[str, Any] = {"x": ROWS, "ids": np.arange(10).reshape(5, 2)}
    parts = split_batch(feed, [X, IDS])
    assert [part["x"].tolist() for part in parts] == [[row.tolist()] for row in ROWS]
    assert [part["ids"].tolist() for part in parts] == [[[i, i + 1]] for i in range(0, 10, 2)]
    uneven = {**feed, "x": ROWS[:4]}
    single = {name: array[:1] for name, array in feed.items()}
    scalar = {"x": ROWS, "s": np.array(1.0)}
    for other, specs in [
        (feed, [InputSpec("x", F32, (5, 3)), IDS]),
        (feed, [InputSpec("x", F32, None), IDS]),
        (uneven, [X, IDS]),
        (single, [X, IDS]),
        (scalar, [X, InputSpec("s", F64, ())]),
    ]:
        (whole,) = split_batch(other, specs)
        assert whole is other
    assert split_batch({}, []) == [{}]


def test_text_is_for_models_that_read_text() -> None:
    words = np.array([["a", "bc"]])
    spec = InputSpec("s", np.dtype(object), (None, 2))
    assert check_feed({"s": words}, [spec], "here")["s"].tolist() == [["a", "bc"]]
    assert check_feed({"s": words.astype(object)}, [spec], "here")["s"].dtype.kind == "U"
    with fails(DataError, "here: input 's' holds text; the model takes float32", "arrays of float32"):
        check_feed({"s": words}, [InputSpec("s", F32, (None, 2))], "here")
    with fails(DataError, "here: input 's' holds float32; the model takes text", "arrays of text"):
        check_feed({"s": np.ones((1, 2), F32)}, [spec], "here")
    with fails(DataError, "here: unknown input 'x'; the model's inputs are none"):
        check_feed({"x": words}, [], "here")


def test_a_size_that_the_file_declares_is_told_with_the_way_to_leave_it_open() -> None:
    w = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
    text = """(float[1,16,8,8] x) => (float[1,16,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) y = Conv<pads=[1,1,1,1]>(b, w) }"""
    model = onnx.shape_inference.infer_shapes(graph_of(text, w=w).to_proto())
    feeds = [{"x": np.random.default_rng(n).normal(size=(1, 16, 12, 8)).astype(np.float32)} for n in range(9)]
    recipe = Recipe(target="ort-cpu", effort="fast")
    with fails(DataError, "axis 2 is 12, not 8", "--shapes cannot change", "leave axis 2 open"):
        api.quantize(model, feeds, recipe, SILENT)
    open_sizes = [1, 16, "H", "W"]
    opened = update_model_dims.update_inputs_outputs_dims(model, {"x": open_sizes}, {"y": open_sizes})
    assert api.quantize(opened, feeds, recipe, SILENT)[1].int8_share() == 1.0
