"""Estimate, without its labels, how accurate a model of this training set would be elsewhere.

Three things are measured, and the loss of accuracy is made of them:

- *transport*: how much farther the probe's probabilities on the target are from labels with the shares of home than its
  probabilities at home are (after Lu et al. 2023). It sees that the target is far, and not whether that harms.
- *loss on held-out regions*: the training rows, less the means of their labels, are clustered; a probe is fitted
  without one cluster, and what it loses there is measured, with labels. It tells how much this training set suffers
  from a shift at all, and looks at no target. The harmonic mean of the two is small when either is.
- *disagreement*: how much seldomer two probes of disjoint thirds of the training rows agree on the target than on the
  third that is left (after Jiang et al. 2022, who set agreement beside accuracy).

Form and weight were chosen on real pairs, and would have been chosen without any one family of them too: `make
bench-harm`, docs/checks.md. No estimate without labels can be right for every shift (Garg et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.measures.calibration import temperature, tempered
from tasks.measures.labels import ProbeOutcome, fit, folds, log_probabilities
from tasks.measures.rectified import Z, variance_of_mean

DISAGREEMENT_WEIGHT = 0.45
BETWEEN_SHIFTS = 0.06
"""Standard deviation of what the estimate misses from one shift to another, sampling apart."""
DIVISIONS = 2
"""Times that the training rows are divided into thirds."""
TRANSPORT_ROWS = 1_000
"""Rows whose probabilities are transported at most; the cost grows with their cube."""
REGIONS = (2, 4)
CLUSTERINGS = 2
FEWEST_IN_REGION, FEWEST_OUTSIDE = 30, 100

Vectors = NDArray[np.floating]
Weights = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Home:
    """What the training rows tell, whatever the target: made once, by `study`."""

    outcome: ProbeOutcome
    column: NDArray[np.int64]
    """Each row's label as a column of the probe, (rows,)."""
    temperature: float
    """At which the probe's scores at home fit the labels best."""
    groups: Sequence[str]
    pairs: Sequence[tuple[Weights, Weights]]
    """Pairs of probes, of two disjoint thirds of the rows."""
    transported: float
    """Accuracy by transport at home, out of fold."""
    agreement: float
    """Share of the third that is left on which the two say the same; 1 where there are no pairs."""
    region_loss: float | None
    """Mean accuracy lost on a cluster that was held out; None: no cluster is large enough."""
    seed: int = 0

    @property
    def accuracy(self) -> float:
        """Accuracy at home, out of fold."""
        return float(np.mean(self.outcome.scores.argmax(axis=1) == self.column))


@dataclass(frozen=True)
class Expected:
    """The accuracy to expect with its 90 % interval, the accuracy at home, and what the loss is made of."""

    accuracy: float
    interval: tuple[float, float]
    at_home: float
    transport: float
    """Loss by transport alone."""
    disagreement: float
    """Loss by disagreement alone."""
    region_loss: float
    confidence: NDArray[np.float64]
    """Calibrated probability of each target row's predicted label, (rows,)."""


