"""Which margins the demo's benchmarks carry: the smallest that a model which lost nothing would pass at 80 % power.

Reads the records of the last run of the recipe (`make demo`), whose paired spread is that of a real fine-tune.
`make bench-margins`
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tasks.forgetting.rule import errors_to_margin, paired_loss, smallest_margin
from tasks.paths import Paths
from tasks.recipe import load_recipe, recipe_path
from tests.bench.figures import ROOT, Figure, publish

RECIPE = "sentiment"


def main() -> None:
    """Print the margins of the report halves, and write them."""
    paths = Paths(ROOT, RECIPE)
    if not paths.records.is_dir():
        sys.exit(f"{paths.records} is missing: run `make demo` first.")
    publish("margins", list(_figures(paths)), ["numpy", "scipy", "torch", "transformers"])


def _figures(paths: Paths) -> Iterator[Figure]:
    recipe = load_recipe(recipe_path(paths.root, RECIPE))
    level, power = 1 - recipe.decide.confidence, recipe.decide.power
    z = errors_to_margin(1 - level, power)
    for file in sorted((paths.records / "suites").glob("*.parquet")):
        yield from _suite(file, z, recipe.budget[file.stem].margin, 1 - level)


def _suite(file: Path, z: float, margin: float | None, confidence: float) -> Iterator[Figure]:
    table = pd.read_parquet(file)
    loss = paired_loss(table["base"], table["candidate"], table["group"].tolist())
    error = loss.standard_error
    carried = max(z * error, smallest_margin(int(loss.effective_examples), confidence))
    interval = (loss.lower(0.975), loss.upper(0.975))
    unit = "mrr" if not loss.binary else "accuracy"
    yield Figure(f"{file.stem}: loss", loss.mean, unit, len(table), interval=interval)
    yield Figure(
        f"{file.stem}: margin carried",
        math.ceil(carried * 1000) / 1000,
        unit,
        len(table),
        goal=None if margin is None else f"<= {margin:g}, the recipe's",
        met=None if margin is None else carried <= margin,
    )


if __name__ == "__main__":
    main()
