"""The rescue under simulation: how often the report half confirms the mixture that the selection half chose.

The tuned model loses more than its margin, or gains most halfway; on the way back to the base the loss falls. `merge`'s
own search takes the α that gains most on validation of those that leave room on the selection half, and the release rule
judges that α on the report half. Beside it: the same search where a loss on the selection half below the margin is
enough, or a plain bound there, or room for what one half errs by, not two; and what a search gains that looks at nothing
below the largest α within the budget.
`make bench-merge` also times the search on the real weights of the last `make demo`, as a share of its training: all by
CPU time, the measuring of its mixtures apart.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import reports
from tasks.families import family
from tasks.forgetting.rule import PairedLoss, errors_to_confirm, errors_to_margin, level_at
from tasks.forgetting.search import Ends, Search
from tasks.forgetting.way import BASE, LOOKS, Point, choose, walk
from tasks.paths import Paths
from tasks.recipe import Merge, Suite, load_recipe, recipe_path
from tasks.sources import base_folder
from tasks.splits import read_splits
from tasks.training.run import train_model
from tests.bench.bench_rule import independent
from tests.bench.figures import ROOT, Figure, publish

REPEATS = 2000
LEVEL, POWER = 0.05, 0.8
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
MARGIN = 0.03
LATE = (8, 16)
"""Attempts at which the rule is stricter than `merge` leaves room for: shown, not promised."""
PLAIN = "ours without a look below"
Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """A tuned model: what it loses at α = 1 on average, how the examples differ, and at which α it gains most."""

    name: str
    binary: bool
    loss: float
    spread: float
    """Standard deviation of the examples' losses in nats, or share of the answers that also turn right."""
    examples: int
    """Of each half."""
    peak: float = 1.0
    """Where the gain is greatest, which is `GAIN` there."""
    noise: float = 0.01
    """Standard deviation by which validation errs about the gain at an α, at each by itself."""


GAIN = 0.05
TUNED = (
    Tuned("nats, a little over the margin", False, 0.04, 0.15, 300),
    Tuned("nats, far over the margin", False, 0.2, 0.15, 300),
    Tuned("accuracy, a little over the margin", True, 0.05, 0.02, 700),
    Tuned("accuracy, far over the margin", True, 0.2, 0.02, 700),
    Tuned("nats, a little over the margin, validation never errs", False, 0.04, 0.15, 300, noise=0.0),
    Tuned("accuracy, a little over the margin, validation never errs", True, 0.05, 0.02, 700, noise=0.0),
    Tuned("nats, a little over the margin, most gain at 0.4", False, 0.04, 0.15, 300, 0.4),
    Tuned("accuracy, a little over the margin, most gain at 0.4", True, 0.05, 0.02, 700, 0.4),
    Tuned("accuracy, within the margin, most gain at 0.6", True, 0.01, 0.005, 700, 0.6),
)
ROOMS: dict[str, float] = {
    "ours": errors_to_confirm(1 - LEVEL, POWER),
    "room for the error of one half": errors_to_margin(1 - LEVEL, POWER),
    "bound below the margin": 1.645,
    "loss below the margin": 0.0,
}


def main() -> None:
    """Simulate, time the last demo's search, print and write."""
    figures = [figure for tuned in TUNED for figure in _simulated(tuned)]
    publish("merge", [*figures, *_timed(Paths(ROOT, RECIPE))], ["numpy", "scipy", "torch", "transformers"])


def _simulated(tuned: Tuned) -> Iterator[Figure]:
    searches = {rule: (room, LOOKS) for rule, room in ROOMS.items()} | {PLAIN: (ROOMS["ours"], 0)}
    gains = {}
    for rule, (room, looks) in searches.items():
        rng = np.random.default_rng(9)
        p_values, alphas = [], []
        for _ in range(REPEATS):
            selection, report = _example_thresholds(tuned, rng), _example_thresholds(tuned, rng)
            noise = tuned.noise * rng.standard_normal(len(ALPHAS))
            alphas.append(_chosen(tuned, selection, noise, room, looks))
            if alphas[-1]:
                p_values.append(_loss(tuned, report, alphas[-1]).p_not_below(MARGIN))
        gains[rule] = float(np.mean([_gain(tuned, alpha) for alpha in alphas]))
        passed = [p <= LEVEL for p in p_values]
        yield _confirmed(tuned, rule, passed, [alpha for alpha in alphas if alpha])
        for attempt in LATE if rule == "ours" else ():
            late = float(np.mean([p <= level_at(LEVEL, attempt) for p in p_values]))
            label = f"{tuned.name}: the report half confirms the choice, ours, at attempt {attempt}"
            yield Figure(label, late, "share", tuned.examples, len(p_values))
    for rule in ("ours", PLAIN):
        label = f"{tuned.name}: true gain of the choice, {rule}"
        yield Figure(label, gains[rule], "accuracy", tuned.examples, REPEATS)


