"""Test whether two samples come from one distribution, and say how far apart they are.

Both tests permute whole groups (all snippets of a review move together), because rows of a group are not
exchangeable, and take their p-value from that permutation distribution: it is exact at any size. Both are
linear in the rows. "Different" is not "harmful": see `tasks/measures/harm.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Vectors = NDArray[np.floating]
FOLDS = 5
FREQUENCIES = 256


@dataclass(frozen=True)
class TwoSample:
    """A distance between two samples, its 95 % interval, and the p-value of «they are the same»."""

    value: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Pooled:
    """Two samples as one, and who belongs together."""

    vectors: NDArray[np.float64]
    """Shape (rows, dim), centred."""
    second: NDArray[np.bool_]
    """Whether a row is of the second sample."""
    unit: NDArray[np.int64]
    """Which group a row belongs to, numbered over both samples."""


def pool(
    first: Vectors, second: Vectors, first_groups: Sequence[str], second_groups: Sequence[str]
) -> Pooled:
    """Put two samples of shape (rows, dim) together; groups of the two samples are different groups."""
    vectors = np.concatenate([first, second]).astype(np.float64)
    names = [(0, group) for group in first_groups] + [(1, group) for group in second_groups]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Pooled(
        vectors=vectors - vectors.mean(axis=0),
        second=np.arange(len(vectors)) >= len(first),
        unit=np.array([numbers[name] for name in names], dtype=np.int64),
    )


def classifier_test(pooled: Pooled, permutations: int, seed: int) -> tuple[TwoSample, NDArray[np.float64]]:
    """Return the AUC with which a cross-fitted linear classifier tells the samples apart, and its scores.

    0.5 is chance; a higher score is more like the second sample. A classifier two-sample test (Lopez-Paz &
    Oquab 2017). The classifier is ridge regression, so it is refitted for each of the permutations in one
    solve; folds are of whole groups and do not look at the samples, so the p-value is exact. The interval is
    DeLong's (1988) with Obuchowski's (1997) sums over groups.
    """
    generator = np.random.default_rng(seed)
    units = int(pooled.unit.max()) + 1
    membership = _permuted(pooled, permutations, generator)
    scores = _cross_fitted_scores(pooled, membership, generator.permutation(units) % FOLDS)
    areas = _areas(scores, membership)
    low, high = _delong(scores[:, 0], pooled)
    return TwoSample(float(areas[0]), (low, high), _p_value(areas)), scores[:, 0]


def kernel_test(pooled: Pooled, permutations: int, seed: int) -> TwoSample:
    """Return the squared maximum mean discrepancy (Gretton et al. 2012), unbiased: 0 is the same, 2 the most.

    The Gaussian kernel, its width the median distance, is approximated by 256 random frequencies (Rahimi &
    Recht 2007). The interval is the normal approximation from the witness function; it can reach below 0, as
    the unbiased value can.
    """
    generator = np.random.default_rng(seed)
    features = _fourier_features(pooled.vectors, generator)
    membership = _permuted(pooled, permutations, generator)
    second_sum = membership.T @ features
    first_sum = features.sum(axis=0) - second_sum
    counts = membership.sum(axis=0)
    distances = _squared_distance(first_sum, second_sum, len(features) - counts, counts)
    witness = features @ (second_sum[0] / counts[0] - first_sum[0] / (len(features) - counts[0]))
    half = 1.96 * 2 * np.sqrt(sum(_clustered_variance(witness, pooled, side) for side in (False, True)))
    value = float(distances[0])
    return TwoSample(value, (value - float(half), value + float(half)), _p_value(distances))


def _permuted(pooled: Pooled, permutations: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return who is of the second sample, (rows, 1 + permutations): as it is, then with groups shuffled."""
    of_unit = np.zeros(int(pooled.unit.max()) + 1, dtype=bool)
    of_unit[pooled.unit] = pooled.second
    columns = [of_unit, *(generator.permutation(of_unit) for _ in range(permutations))]
    return np.stack(columns, axis=1)[pooled.unit].astype(np.float64)


def _cross_fitted_scores(
    pooled: Pooled, membership: NDArray[np.float64], fold_of_unit: NDArray[np.int64]
) -> NDArray[np.float64]:
    vectors, folds = pooled.vectors, fold_of_unit[pooled.unit]
    targets = membership - membership.mean(axis=0)
    gram, moment = vectors.T @ vectors, vectors.T @ targets
    ridge = np.eye(len(gram)) * max(np.trace(gram) / len(gram), 1e-12)
    scores = np.empty_like(membership)
    for fold in range(FOLDS):
        held = folds == fold
        out = vectors[held]
        weights = np.linalg.solve(gram - out.T @ out + ridge, moment - out.T @ targets[held])
        scores[held] = out @ weights
    return scores.round(12)  # equal rows must tie, whatever the order of summation


def _areas(scores: NDArray[np.float64], membership: NDArray[np.float64]) -> NDArray[np.float64]:
    second = membership.sum(axis=0)
    first = len(membership) - second
    rank_sum = np.sum(rankdata(scores, axis=0) * membership, axis=0)
    return (rank_sum - second * (second + 1) / 2) / (first * second)


def _delong(scores: NDArray[np.float64], pooled: Pooled) -> tuple[float, float]:
    own = np.empty(len(scores))
    for side in (False, True):
        mine = pooled.second == side
        own[mine] = (rankdata(scores)[mine] - rankdata(scores[mine])) / np.sum(~mine)
    own[~pooled.second] = 1 - own[~pooled.second]
    area = float(own[pooled.second].mean())
    half = 1.96 * np.sqrt(sum(_clustered_variance(own, pooled, side) for side in (False, True)))
    if half == 0:  # told apart without an error: the rule of three
        half = 3 / min(np.sum(pooled.second), np.sum(~pooled.second))
    return max(0.0, area - float(half)), min(1.0, area + float(half))


def _clustered_variance(values: NDArray[np.float64], pooled: Pooled, side: bool) -> float:
    """Return the variance of the mean of one sample's values, whose rows go by group."""
    mine = pooled.second == side
    deviations = values[mine] - values[mine].mean()
    sums = np.bincount(pooled.unit[mine], weights=deviations)
    return float(np.sum(sums**2) / np.sum(mine) ** 2)


def _fourier_features(vectors: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return cosines and sines, (rows, 2 · frequencies), of norm 1 each row."""
    some = vectors[np.sort(generator.permutation(len(vectors))[:500])]
    squared = np.sum(some**2, axis=1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * some @ some.T, 0))
    width = float(np.median(distances[np.triu_indices(len(some), 1)]))
    frequencies = generator.standard_normal((vectors.shape[1], FREQUENCIES)) / (width or 1.0)
    angles = vectors @ frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(FREQUENCIES)


def _squared_distance(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    first_rows: NDArray[np.float64],
    second_rows: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the unbiased estimate from feature sums, (permutations,); each row's feature has norm 1."""
    within_first = (np.sum(first**2, axis=1) - first_rows) / (first_rows * (first_rows - 1))
    within_second = (np.sum(second**2, axis=1) - second_rows) / (second_rows * (second_rows - 1))
    across = np.sum(first * second, axis=1) / (first_rows * second_rows)
    return within_first + within_second - 2 * across


def _p_value(statistics: NDArray[np.float64]) -> float:
    """Return the share of arrangements, the observed one included, as extreme (Phipson & Smyth 2010)."""
    return float(np.mean(statistics >= statistics[0] - 1e-12))
