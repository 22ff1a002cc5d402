"""The figures that stand for a stage's results: counts exact, numbers to a tolerance that holds across processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.paths import Paths
from tests.models_data import tuned_project

GOLDEN = Path(__file__).parent
STAGES = ("prepare", "validate", "check", "gate", "finetune", "merge", "evaluate", "decide")
TOLERANCE = 2e-3
COARSE = 0.05
"""For shares of few examples, where another processor may flip one."""
Figures = dict[str, float | str | None]


def tolerance(stage: str, name: str) -> float:
    """Return by how much a number may differ."""
    few = stage in ("check", "merge", "evaluate", "decide") or "accuracy" in name
    return COARSE if few else TOLERANCE


def build(folder: Path) -> Paths:
    """Run every stage of the tiny project."""
    return tuned_project(folder, until="decide")


def figures(stage: str, paths: Paths) -> Figures:
    """Return the figures of one stage's results, by name."""
    if stage == "prepare":
        return _of_tables(paths)
    report = json.loads({**vars_of(paths)}[stage].read_text(encoding="utf-8"))
    return dict(_leaves(report, ""))


def vars_of(paths: Paths) -> dict[str, Path]:
    """Return the report of each stage."""
    names = {stage: stage for stage in STAGES[1:]} | {"decide": "decision"}
    return {stage: getattr(paths, name) for stage, name in names.items()}


def _of_tables(paths: Paths) -> Figures:
    found: Figures = {}
    for file in sorted(paths.out.glob("s*/**/*.parquet")) + sorted(paths.report_half.rglob("*.parquet")):
        table = pd.read_parquet(file)
        name = file.relative_to(paths.out).as_posix()
        found |= {f"{name} rows": len(table), f"{name} columns": ", ".join(table)}
        found[f"{name} ids"] = " ".join(table["id"].astype(str))
    return found


def _leaves(value: Any, place: str) -> list[tuple[str, float | str | None]]:
    """Return numbers and short words with their places; which examples flipped is left out: it hangs on last digits."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "flips"}
        return [
            leaf for key, item in kept.items() for leaf in _leaves(item, f"{place}.{key}" if place else key)
        ]
    if isinstance(value, list):
        return [leaf for number, item in enumerate(value) for leaf in _leaves(item, f"{place}[{number}]")]
    if isinstance(value, bool | int | float) or value is None:
        return [(place, value)]
    return [(place, value)] if value in ("PASS", "FAIL", "INCONCLUSIVE", "pass", "warn", "refuse") else []
