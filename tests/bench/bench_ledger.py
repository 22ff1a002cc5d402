"""The ledger: releases measured from the first base, beside the same rule measured from the release before.

`make bench-ledger` simulates lineages of retrains that each lose a little, and counts those in which a model that has
lost the whole margin since the beginning was released; then it shows the same once with real weights and data: MiniLM
trained on and on, each time from the model before.

A retrain starts from the newest release; one that is refused is made again from there. The halves stay the same, so that
attempts at them add up, as they do in use. A candidate comes to the report half only when its loss on the selection half
leaves the room that `merge` asks for; what the report half alone would let through is shown too.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tasks import reports
from tasks.__main__ import run_stage
from tasks.families import family
from tasks.families.interface import Model
from tasks.forgetting.measure import Subject, reference
from tasks.forgetting.rule import errors_to_confirm, level_at, paired_loss
from tasks.forgetting.suites import read_suites
from tasks.paths import Paths
from tasks.recipe import load_recipe, recipe_path
from tasks.sources import TUNED_FILES, base_folder, fetch_raw
from tasks.splits import first_by_hash, read_splits
from tasks.training.run import train_model
from tests.bench.bench_rule import independent
from tests.bench.figures import ROOT, Figure, publish

LINEAGES = 2000
HORIZONS = (12, 26, 52)
"""Retrains of a lineage on the same halves: a quarter, half a year and a year of weekly ones."""
LEVEL, POWER = 0.05, 0.8
RIGHT = 0.7
"""Share of the answers that the first base has right."""
Outcomes = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """What one retrain does to an ability: `loss` is lost in truth, for good."""

    name: str
    binary: bool
    loss: float
    margin: float
    examples: int
    """Of each half."""


DRIFTS = (
    Drift("accuracy, a tenth of the margin each", True, 0.003, 0.03, 1200),
    Drift("accuracy, a fifth of the margin each", True, 0.006, 0.03, 1200),
    Drift("nats, two fifths of the margin each", False, 0.012, 0.03, 300),
)


@dataclass(frozen=True)
class Policy:
    """What a candidate is measured from, and whether the selection half is asked first."""

    name: str
    from_first: bool
    selects: bool


POLICIES = (
    Policy("from the first base", from_first=True, selects=True),
    Policy("from the first base, report half alone", from_first=True, selects=False),
    Policy("from the release before", from_first=False, selects=True),
)


def main() -> None:
    """Simulate, and retrain unless told not to; print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-real", action="store_true", help="simulate only")
    given = parser.parse_args()
    figures = [] if given.no_real else list(_real())
    figures = [figure for drift in DRIFTS for figure in _simulated(drift)] + figures
    publish("ledger", figures, ["numpy", "scipy"] + ([] if given.no_real else ["torch", "transformers"]))


# --- simulated -----------------------------------------------------------------------------------------


def _simulated(drift: Drift) -> Iterator[Figure]:
    for policy in POLICIES:
        rng = np.random.default_rng(3)
        released = np.array([_lineage(drift, policy, rng) for _ in range(LINEAGES)])
        lost = released * drift.loss >= drift.margin - 1e-12
        for retrains in HORIZONS if policy.from_first else HORIZONS[:1]:
            share = float(lost[:, retrains - 1].mean())
            error = 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / LINEAGES)
            promised = policy.from_first and policy.selects
            yield Figure(
                f"{drift.name}, {retrains} retrains: lineages that released a model which lost the margin, {policy.name}",
                share,
                "share",
                drift.examples,
                LINEAGES,
                (max(share - error, 0.0), min(share + error, 1.0)),
                f"<= {LEVEL:g}" if promised else None,
                share <= LEVEL if promised else None,
            )
        label = f"{drift.name}: releases out of {HORIZONS[0]} retrains, {policy.name}"
        made = float(released[:, HORIZONS[0] - 1].mean())
        yield Figure(label, made, "releases", drift.examples, LINEAGES)


def _lineage(drift: Drift, policy: Policy, rng: np.random.Generator) -> list[int]:
    """Retrain again and again; return how many releases there were after each retrain: each has lost as much again."""
    first = _begin(drift, rng)
    release, released, attempts = first, [0], 0
    for _ in range(HORIZONS[-1] if policy.from_first else HORIZONS[0]):
        candidate = _retrained(drift, release, released[-1] * drift.loss, rng)
        before, passed = first if policy.from_first else release, False
        if not policy.selects or _leaves_room(drift, before[0] - candidate[0]):
            # Where there is no room the base is kept, which is no new candidate: it has the number it had.
            attempts += 1
            loss = independent(before[1] - candidate[1], drift.binary)  # an example is a group of its own
            passed = loss.p_not_below(drift.margin) <= level_at(LEVEL, attempts)
        release = candidate if passed else release
        released.append(released[-1] + passed)
    return released[1:]


