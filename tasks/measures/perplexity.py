"""Say how surprising texts are to a language model: perplexity, and how many times that of other texts, with intervals.

Tokens are no independent units, rows of one group are none either: the mean of a token is a ratio of sums over groups,
and its variance is that of such a ratio (Cochran 1977, section 6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Perplexity:
    """What a language model makes of some rows."""

    value: float
    """exp of the mean negative log-likelihood a token."""
    interval: tuple[float, float]
    """Its 95 % interval."""
    mean: float
    """The mean negative log-likelihood a token, in nats."""
    variance: float
    """Of `mean`."""
    units: int
    """Groups that have a token."""


def perplexity(losses: NDArray[np.floating], groups: Sequence[str]) -> Perplexity:
    """Return the perplexity of rows whose (sum of nats, tokens) are `losses`, (rows, 2); rows go by group.

    Raises: ValueError: fewer than two groups have a token.
    """
    held = losses[:, 1] > 0
    unit = np.unique(np.asarray(groups, dtype=object)[held].astype(str), return_inverse=True)[1]
    nats, tokens = (np.bincount(unit, losses[held, column].astype(np.float64)) for column in (0, 1))
    units = len(tokens)
    if units < 2:
        raise ValueError(f"{units} groups with tokens have no spread; at least 2 are needed")
    mean = float(nats.sum() / tokens.sum())
    residuals = nats - mean * tokens
    variance = float(np.sum(residuals**2) * units / (units - 1) / tokens.sum() ** 2)
    half = float(stats.t.isf(0.025, units - 1)) * variance**0.5
    interval = float(np.exp(mean - half)), float(np.exp(mean + half))
    return Perplexity(float(np.exp(mean)), interval, mean, variance, units)


def ratio(one: Perplexity, other: Perplexity) -> tuple[float, tuple[float, float]]:
    """Return how many times the perplexity of `other` that of `one` is, and its 95 % interval."""
    freedom = min(one.units, other.units) - 1
    half = float(stats.t.isf(0.025, freedom)) * (one.variance + other.variance) ** 0.5
    apart = one.mean - other.mean
    return float(np.exp(apart)), (float(np.exp(apart - half)), float(np.exp(apart + half)))
