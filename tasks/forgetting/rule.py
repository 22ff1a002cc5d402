"""The release rule: paired one-sided non-inferiority tests, one a suite, joined by intersection-union.

A release claims that *every* suite lost less than its margin, so each suite must show it at the full level
(Berger 1982, Multiparameter hypothesis testing and acceptance sampling); Holm corrects the claims of a FAIL.

- Binary outcomes: Tango's score test (Tango 1998, Equivalence test and confidence interval for the difference in
  proportions for the paired-sample design).
- Everything else: the mean paired loss over groups, studentised, with Hall's correction for skewness (Hall 1992, On
  the removal of skewness by transformation). Ranks lose rarely and then much; the plain t test passes those
  models up to 15 % of the time at the margin.
- Binary outcomes in groups must pass both: the score test at the number of independent examples that the groups are
  worth (the design effect: Rao and Scott 1992, A simple method for the analysis of clustered binary data), and the
  t test. Spread between groups is that of the jackknife, which does not flatter few or unlike groups (CR3: Bell and
  McCaffrey 2002), with as many degrees of freedom as there are groups of equal size worth as much.
- None may claim more than a sample of this size can show of an event that it never saw: as long as total losses
  that make up the margin would stay unseen with a chance above α, nothing is settled (the «rule of three»). Without
  it five examples that all agree would pass. What is lost may be lost by the group, so groups are what counts here.

Measured, not believed: `make bench-rule` prints false PASS and power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Outcomes = NDArray[np.float64]

CALIBRATION = 0.8
"""Share of α that the approximate tests are held to: their false PASS is up to a fifth above it (`make bench-rule`)."""
FEW = 8
"""What the skewness correction costs on few groups: the t test is held to so much less, (1 - FEW / groups)·α."""
FULL_ATTEMPTS = 4
"""Attempts on one report half that are judged at the whole level."""
FEWEST_RANKED = 100
"""Pairs below which a rank correlation passes too often what lost its margin, whatever the margin (`make bench-rule`)."""
MOST_EXAMPLES = 1_000_000
"""A set that would have to be larger settles nothing."""


@dataclass(frozen=True)
class PairedLoss:
    """The paired losses of one suite: base minus candidate, an example each; positive is forgotten.

    `by_group` has one value a group, `(groups,)`, whose mean is the mean loss over examples and whose spread is
    that of the groups (linearised, so that groups may differ in size).
    """

    values: Outcomes
    by_group: Outcomes
    sizes: Outcomes
    """Examples of each group, `(groups,)`."""
    binary: bool
    whole_groups: bool = True
    """Whether a group may be lost whole, as one document of a benchmark: then groups are what a sample must have seen."""

    @property
    def mean(self) -> float:
        """Mean loss, in the metric's unit."""
        return float(self.values.mean())

    @property
    def groups(self) -> int:
        """Number of independent units."""
        return len(self.by_group)

    @property
    def clustered(self) -> bool:
        """Whether a group has more than one example."""
        return self.groups < len(self.values)

    @property
    def equal_groups(self) -> float:
        """How many groups of one size are worth as much as these: all of them, or fewer where sizes differ."""
        return equal_groups(self.sizes)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss, groups left out in turn; 0 when nothing differs or there is one group."""
        if self.groups < 2:
            return 0.0
        examples = len(self.values)
        excess = (self.by_group - self.mean) * examples / self.groups
        left_out = excess / (examples - self.sizes)
        return math.sqrt((self.groups - 1) / self.groups * float((left_out**2).sum()))

    @property
    def effective_examples(self) -> float:
        """How many independent examples are worth as much: between the number of groups and that of examples.

        Examples of one group tell less than independent ones, by the design effect (Kish 1965, Survey sampling);
        where nothing differs it cannot be known, and each group counts as one.
        """
        examples = len(self.values)
        independent = float(self.values.var(ddof=1)) / examples if examples > 1 else 0.0
        if independent <= 1e-12 or not self.clustered:
            return self.equal_groups
        worth = examples * independent / max(self.standard_error**2, 1e-12)
        return float(min(max(worth, self.equal_groups), examples))

    @property
    def units_seen(self) -> float:
        """How many independent units have been seen, whose losses could have shown."""
        return self.equal_groups if self.whole_groups else self.effective_examples

    @property
    def test(self) -> str:
        """Which test judges it."""
        if not self.binary:
            return "t"
        return "score and t" if self.clustered else "score"

    def upper(self, confidence: float) -> float:
        """Return the one-sided upper bound of the mean loss."""
        level = 1 - confidence
        return self._bound(lambda loss: self.p_not_below(loss) - level)

    def lower(self, confidence: float) -> float:
        """Return the one-sided lower bound of the mean loss."""
        return -self.reversed().upper(confidence)

    def p_not_below(self, margin: float) -> float:
        """Return the p value of «the mean loss is at least `margin`»: small speaks for less."""
        p = self._p_of_score(margin) / CALIBRATION if self.binary else 0.0
        if self.clustered or not self.binary:
            few = max(1 - FEW / self.equal_groups, 0.25)
            p = max(p, self._p_of_t(margin) / (CALIBRATION * few))
        return float(max(min(p, 1.0), self._p_of_none(margin)))

    def p_not_above(self, margin: float) -> float:
        """Return the p value of «the mean loss is at most `margin`»: small speaks for more."""
        return self.reversed().p_not_below(-margin)

    def reversed(self) -> PairedLoss:
        """Return the same with base and candidate exchanged."""
        return replace(self, values=-self.values, by_group=-self.by_group)

    def _bound(self, excess: Callable[[float], float]) -> float:
        # The p value falls as the loss under test rises, from above the level at -most to 0 at most.
        most = 1.0 if self.binary else max(1.0, float(np.abs(self.values).max()))
        if excess(most) > 0:
            return most
        if excess(-most) < 0:
            return -most
        return float(optimize.brentq(excess, -most, most, xtol=1e-9))

    def _p_of_none(self, margin: float) -> float:
        """Return the chance that a sample of this size shows none of the total losses that would make up the margin.

        At the least it is the chance that all examples lean one way although none prefers it (the sign test).
        """
        unseen = min(max(margin - min(self.mean, 0.0), 0.0), 0.5)
        return float((1 - unseen) ** self.units_seen)

    def _p_of_score(self, loss: float) -> float:
        """Return the p value of Tango's test of «the mean loss is at least `loss`»."""
        score = self._score(loss)
        return float(stats.t.cdf(score, df=self._freedom) if self.clustered else stats.norm.cdf(score))

    @property
    def _freedom(self) -> float:
        return max(self.equal_groups - 1, 1.0)

    def _score(self, loss: float) -> float:
        """Return Tango's score statistic of «the mean loss is `loss`», for as many independent examples."""
        n = self.effective_examples
        worth = n / len(self.values)
        lost, won = (float((side > 0).sum()) * worth for side in (self.values, -self.values))
        share_won = _share_won(lost, won, n, loss)
        variance = n * (2 * share_won + loss * (1 - loss))
        distance = lost - won - n * loss
        if variance <= 1e-12:
            return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)

    def _p_of_t(self, loss: float) -> float:
        """Return the p value of the skewness-corrected t statistic of «the mean loss is at least `loss`»."""
        if self.groups < 2:
            return 1.0  # how far groups differ cannot be known
        error = self.standard_error
        if error <= 1e-12:
            return 1.0 if self.mean >= loss else 0.0
        t = (self.mean - loss) / error
        deviations = self.by_group - self.by_group.mean()
        skew = float((deviations**3).mean() / (deviations**2).mean() ** 1.5)
        a = skew / math.sqrt(self.groups)
        corrected = t + a * t**2 / 3 + a**2 * t**3 / 27 + skew / (6 * math.sqrt(self.groups))
        return float(stats.t.cdf(corrected, df=self._freedom))


