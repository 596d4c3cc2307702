"""What scripts/fuzz.py fuzzes: real files to begin with, and what reads them."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes  # noqa: F401  its types are known to numpy from here on
import numpy as np
import onnx
from fuzz_models import changed_model, changed_text

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Seeds = list[tuple[str, bytes]]

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data"
RNG = np.random.default_rng(0)
SMALL = 60_000
"""Bytes of the largest file that is mutated: small ones make more runs."""


class Target(NamedTuple):
    """What reads a file, the files to begin with, and what changes one with regard to its form."""

    run: Callable[[Path], object]
    seeds: Callable[[], Seeds]
    change: Callable[[bytes, random.Random], bytes] | None = None


def ready() -> None:
    """Silence what libraries print."""
    import onnxruntime as ort  # noqa: TID251  a script

    ort.set_default_logger_severity(4)


def saved(write: Callable[[Path], object], name: str) -> tuple[str, bytes]:
    """A file's name and what `write` puts into it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return name, path.read_bytes()


# -- models -----------------------------------------------------------------------------------------------------


def models() -> Seeds:
    """Small models of many operators, and digits."""
    found = sorted(LIGHT.glob("simple/*/model.onnx")) + sorted(LIGHT.glob("pytorch-*/*/model.onnx"))
    small = [p.read_bytes() for p in found if p.stat().st_size < SMALL]
    return [("m.onnx", data) for data in (*small, (DIGITS / "digits.onnx").read_bytes(), _with_bodies(), _quantized())]


def _with_bodies() -> bytes:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    f (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> {
        a = local.Double(x)
        y = If (c) <
            then_branch = g () => (float[N,4] t) { t = MatMul(a, w) },
            else_branch = h () => (float[N,4] e) { e = Relu(a) }
        >
    }
    <domain: "local", opset_import: ["" : 17]> Double (x) => (y) { y = Add(x, x) }"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def _quantized() -> bytes:
    import onnxq

    graph, _ = onnxq.quantize(str(DIGITS / "digits.onnx"), "random:9", onnxq.Recipe(effort="fast"))
    return bytes(graph.to_proto().SerializeToString())


def load(path: Path) -> None:
    """The loader, and what every command does with a graph first."""
    from onnxq import files
    from onnxq.data import input_specs

    graph = files.load(path)
    graph.digest()
    input_specs(graph)


def convert(path: Path) -> None:
    """Everything from the model to a quantized one that needs no run of it, and the checks."""
    import onnxq
    from onnxq import api

    graph, _ = onnxq.quantize(str(path), None, onnxq.Recipe(mode="weight-only", target="ort-cuda"))
    graph.to_proto()
    api.make_plan(str(path), onnxq.Recipe(target="ort-cpu"))
    api.check(str(path), "tensorrt@10")


# -- data -------------------------------------------------------------------------------------------------------

X = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.arange(8).reshape(4, 2)


def _inputs(*, image: bool = False) -> Any:  # noqa: ANN401  specs
    from onnxq.data import InputSpec, with_preprocess

    if image:
        spec = InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))
        return with_preprocess([spec], "resize=9,crop=8,scale=1/255,mean=[0.1,0.2,0.3],layout=NCHW")
    return [InputSpec("x", np.dtype(np.float32), ("N", 3)), InputSpec("ids", np.dtype(np.int64), ("N", 2))]


def _read(path: Path, *, image: bool = False, skip: bool = True) -> None:
    """A whole pass with bad samples skipped, then one that stops at the first."""
    from dataclasses import replace

    from onnxq.data import open_source

    inputs = _inputs(image=image)
    if path.suffix == ".npy":
        inputs = inputs[:1]
    if path.suffix == ".pb":
        inputs = inputs[:1]
        path.rename(path.with_name("input_0.pb"))
        path = path.parent
    source = open_source(str(path), inputs)
    if skip:
        for _ in replace(source, bad=lambda _: None):
            pass
    for _ in source:
        pass


