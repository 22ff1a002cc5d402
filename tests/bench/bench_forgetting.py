"""Gain and forgetting of every method by itself, and of ours, at equal compute, on real weights and data.

`make bench-forgetting` prints and writes, for each seed and each method, the gain on the test split and the worst loss on
the report halves, and draws the front (docs/images/front.svg). Every method may train as often as ours: once at each of
the same multiples of its usual rate. A method by itself takes the training with the best validation score, whatever it
forgot; ours takes, of the same number of trainings by linear probe then fine-tuning, the best mixture with the base that
is within the budget on the selection halves. Nothing is chosen on what is reported.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import reports
from tasks.__main__ import run_stage
from tasks.families import family
from tasks.families.interface import Model
from tasks.files import write_text
from tasks.forgetting.measure import Subject, compare, reference
from tasks.forgetting.search import Ends, Search, choose
from tasks.forgetting.suites import read_suites
from tasks.paths import Paths
from tasks.rates import USUAL_RATES
from tasks.recipe import REPLAY, Finetune, Recipe, load_recipe, recipe_path
from tasks.sources import base_folder, fetch_raw
from tasks.splits import read_splits
from tasks.training.run import train_model
from tests.bench.figures import ROOT, Figure, publish
from tests.bench.front import Point, draw_front

RATES = (0.5, 1.0, 3.0)
OURS = "ours: LP-FT, then the most gain within the budget"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {"method": "full"},
    "LP-FT": {"method": "lp-ft"},
    "freeze half": {"method": "lp-ft", "freeze_layers": 0.5},
    "layer-wise decay 0.7": {"method": "lp-ft", "layer_decay": 0.7},
    "LoRA r8": {"method": "lora", "lora": {"rank": 8, "alpha": 16.0}},
    "biases (BitFit)": {"method": "biases"},
    "L2-SP": {"method": "full", "l2_sp": 0.01},
    "distillation (LwF)": {"method": "full", "distill": 1.0},
}
OURS_BY_TASK = {"causal-lm": {"method": "full"}}


@dataclass(frozen=True)
class Result:
    """One method with one seed, on what nothing was chosen with."""

    method: str
    seed: int
    gain: float
    losses: dict[str, float]
    """By gating suite."""
    share: float
    """The worst loss, as a share of its margin."""
    alpha: float


@dataclass
class Arena:
    """One recipe's data, base and budget, prepared in a folder of the benchmark's own."""

    recipe: Recipe
    paths: Paths

    def __post_init__(self) -> None:
        self.schema, self.tables = read_splits(self.paths)
        self.base = reports.read_report(self.paths.base, reports.Base)
        self.folder = base_folder(self.base, self.paths.root)
        self.kind = family(self.schema.task)

    def train(self, changes: Mapping[str, Any], multiple: float, seed: int, tuned: Path) -> Ends:
        """Train once, and return where it started and what came of it."""
        usual = USUAL_RATES[self.kind.task][str(changes["method"])]
        values = self.recipe.finetune.model_dump(mode="json") | dict(changes)
        values |= {"learning_rate": usual * multiple, "seed": seed, "lora": changes.get("lora")}
        section = Finetune.model_validate(values)
        torch.manual_seed(seed)
        train, validation = self.tables["train"], self.tables["validation"]
        model = self.kind.begin(self.folder, section, self.schema.labels, train, validation, "cpu")
        with tempfile.TemporaryDirectory() as scratch:
            train_model(model, section, train, validation, Path(scratch), self.tables.get(REPLAY))
        model.save(tuned)
        return Ends(self.kind.load_start(self.folder, tuned, "cpu"), self.kind.load(tuned, "cpu"))

    def report(self, method: str, seed: int, start: Model, candidate: Model, alpha: float) -> Result:
        """Measure on the test split and the report halves."""
        test = self.tables["test"]
        gain = candidate.measure(test).score - start.measure(test).score
        gating = {name: suite.margin for name, suite in self.recipe.budget.items() if suite.margin}
        settings = self.recipe.evaluate
        before = reference(self.base, self.schema.task, start, settings, self.paths.root)
        after = Subject(candidate, settings)
        losses = {
            suite.name: compare(suite, before, after).loss
            for suite in read_suites(self.paths.report_half, list(gating))
        }
        share = max(losses[name] / margin for name, margin in gating.items())
        return Result(method, seed, gain, losses, share, alpha)


def alone(arena: Arena, method: str, changes: Mapping[str, Any], seed: int, folder: Path) -> Result:
    """Train a method at every rate and report the training with the best validation score."""
    tried = []
    for multiple in RATES:
        ends = arena.train(changes, multiple, seed, folder / "tuned")
        tried.append((ends.tuned.measure(arena.tables["validation"]).score, ends))
    _, best = max(tried, key=lambda item: item[0])
    return arena.report(method, seed, best.start, best.tuned, 1.0)


def ours(arena: Arena, seed: int, folder: Path) -> Result:
    """Train as often, and report the best mixture that is within the budget on the selection halves."""
    recipe, tried = arena.recipe, []
    for multiple in RATES:
        changes = OURS_BY_TASK.get(recipe.task, {"method": "lp-ft"})
        ends = arena.train(changes, multiple, seed, folder / "tuned")
        search = Search(
            recipe.merge.model_copy(update={"paths": ["wise-ft", "lines"]}),
            recipe.evaluate,
            recipe.budget,
            recipe.decide,
            arena.paths,
            arena.base,
            ends,
            arena.tables,
        )
        chosen = choose(search.outcomes())
        tried.append((chosen.gain, chosen.alpha, search.model(chosen.path, chosen.alpha), ends.start))
    _, alpha, model, start = max(tried, key=lambda item: item[0])
    return arena.report(OURS, seed, start, model, alpha)


def prepared(name: str, profile: str | None, folder: Path) -> Arena:
    """Prepare a recipe's splits and benchmarks below `folder`, without DVC."""
    recipe_folder = folder / "recipes"
    recipe_folder.mkdir()
    shutil.copy(recipe_path(ROOT, name), recipe_folder / f"{name}.yaml")
    if profile:
        from flows.workspace import change_recipe

        fields = load_recipe(recipe_path(folder, name)).profiles[profile]
        change_recipe(recipe_path(folder, name), fields)
    paths = Paths(folder, name)
    recipe = load_recipe(recipe_path(folder, name))
    fetch_raw(recipe, paths)
    run_stage("prepare", name, folder)
    return Arena(recipe, paths)