def _share_won(lost: float, won: float, n: float, loss: float) -> float:
    """Return the likeliest share of examples that were won where the mean loss is `loss`."""
    b = -lost - won + (2 * n - lost + won) * loss
    root = math.sqrt(max(b * b + 8 * n * won * loss * (1 - loss), 0.0))
    return max((root - b) / (4 * n), 0.0)


def paired_loss(
    base: ArrayLike, candidate: ArrayLike, groups: Sequence[str], *, whole_groups: bool = True
) -> PairedLoss:
    """Pair the outcomes of base and candidate over the same examples, in the same order.

    `whole_groups`: whether a group may be lost whole (a document of a benchmark), or its examples fail one by one (the
    task's own test rows, whose groups only make them alike).

    Raises:
        ValueError: there are none, they are not of one length, or one is not finite.
    """
    before, after = np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if not len(before) or len(before) != len(after) or len(before) != len(groups):
        raise ValueError(f"{len(before)} base, {len(after)} candidate outcomes, {len(groups)} groups")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("an outcome is not finite")
    values = before - after
    names, place, sizes = np.unique(
        np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    excess = np.bincount(place, weights=values - values.mean(), minlength=len(names))
    by_group = values.mean() + excess * len(names) / len(values)
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    return PairedLoss(values, by_group, sizes.astype(np.float64), binary, whole_groups)


def equal_groups(sizes: ArrayLike) -> float:
    """Return how many groups of one size are worth as much as groups of these sizes (Kish 1965, Survey sampling)."""
    counts = np.asarray(sizes, dtype=np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def examples_needed(loss: PairedLoss, margin: float, confidence: float, power: float) -> int | None:
    """Return how many examples a model that lost nothing needs to pass with `power`; None: too many to be had.

    The spread is taken at its own upper bound (at one half of α), so that the promise holds for a sample that saw
    little of it; the design effect of groups a standard error above what was seen.
    """
    level = 1 - confidence
    squares = paired_loss(
        loss.values**2, np.zeros_like(loss.values), [str(row) for row in range(len(loss.values))]
    )
    spread = min(squares.upper(1 - level / 2), max(1.0, float(np.abs(loss.values).max()) ** 2))
    design = len(loss.values) / loss.effective_examples
    if loss.clustered:
        design *= 1 + math.sqrt(2 / loss.equal_groups)
    z = errors_to_margin(confidence, power)
    by_spread = spread * design * (z / margin) ** 2
    by_floor = fewest_examples(margin, confidence) * len(loss.values) / loss.units_seen
    needed = math.ceil(max(by_spread, by_floor))
    return needed if needed <= MOST_EXAMPLES else None


def level_at(level: float, attempt: int) -> float:
    """Return the level at which the k-th attempt on a report half is judged: from the fifth on, (4/k)² of the whole.

    So that looks at one half add up to a bound, however many there are: weekly ones for a year stay below 5 % in
    `make bench-ledger`.
    """
    return level * min(1.0, (FULL_ATTEMPTS / attempt) ** 2)


def level_spent(level: float, attempts: int) -> float:
    """Return a bound of the chance that one of so many candidates which lost the whole margin would have passed."""
    return min(sum(level_at(level, attempt) for attempt in range(1, attempts + 1)), 1.0)


def errors_to_margin(confidence: float, power: float) -> float:
    """Return how many standard errors below the margin a loss must lie to pass with `power`: z_α + z_β."""
    return _z(confidence) + float(stats.norm.ppf(power))


def errors_to_confirm(confidence: float, power: float) -> float:
    """Return how many standard errors below the margin a loss seen on one half must lie, that the other half passes it.

    z_α + √2·z_β: that half asks for z_α, and the two err about each other by √2 as much as each about the truth.
    """
    return _z(confidence) + math.sqrt(2) * float(stats.norm.ppf(power))


def _z(confidence: float) -> float:
    return float(stats.norm.isf((1 - confidence) * CALIBRATION))


def fewest_examples(margin: float, confidence: float, *, ranked: bool = False) -> int:
    """Return the number of independent examples below which the rule cannot pass a model that lost nothing.

    `ranked`: the metric is a rank correlation, whose test does not hold its level on few pairs.
    """
    unseen = math.ceil(math.log(1 - confidence) / math.log(1 - margin))
    z = _z(confidence)
    return max(unseen, math.ceil(z**2 * (1 - margin) / margin), FEWEST_RANKED if ranked else 0)


def examples_for_changes(margin: float, confidence: float, power: float, changed: float) -> int:
    """Return how many independent right-or-wrong examples pass a model that lost nothing, with `power`.

    `changed`: the share of answers that it changes, as many for the better as for the worse. The score test takes the
    spread that there would be at the margin, which is wider than what is seen (Tango 1998).
    """
    share_won = _share_won(lost=changed / 2, won=changed / 2, n=1.0, loss=margin)
    at_the_margin = math.sqrt(2 * share_won + margin * (1 - margin))
    passing = _z(confidence) * at_the_margin + float(stats.norm.ppf(power)) * math.sqrt(changed)
    return math.ceil((passing / margin) ** 2)


def examples_for_spread(margin: float, confidence: float, power: float, spread: float) -> int:
    """Return how many independent examples pass a model that lost nothing, with `power`.

    `spread`: the standard deviation of the paired losses. The t test asks for more where there are few.
    """

    def asked(examples: int) -> int:
        level = CALIBRATION * (1 - confidence) * max(1 - FEW / examples, 0.25)
        errors = stats.t.isf([level, 1 - power], df=max(examples - 1, 1)).sum()
        return math.ceil((spread * float(errors) / margin) ** 2)

    needed = math.ceil((spread * errors_to_margin(confidence, power) / margin) ** 2)
    while asked(needed) > needed:
        needed += 1
    return needed


def smallest_margin(examples: int, confidence: float) -> float:
    """Return the margin below which so many examples cannot pass a model that lost nothing."""
    z = _z(confidence)
    return max(1 - (1 - confidence) ** (1 / examples), z**2 / (examples + z**2))


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Say which hypotheses are rejected with a family-wise error of at most `level` (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