def arrays() -> Seeds:
    """Stacks and single arrays."""
    forms = [X, X.astype(np.float64), X.astype(np.float16), np.asfortranarray(X), X[:1], X[0], np.zeros((0, 3), "f4")]
    seeds = [("x.npy", _npy(a)) for a in forms]
    seeds.append(saved(lambda p: np.save(p, np.array([{}]), allow_pickle=True), "x.npy"))
    seeds += [
        saved(lambda p: np.savez(p, x=X, ids=IDS), "x.npz"),
        saved(lambda p: np.savez_compressed(p, x=X, ids=IDS), "x.npz"),
    ]
    tensors = [onnx.numpy_helper.from_array(a) for a in (X[:1], X[:1].astype(np.float64), np.array([["a", "b", "c"]]))]
    return seeds + [("x.pb", tensor.SerializeToString()) for tensor in tensors]


def texts() -> Seeds:
    """What Polygraphy's save_json writes."""
    from polygraphy.json import save_json  # noqa: TID251  a script

    feeds = [{"x": X[i : i + 1], "ids": IDS[i : i + 1]} for i in range(3)]
    return [saved(lambda p: save_json(feeds, str(p)), "x.json"), ("x.json", b'[{"x": [[1, 2, 3]], "ids": [[1, 2]]}]')]


