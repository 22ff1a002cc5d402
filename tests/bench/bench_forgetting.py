"""Gain and forgetting of every method by itself, and of ours, on real weights and data.

`make bench-forgetting` trains by every single method, with three seeds, and reports what comes of each training: the
tuned model, and the mixture with its base that is best by validation within the budget on the selection halves. Ours is
what `retain tune` does with these trainings: of the mixtures, the best by validation. Beside it stands, at equal compute,
what a search without a budget takes of the very same trainings: the tuned model that is best by validation. A single
method costs one training, and these two cost all of them. What is reported was used for no choice: gain on the test
split, loss on the report halves. The fronts are drawn in docs/images/front-<recipe>.svg.

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
from tasks.forgetting.measure import Subject, reference, suite_loss
from tasks.forgetting.search import Ends, Search
from tasks.forgetting.suites import read_suites
from tasks.forgetting.way import choose
from tasks.paths import Paths
from tasks.recipe import REPLAY, SPLITS, Finetune, gating_margins, load_recipe, recipe_path
from tasks.sources import base_folder, fetch_raw
from tasks.splits import first_by_hash, read_splits
from tasks.training.run import train_model
from tests.bench.figures import ROOT
from tests.bench.forgetting_cases import CASES, Case, Method
from tests.bench.forgetting_figures import Found, Result, kept_file, kept_results, publish_results

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
        return Ends.load(self.kind, self.folder, tuned, "cpu", self.recipe.evaluate.precision), seconds

    def report(self, outcome: reports.AlphaOutcome, start: Model, candidate: Model) -> Found:
        """Measure a model on the test split and the report halves; `outcome` is what it was chosen by."""
        before = reference(self.base, self.schema.task, start, self.recipe.evaluate, self.paths.root)
        after = Subject(candidate, self.recipe.evaluate)
        lost = {
            suite.name: suite_loss(suite, before, after)
            for suite in read_suites(self.paths.report_half, list(self.recipe.budget))
        }
        losses = {name: loss.mean for name, loss in lost.items()}
        chance = 1 - self.recipe.decide.confidence
        if self._start is None:  # the probe is a function of the rows alone
            self._start = start.measure(self.tables["test"]).score
        return Found(
            validated=outcome.gain,
            log_likelihood=outcome.log_likelihood_gain,
            gain=candidate.measure(self.tables["test"]).score - self._start,
            losses=losses,
            share=max(losses[name] / margin for name, margin in self.gating.items()),
            path=outcome.path,
            alpha=outcome.alpha,
            confirmed=all(lost[name].p_not_below(margin) <= chance for name, margin in self.gating.items()),
        )

    @property
    def gating(self) -> dict[str, float]:
        """The margins of the suites that decide."""
        return gating_margins(self.recipe.budget)

    def search(self, ends: Ends) -> Search:
        """Return a search for the mixture that gains most within the budget on the selection halves."""
        gating = {name: self.recipe.budget[name] for name in self.gating}
        return Search.of_recipe(self.recipe, self.paths, self.base, ends, self.tables, budget=gating)


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
    """Train once; report the tuned model, and what is within the budget of it."""
    with tempfile.TemporaryDirectory(dir=arena.paths.root) as folder:
        ends, seconds = arena.train(method, seed, Path(folder) / "tuned")
        search, started = arena.search(ends), time.process_time()
        outcomes = search.outcomes()
        chosen, whole = choose(outcomes), reports.tuned_outcome(outcomes)
        searched = time.process_time() - started

        def found(outcome: reports.AlphaOutcome) -> Found:
            return arena.report(outcome, ends.start, search.model(outcome.path, outcome.alpha))

        tuned = found(whole)
        within = tuned if chosen is whole else found(chosen)
        plain = choose(search.outcomes(looks=0))  # all of it has been measured
        largest = next((made for made in (tuned, within) if _at(made) == _at(plain)), None) or found(plain)
        times = round(seconds, 1), round(searched, 1)
        return Result(arena.case.key, method.name, seed, *times, tuned, within, largest)


def _at(made: Found | reports.AlphaOutcome) -> tuple[str, float]:
    return made.path, made.alpha


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
    tuned, within = result.tuned, result.within
    print(
        f"seed {result.seed}  {result.method}: {tuned.gain:+.4f}, lost {tuned.share:.2f} of the margin",
        end="",
    )
    print(f"; {within.path} α {within.alpha:g}: {within.gain:+.4f}, lost {within.share:.2f}", end="")
    print(f"; {result.seconds:.0f} CPU-seconds, and {result.search_seconds:.0f} to search", flush=True)


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
