"""What every benchmark writes: figures with intervals and goals, and where they were measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.files import write_text

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured figure. `goal` is in words, and `met` says whether it was reached; null: it has none."""

    figure: str
    value: float
    unit: str
    n: int
    seeds: int = 1
    interval: tuple[float, float] | None = None
    goal: str | None = None
    met: bool | None = None


def publish(name: str, figures: Sequence[Figure], libraries: Sequence[str]) -> Path:
    """Print the figures as a table, and write `benchmarks/<name>.json`."""
    width = max(len(figure.figure) for figure in figures)
    for figure in figures:
        goal = "" if figure.goal is None else f"  goal {figure.goal}: {'met' if figure.met else 'MISSED'}"
        print(f"{figure.figure.ljust(width)}  {figure.value:10.4g} {figure.unit:8}  n {figure.n}{goal}")
    path = ROOT / "benchmarks" / f"{name}.json"
    document = {"figures": [asdict(figure) for figure in figures], "machine": machine(libraries)}
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return path


def machine(libraries: Sequence[str]) -> dict[str, str | int | float]:
    """Describe where a figure was measured: processor, cores, load of the last 5 minutes, Python, libraries, commit."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[1], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in libraries},
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
