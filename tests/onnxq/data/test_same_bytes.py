"""The same samples in every form and order give the same quantized model."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa  # noqa: TID251  makes the files
import pytest
from PIL import Image  # noqa: TID251  likewise
from pyarrow import parquet  # noqa: TID251  likewise

from onnxq import Recipe, api, reporting

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGITS = Path(__file__).parents[3] / "models" / "digits"
GRAY = "color=gray,scale=1/16,layout=NCHW"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, Any]:
    """24 digits as they were scanned: 0 ... 16; the model takes a sixteenth of that."""
    with np.load(DIGITS / "calib.npz") as data:
        found: np.ndarray[Any, Any] = data["image"][:24, 0] * 16
    assert (found == np.rint(found)).all()
    whole: np.ndarray[Any, Any] = found.astype(np.uint8)
    return whole


def shuffled(pixels: np.ndarray[Any, Any], seed: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for i in np.random.default_rng(seed).permutation(len(pixels)):
        yield f"{i:04d}", pixels[i]


def png(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write(form: str, folder: Path, pixels: np.ndarray[Any, Any]) -> tuple[str, str]:
    """Write the samples, and return what --data and --preprocess are."""
    if form == "images":
        for key, array in shuffled(pixels, 1):
            (folder / key[-1]).mkdir(exist_ok=True)
            (folder / key[-1] / f"{key}.png").write_bytes(png(array))
        return str(folder), GRAY
    if form.startswith("tar"):
        with tarfile.open(folder / "d.tar", "w") as archive:
            for key, array in shuffled(pixels, 2):
                data = io.BytesIO(png(array))
                if form == "tar of arrays":
                    np.save(data := io.BytesIO(), (array / 16).astype(np.float32)[None])
                info = tarfile.TarInfo(f"{key}.{'png' if form == 'tar' else 'npy'}")
                info.size = len(data.getvalue())
                archive.addfile(info, io.BytesIO(data.getvalue()))
        return str(folder / "d.tar"), GRAY if form == "tar" else ""
    rows = [array for _, array in shuffled(pixels, 3)]
    column: list[Any] = [png(array) for array in rows]
    if form == "parquet of lists":
        column = [(array / 16).ravel().tolist() for array in rows]
    parquet.write_table(pa.table({"image": column}), folder / "d.parquet", row_group_size=7)
    return str(folder / "d.parquet"), "" if form == "parquet of lists" else GRAY


@pytest.mark.parametrize(
    ("form", "effort"),
    [
        *((form, "fast") for form in ("images", "tar", "tar of arrays", "parquet", "parquet of lists")),
        ("images", "balanced"),  # which runs the samples that it picked again, and they are arrays then
    ],
)
def test_same_bytes(form: str, effort: str, pixels: np.ndarray[Any, Any], tmp_path: Path) -> None:
    data, preprocess = write(form, tmp_path, pixels)
    feeds = [{"image": (array / 16).astype(np.float32)[None, None]} for array in pixels]
    model = DIGITS / "digits.onnx"
    wanted, _ = api.quantize(model, feeds, Recipe(effort=effort))
    recipe = Recipe(effort=effort, preprocess=preprocess)
    found, _ = api.quantize(model, data, recipe)
    assert reporting.measured(model, found, data, recipe) is not None
    assert found.to_proto().SerializeToString() == wanted.to_proto().SerializeToString()
