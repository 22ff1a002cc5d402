"""Gain and forgetting of every method by itself, and of ours, at equal compute, on real weights and data.

`make bench-forgetting` trains once by every single method, with three seeds, and reports what comes of it, whatever it
forgot. Ours trains once too, and takes the mixture with the base that gains most within the budget on the selection
halves; what this search costs on top is a figure of its own. What is
reported was used for no choice: gain on the test split, loss on the report halves. The fronts are drawn in
docs/images/front-<recipe>.svg.

Every training is written to `benchmarks/forgetting/<recipe>.jsonl` as it ends, and is not made again: a run that was
stopped goes on, here or on another machine. Other sizes, rates or code of a case begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from flows.workspace import change_recipe
from tasks import reports
from tasks.__main__ import run_stage
from tasks.families import family
from tasks.families.interface import Model
from tasks.forgetting.measure import Subject, compare, reference
from tasks.forgetting.search import Ends, Search, choose
from tasks.forgetting.suites import read_suites
from tasks.paths import Paths
from tasks.recipe import REPLAY, SPLITS, Finetune, load_recipe, recipe_path
from tasks.sources import base_folder, fetch_raw
from tasks.splits import first_by_hash, read_splits
from tasks.training.run import train_model
from tests.bench.figures import ROOT
from tests.bench.forgetting_cases import CASES, Case, Method
from tests.bench.forgetting_figures import Result, kept_file, kept_results, publish_results

BASES = Path("data") / "bases"


@dataclass
class Arena:
    """One case's data, base and budget, prepared in a folder of the benchmark's own."""

    case: Case
    paths: Paths

    def __post_init__(self) -> None:
        self.recipe = load_recipe(recipe_path(self.paths.root, self.case.recipe))
        self.schema, self.tables = read_splits(self.paths)
        for split, rows in (("train", self.case.train_rows), ("validation", self.case.validation_rows)):
            chosen = first_by_hash(self.tables[split], rows, self.recipe.data.seed)
            self.tables[split] = chosen.reset_index(drop=True)
        self.base = reports.read_report(self.paths.base, reports.Base)
        self.folder = base_folder(self.base, self.paths.root)
        self.kind = family(self.schema.task)
        self._start: float | None = None

    @property
    def sizes(self) -> str:
        """How many rows and examples there are, in words."""
        suites = read_suites(self.paths.report_half, list(self.recipe.budget))
        rows = [f"{split} {len(self.tables[split])}" for split in SPLITS]
        return ", ".join(rows + [f"{suite.name} {len(suite.examples)} to report" for suite in suites])

    def train(self, method: Method, seed: int, tuned: Path) -> tuple[Ends, float]:
        """Train once, and return where it started, what came of it, and the seconds it took."""
        section = Finetune.model_validate(self.case.finetune(method, seed, self.recipe))
        started = time.process_time()
        torch.manual_seed(seed)
        train, validation = self.tables["train"], self.tables["validation"]
        model = self.kind.begin(self.folder, section, self.schema.labels, train, validation, "cpu")
        with tempfile.TemporaryDirectory() as scratch:
            train_model(model, section, train, validation, Path(scratch), self.tables.get(REPLAY))
        seconds = time.process_time() - started
        model.save(tuned)
        precision = self.recipe.evaluate.precision
        start = self.kind.load_start(self.folder, tuned, "cpu", precision)
        return Ends(start, self.kind.load(tuned, "cpu", precision)), seconds

    def report(
        self,
        method: str,
        seed: int,
        seconds: float,
        start: Model,
        candidate: Model,
        chosen: reports.AlphaOutcome | None = None,
        search: float = 0.0,
    ) -> Result:
        """Measure on the test split and the report halves."""
        before = reference(self.base, self.schema.task, start, self.recipe.evaluate, self.paths.root)
        after = Subject(candidate, self.recipe.evaluate)
        suites = read_suites(self.paths.report_half, list(self.recipe.budget))
        losses = {suite.name: compare(suite, before, after).loss for suite in suites}
        margins = {name: suite.margin for name, suite in self.recipe.budget.items() if suite.margin}
        if self._start is None:  # the probe is a function of the rows alone
            self._start = start.measure(self.tables["test"]).score
        return Result(
            self.case.key,
            method,
            seed,
            round(seconds, 1),
            gain=candidate.measure(self.tables["test"]).score - self._start,
            losses=losses,
            share=max(losses[name] / margin for name, margin in margins.items()),
            alpha=chosen.alpha if chosen else 1.0,
            path=chosen.path if chosen else "",
            search_seconds=round(search, 1),
        )

    def rescue(self, ends: Ends) -> tuple[Model, reports.AlphaOutcome]:
        """Return the mixture that gains most within the budget on the selection halves."""
        recipe = self.recipe
        gating = {name: suite for name, suite in recipe.budget.items() if suite.margin}
        search = Search(
            recipe.merge,
            recipe.evaluate,
            gating,
            recipe.decide,
            self.paths,
            self.base,
            ends,
            self.tables,
        )
        chosen = choose(search.outcomes())
        return search.model(chosen.path, chosen.alpha), chosen


def results_of(arena: Arena, seeds: int) -> Iterator[Result]:
    """Yield every result of a case: those that are kept, and those that are still to be made."""
    yield from kept_results(arena.case)
    for seed in range(1, seeds + 1):
        for method in arena.case.methods(arena.recipe):
            # Read again each time: another process may work at the same case.
            kept = kept_results(arena.case)
            if any((result.method, result.seed) == (method.name, seed) for result in kept):
                continue
            result = one_training(arena, method, seed)
            with kept_file(arena.case).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            yield result


def one_training(arena: Arena, method: Method, seed: int) -> Result:
    """Train once and report the model; of ours, what is within the budget of it."""
    with tempfile.TemporaryDirectory(dir=arena.paths.root) as folder:
        ends, seconds = arena.train(method, seed, Path(folder) / "tuned")
        if method is not arena.case.ours:
            return arena.report(method.name, seed, seconds, ends.start, ends.tuned)
        started = time.process_time()
        model, chosen = arena.rescue(ends)
        search = time.process_time() - started
        return arena.report(method.name, seed, seconds, ends.start, model, chosen, search)


def prepared(case: Case, folder: Path) -> Arena:
    """Prepare a case's splits and benchmarks below `folder`, without DVC, unless they are there."""
    paths = Paths(folder, case.recipe)
    if not paths.base.exists():
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        recipe = recipe_path(folder, case.recipe)
        shutil.copy(recipe_path(ROOT, case.recipe), recipe)
        change_recipe(recipe, case.changes)
        if (ROOT / BASES).is_dir():
            shutil.copytree(ROOT / BASES, folder / BASES, dirs_exist_ok=True)
        fetch_raw(load_recipe(recipe), paths)
        if case.arrange:
            case.arrange(paths.raw)
        run_stage("prepare", case.recipe, folder)
    return Arena(case, paths)


def say(result: Result) -> None:
    """Print one result."""
    losses = ", ".join(f"{name} {loss:+.4f}" for name, loss in result.losses.items())
    mixed = f"; {result.path} α {result.alpha:g}" if result.path else ""
    print(f"seed {result.seed}  {result.method}: {result.gain:+.4f}; lost {losses}{mixed}", end="")
    print(f"; {result.seconds:.0f} CPU-seconds", flush=True)


def main() -> None:
    """Run the cases, print and write their figures, and draw their fronts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=[case.recipe for case in CASES], nargs="+", help="in this order")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-publish", action="store_true", help="no training: write what there is")
    given = parser.parse_args()
    np.seterr(all="ignore")
    torch.use_deterministic_algorithms(True)
    by_name = {case.recipe: case for case in CASES}
    for name in [] if given.only_publish else given.case or by_name:
        case = by_name[name]
        arena = prepared(case, case.folder)
        print(f"{case.title}: {arena.sizes}", flush=True)
        for result in results_of(arena, given.seeds):
            say(result)
    publish_results(given.seeds)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
