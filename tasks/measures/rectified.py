"""Estimate an accuracy from a few labelled rows, and what a model says of many unlabelled ones.

Prediction-powered inference (Angelopoulos et al. 2023; its power tuning: PPI++, 2023): the mean confidence over all
rows, put right by how far confidence is from the truth on the labelled ones. It is unbiased whatever the confidence is
worth, so it may back a refusal, where an estimate without labels may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.forgetting.rule import equal_groups

FEWEST_ROWS = 20
FEWEST_GROUPS = 10
Z = 1.6449
"""Of a two-sided interval of 90 %."""


@dataclass(frozen=True)
class Rectified:
    """The accuracy and its 90 % interval; how many labelled rows the unlabelled ones made of those there are."""

    accuracy: float
    interval: tuple[float, float]
    effective_rows: float


def enough_labelled(groups: Sequence[str]) -> bool:
    """Say whether so many labelled rows (the group of each) can be estimated from."""
    return len(groups) >= FEWEST_ROWS and len(set(groups)) >= FEWEST_GROUPS


def rectified_accuracy(
    confidence: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    right: NDArray[np.bool_],
    groups: Sequence[str],
) -> Rectified:
    """Return the accuracy over all rows, of which those that are `labelled` say whether they are `right`.

    `confidence` is the probability of each row's predicted label, `right` counts only where `labelled`; all are
    (rows,). The interval is Wilson's (1927) at the rows that the variance is worth, rows of a group counted together.

    Raises:
        ValueError: no row is labelled.
    """
    if not labelled.any():
        raise ValueError("No labelled row to put the confidence right by.")
    truth = right[labelled].astype(np.float64)
    known, other = confidence[labelled], confidence[~labelled]
    weight = _weight(truth, known, len(other))
    remainder = truth - weight * known
    value = float(remainder.mean() + weight * (other.mean() if len(other) else 0.0))
    group = np.asarray(groups, dtype=object).astype(str)  # so that a mask selects of it
    variance = variance_of_mean(remainder, group[labelled])
    if weight:
        variance += variance_of_mean(weight * other, group[~labelled])
    value = min(max(value, 0.0), 1.0)
    if variance > 0 and 0 < value < 1:
        worth = value * (1 - value) / variance
    else:  # how alike rows of a group are cannot be seen: a group is one then
        worth = equal_groups(np.unique(group[labelled], return_counts=True)[1])
    worth = min(worth, float(len(labelled)))
    return Rectified(value, _wilson(value, worth), worth)


def _weight(truth: NDArray[np.float64], known: NDArray[np.float64], others: int) -> float:
    """Return how much of the confidence lowers the variance most, 0 to 1; 0 without unlabelled rows."""
    spread = float(known.var(ddof=1)) if len(known) > 1 else 0.0
    if not others or spread <= 0:
        return 0.0
    shared = float(np.cov(truth, known)[0, 1])
    return min(max(shared / (spread * (1 + len(known) / others)), 0.0), 1.0)


def variance_of_mean(values: NDArray[np.float64], groups: Sequence[str] | NDArray[np.str_]) -> float:
    """Return the variance of the mean of values (rows,) that are alike within their groups."""
    unit = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    sums = np.bincount(unit, weights=values - values.mean())
    units = len(sums)
    return float(np.sum(sums**2) / len(values) ** 2 * units / max(units - 1, 1))


def _wilson(share: float, rows: float) -> tuple[float, float]:
    centre = (share + Z * Z / (2 * rows)) / (1 + Z * Z / rows)
    half = Z / (1 + Z * Z / rows) * float(np.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows)))
    return max(0.0, centre - half), min(1.0, centre + half)
