"""What orchestration costs: `make bench-tax [RUNS=3]`.

In a clean clone the sentiment recipe runs through `retain run`. The tax is what its wall time exceeds the stages' own
by: each stage's process, from its start (interpreter and imports included) to its end, which is what
`python -m tasks <stage> <recipe>` costs alone. Then the same command again, with nothing to do.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks.stages import STAGES
from tests.bench.figures import ROOT, Figure, publish

RECIPE = "sentiment"
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()", "run", RECIPE]
REPEATS = 5
"""Runs with nothing to do."""


def main() -> None:
    """Measure, print and write `benchmarks/tax.json`."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="retain tax ") as folder:
        walls, stages = zip(
            *(_whole_run(Path(folder) / f"run {number}") for number in range(runs)), strict=True
        )
        repeats = [_seconds(Path(folder) / "run 0") for _ in range(REPEATS)]
    shares = [(wall - own) / own for wall, own in zip(walls, stages, strict=True)]
    publish(
        "tax", [*_of_whole_runs(walls, stages, shares), _of_repeats(repeats)], ("prefect", "dvc", "torch")
    )


def _of_whole_runs(walls: tuple[float, ...], stages: tuple[float, ...], shares: list[float]) -> list[Figure]:
    tax, wall = statistics.median(shares), statistics.median(walls)
    n = len(walls)
    return [
        Figure(
            "tax, share of the stages' own time", tax, "share", n,
            interval=(min(shares), max(shares)), goal="< 0.15", met=tax < 0.15,
        ),
        Figure("wall time of a whole run", wall, "s", n, interval=(min(walls), max(walls)), goal="< 180", met=wall < 180),
        Figure("the stages' own", statistics.median(stages), "s", n, interval=(min(stages), max(stages))),
    ]  # fmt: skip


def _of_repeats(repeats: list[float]) -> Figure:
    value = statistics.median(repeats)
    return Figure(
        "a run with nothing to do",
        value,
        "s",
        len(repeats),
        interval=(min(repeats), max(repeats)),
        goal="< 15",
        met=value < 15,
    )


def _whole_run(clone: Path) -> tuple[float, float]:
    """Run the recipe in a clean clone; return wall seconds, and the stages' own."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    wall = _seconds(clone)
    timings = [clone / ".retain" / RECIPE / "timings" / f"{stage}.json" for stage in STAGES]
    return wall, sum(float(json.loads(path.read_text())["process_seconds"]) for path in timings)


def _seconds(clone: Path) -> float:
    """Run the command in the clone, with stores of the clone's own, and return the wall time in seconds."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RETAIN_"))},
        "RETAIN_HOME": str(clone.with_name(f"{clone.name} store")),
        "PYTHONPATH": str(clone),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    started = time.perf_counter()
    done = subprocess.run(COMMAND, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"the run failed with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds


if __name__ == "__main__":
    main()
