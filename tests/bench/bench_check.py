"""What the measures on embeddings cost at a million rows: `make bench-check`.

A million random rows of 384 numbers, half of them a sample and half another, in a process of its own on two threads:
MMD with its p-value, the Vendi score and coverage of a thousand reference rows together have a goal; the classifier
two-sample test is timed after them. Peak memory is the process's own, the embeddings and the interpreter included.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from tasks.measures import diversity, mismatch
from tests.bench.figures import ROOT, Figure, publish

ROWS, DIM, REFERENCE, PERMUTATIONS = 1_000_000, 384, 1_000, 199
THREADS = "2"
MOST_SECONDS, MOST_GIBIBYTES = 60, 4
IN_THE_GOAL = ("MMD with p-value", "Vendi score", "coverage")


def main() -> None:
    """Measure in a process of its own, print and write `benchmarks/check.json`."""
    command = [sys.executable, "-m", "tests.bench.bench_check", "measure"]
    threads = {f"{name}_NUM_THREADS": THREADS for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = json.loads(done.stdout)
    seconds, peaks = measured["seconds"], measured["gibibytes"]
    together = sum(seconds[name] for name in IN_THE_GOAL)
    peak = peaks[IN_THE_GOAL[-1]]
    goals = [
        Figure("together", together, "s", ROWS, goal=f"< {MOST_SECONDS}", met=together < MOST_SECONDS),
        Figure("peak memory", peak, "GiB", ROWS, goal=f"< {MOST_GIBIBYTES}", met=peak < MOST_GIBIBYTES),
    ]
    others = [Figure(name, value, "s", ROWS) for name, value in seconds.items()]
    last = Figure("peak memory with the classifier test", max(peaks.values()), "GiB", ROWS)
    publish("check", [*goals, *others, last], ["numpy", "scipy"])


def measure() -> None:
    """Take every measure once, in the order of the goal, and print its seconds and the peak memory after it."""
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM), dtype=np.float32)
    reference = np.random.default_rng(2).standard_normal((REFERENCE, DIM), dtype=np.float32)
    half = ROWS // 2
    groups = [str(row) for row in range(half)]
    pooled = mismatch.pool(rows[:half], rows[half:], groups, groups)
    work: dict[str, Callable[[], object]] = {
        "MMD with p-value": lambda: mismatch.kernel_test(pooled, PERMUTATIONS, 1),
        "Vendi score": lambda: diversity.vendi(rows),
        "coverage": lambda: diversity.coverage(rows, reference, 1),
        "classifier two-sample test": lambda: mismatch.classifier_test(pooled, PERMUTATIONS, 1),
    }
    seconds, gibibytes = {}, {}
    for name, call in work.items():
        started = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - started
        gibibytes[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {seconds[name]:.1f} s, peak {gibibytes[name]:.2f} GiB", file=sys.stderr)
    print(json.dumps({"seconds": seconds, "gibibytes": gibibytes}))


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    else:
        main()