def _npy(array: Any) -> bytes:  # noqa: ANN401  an array
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _image(kind: str, **options: Any) -> bytes:  # noqa: ANN401  Pillow's
    from PIL import Image  # noqa: TID251  a script may draw

    file = io.BytesIO()
    pixels = RNG.integers(0, 256, (12, 15, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if options.pop("palette", False):
        image = image.convert("P")
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> Seeds:
    """Small images of every format that is read."""
    seeds = [("x.png", _image("PNG")), ("x.png", _image("PNG", palette=True)), ("x.jpg", _image("JPEG"))]
    seeds += [("x.jpg", _image("JPEG", progressive=True)), ("x.bmp", _image("BMP")), ("x.webp", _image("WEBP"))]
    return [
        *seeds,
        ("x.tiff", _image("TIFF")),
        ("x.tiff", _image("TIFF", compression="tiff_lzw")),
        ("x.ppm", _image("PPM")),
    ]


def read_picture(path: Path) -> None:
    """One image, as a folder of it."""
    from onnxq.data.images import decoded

    decoded(path, _inputs(image=True)[0], str(path))


def tars() -> Seeds:
    """Arrays by name, and images."""
    members = [(f"{i}.{n}.npy", _npy(a[i])) for i in range(3) for n, a in (("x", X), ("ids", IDS))]
    seeds = []
    for mode, name in (("w", "x.tar"), ("w:gz", "x.tar.gz"), ("w:xz", "x.tar.xz"), ("w:bz2", "x.tar.bz2")):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]  # no literal
            for member, data in [*members, ("3.json", b"{}"), ("4.pyd", b"\x80\x04N.")]:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        seeds.append((name, file.getvalue()))
    return seeds


def columns() -> Seeds:
    """Parquet with several encodings, and both forms of Arrow."""
    import pyarrow as pa  # noqa: TID251  a script
    from pyarrow import parquet  # noqa: TID251  likewise

    table = pa.table({"x": X.tolist(), "ids": IDS.tolist(), "text": list("abcd")})
    seeds = []
    for compression, rows in (("none", 4), ("snappy", 2), ("zstd", 1), ("gzip", 4)):
        file = io.BytesIO()
        parquet.write_table(table, file, compression=compression, row_group_size=rows)
        seeds.append(("x.parquet", file.getvalue()))
    for name, make in (("x.arrow", pa.ipc.new_stream), ("x.feather", pa.ipc.new_file)):
        file = io.BytesIO()
        with make(file, table.schema) as writer:
            writer.write_table(table)
        seeds.append((name, file.getvalue()))
    return seeds


# -- what a user writes, and what onnxq saves ---------------------------------------------------------------------

RECIPE = b"""target = "ort-cpu"
calibrator = "percentile"
percentile = 99.9
mode = "static"
weights = "int8/channel"
activations = "uint8/tensor"
shapes = "x:1x3x224x224,y:[1,4]"
shard = "1/4"
effort = "fast"
max_samples = 12
preprocess = "resize=256,crop=224,scale=1/255,mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225],layout=NCHW"
[[rules]]
nodes = "/head/*"
quantize = false
[[rules]]
ops = ["Gemm", "MatMul"]
weights = "int4/block:32"
calibrator = "minmax"
"""
WEIGHTS_RECIPE = b"""mode = "weight-only"
weights = "nf4/block:64+double"
weight_method = "nearest"
io_types = "float32"
providers = "cpu,cuda"
high_precision = "fp16"
min_sqnr = 30.0
"""


def read_recipe(path: Path) -> None:
    """The file, and the little languages in its values."""
    from onnxq import Recipe
    from onnxq.data import parse_shapes
    from onnxq.data.preprocess import parse_preprocess

    recipe = Recipe.from_toml(path)
    _ = recipe.part, recipe.provider_list, recipe.float_type
    recipe.check_rules([("/head/a", "Gemm"), ("b", "MatMul")])
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe  # noqa: S101  what is written reads back
    if recipe.shapes:
        parse_shapes(recipe.shapes)
    if recipe.preprocess:
        parse_preprocess(recipe.preprocess)


def caches() -> Seeds:
    """TensorRT's text, and ONNX Runtime's table."""
    from onnxq.caches import Cache, cache_text, ort_table

    cache = Cache("EntropyCalibration2", "8601", {f"a: {i}": np.float32(0.1 * i + 0.1) for i in range(9)})
    return [("calib.cache", cache_text(cache).encode()), ("calib.cache", bytes(ort_table(cache)))]


def read_cache(path: Path) -> None:
    """A cache of either kind."""
    from onnxq import caches

    caches.read_cache(path)


def kept() -> Seeds:
    """Statistics with everything in them, a checkpoint, and results kept aside."""
    import onnxq
    from onnxq.checkpoint import Checkpoint
    from onnxq.collect import sample_hash

    feeds = [{"image": RNG.normal(size=(1, 1, 28, 28)).astype("f4")} for _ in range(20)]
    with np.load(DIGITS / "calib.npz") as data:
        feeds = [{"image": image[None]} for image in data["image"][:20]]
    full = onnxq.calibrate(str(DIGITS / "digits.onnx"), feeds)
    fast = onnxq.calibrate(str(DIGITS / "digits.onnx"), feeds[:2], onnxq.Recipe(effort="fast"))
    from collections import Counter

    check = Checkpoint(fast, Counter(sample_hash(feed) for feed in feeds[:2]))
    aside = b'"key"\n["a", 1.5]\n["b", {"c": [1, 2]}]\n'
    return [
        saved(full.save, "s.npz"),
        saved(fast.save, "s.npz"),
        saved(check.save, "s.npz.partial"),
        ("s.jsonl", aside),
        ("s.plan.json", b'{"nodes": [{"node": "a"}], "tensors": {"a": 1}, "recipe": {}}'),
    ]


def read_kept(path: Path) -> None:
    """Statistics, which must add up with themselves; a checkpoint; results kept aside."""
    from onnxq.checkpoint import Checkpoint
    from onnxq.monitor import SILENT
    from onnxq.reporting import _plan_beside
    from onnxq.search.aside import Aside
    from onnxq.statistics import Statistics

    if path.suffix == ".jsonl":
        Aside.open(path, "key", SILENT)
    elif path.suffix == ".json":
        _plan_beside(path.with_name("s.onnx"))
    elif path.suffix == ".partial":
        Checkpoint.load(path)
    else:
        found = Statistics.load(path)
        total = found + found
        assert total.samples == 2 * found.samples  # noqa: S101  a property of every sum
        for name in found.tensors:
            _ = found.reach[name]


TARGETS = {
    "loader": Target(load, models, changed_model),
    "model": Target(convert, models, changed_model),
    "arrays": Target(_read, arrays),
    "json": Target(_read, texts, changed_text),
    "tar": Target(_read, tars),
    "images": Target(read_picture, pictures),
    "columns": Target(_read, columns),
    "recipe": Target(read_recipe, lambda: [("r.toml", RECIPE), ("r.toml", WEIGHTS_RECIPE)], changed_text),
    "cache": Target(read_cache, caches, changed_text),
    "statistics": Target(read_kept, kept, changed_text),
}
