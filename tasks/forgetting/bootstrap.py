"""Paired bootstrap over groups, and jackknife terms, for metrics that are no mean of examples.

Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13; groups are drawn whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Weights = NDArray[np.float64]
ROWS_AT_ONCE = 256
"""Rows that the jackknife leaves out at once: bounds the memory to so many times all rows."""


def group_weights(groups: Sequence[str], draws: int, seed: int) -> Weights:
    """Return how often each example is in each draw, `(draws + 1, examples)`; the first row is the sample itself."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.vstack([np.ones(len(groups)), counts[:, place]])


def macro_f1(
    truth: NDArray[np.int64], said: NDArray[np.int64], classes: int, weights: Weights
) -> NDArray[np.float64]:
    """Return the unweighted mean of the classes' F1, `(draws + 1,)`; a class that is nowhere counts as 0.

    Labels are indices `(rows,)`, or indicators `(rows, classes)`.
    """
    hits, either = _hits(truth, said, classes, weights)
    return _f1(hits, either).mean(axis=1)


def micro_f1(
    truth: NDArray[np.int64], said: NDArray[np.int64], classes: int, weights: Weights
) -> NDArray[np.float64]:
    """Return the F1 of all decisions of all classes together, `(draws + 1,)`."""
    hits, either = _hits(truth, said, classes, weights)
    return _f1(hits.sum(axis=1), either.sum(axis=1))


def macro_f1_terms(truth: NDArray[np.int64], said: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return a term a row whose mean is macro-F1, `(rows,)`; labels as in `macro_f1`.

    They are its jackknife pseudo-values, n·F - (n - 1)·F without the row, moved by their bias: their spread is that of
    macro-F1, so that it can be judged like a mean of examples. Source: Efron and Tibshirani 1993, chapter 11.
    """
    rows = len(truth)
    own, answered = _memberships(truth, said, classes)
    hits, either = own * answered, own + answered
    whole = float(_f1(hits.sum(axis=0), either.sum(axis=0)).mean())
    without = _f1(hits.sum(axis=0) - hits, either.sum(axis=0) - either).mean(axis=1)
    terms: NDArray[np.float64] = rows * whole - (rows - 1) * without
    return terms - terms.mean() + whole


def _hits(
    truth: NDArray[np.int64], said: NDArray[np.int64], classes: int, weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each draw and class the labels given rightly, and those given plus those that are right."""
    own, answered = _memberships(truth, said, classes)
    return weights @ (own * answered), weights @ own + weights @ answered


def _memberships(
    truth: NDArray[np.int64], said: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which labels each row has, and which it was given, `(rows, classes)` each."""
    own, answered = (
        labels.astype(np.float64) if labels.ndim == 2 else np.eye(classes)[labels] for labels in (truth, said)
    )
    return own, answered


def _f1(hits: NDArray[np.float64], either: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)


def spearman_terms(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the jackknife pseudo-value of Spearman's correlation a row, `(rows,)`: n·ρ - (n - 1)·ρ without it.

    Their mean is the correlation less its bias, their spread its standard error, so that a metric that is no mean of
    examples can be judged like one. Source: Efron and Tibshirani 1993, chapter 11. 0 where one does not vary.
    """
    rows = len(first)
    a, b = stats.rankdata(first), stats.rankdata(second)
    if rows < 3 or a.std() < 1e-12 or b.std() < 1e-12:
        return np.zeros(rows)
    whole = float(np.corrcoef(a, b)[0, 1])
    without = np.concatenate(
        [_spearman_without(first, second, a, b, start) for start in range(0, rows, ROWS_AT_ONCE)]
    )
    return rows * whole - (rows - 1) * without


def _spearman_without(first: Weights, second: Weights, a: Weights, b: Weights, start: int) -> Weights:
    """Return Spearman's correlation without each of some rows, from `start` on, given the ranks of all."""
    own = np.arange(start, min(start + ROWS_AT_ONCE, len(first)))
    kept = np.ones((len(own), len(first)))
    kept[np.arange(len(own)), own] = 0.0
    centred = []
    for ranks, values in ((a, first), (b, second)):
        # Taking a row out lowers the rank of those above it by one, and of its ties by a half.
        left = (ranks - (values > values[own, None]) - 0.5 * (values == values[own, None])) * kept
        centred.append((left - left.sum(axis=1, keepdims=True) / (len(first) - 1)) * kept)
    x, y = centred
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), spread, out=np.zeros(len(own)), where=spread > 1e-9)


def interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the two-sided percentile interval of the draws after the first."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return float(low), float(high)
