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

from tasks.forgetting.rule import PairedLoss, errors_to_margin, paired_loss, smallest_margin
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
    for file in sorted((paths.records / "suites").glob("*.parquet")):
        margin = recipe.budget[file.stem].margin
        yield from _suite(file, margin, recipe.decide.confidence, recipe.decide.power)


def carried(loss: PairedLoss, confidence: float, power: float) -> float:
    """Return the smallest margin that a model which lost nothing passes with this power, to three digits up."""
    by_spread = errors_to_margin(confidence, power) * loss.standard_error
    floor = smallest_margin(int(loss.equal_groups), confidence)
    return math.ceil(max(by_spread, floor) * 1000) / 1000


def _suite(file: Path, margin: float | None, confidence: float, power: float) -> Iterator[Figure]:
    table = pd.read_parquet(file)
    loss = paired_loss(table["base"], table["candidate"], table["group"].tolist())
    least = carried(loss, confidence, power)
    interval = (loss.lower(0.975), loss.upper(0.975))
    unit = "mrr" if not loss.binary else "accuracy"
    yield Figure(f"{file.stem}: loss", loss.mean, unit, len(table), interval=interval)
    yield Figure(
        f"{file.stem}: margin carried",
        least,
        unit,
        len(table),
        goal=None if margin is None else f"<= {margin:g}, the recipe's",
        met=None if margin is None else least <= margin,
    )


if __name__ == "__main__":
    main()
