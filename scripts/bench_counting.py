"""Nanoseconds a value that counting and bounds take, compiled and by numpy, on kinds of tensors that models make.

    python scripts/bench_counting.py [--values 3000000]

One thread, the fastest of some runs; both kernels must give the same histogram.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxq import counting
from onnxq.histogram import Extent, Histogram, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 7


def fastest(function: Callable[[], object], values: int) -> float:
    """Nanoseconds a value."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return 1e9 * min(times) / values


def main() -> None:
    """Print a row for each kind of tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=3_000_000)
    size = parser.parse_args().values
    if counting.kernel() == "numpy":
        raise SystemExit("the compiled kernel is not here: install onnxq again where there is a C compiler")
    normal = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    kinds = {"normal": normal, "behind a ReLU": np.maximum(normal, 0), "one value": np.full(size, 0.37, np.float32)}
    compiled = counting.COMPILED
    print("| values | count, compiled | numpy | bounds, compiled | numpy |\n|---|---|---|---|---|")
    for name, array in kinds.items():
        found, times = [], []
        for kernel in (compiled, None):
            counting.COMPILED = kernel
            found.append(Histogram.of(array))
            times.append((fastest(partial(Tally().add, array), size), fastest(partial(Extent().add, array), size)))
        if found[0] != found[1]:
            raise SystemExit(f"{name}: the kernels count differently")
        (a, b), (c, d) = times
        print(f"| {name} | {a:.2f} | {c:.2f} | {b:.2f} | {d:.2f} |")


if __name__ == "__main__":
    main()
