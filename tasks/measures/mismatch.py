"""Test whether two samples come from one distribution, and say how far apart they are.

Both tests permute whole groups (all snippets of a review move together), because rows of a group are not
exchangeable, and take their p-value from that permutation distribution: it is exact at any size. Both are
linear in the rows, read them in chunks, and hold nothing of the size of all rows' features. "Different" is not
"harmful": see `tasks/measures/harm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Vectors = NDArray[np.floating]
Membership = NDArray[np.bool_]
FOLDS = 5
FREQUENCIES = 256
DRAWS = 500
_ROWS_A_CHUNK = 8_192
_SCORES_A_BLOCK = 20_000_000


@dataclass(frozen=True)
class TwoSample:
    """A distance between two samples, its 95 % interval, and the p-value of «they are the same»."""

    value: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Pooled:
    """Two samples as one, and who belongs together."""

    samples: tuple[Vectors, Vectors]
    """Each of shape (rows, dim), as they were given."""
    mean: NDArray[np.float64]
    """Of all rows, (dim,)."""
    second: NDArray[np.bool_]
    """Whether a row is of the second sample."""
    unit: NDArray[np.int64]
    """Which group a row belongs to, numbered over both samples."""

    def chunks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the centred rows in chunks, (rows, dim), with their place."""
        start = 0
        for sample in self.samples:
            for first in range(0, len(sample), _ROWS_A_CHUNK):
                rows = sample[first : first + _ROWS_A_CHUNK].astype(np.float64)
                yield slice(start, start + len(rows)), rows - self.mean
                start += len(rows)

    def rows(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return some centred rows, by number."""
        first, second = self.samples
        of_first = chosen[chosen < len(first)]
        of_second = chosen[chosen >= len(first)] - len(first)
        return np.concatenate([first[of_first], second[of_second]]).astype(np.float64) - self.mean


def pool(
    first: Vectors, second: Vectors, first_groups: Sequence[str], second_groups: Sequence[str]
) -> Pooled:
    """Put two samples of shape (rows, dim) together; groups of the two samples are different groups."""
    ours = _numbered(first_groups)
    theirs = _numbered(second_groups) + (int(ours.max()) + 1 if len(ours) else 0)
    rows = len(first) + len(second)
    total = first.sum(axis=0, dtype=np.float64) + second.sum(axis=0, dtype=np.float64)
    return Pooled(
        samples=(first, second),
        mean=total / rows,
        second=np.arange(rows) >= len(first),
        unit=np.concatenate([ours, theirs]),
    )


def classifier_test(pooled: Pooled, permutations: int, seed: int) -> tuple[TwoSample, NDArray[np.float64]]:
    """Return the AUC with which a cross-fitted linear classifier tells the samples apart, and its scores.

    0.5 is chance; a higher score is more like the second sample. A classifier two-sample test (Lopez-Paz &
    Oquab 2017). The classifier is ridge regression, so it is refitted for each of the permutations in one
    solve; folds are of whole groups and do not look at the samples, so the p-value is exact. The interval is
    DeLong's (1988) with Obuchowski's (1997) sums over groups.
    """
    generator = np.random.default_rng(seed)
    membership = _permuted(pooled, permutations, generator)
    units = int(pooled.unit.max()) + 1
    folds = (generator.permutation(units) % FOLDS)[pooled.unit]
    weights = _cross_fitted_weights(pooled, membership, folds)
    scores = _scores(pooled, weights[..., :1], folds)[:, 0]
    areas, most = [], max(1, _SCORES_A_BLOCK // len(folds))
    for start in range(0, membership.shape[1], most):
        block = _scores(pooled, weights[..., start : start + most], folds)
        for column in range(block.shape[1]):
            areas.append(_area(block[:, column], membership[pooled.unit, start + column]))
    low, high = _delong(scores, pooled)
    return TwoSample(areas[0], (low, high), _p_value(np.array(areas))), scores


def kernel_test(pooled: Pooled, permutations: int, seed: int) -> TwoSample:
    """Return the squared maximum mean discrepancy (Gretton et al. 2012), unbiased: 0 is the same, 2 the most.

    The Gaussian kernel, its width the median distance, is approximated by 256 random frequencies (Rahimi &
    Recht 2007). The interval is the normal approximation from the witness function; it can reach below 0, as
    the unbiased value can.
    """
    generator = np.random.default_rng(seed)
    frequencies = _frequencies(pooled, generator)
    membership = _permuted(pooled, permutations, generator)
    counts = np.zeros(membership.shape[1])
    second_sum = np.zeros((membership.shape[1], 2 * FREQUENCIES))
    total = np.zeros(2 * FREQUENCIES)
    for place, rows in pooled.chunks():
        features = _fourier_features(rows, frequencies)
        member = membership[pooled.unit[place]].astype(np.float64)
        second_sum += member.T @ features
        total += features.sum(axis=0)
        counts += member.sum(axis=0)
    size = len(pooled.second)
    distances = _squared_distance(total - second_sum, second_sum, size - counts, counts)
    direction = second_sum[0] / counts[0] - (total - second_sum[0]) / (size - counts[0])
    witness = np.empty(size)
    for place, rows in pooled.chunks():
        witness[place] = _fourier_features(rows, frequencies) @ direction
    half = 1.96 * 2 * np.sqrt(sum(_clustered_variance(witness, pooled, side) for side in (False, True)))
    value = float(distances[0])
    return TwoSample(value, (value - float(half), value + float(half)), _p_value(distances))


@dataclass(frozen=True)
class LabelShift:
    """Which labels to expect on a target, from how often a probe names each."""

    shares: NDArray[np.float64]
    """Of each class on the target, (classes,)."""
    intervals: NDArray[np.float64]
    """Their 95 % intervals, (classes, 2)."""
    at_home: NDArray[np.float64]
    """Shares of the given labels at home, (classes,)."""
    distance: float
    """Half the sum of the absolute differences: 0 is no shift, 1 the most."""
    weakest: float
    """The smallest singular value of P(named | label): near 0 the probe cannot tell some classes apart, and nothing
    is known of their shares."""


def label_shift(
    named: NDArray[np.int64],
    labels: NDArray[np.int64],
    target_named: NDArray[np.int64],
    classes: int,
    groups: Sequence[str],
    target_groups: Sequence[str],
    seed: int,
) -> LabelShift:
    """Estimate the label shares of an unlabelled target from what a probe names there, and what it confuses at home.

    Black box shift estimation (Lipton, Wang, Smola 2018, section 4): the shares q solve P(named | label) q =
    P(named on the target), by least squares within q >= 0, scaled to 1. Labels and names are columns 0 … classes - 1;
    `named` are out of fold, for home rows, and every class has a home row. It holds where only the labels' shares
    differ (P(text | label) is the same). Intervals: percentile bootstrap over groups of both samples.

    Raises: ValueError: a class has no home row, or the target no rows.
    """
    absent = sorted(set(range(classes)) - set(labels.tolist()))
    if absent or not len(target_named):
        raise ValueError(
            f"label shares cannot be estimated: no rows of class {absent}" if absent else "no target rows"
        )
    generator = np.random.default_rng(seed)
    home, target = _numbered(groups), _numbered(target_groups)
    cells, ones = named * classes + labels, np.ones(len(labels))

    def confusion(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return _counts(cells, weights, classes * classes).reshape(classes, classes)

    whole = confusion(ones)
    names = _counts(target_named, np.ones(len(target_named)), classes)
    shares, at_home = _shares(whole, names), whole.sum(axis=0) / len(labels)
    drawn = np.empty((DRAWS, classes))
    for draw in range(DRAWS):
        again = confusion(_drawn(home, generator))
        # A class that the draw lost keeps its confusions: a column of zeros would say nothing of it.
        again[:, again.sum(axis=0) == 0] = whole[:, again.sum(axis=0) == 0]
        drawn[draw] = _shares(again, _counts(target_named, _drawn(target, generator), classes))
    singular = np.linalg.svd(whole / whole.sum(axis=0), compute_uv=False)
    return LabelShift(
        shares=shares,
        intervals=np.quantile(drawn, [0.025, 0.975], axis=0).T,
        at_home=at_home,
        distance=float(np.abs(shares - at_home).sum() / 2),
        weakest=float(singular[-1]),
    )


def _shares(confusion: NDArray[np.float64], names: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares of the labels that explain how often each is named, (classes,)."""
    found = nnls(confusion / confusion.sum(axis=0), names / names.sum())[0]
    return found / found.sum() if found.sum() else np.full(len(names), 1 / len(names))


def _counts(cells: NDArray[np.int64], weights: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    return np.bincount(cells, weights, most).astype(np.float64)


def _drawn(unit: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each row is drawn when groups are drawn with replacement, (rows,)."""
    units = int(unit.max()) + 1
    return np.bincount(generator.integers(0, units, units), minlength=units)[unit].astype(np.float64)


def _numbered(groups: Sequence[str]) -> NDArray[np.int64]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.fromiter(map(numbers.__getitem__, groups), np.int64, len(groups))


def _permuted(pooled: Pooled, permutations: int, generator: np.random.Generator) -> Membership:
    """Return which groups are of the second sample, (groups, 1 + permutations): as it is, then shuffled."""
    of_unit = np.zeros(int(pooled.unit.max()) + 1, dtype=bool)
    of_unit[pooled.unit] = pooled.second
    return np.stack([of_unit, *(generator.permutation(of_unit) for _ in range(permutations))], axis=1)


def _cross_fitted_weights(
    pooled: Pooled, membership: Membership, folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the ridge weights fitted without each fold, (folds, dim, 1 + permutations)."""
    dim = len(pooled.mean)
    gram, moment = np.zeros((FOLDS, dim, dim)), np.zeros((FOLDS, dim, membership.shape[1]))
    share = np.bincount(pooled.unit, minlength=len(membership)) @ membership / len(pooled.unit)
    for place, rows in pooled.chunks():
        for fold in range(FOLDS):
            held = folds[place] == fold
            mine = rows[held]
            gram[fold] += mine.T @ mine
            moment[fold] += mine.T @ (membership[pooled.unit[place][held]] - share)
    whole, both = gram.sum(axis=0), moment.sum(axis=0)
    ridge = np.eye(dim) * max(np.trace(whole) / dim, 1e-12)
    return np.stack(
        [np.linalg.solve(whole - gram[fold] + ridge, both - moment[fold]) for fold in range(FOLDS)]
    )


def _scores(pooled: Pooled, weights: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's scores by the weights that were fitted without it, (rows, columns)."""
    scores = np.empty((len(folds), weights.shape[2]))
    for place, rows in pooled.chunks():
        part = scores[place]
        for fold in range(FOLDS):
            held = folds[place] == fold
            part[held] = rows[held] @ weights[fold]
        part.round(12, out=part)  # equal rows must tie, whatever the order of summation
    return scores


def _area(scores: NDArray[np.float64], second: NDArray[np.bool_]) -> float:
    """Return the share of pairs in which the row of the second sample scores higher, ties counting half."""
    low, high = np.sort(scores[~second]), np.sort(scores[second])
    wins = np.searchsorted(low, high, side="left").sum() + np.searchsorted(low, high, side="right").sum()
    return float(wins / 2 / (len(low) * len(high)))


def _delong(scores: NDArray[np.float64], pooled: Pooled) -> tuple[float, float]:
    own = np.empty(len(scores))
    for side in (False, True):
        mine = pooled.second == side
        others = np.sort(scores[~mine])
        ties = np.searchsorted(others, scores[mine], "left") + np.searchsorted(others, scores[mine], "right")
        own[mine] = ties / 2 / len(others)
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


def _frequencies(pooled: Pooled, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return random frequencies of the Gaussian kernel whose width is the median distance, (dim, frequencies)."""
    some = pooled.rows(np.sort(generator.permutation(len(pooled.second))[:500]))
    squared = np.sum(some**2, axis=1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * some @ some.T, 0))
    width = float(np.median(distances[np.triu_indices(len(some), 1)]))
    drawn = generator.standard_normal((len(pooled.mean), FREQUENCIES)) / (width or 1.0)
    return drawn.astype(np.float32)


def _fourier_features(rows: NDArray[np.float64], frequencies: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return cosines and sines, (rows, 2 · frequencies), of norm 1 each row."""
    angles = rows.astype(np.float32) @ frequencies
    features = np.empty((len(rows), 2 * FREQUENCIES))
    # Computed in single precision, and widened on the way: no copy of the largest array.
    np.cos(angles, out=features[:, :FREQUENCIES])
    np.sin(angles, out=features[:, FREQUENCIES:])
    features /= np.sqrt(FREQUENCIES)
    return features


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
    return float(np.mean(~(statistics < statistics[0] - 1e-12)))