def _confirmed(tuned: Tuned, rule: str, passed: list[bool], alphas: list[float]) -> Figure:
    share = float(np.mean(passed)) if passed else float("nan")
    error = 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / max(len(passed), 1))
    ours = rule == "ours"
    return Figure(
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


def _gain(tuned: Tuned, alpha: float) -> float:
    """Return the true gain at α: a parabola through 0 at the base."""
    return GAIN * (1 - (1 - alpha / tuned.peak) ** 2)


def _chosen(tuned: Tuned, drawn: Draws, noise: Draws, room: float, looks: int) -> float:
    """Search as `merge` does; 0 when nothing leaves the room, or validation shows no gain."""

    def look(point: Point) -> reports.AlphaOutcome:
        alpha = point[1]
        gain = _gain(tuned, alpha) + float(noise[ALPHAS.index(alpha)]) if alpha else 0.0
        return reports.AlphaOutcome(
            alpha=alpha, validation_score=gain, gain=gain, suites=[], within_budget=None, blocked_by=[]
        )

    def measure(point: Point) -> reports.AlphaOutcome:
        loss = _loss(tuned, drawn, point[1])
        fits = point == BASE or loss.mean + room * loss.standard_error <= MARGIN
        return look(point).model_copy(update={"within_budget": bool(fits)})

    return choose(walk(Merge(alphas=ALPHAS), measure, look, looks)).alpha


# --- what the search costs -----------------------------------------------------------------------------

RECIPE = "sentiment"
ROWS = 160
"""Of the training split, from which it is worked out what all of them take."""
ALL_FITS = "everything fits: a look below the tuned model"
BUDGETS = {ALL_FITS: 0.99, "nothing fits: bisection down to the base": 1e-6}
"""What each gating benchmark may lose: the two ends of what a search can cost."""


def _timed(paths: Paths) -> Iterator[Figure]:
    """Search the last demo's tuned model twice under each budget; the second time everything is measured already."""
    if not paths.tuned.is_dir():
        print("no tuned model of sentiment here: `make demo` first")
        return
    demo = _Demo(paths)
    training = demo.training_seconds()
    with tempfile.TemporaryDirectory() as empty:  # the demo has left what it measured in the machine's store
        os.environ["RETAIN_HOME"] = empty
        yield from _searched(demo, training)


def _searched(demo: _Demo, training: float) -> Iterator[Figure]:
    ends = demo.search_seconds(BUDGETS[ALL_FITS], looks=0)
    yield Figure(
        f"{RECIPE}: the evaluation of base and tuned model / the training", ends / training, "share", 1
    )
    for budget, margin in BUDGETS.items():
        first, again = demo.search_seconds(margin), demo.search_seconds(margin)
        label = f"{RECIPE}, {budget}"
        yield Figure(
            f"{label}: CPU time of the search / of the training, its mixtures' evaluation apart",
            again / training,
            "share",
            1,
            goal="< 0.05",
            met=again / training < 0.05,
        )
        yield Figure(
            f"{label}: the mixtures' evaluation / the training", (first - again) / training, "share", 1
        )


class _Demo:
    """The demo's last run: its splits, and both ends of the way."""

    def __init__(self, paths: Paths) -> None:
        self.paths, self.recipe = paths, load_recipe(recipe_path(paths.root, RECIPE))
        self.base = reports.read_report(paths.base, reports.Base)
        self.schema, self.tables = read_splits(paths)
        self.kind, self.folder = family(self.schema.task), base_folder(self.base, paths.root)
        self.ends = Ends.load(self.kind, self.folder, paths.tuned, "cpu", self.recipe.evaluate.precision)

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

    def search_seconds(self, margin: float, looks: int = LOOKS) -> float:
        """Search under a budget of this margin for every gating benchmark."""
        own = self.recipe.budget.items()
        budget = {name: Suite(margin=margin) if suite.margin else suite for name, suite in own}
        started = time.process_time()
        search = Search.of_recipe(self.recipe, self.paths, self.base, self.ends, self.tables, budget=budget)
        chosen = choose(search.outcomes(looks))
        search.model(chosen.path, chosen.alpha)
        return time.process_time() - started


if __name__ == "__main__":
    main()
