"""Calibration caches: both layouts, bit for bit, against ONNX Runtime's own writer and reader."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxq.caches import (
    Cache,
    cache_text,
    ort_table,
    parse_cache,
    parse_ort_table,
    read_cache,
    version_code,
    write_cache,
)
from onnxq.errors import RecipeError, StatisticsError

if TYPE_CHECKING:
    from pathlib import Path

names = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1)
bits = st.integers(1, 0x7F7FFFFF)  # every positive finite float32, subnormal ones included
TINY, LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))  # normal float32
scale_bits = st.dictionaries(names, bits, max_size=8)


def cache_of(patterns: dict[str, int], algorithm: str = "EntropyCalibration2", version: str = "8601") -> Cache:
    scales = {name: np.float32(np.array(pattern, np.uint32).view(np.float32)) for name, pattern in patterns.items()}
    return Cache(algorithm, version, scales)


def patterns_of(cache: Cache) -> dict[str, int]:
    return {name: int(np.asarray(scale, np.float32).view(np.uint32)) for name, scale in cache.scales.items()}


# --- TensorRT's text ---------------------------------------------------------------------------------


def test_the_documented_example() -> None:
    cache = parse_cache("TRT-8501-EntropyCalibration2\nimages: 3c010a14\n")
    assert (cache.version, cache.algorithm) == ("8501", "EntropyCalibration2")
    assert cache.scales["images"] == pytest.approx(0.00787594, abs=5e-9)
    assert cache.amax("images") == pytest.approx(1.00024, abs=5e-6)


def test_one_is_written_as_one() -> None:
    assert cache_text(cache_of({"x": 0x3F800000})) == "TRT-8601-EntropyCalibration2\nx: 3f800000\n"


@pytest.mark.parametrize(
    "name", ["a: b", "a: 3f800000", "(Unnamed Layer* 48) [Constant]_output", "/m/0/Conv_output_0", " x ", "x:", "é\r"]
)
def test_names_are_taken_whole(name: str) -> None:
    assert patterns_of(parse_cache(f"TRT-1-A\n{name}: 3c010a14\n")) == {name: 0x3C010A14}


def test_crlf_blank_lines_and_short_numbers() -> None:
    cache = parse_cache("\r\nTRT-7103-MinMaxCalibration\r\n\r\na: 3F800000 \r\nb: 1\r\n \r\n")
    assert patterns_of(cache) == {"a": 0x3F800000, "b": 1}


def test_zero_and_infinite_scales_are_listed_not_taken() -> None:
    text = "TRT-8601-A\nok: 3f800000\nzero: 0\ninf: 7f800000\nnan: 7fc00000\nminus: bf800000\n"
    cache = parse_cache(text)
    assert set(cache.scales) == {"ok"}
    assert cache.unusable == ("inf", "minus", "nan", "zero")


@given(scale_bits)
@example({"smallest": 1, "largest": 0x7F7FFFFF, "a: b": 0x007FFFFF})
def test_text_round_trip_is_exact(patterns: dict[str, int]) -> None:
    text = cache_text(cache_of(patterns))
    again = parse_cache(text)
    assert patterns_of(again) == patterns
    assert cache_text(again) == text
    assert patterns_of(parse_cache(text.replace("\n", "\r\n"))) == patterns


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: '' is no header"),
        ("images: 3c010a14\n", "line 1: 'images: 3c010a14' is no header"),
        ("TRT-8501-A\nok: 3c010a14\n\nbroken 3c010a14\n", "line 4: 'broken 3c010a14'"),
        ("TRT-8501-A\nx: 3c010a1", None),
        ("TRT-8501-A\nx: 3c010a144\n", "line 2"),
        ("TRT-8501-A\nx: 0.0078\n", "line 2"),
        ("TRT-8501-A\n: 3c010a14\n", "line 2"),
        ("TRT-8501-A\nx: 3c010a14\nx: 3c010a15\n", "line 3: a second scale"),
    ],
)
def test_errors_name_file_and_line(text: str, said: str | None) -> None:
    if said is None:  # seven digits are a number, with a leading zero
        assert patterns_of(parse_cache(text)) == {"x": 0x03C010A1}
        return
    with pytest.raises(StatisticsError) as caught:
        parse_cache(text, "some/calib.cache")
    assert f"some/calib.cache, {said}" in caught.value.message
    assert caught.value.hint


def test_what_cannot_be_written_is_refused() -> None:
    for scale in (0.0, -1.0, np.inf, np.nan, 1e39, 1e-46):
        with pytest.raises(StatisticsError, match="'x' has the scale"):
            Cache("A", "1", {"x": np.float64(scale)})  # type: ignore[dict-item]  # a caller's float64
    with pytest.raises(StatisticsError, match="line break"):
        cache_text(Cache("A", "1", {"a\nb": np.float32(1)}))
    with pytest.raises(StatisticsError, match="no header"):
        cache_text(Cache("", "", {}))


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("8.6.1", "8601"),
        ("8.5.1.7", "8501"),
        ("7.1.3", "7103"),
        ("8601", "8601"),
        ("10.3.0", "100300"),
        ("100300",) * 2,
    ],
)
def test_versions(version: str, code: str) -> None:
    assert version_code(version) == code


@pytest.mark.parametrize("version", ["11.0.0", "110000", "8.6", "new", "", "86011", "8601\n"])
def test_versions_without_caches(version: str) -> None:
    with pytest.raises(RecipeError, match="TensorRT"):
        version_code(version)


# --- ONNX Runtime's table ----------------------------------------------------------------------------


def read_with_onnxruntime(data: bytes) -> list[tuple[str, str]]:
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable  # noqa: TID251  the oracle

    table = TrtTable.GetRootAs(bytearray(data), 0)
    rows = [table.Dict(i) for i in range(table.DictLength())]
    return [(row.Key().decode(), row.Value().decode()) for row in rows]


@given(scale_bits)
@example({"smallest": 1, "largest": 0x7F7FFFFF})
def test_onnxruntime_reads_our_table(patterns: dict[str, int]) -> None:
    cache = cache_of(patterns)
    rows = read_with_onnxruntime(ort_table(cache))
    assert [name for name, _ in rows] == list(patterns)
    for name, value in rows:
        amax = np.float32(float(value))  # std::stof refuses what is outside of normal float32
        assert TINY <= amax <= LARGEST
        exact = 127 * struct.unpack(">f", patterns[name].to_bytes(4, "big"))[0]
        if TINY <= exact <= LARGEST:
            assert float(value) == exact


@given(st.dictionaries(names, st.integers(0x00800000, 0x7C000000), max_size=8))
def test_table_round_trip_is_exact(patterns: dict[str, int]) -> None:
    cache = parse_ort_table(ort_table(cache_of(patterns)))
    assert patterns_of(cache) == patterns
    assert (cache.algorithm, cache.version) == ("", "")


def test_we_read_onnxruntimes_table(tmp_path: Path) -> None:
    from onnxruntime.quantization import write_calibration_table  # noqa: TID251  the oracle
    from onnxruntime.quantization.calibrate import TensorData  # noqa: TID251  likewise

    ranges = {"a: b": 2.5, "/x": 1e-3, "inf": np.inf}
    data = {
        name: TensorData(lowest=np.array(-amax, np.float32), highest=np.array(amax, np.float32))
        for name, amax in ranges.items()
    }
    write_calibration_table(data, str(tmp_path))
    cache = read_cache(tmp_path / "calibration.flatbuffers")
    expected = {name: np.float32(np.float64(np.float32(ranges[name])) / 127) for name in ("/x", "a: b")}
    assert dict(cache.scales) == expected
    assert cache.unusable == ("inf",)


def test_damaged_tables_are_refused() -> None:
    whole = ort_table(cache_of({"images": 0x3C010A14, "output": 0x3F800000}))
    for data in (b"\0", b"\0" * 64, b"\xff\0\0\0" * 8, whole[: len(whole) // 2], whole[:12]):
        with pytest.raises(StatisticsError, match=r"t\.bin is no calibration table"):
            parse_ort_table(data, "t.bin")


# --- files -------------------------------------------------------------------------------------------


def test_files_tell_their_kind(tmp_path: Path) -> None:
    cache = cache_of({"a: b": 0x3C010A14, "c": 0x3F800000})
    write_cache(cache, tmp_path / "calib.cache")
    write_cache(cache, tmp_path / "table", "ort")
    assert (tmp_path / "calib.cache").read_bytes() == b"TRT-8601-EntropyCalibration2\na: b: 3c010a14\nc: 3f800000\n"
    assert read_cache(tmp_path / "calib.cache") == cache
    assert dict(read_cache(tmp_path / "table").scales) == dict(cache.scales)
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "calib.cache").read_bytes())
    assert read_cache(tmp_path / "marked") == cache


@pytest.mark.parametrize("content", [b"\xff\xfe not text", b"\x89PNG\r\n\x1a\n\0\0\0", b"image 0.5\n", b""])
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(StatisticsError, match="other") as caught:
        read_cache(path)
    assert "TRT-<version>-<algorithm>" in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=r"none\.cache cannot be read: No such file"):
        read_cache(tmp_path / "none.cache")
