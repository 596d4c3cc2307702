"""Render letters and digits in the fonts of Debian's packages: the data of `train_glyphs.py`.

Needs pillow, and `apt-get` and `dpkg-deb` to fetch the packages into .cache/fonts; what is there is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

FONTS = Path(__file__).resolve().parent.parent / ".cache" / "fonts"
# The capitals and small letters that only their size tells apart are one class, as in EMNIST's "balanced" split.
CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
MERGED = "cijklmopsuvwxyz"
SIZE, FINE = 32, 4  # pixels of an image; drawn so many times as large
PACKAGES = (
    *(
        f"fonts-adf-{name}"
        for name in ("accanthis", "baskervald", "berenis", "gillius", "ikarius", "irianis", "libris")
    ),
    *(f"fonts-adf-{name}" for name in ("romande", "solothurn", "switzera", "tribun", "universalis", "verana")),
    *("fonts-averia-sans-gwf", "fonts-averia-serif-gwf", "fonts-b612", "fonts-cabin", "fonts-cantarell"),
    *("fonts-century-catalogue", "fonts-comfortaa", "fonts-comic-neue", "fonts-courier-prime", "fonts-croscore"),
    *("fonts-crosextra-caladea", "fonts-crosextra-carlito", "fonts-dejavu-core", "fonts-dejavu-extra", "fonts-dosis"),
    *("fonts-ebgaramond", "fonts-essays1743", "fonts-fanwood", "fonts-fantasque-sans", "fonts-firacode"),
    *("fonts-freefont-ttf", "fonts-gfs-didot", "fonts-go", "fonts-goudybookletter", "fonts-hack", "fonts-inconsolata"),
    *("fonts-junction", "fonts-junicode", "fonts-jura", "fonts-karla", "fonts-lato", "fonts-league-spartan"),
    *("fonts-liberation", "fonts-lindenhill", "fonts-linuxlibertine", "fonts-lobstertwo", "fonts-manrope"),
    *("fonts-mononoki", "fonts-oldstandard", "fonts-open-sans", "fonts-oxygen", "fonts-play", "fonts-prociono"),
    *("fonts-quattrocento", "fonts-quicksand", "fonts-roboto-slab", "fonts-roboto-unhinted", "fonts-sil-andika"),
    *("fonts-sil-charis", "fonts-sil-gentiumplus", "fonts-sora", "fonts-tiresias", "fonts-tuffy", "fonts-vollkorn"),
    "fonts-yanone-kaffeesatz",
)


def fetch() -> None:
    """Unpack the packages, each into a folder of its own; nothing is installed."""
    for package in PACKAGES:
        folder = FONTS / package
        if not folder.exists():
            (FONTS / "packages").mkdir(parents=True, exist_ok=True)
            subprocess.run((_tool("apt-get"), "download", "-q", package), check=True, cwd=FONTS / "packages")
            (archive,) = (FONTS / "packages").glob(f"{package}_*.deb")
            subprocess.run((_tool("dpkg-deb"), "-x", str(archive), str(folder)), check=True)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not there: the fonts are Debian's packages")
    return found


def split() -> tuple[list[Path], list[Path]]:
    """Font files to train on and to test on, apart by package: no family is on both sides."""
    sides: tuple[list[Path], list[Path]] = ([], [])
    for package in PACKAGES:
        files = sorted(p for p in (FONTS / package).rglob("*.[ot]tf") if not p.is_symlink())
        sides[zlib.crc32(package.encode()) % 4 == 0].extend(p for p in files if _is_latin(p))
    return sides


def render(fonts: Sequence[Path], seed: int) -> tuple[Images, Labels]:
    """Each character of every font once; images uint8 [N, 1, SIZE, SIZE], labels int64 [N], in random order."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for path in fonts:
        for character in CLASSES + MERGED:
            images.append(_drawn(path, character, rng))
            labels.append(CLASSES.index(character if character in CLASSES else character.upper()))
    order = rng.permutation(len(images))
    return np.stack(images)[order][:, None], np.array(labels, dtype=np.int64)[order]


def _is_latin(path: Path) -> bool:
    """Whether the font draws every character, and each as something of its own."""
    from PIL import ImageFont  # noqa: TID251  a script may draw

    font = ImageFont.truetype(path, 24)
    drawn = {bytes(font.getmask(c)) for c in CLASSES}
    return len(drawn) == len(CLASSES) and bytes(font.getmask("\uffff")) not in drawn and b"" not in drawn


def _drawn(path: Path, character: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One character, turned, slanted, stretched and moved a little, dark on light or light on dark, with noise."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: TID251  a script may draw

    side = SIZE * FINE
    font = ImageFont.truetype(path, int(side * rng.uniform(0.62, 0.95)))
    sheet = Image.new("L", (side, side))
    ImageDraw.Draw(sheet).text((side / 2, side / 2), character, fill=255, font=font, anchor="mm")
    angle, slant = np.radians(rng.normal(0, 6)), rng.normal(0, 0.12)
    stretch = np.diag(rng.uniform(0.85, 1.2, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, slant], [0, 1]] @ stretch
    left, top, right, bottom = sheet.getbbox() or (0, 0, side, side)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    shift = centre - turn @ (side / 2 + rng.normal(0, side / 32, 2))
    moved = sheet.transform((side, side), Image.Transform.AFFINE, (*turn[0], shift[0], *turn[1], shift[1]), 2)
    ink = np.asarray(moved.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255
    paper, contrast = rng.uniform(0, 90), rng.uniform(60, 165)
    light = rng.normal(0, 15) * np.linspace(-1, 1, SIZE)  # from left to right
    grey = paper + contrast * ink + light + rng.normal(0, rng.uniform(0, 8), ink.shape)
    grey = grey if rng.random() < 0.5 else 255 - grey
    drawn: npt.NDArray[np.uint8] = np.clip(np.rint(grey / 4) * 4, 0, 255).astype(np.uint8)
    return drawn
