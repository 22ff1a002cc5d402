"""Estimates of accuracy without labels, as published: what `tasks/measures/harm.py` is set beside.

Each takes what a probe says at home, out of fold, and on the target, and returns the accuracy to expect on the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.measures import labels
from tasks.measures.harm import transported_accuracy

Rows = NDArray[np.float64]
RATIO_LIMIT = 4.0
"""Of the logarithm of a density ratio: beyond, a weight says more of the classifier than of the row."""


@dataclass(frozen=True)
class Evidence:
    """What may be known without the target's labels: (rows, dim) vectors and calibrated (rows, classes) probabilities."""

    home_vectors: NDArray[np.float32]
    target_vectors: NDArray[np.float32]
    column: NDArray[np.int64]
    home: Rows
    target: Rows
    seed: int

    @property
    def at_home(self) -> float:
        """Accuracy at home, out of fold."""
        return float(np.mean(self.home.argmax(axis=1) == self.column))


def same_as_at_home(given: Evidence) -> float:
    """Expect no loss."""
    return given.at_home


def average_confidence(given: Evidence) -> float:
    """Hendrycks & Gimpel 2017, after temperature scaling (Guo et al. 2017)."""
    return float(given.target.max(axis=1).mean())


def difference_of_confidences(given: Evidence) -> float:
    """Guillory et al. 2021: accuracy falls as much as confidence does."""
    return given.at_home - float(given.home.max(axis=1).mean() - given.target.max(axis=1).mean())


def thresholded_confidence(given: Evidence) -> float:
    """Garg et al. 2022: the share of the target above the confidence that as many home rows exceed as are right."""
    threshold = np.quantile(given.home.max(axis=1), 1 - given.at_home)
    return float(np.mean(given.target.max(axis=1) > threshold))


def optimal_transport(given: Evidence) -> float:
    """Lu et al. 2023 (COT): the cost of moving the probabilities to labels that have the shares of home."""
    shares = np.bincount(given.column, minlength=given.target.shape[1]) / len(given.column)
    return transported_accuracy(given.target, shares)


def label_shift_corrected(given: Evidence) -> float:
    """Saerens et al. 2002: confidence after the shares of the labels were estimated by expectation-maximisation."""
    prior = np.clip(given.home.mean(axis=0), 1e-4, None)
    prior, shares = prior / prior.sum(), prior / prior.sum()
    for _ in range(200):
        weighted = given.target * (shares / prior)
        weighted /= weighted.sum(axis=1, keepdims=True)
        shares = weighted.mean(axis=0)
    return float(weighted[np.arange(len(weighted)), given.target.argmax(axis=1)].mean())


def disagreement(given: Evidence) -> float:
    """Jiang et al. 2022 (generalised disagreement): how often two probes of disjoint halves of home agree there."""
    chance = np.random.default_rng(given.seed)
    classes, agreed = given.home.shape[1], []
    for _ in range(3):
        first = chance.permutation(len(given.column)) % 2 == 0
        votes = [
            labels.log_probabilities(
                given.target_vectors,
                *labels.fit(given.home_vectors[half], given.column[half], classes),
            )
            for half in (first, ~first)
            if len(np.unique(given.column[half])) > 1
        ]
        if len(votes) == 2:
            agreed.append(np.mean(votes[0].argmax(axis=1) == votes[1].argmax(axis=1)))
    return float(np.mean(agreed))


def importance_weighting(given: Evidence) -> float:
    """Sugiyama et al. 2007: accuracy at home, rows weighed by how much they look like the target's."""
    both = np.concatenate([given.home_vectors, given.target_vectors])
    side = np.repeat([0, 1], [len(given.home_vectors), len(given.target_vectors)])
    outcome = labels.probe(both, side, [str(row) for row in range(len(both))], given.seed)
    if outcome is None:
        return given.at_home
    ratio = (outcome.scores[:, 1] - outcome.scores[:, 0])[: len(given.column)]
    weights = np.exp(np.clip(ratio, -RATIO_LIMIT, RATIO_LIMIT))
    return float(np.average(given.home.argmax(axis=1) == given.column, weights=weights))


METHODS: dict[str, Callable[[Evidence], float]] = {
    "same as at home": same_as_at_home,
    "calibrated confidence": average_confidence,
    "difference of confidences": difference_of_confidences,
    "thresholded confidence": thresholded_confidence,
    "optimal transport": optimal_transport,
    "confidence after label shift": label_shift_corrected,
    "disagreement of halves": disagreement,
    "importance weighting": importance_weighting,
}
