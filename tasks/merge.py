"""merge: how much of the tuning to keep. The most gain between base and tuned that the forgetting budget allows.

Reads the validation split, the *selection* halves, base and tuned model; writes `chosen/` (a model folder) and
`merge.json` with what every α that was tried gained and lost. Alone: `python -m tasks merge <recipe>`.

α = 0 is where tuning started (the frozen base, with a linear probe where it classifies), α = 1 the tuned model, and
between them every weight is interpolated (Wortsman et al. 2022, Robust fine-tuning of zero-shot models). Losses rise
with α as good as always, so the largest α within the budget is found by bisection. An α is within the budget when it
leaves room for the report half to confirm it: loss + (z_α + z_β)·SE ≤ margin, with the level and power of the release
rule.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks import reports
from tasks.device import hold_device
from tasks.families import family
from tasks.families.interface import Measured, Model, interpolate
from tasks.files import folder_fingerprint
from tasks.forgetting.measure import Subject, compare, reference
from tasks.forgetting.rule import errors_to_margin
from tasks.forgetting.suites import Suite, read_suites
from tasks.models import pick_device
from tasks.paths import Paths
from tasks.recipe import Decide, Evaluate, Merge
from tasks.recipe import Suite as Margin
from tasks.sources import base_folder
from tasks.splits import read_splits

log = logging.getLogger(__name__)

FLIPS = 10


def merge(
    section: Merge, settings: Evaluate, budget: Mapping[str, Margin], rule: Decide, *, paths: Paths
) -> None:
    """Choose α on the selection halves and write the chosen model; at worst it is the base, and that is said.

    Raises:
        StageError: a model or a benchmark cannot be read.
    """
    base = reports.read_report(paths.base, reports.Base)
    device = pick_device()
    with hold_device(device):
        schema, tables = read_splits(paths)
        kind = family(schema.task)
        search = _Search(section, settings, budget, rule, paths, base, device, kind, tables)
        outcomes = search.outcomes()
        chosen = _choose(outcomes)
        flips = search.flips()
        log.info("chosen: α = %g, %+.4f on validation", chosen.alpha, chosen.gain)
        search.model(chosen.alpha).save(paths.chosen)
    whole = next(outcome for outcome in outcomes if outcome.alpha == 1)
    report = reports.MergeReport(
        metric=search.metric,
        alpha=chosen.alpha,
        rescued=not whole.within_budget and chosen.alpha > 0,
        outcomes=outcomes,
        flips=flips,
        model=folder_fingerprint(paths.chosen),
    )
    reports.write_report(paths.merge, report)


def _choose(outcomes: list[reports.AlphaOutcome]) -> reports.AlphaOutcome:
    """Return the outcome with the greatest gain within the budget; of equals, the one nearest to the base."""
    allowed = [outcome for outcome in outcomes if outcome.within_budget]
    return max(allowed, key=lambda outcome: (outcome.gain, -outcome.alpha))


@dataclass
class _Search:
    section: Merge
    settings: Evaluate
    budget: Mapping[str, Margin]
    rule: Decide
    paths: Paths
    base: reports.Base
    device: str
    kind: type[Model]
    tables: Mapping[str, pd.DataFrame]
    _between: tuple[float, Model] | None = None
    """The mixture measured last, which often is the one that is kept."""

    def outcomes(self) -> list[reports.AlphaOutcome]:
        """Measure the ends, and between them what bisection needs; in the order of α."""
        alphas = self.section.alphas
        found = {alpha: self._measure(alpha) for alpha in (0.0, 1.0)}
        low, high = 0, len(alphas) - 1
        while not found[1.0].within_budget and high - low > 1:
            middle = (low + high) // 2
            found[alphas[middle]] = self._measure(alphas[middle])
            low, high = (middle, high) if found[alphas[middle]].within_budget else (low, middle)
        return [found[alpha] for alpha in sorted(found)]

    def model(self, alpha: float) -> Model:
        """Return the model at α, settled on the training rows."""
        if alpha in (0.0, 1.0):
            return self._start if alpha == 0 else self._tuned
        if self._between is None or self._between[0] != alpha:
            mixed = interpolate(self._start, self._tuned, alpha)
            mixed.settle(self.tables["train"])
            self._between = (alpha, mixed)
        return self._between[1]

    @property
    def metric(self) -> str:
        """The task's metric."""
        return self._tuned.metric

    def flips(self) -> list[reports.Flip]:
        """Return the selection examples that the tuned model lost most."""
        found = []
        for suite in self._suites:
            before, after = self._reference.outcomes(suite), self._tuned_subject.outcomes(suite)
            for row in np.flatnonzero(before > after):
                found.append(
                    reports.Flip(
                        suite=suite.name,
                        id=str(suite.examples["id"].iloc[row]),
                        extract=suite.extract(int(row)),
                        base=float(before[row]),
                        candidate=float(after[row]),
                    )
                )
        return sorted(found, key=lambda flip: (flip.candidate - flip.base, flip.suite, flip.id))[:FLIPS]

    def _measure(self, alpha: float) -> reports.AlphaOutcome:
        model = self.model(alpha)
        score = (self._start_measured if alpha == 0 else model.measure(self.tables["validation"])).score
        subject = self._subject(alpha, model)
        # What informs does not steer: it is measured where people look, at the two ends.
        suites = [suite for suite in self._suites if alpha in (0.0, 1.0) or self.budget[suite.name].margin]
        outcomes = [compare(suite, self._reference, subject) for suite in suites]
        blocked = [outcome.name for outcome in outcomes if alpha > 0 and not self._leaves_room(outcome)]
        log.info(
            "α = %g: validation %s %.4f; %s%s",
            alpha,
            self.metric,
            score,
            ", ".join(f"{outcome.name} {outcome.base:.4f} → {outcome.candidate:.4f}" for outcome in outcomes),
            f"; over the budget: {', '.join(blocked)}" if blocked else "",
        )
        return reports.AlphaOutcome(
            alpha=alpha,
            validation_score=score,
            gain=score - self._start_measured.score,
            suites=outcomes,
            within_budget=not blocked,
            blocked_by=blocked,
        )

    def _leaves_room(self, outcome: reports.SuiteOutcome) -> bool:
        margin = self.budget[outcome.name].margin
        if margin is None:
            return True
        room = errors_to_margin(self.rule.confidence, self.rule.power)
        return outcome.loss + room * outcome.standard_error <= margin

    def _subject(self, alpha: float, model: Model) -> Subject:
        if alpha == 1:
            return self._tuned_subject
        if alpha == 0 and self.base.first_base.fingerprint == self.base.fingerprint:
            return self._reference
        return Subject(model, self.settings)

    @functools.cached_property
    def _start(self) -> Model:
        folder, precision = base_folder(self.base, self.paths.root), self.settings.precision
        return self.kind.load_start(folder, self.paths.tuned, self.device, precision)

    @functools.cached_property
    def _tuned(self) -> Model:
        return self.kind.load(self.paths.tuned, self.device, self.settings.precision)

    @functools.cached_property
    def _tuned_subject(self) -> Subject:
        return Subject(self._tuned, self.settings)

    @functools.cached_property
    def _reference(self) -> Subject:
        """The first base of the lineage: forgetting is measured from there, not from the release before."""
        return reference(self.base, self.kind.task, self._start, self.settings, self.paths.root)

    @functools.cached_property
    def _suites(self) -> list[Suite]:
        return read_suites(self.paths.selection, list(self.budget))

    @functools.cached_property
    def _start_measured(self) -> Measured:
        return self._start.measure(self.tables["validation"])
