"""Paired bootstrap over groups, for metrics that are no mean of examples.

Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13; groups are drawn whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def group_weights(groups: Sequence[str], draws: int, seed: int) -> Weights:
    """Return how often each example is in each draw, `(draws + 1, examples)`; the first row is the sample itself."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.vstack([np.ones(len(groups)), counts[:, place]])


def macro_f1(
    truth: NDArray[np.int64], said: NDArray[np.int64], classes: int, weights: Weights
) -> NDArray[np.float64]:
    """Return the unweighted mean of the classes' F1, `(draws + 1,)`; a class that is nowhere counts as 0."""
    own, answered = np.eye(classes)[truth], np.eye(classes)[said]
    hits = weights @ (own * answered)
    either = weights @ own + weights @ answered
    return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0).mean(axis=1)


def interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the two-sided percentile interval of the draws after the first."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return float(low), float(high)
