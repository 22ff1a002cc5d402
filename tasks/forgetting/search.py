"""The rescue: search the way between base and tuned model for the best that the forgetting budget allows.

Which α are tried is said in `tasks/forgetting/way.py`; here they are made and measured. An α is within the budget when it
leaves room for the report half to confirm it: loss + (z_α + √2·z_β)·SE ≤ margin, with the level and power of the release
rule.

What is measured at an α is kept (`tasks/forgetting/kept.py`), so that a budget that moves costs no measurement twice.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from tasks import reports
from tasks.families.interface import Measured, Model, interpolate
from tasks.forgetting.drift import drift, original_inputs, sample
from tasks.forgetting.measure import Subject, compare, reference
from tasks.forgetting.rule import errors_to_confirm
from tasks.forgetting.slices import flip_slices
from tasks.forgetting.suites import Suite, read_suites
from tasks.forgetting.task_metric import task_measure, task_metric
from tasks.forgetting.way import BASE, LOOKS, TUNED, Point, walk
from tasks.paths import Paths
from tasks.recipe import Decide, Evaluate, Merge, Recipe
from tasks.recipe import Suite as Margin
from tasks.splits import hash_positions
from tasks.training.layers import depths

log = logging.getLogger(__name__)

FLIPS = 10


@dataclass(frozen=True)
class Ends:
    """Where tuning started, and where it came to."""

    start: Model
    tuned: Model

    @classmethod
    def load(cls, kind: type[Model], base: Path, tuned: Path, device: str, precision: str) -> Ends:
        """Load both from the folders of the base and of the tuned model.

        Raises:
            StageError: a folder is damaged.
        """
        return cls(kind.load_start(base, tuned, device, precision), kind.load(tuned, device, precision))


@dataclass
class Search:
    """A search over one tuned model, on the validation split and the selection halves."""

    section: Merge
    settings: Evaluate
    budget: Mapping[str, Margin]
    rule: Decide
    paths: Paths
    base: reports.Base
    ends: Ends
    tables: Mapping[str, pd.DataFrame]
    _mixed: dict[Point, Model] = field(default_factory=dict)
    """The mixture measured last, which often is the one that is kept."""

    @classmethod
    def of_recipe(
        cls,
        recipe: Recipe,
        paths: Paths,
        base: reports.Base,
        ends: Ends,
        tables: Mapping[str, pd.DataFrame],
        *,
        budget: Mapping[str, Margin] | None = None,
    ) -> Search:
        """Search as the recipe says; under another `budget` than its own where one is given."""
        budget = recipe.budget if budget is None else budget
        return cls(recipe.merge, recipe.evaluate, budget, recipe.decide, paths, base, ends, tables)

    def outcomes(self, looks: int = LOOKS) -> list[reports.AlphaOutcome]:
        """Try what the search needs, the two ends and points between them; by path, in the order of α."""
        return walk(self.section, self._measure, self.look, looks)

    def model(self, path: str, alpha: float) -> Model:
        """Return the model at a point, settled on the training rows."""
        point = (path, alpha)
        if alpha == 1:
            return self.ends.tuned
        if point == BASE:
            return self.ends.start
        if point not in self._mixed:
            mixed = interpolate(self.ends.start, self.ends.tuned, alpha, self._scales(path, alpha))
            mixed.settle(self.tables["train"])
            self._mixed = {point: mixed}
        return self._mixed[point]

    def _scales(self, path: str, alpha: float) -> dict[str, float]:
        if path == "wise-ft":
            return {}
        depth = depths(self.ends.tuned.network)
        top = max(depth.values())
        return {name: alpha + (1 - alpha) * place / top for name, place in depth.items()}

    @property
    def metric(self) -> str:
        """The task's metric."""
        return task_metric(self.ends.tuned, self.settings)

    def flips(self) -> list[reports.Flip]:
        """Return selection examples that the tuned model lost: the worst of each suite in turn, of gating ones first."""
        gating, informing = (
            [suite for suite in self._suites if bool(self.budget[suite.name].margin) is gates]
            for gates in (True, False)
        )
        found: list[reports.Flip] = []
        for suites in (gating, informing):
            turns = itertools.zip_longest(*map(self._lost, suites))
            found += [flip for turn in turns for flip in turn if flip is not None]
        order = [suite.name for suite in (*gating, *informing)]
        return sorted(found[:FLIPS], key=lambda flip: order.index(flip.suite))

    def _lost(self, suite: Suite) -> list[reports.Flip]:
        """Return examples of a suite that the tuned model lost: the worst, of equals those whose ids hash first."""
        before, after = self._reference.outcomes(suite), self._tuned_subject.outcomes(suite)
        ids = suite.examples["id"].astype(str)
        places = hash_positions(ids, seed=0, purpose="flips")
        lost = sorted(
            np.flatnonzero(before > after), key=lambda row: (after[row] - before[row], places.iloc[row])
        )
        return [
            reports.Flip(
                suite=suite.name,
                id=ids.iloc[row],
                extract=suite.extract(int(row)),
                picture=suite.picture(int(row)),
                base=float(before[row]),
                candidate=float(after[row]),
            )
            for row in lost[:FLIPS]
        ]

    def slices(self) -> list[reports.FlipSlice]:
        """Return where the tuned model lost and won, by slice of the selection halves."""
        return [
            found
            for suite in self._suites
            for found in flip_slices(
                suite, self._reference.outcomes(suite), self._tuned_subject.outcomes(suite)
            )
        ]

    def drift(self, chosen: Model) -> Iterator[reports.Drift]:
        """Yield how far the tuned model is from where it started, and the chosen one where it is a mixture."""
        task, original = sample(self.tables["validation"]), original_inputs(self._suites)
        yield drift("tuned", self.ends.start, self.ends.tuned, task, original)
        if chosen is not self.ends.tuned and chosen is not self.ends.start:
            yield drift("chosen", self.ends.start, chosen, task, original)

    def _measure(self, point: Point) -> reports.AlphaOutcome:
        """Ask validation and the benchmarks."""
        path, alpha = point
        gained, subject = self.look(point), self._subject(point, self.model(path, alpha))
        # What informs does not steer: it is measured where people look, at the two ends.
        suites = [suite for suite in self._suites if point in (BASE, TUNED) or self.budget[suite.name].margin]
        outcomes = [compare(suite, self._reference, subject) for suite in suites]
        blocked = [outcome.name for outcome in outcomes if point != BASE and not self._leaves_room(outcome)]
        log.info(
            "%s α = %g: %s%s",
            path,
            alpha,
            ", ".join(f"{outcome.name} {outcome.base:.4f} → {outcome.candidate:.4f}" for outcome in outcomes),
            f"; over the budget: {', '.join(blocked)}" if blocked else "",
        )
        return gained.model_copy(
            update={"suites": outcomes, "within_budget": not blocked, "blocked_by": blocked}
        )

    def look(self, point: Point) -> reports.AlphaOutcome:
        """Ask validation alone."""
        path, alpha = point
        found = start = self._start_measured
        if point != BASE:
            found = task_measure(self.model(path, alpha), self.tables["validation"], self.settings)
        log.info("%s α = %g: validation %s %.4f", path, alpha, self.metric, found.score)
        likelier = None
        if found.log_likelihood is not None and start.log_likelihood is not None:
            likelier = found.log_likelihood - start.log_likelihood
        return reports.AlphaOutcome(
            path=path,
            alpha=alpha,
            validation_score=found.score,
            gain=found.score - start.score,
            log_likelihood_gain=likelier,
            suites=[],
            within_budget=None,
            blocked_by=[],
        )

    def _leaves_room(self, outcome: reports.SuiteOutcome) -> bool:
        margin = self.budget[outcome.name].margin
        if margin is None:
            return True
        if outcome.independent < 2:
            return False  # how far examples differ cannot be known of one
        room = errors_to_confirm(self.rule.confidence, self.rule.power)
        return outcome.loss + room * outcome.standard_error <= margin

    def _subject(self, point: Point, model: Model) -> Subject:
        if point == TUNED:
            return self._tuned_subject
        if point == BASE and self.base.first_base.fingerprint == self.base.fingerprint:
            return self._reference
        return Subject(model, self.settings)

    @functools.cached_property
    def _tuned_subject(self) -> Subject:
        return Subject(self.ends.tuned, self.settings)

    @functools.cached_property
    def _reference(self) -> Subject:
        """The first base of the lineage: forgetting is measured from there, not from the release before."""
        return reference(self.base, self.ends.tuned.task, self.ends.start, self.settings, self.paths.root)

    @functools.cached_property
    def _suites(self) -> list[Suite]:
        return read_suites(self.paths.selection, list(self.budget))

    @functools.cached_property
    def _start_measured(self) -> Measured:
        return task_measure(self.ends.start, self.tables["validation"], self.settings)