def figures(results: list[Result], name: str, margins: Mapping[str, float]) -> Iterator[Figure]:
    """Summarize by method, and set ours against the best gain that nothing held back."""
    methods = list(dict.fromkeys(result.method for result in results))
    mean = {
        method: statistics.fmean(result.gain for result in results if result.method == method)
        for method in methods
    }
    for method in methods:
        own = [result for result in results if result.method == method]
        gains = [result.gain for result in own]
        worst = [result.share for result in own]
        label = f"{name}: {method}"
        yield Figure(f"{label}: gain", mean[method], "score", len(own), len(own), (min(gains), max(gains)))
        within = all(share <= 1 for share in worst)
        yield Figure(
            f"{label}: worst loss / margin",
            statistics.fmean(worst),
            "share",
            len(own),
            len(own),
            (min(worst), max(worst)),
            "<= 1 with every seed" if method == OURS else None,
            within if method == OURS else None,
        )
    best = max(mean[method] for method in methods if method != OURS)
    share = mean[OURS] / best if best > 0 else float("nan")
    yield Figure(f"{name}: ours / best gain", share, "share", len(results), goal=">= 0.95", met=share >= 0.95)


def main() -> None:
    """Run one recipe's comparison; print, write and draw it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="sentiment")
    parser.add_argument("--profile")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=600, help="rows of the training table; 0 takes all")
    parser.add_argument("--methods", help="some of the methods, comma-separated")
    given = parser.parse_args()
    np.seterr(all="ignore")
    torch.use_deterministic_algorithms(True)
    chosen = given.methods.split(",") if given.methods else list(METHODS)
    if unknown := set(chosen) - set(METHODS):
        sys.exit(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory(prefix="bench-forgetting-") as name:
        folder = Path(name)
        arena = prepared(given.recipe, given.profile, folder)
        if given.rows:
            arena.tables["train"] = arena.tables["train"].head(given.rows).reset_index(drop=True)
        known = USUAL_RATES[arena.kind.task]
        results = []
        for seed in range(1, given.seeds + 1):
            for method in chosen:
                if METHODS[method]["method"] in known:
                    results.append(alone(arena, method, METHODS[method], seed, folder))
                    _say(results[-1])
            results.append(ours(arena, seed, folder))
            _say(results[-1])
        margins = {suite: value.margin for suite, value in arena.recipe.budget.items() if value.margin}
    made = list(figures(results, given.recipe, margins))
    suffix = "" if given.recipe == "sentiment" else f"-{given.recipe}"
    publish(f"forgetting{suffix}", made, ["torch", "transformers", "peft"])
    points = [Point(result.method, result.share, result.gain, result.method == OURS) for result in results]
    picture = ROOT / "docs" / "images" / f"front{suffix}.svg"
    write_text(picture, draw_front(points, "worst loss, as a share of what is allowed", "gain on the task"))
    print(f"drawn in {picture.relative_to(ROOT)}")


def _say(result: Result) -> None:
    losses = ", ".join(f"{name} {loss:+.4f}" for name, loss in result.losses.items())
    print(
        f"seed {result.seed}  {result.method}: gain {result.gain:+.4f}; {losses}; α {result.alpha:g}",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
