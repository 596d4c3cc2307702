"""A model of more than 2 GB calibrated by the workers of a Dask cluster on this machine: what each process takes.

    python scripts/bench_large_dask.py [--gigabytes 2.3] [--width 2048] [--workers 2] [--samples 24] [--folder FOLDER]

Makes the model of make_large.py in a temporary folder, runs `onnxq calibrate --dask` on it, prints for the driving
process and each worker the most anonymous memory (seen every 50 ms from outside) and VmHWM (pages of mapped files
included, which processes share and the system takes back when it needs them), then calibrates without Dask and says
whether the statistics have the same bytes. Each worker takes the model's size in memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make_large
from bench_large import status


def watched(command: tuple[str, ...], others: dict[str, int]) -> dict[str, dict[str, int]]:
    """Run the command; the most that it and other processes, by name, had of each kind of memory, in KiB.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command)
    most: dict[str, dict[str, int]] = {name: {} for name in ("driving process", *others)}
    while process.poll() is None:
        for name, pid in {"driving process": process.pid, **others}.items():
            now = status(pid)
            most[name] = {key: max(most[name].get(key, 0), now.get(key, 0)) for key in ("RssAnon", "VmHWM")}
        time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def main() -> None:
    """Make the model, calibrate it both ways, and print a row for each process."""
    from distributed import Client, LocalCluster  # noqa: TID251  a script, outside the engine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where there is room for the model twice")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model = make_large.make(folder, args.gigabytes, args.width)
        print(f"model: {model.with_name('model.data').stat().st_size / 1e6:,.0f} MB")
        onnxq = str(Path(sys.executable).with_name("onnxq"))
        options = (str(model), "--data", f"random:{args.samples}", "--target", "tensorrt@10", "--effort", "fast", "-q")
        with (
            LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]  # no annotations
            Client(cluster) as client,  # type: ignore[no-untyped-call]  # likewise
        ):
            pids = client.run(lambda: __import__("os").getpid())
            workers = {f"worker {number}": pid for number, pid in enumerate(pids.values(), 1)}
            address = cluster.scheduler_address
            spread = (onnxq, "calibrate", *options, "--dask", address, "-o", str(folder / "dask.npz"))
            begun = time.monotonic()
            most = watched(spread, workers)
            print(f"with --dask: {time.monotonic() - begun:.0f} s")
        most["without --dask"] = watched((onnxq, "calibrate", *options, "-o", str(folder / "here.npz")), {})[
            "driving process"
        ]
        print("| process | anonymous, MB | VmHWM, MB |\n|---|---|---|")
        for process, kinds in most.items():
            print(f"| {process} | " + " | ".join(f"{kib * 1024 / 1e6:,.0f}" for kib in kinds.values()) + " |")
        same = (folder / "dask.npz").read_bytes() == (folder / "here.npz").read_bytes()
        print(f"the statistics have {'the same' if same else 'OTHER'} bytes")


if __name__ == "__main__":
    main()