def calibrated(scores: NDArray[np.float64], column: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return probabilities, (rows, classes), at the temperature that fits the labels (as columns) best."""
    return tempered(scores, temperature(scores, column))


def study(
    vectors: Vectors, outcome: ProbeOutcome, labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> Home:
    """Fit probes of thirds of the rows, and measure what is lost on held-out regions.

    `vectors` is (rows, dim), `outcome` the probe of these rows.
    """
    column = np.searchsorted(outcome.classes, labels).astype(np.int64)
    classes = len(outcome.classes)
    found = list(_disjoint_probes(vectors, column, groups, classes, seed))
    agreement = float(np.mean([agreed for _, agreed in found])) if found else 1.0
    losses = list(_region_losses(vectors, column, groups, classes, seed))
    region_loss = float(np.mean(losses)) if losses else None
    some = np.random.default_rng(seed).permutation(len(column))[:TRANSPORT_ROWS]
    heat = temperature(outcome.scores, column)
    transported = transported_accuracy(tempered(outcome.scores, heat)[some], _shares(column, classes))
    pairs = [pair for pair, _ in found]
    return Home(outcome, column, heat, groups, pairs, transported, agreement, region_loss, seed)


def expected_accuracy(home: Home, vectors: Vectors, groups: Sequence[str]) -> Expected:
    """Return the accuracy to expect on target `vectors` (rows, dim).

    The interval adds up what differs from shift to shift, and the sampling of both sides, rows of a group together; on
    the target they are taken to be as much alike as at home.
    """
    scores = home.outcome.scores_of(vectors)
    probabilities = tempered(scores, home.temperature)
    shares = _shares(home.column, scores.shape[1])
    agreement = _agreement(home, vectors)
    transport = home.transported - transported_accuracy(_some(probabilities, home.seed), shares)
    disagreement = home.agreement - float(agreement.mean())
    region_loss = home.region_loss or 0.0
    value = home.accuracy - harmonic_mean(transport, region_loss) - DISAGREEMENT_WEIGHT * disagreement
    value = min(max(value, 0.0), 1.0)
    right = (home.outcome.scores.argmax(axis=1) == home.column).astype(np.float64)
    variance = (
        BETWEEN_SHIFTS**2
        + variance_of_mean(right, home.groups)
        + variance_of_mean(DISAGREEMENT_WEIGHT * agreement, groups)
        + value * (1 - value) * _share_of_a_row(right, home.groups, groups)
    )
    half = Z * float(np.sqrt(variance))
    interval = max(0.0, value - half), min(1.0, value + half)
    confidence = probabilities.max(axis=1)
    return Expected(value, interval, home.accuracy, transport, disagreement, region_loss, confidence)


def _some(probabilities: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return at most as many rows as are transported; of more, some by chance, since files may be sorted by label."""
    if len(probabilities) <= TRANSPORT_ROWS:
        return probabilities
    return probabilities[np.random.default_rng(seed).permutation(len(probabilities))[:TRANSPORT_ROWS]]


def transported_accuracy(probabilities: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Return one less the cost of moving probabilities (rows, classes) to labels of these shares (Lu et al. 2023)."""
    from scipy.optimize import linear_sum_assignment

    wanted = shares * len(probabilities)
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: len(probabilities) - counts.sum()]] += 1
    cost = (1 - probabilities)[:, np.repeat(np.arange(len(shares)), counts)]
    return float(1 - cost[linear_sum_assignment(cost)].mean())


def _share_of_a_row(right: NDArray[np.float64], at_home: Sequence[str], groups: Sequence[str]) -> float:
    """Return one over the number of independent rows that a target's are worth.

    Rows of its groups are taken to be as alike in being `right` as those `at_home` (intraclass correlation, by Kish's
    design effect), or to be one row each group where home has no two rows of a group.
    """
    rows, size = len(right), _rows_beside(at_home)
    alone = right.var() / rows
    likeness = 1.0
    if size > 0 and alone > 0:
        likeness = (variance_of_mean(right, at_home) / alone - 1) / size
    return (1 + _rows_beside(groups) * min(max(likeness, 0.0), 1.0)) / len(groups)


def _rows_beside(groups: Sequence[str]) -> float:
    """Return how many rows of its group stand beside a row, at the mean."""
    counts = np.unique(np.asarray(groups, dtype=object).astype(str), return_counts=True)[1]
    return float(np.sum(counts**2) / counts.sum() - 1)


def _shares(column: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return the share of each class, (classes,)."""
    return np.bincount(column, minlength=classes) / len(column)


def _disjoint_probes(
    vectors: Vectors, column: NDArray[np.int64], groups: Sequence[str], classes: int, seed: int
) -> Iterator[tuple[tuple[Weights, Weights], float]]:
    """Yield pairs of probes of two thirds of the rows, and in which share of the last third both say the same."""
    for repeat in range(DIVISIONS):
        third = folds(groups, seed * DIVISIONS + repeat, 3)
        if any(len(np.unique(column[third == number])) < 2 for number in range(3)):
            continue
        probes = [fit(vectors[third == number], column[third == number], classes) for number in range(3)]
        for left in range(3):
            pair = probes[left - 2], probes[left - 1]
            yield pair, float(_agree(pair, vectors[third == left]).mean())


def _agreement(home: Home, vectors: Vectors) -> NDArray[np.float64]:
    """Return in which share of the pairs of probes both say the same, (rows,)."""
    if not home.pairs:
        return np.ones(len(vectors))
    return np.mean([_agree(pair, vectors) for pair in home.pairs], axis=0)


def _agree(pair: tuple[Weights, Weights], vectors: Vectors) -> NDArray[np.bool_]:
    one, other = (log_probabilities(vectors, *probe).argmax(axis=1) for probe in pair)
    return np.asarray(one == other)


def harmonic_mean(one: float, other: float) -> float:
    """Return the harmonic mean of two losses, of which a gain is none."""
    one, other = max(one, 0.0), max(other, 0.0)
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def _region_losses(
    vectors: Vectors, column: NDArray[np.int64], groups: Sequence[str], classes: int, seed: int
) -> Iterator[float]:
    """Yield what a probe loses on each cluster that it was fitted without, against rows like those it was fitted on."""
    third = folds(groups, seed, 3)
    for region in _regions(vectors, column, seed):
        outside = ~region
        if region.sum() < FEWEST_IN_REGION or outside.sum() < FEWEST_OUTSIDE:
            continue
        seen, like = outside & (third > 0), outside & (third == 0)
        if len(np.unique(column[seen])) < 2 or not like.any():
            continue
        probe = fit(vectors[seen], column[seen], classes)
        right = [
            float(np.mean(log_probabilities(vectors[rows], *probe).argmax(axis=1) == column[rows]))
            for rows in (like, region)
        ]
        yield right[0] - right[1]


def _regions(vectors: Vectors, column: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Yield clusters of the rows less the mean of their label, so that a cluster is no label."""
    from sklearn.cluster import KMeans

    centred = vectors.astype(np.float64)
    for label in np.unique(column):
        centred[column == label] -= centred[column == label].mean(axis=0)
    distinct = len(np.unique(centred, axis=0))
    for repeat in range(CLUSTERINGS):
        for count in (count for count in REGIONS if count <= distinct):
            model = KMeans(count, n_init=1, random_state=seed * CLUSTERINGS + repeat)
            cluster = model.fit_predict(centred)
            yield from (cluster == number for number in range(count))