def _leaves_room(drift: Drift, selected: Outcomes) -> bool:
    """Say whether the losses of the selection half leave the room that `merge` asks for."""
    error = float(selected.std(ddof=1)) / math.sqrt(drift.examples)
    return float(selected.mean()) + errors_to_confirm(1 - LEVEL, POWER) * error <= drift.margin


def _begin(drift: Drift, rng: np.random.Generator) -> Outcomes:
    shape = (2, drift.examples)
    return (rng.random(shape) < RIGHT).astype(float) if drift.binary else rng.normal(-3.0, 0.5, shape)


def _retrained(drift: Drift, before: Outcomes, lost: float, rng: np.random.Generator) -> Outcomes:
    """Change 2 % of the answers either way, or move blocks by 0.05 nats; and lose `drift.loss` more than was lost."""
    if not drift.binary:
        return before - drift.loss + rng.normal(0, 0.05, before.shape)
    right = RIGHT - lost
    falls, rises = (0.02 + drift.loss) / right, 0.02 / (1 - right)
    chance = rng.random(before.shape)
    return np.where(before == 1, (chance >= falls).astype(float), (chance < rises).astype(float))


# --- with real weights ---------------------------------------------------------------------------------

RECIPE = "sentiment"
SUITE = "constitution"
MARGIN = 0.03
ROUNDS = 5
ROWS = 160
"""Rows that each retrain sees; all of them together are the training split's."""
VALIDATION_ROWS = 60


def _real() -> Iterator[Figure]:
    """Train MiniLM on and on, and judge every model from the first base and from the model before."""
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as name:
        lineage = _prepared(Path(name))
        (suite,) = read_suites(lineage.paths.report_half, [SUITE])
        groups = suite.examples["group"].tolist()
        outcomes = [lineage.first().outcomes(suite)]
        for number in range(1, ROUNDS + 1):
            outcomes.append(Subject(lineage.retrain(number), lineage.settings).outcomes(suite))
            for against, before in (("first base", outcomes[0]), ("model before", outcomes[-2])):
                loss = paired_loss(before, outcomes[-1], groups)
                passed = "PASS" if loss.p_not_below(MARGIN) <= LEVEL else "no PASS"
                yield Figure(
                    f"MiniLM, retrain {number}, {SUITE}: lost from the {against} ({passed} at {MARGIN:g})",
                    loss.mean,
                    suite.info.metric,
                    len(suite.examples),
                    interval=(loss.lower(1 - LEVEL), loss.upper(1 - LEVEL)),
                )


@dataclass
class _Lineage:
    """A model that is trained on and on, and where it came from."""

    paths: Paths
    folder: Path
    """Where the next training starts."""

    def __post_init__(self) -> None:
        self.recipe = load_recipe(recipe_path(self.paths.root, RECIPE))
        self.settings = self.recipe.evaluate
        self.schema, self.tables = read_splits(self.paths)
        self.kind = family(self.schema.task)
        self.tables["validation"] = first_by_hash(self.tables["validation"], VALIDATION_ROWS, 7)

    def first(self) -> Subject:
        """Return what forgetting is measured from."""
        base = reports.read_report(self.paths.base, reports.Base)
        start = self.kind.load_base(self.folder, "cpu")
        return reference(base, self.schema.task, start, self.settings, self.paths.root)

    def retrain(self, number: int) -> Model:
        """Train the newest model on the next rows, and begin there the next time."""
        rows, validation = self._rows(number), self.tables["validation"]
        values = self.recipe.finetune.model_dump(mode="json") | {"epochs": 1, "method": "full"}
        section = type(self.recipe.finetune).model_validate(values)
        torch.manual_seed(number)
        model = self.kind.begin(self.folder, section, self.schema.labels, rows, validation, "cpu")
        with tempfile.TemporaryDirectory() as scratch:
            train_model(model, section, rows, validation, Path(scratch))
        self.folder = self.paths.root / f"model-{number}"
        model.save(self.folder)
        for name in TUNED_FILES:
            (self.folder / name).unlink(missing_ok=True)
        return model

    def _rows(self, number: int) -> pd.DataFrame:
        start = (number - 1) * ROWS
        return self.tables["train"].iloc[start : start + ROWS].reset_index(drop=True)


def _prepared(folder: Path) -> _Lineage:
    path = recipe_path(folder, RECIPE)
    path.parent.mkdir()
    shutil.copy(recipe_path(ROOT, RECIPE), path)
    paths = Paths(folder, RECIPE)
    fetch_raw(load_recipe(path), paths)
    run_stage("prepare", RECIPE, folder)
    base = reports.read_report(paths.base, reports.Base)
    return _Lineage(paths, base_folder(base, folder))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
