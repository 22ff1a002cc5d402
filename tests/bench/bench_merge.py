"""The rescue under simulation: how often the report half confirms the mixture that the selection half chose.

The tuned model loses more than its margin; on the way back to the base the loss falls. `merge`'s own search looks for the
largest α that leaves room on the selection half, and the release rule judges that α on the report half. Beside it: the
largest α whose loss on the selection half is below the margin, and the one that a plain bound there would take.
`make bench-merge` also times the search on the real weights of the last `make demo`, as a share of its training: both by
CPU time, the measuring of its mixtures apart.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import reports
from tasks.families import family
from tasks.forgetting.rule import PairedLoss, errors_to_margin
from tasks.forgetting.search import Ends, Search, choose
from tasks.paths import Paths
from tasks.recipe import Suite, load_recipe, recipe_path
from tasks.sources import base_folder
from tasks.splits import read_splits
from tasks.training.run import train_model
from tests.bench.bench_rule import independent
from tests.bench.figures import ROOT, Figure, publish

REPEATS = 2000
LEVEL, POWER = 0.05, 0.8
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
MARGIN = 0.03
Draws = NDArray[np.float64]
Errors = Callable[[float], float]


@dataclass(frozen=True)
class Tuned:
    """A tuned model: what it loses at α = 1 on average, and how the examples differ."""

    name: str
    binary: bool
    loss: float
    spread: float
    """Standard deviation of the examples' losses in nats, or share of the answers that also turn right."""
    examples: int
    """Of each half."""


TUNED = (
    Tuned("nats, a little over the margin", False, 0.04, 0.15, 300),
    Tuned("nats, far over the margin", False, 0.2, 0.15, 300),
    Tuned("accuracy, a little over the margin", True, 0.05, 0.02, 700),
    Tuned("accuracy, far over the margin", True, 0.2, 0.02, 700),
)
ROOMS: dict[str, float] = {
    "ours": errors_to_margin(1 - LEVEL, POWER),
    "bound below the margin": 1.645,
    "loss below the margin": 0.0,
}


def main() -> None:
    """Simulate, time the last demo's search, print and write."""
    figures = [figure for tuned in TUNED for figure in _simulated(tuned)]
    publish("merge", [*figures, *_timed(Paths(ROOT, RECIPE))], ["numpy", "scipy", "torch", "transformers"])


def _simulated(tuned: Tuned) -> Iterator[Figure]:
    for rule, room in ROOMS.items():
        rng = np.random.default_rng(9)
        passed, alphas = [], []
        for _ in range(REPEATS):
            selection, report = _example_thresholds(tuned, rng), _example_thresholds(tuned, rng)
            alpha = _largest(tuned, selection, room)
            if alpha:
                alphas.append(alpha)
                passed.append(_loss(tuned, report, alpha).p_not_below(MARGIN) <= LEVEL)
        share = float(np.mean(passed)) if passed else float("nan")
        error = 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / max(len(passed), 1))
        ours = rule == "ours"
        yield Figure(
            f"{tuned.name}: the report half confirms the choice, {rule} (mean α {np.mean(alphas):.2f})",
            share,
            "share",
            tuned.examples,
            len(passed),
            (max(share - error, 0.0), min(share + error, 1.0)),
            f">= {POWER:g}" if ours else None,
            share >= POWER if ours else None,
        )


def _example_thresholds(tuned: Tuned, rng: np.random.Generator) -> Draws:
    """Draw what makes examples differ: a normal deviate each, or the chance at which each answer turns."""
    return rng.random((2, tuned.examples)) if tuned.binary else rng.standard_normal((1, tuned.examples))


def _loss(tuned: Tuned, drawn: Draws, alpha: float) -> PairedLoss:
    """Return the paired losses at α: the mean falls with its square, as curvature has it, the spread with α."""
    mean = tuned.loss * alpha**2
    if not tuned.binary:
        values = mean + tuned.spread * alpha * drawn[0]
    else:  # an answer that turned at a small α stays turned at a larger one
        values = (drawn[0] < mean + tuned.spread * alpha).astype(float)
        values -= (drawn[1] < tuned.spread * alpha).astype(float) * (values == 0)
    return independent(values, tuned.binary)


def _largest(tuned: Tuned, drawn: Draws, room: float) -> float:
    """Bisect as `merge` does; 0 when no α leaves the room."""

    def leaves_room(alpha: float) -> bool:
        loss = _loss(tuned, drawn, alpha)
        return loss.mean + room * loss.standard_error <= MARGIN

    if leaves_room(1.0):
        return 1.0
    low, high = 0, len(ALPHAS) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if leaves_room(ALPHAS[middle]) else (low, middle)
    return ALPHAS[low]


# --- what the search costs -----------------------------------------------------------------------------

RECIPE = "sentiment"
ROWS = 160
"""Of the training split, from which it is worked out what all of them take."""


def _timed(paths: Paths) -> Iterator[Figure]:
    """Search the last demo's tuned model twice, as far as a search can go; the second time everything is measured."""
    if not paths.tuned.is_dir():
        print("no tuned model of sentiment here: `make demo` first")
        return
    demo = _Demo(paths)
    training = demo.training_seconds()
    first, again = demo.search_seconds(), demo.search_seconds()
    yield Figure(
        f"{RECIPE}: CPU time of the search / of the training, its mixtures' evaluation apart",
        again / training,
        "share",
        1,
        goal="< 0.05",
        met=again / training < 0.05,
    )
    yield Figure(f"{RECIPE}: the mixtures' evaluation / the training", (first - again) / training, "share", 1)


class _Demo:
    """The demo's last run: its splits, and both ends of the way."""

    def __init__(self, paths: Paths) -> None:
        self.paths, self.recipe = paths, load_recipe(recipe_path(paths.root, RECIPE))
        self.base = reports.read_report(paths.base, reports.Base)
        self.schema, self.tables = read_splits(paths)
        self.kind, self.folder = family(self.schema.task), base_folder(self.base, paths.root)
        precision = self.recipe.evaluate.precision
        self.ends = Ends(
            self.kind.load_start(self.folder, paths.tuned, "cpu", precision),
            self.kind.load(paths.tuned, "cpu", precision),
        )

    def training_seconds(self) -> float:
        """Train on the first rows for an epoch, and return what all rows and epochs would take."""
        section = self.recipe.finetune.model_copy(update={"epochs": 1})
        share = ROWS / len(self.tables["train"])
        validated = round(share * len(self.tables["validation"]))
        rows, validation = self.tables["train"].iloc[:ROWS], self.tables["validation"].iloc[:validated]
        model = self.kind.begin(self.folder, section, self.schema.labels, rows, validation, "cpu")
        started = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            train_model(model, section, rows, validation, Path(scratch))
        return (time.process_time() - started) / share * self.recipe.finetune.epochs

    def search_seconds(self) -> float:
        """Search under a budget in which nothing fits, so that it bisects down to the base."""
        budget = self.recipe.budget.items()
        strict = {name: Suite(margin=1e-6) if suite.margin else suite for name, suite in budget}
        merge, evaluate, rule = self.recipe.merge, self.recipe.evaluate, self.recipe.decide
        started = time.process_time()
        search = Search(merge, evaluate, strict, rule, self.paths, self.base, self.ends, self.tables)
        chosen = choose(search.outcomes())
        search.model(chosen.path, chosen.alpha)
        return time.process_time() - started


if __name__ == "__main__":
    main()
