"""Estimate, without its labels, how accurate a model of this training set would be elsewhere.

Calibrated average confidence: a probe's probabilities are calibrated at home (temperature scaling, Guo et al.
2017), and their mean on the target sample is the accuracy to expect there (Hendrycks & Gimpel 2017; Guillory
et al. 2021). No estimate from unlabelled data can be right for every shift (Garg et al. 2022), and this one
promises too much: confidence falls less than accuracy does. The interval is of sampling only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEMPERATURES = np.geomspace(0.2, 20, 60)
DRAWS = 500


@dataclass(frozen=True)
class Expected:
    """The accuracy to expect, its 95 % sampling interval, and the accuracy at home (out of fold)."""

    accuracy: float
    interval: tuple[float, float]
    at_home: float


def calibrated(scores: NDArray[np.float64], column: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return probabilities, (rows, classes), at the temperature that fits the labels (as columns) best."""
    losses = _losses(scores, column).mean(axis=0)
    return np.exp(_tempered(scores, float(TEMPERATURES[int(np.argmin(losses))])))


def expected_accuracy(
    home: NDArray[np.float64],
    column: NDArray[np.int64],
    target: NDArray[np.float64],
    home_groups: Sequence[str],
    target_groups: Sequence[str],
    seed: int,
) -> Expected:
    """Return the mean confidence on `target` scores (rows, classes), calibrated on out-of-fold `home` scores.

    The interval is a percentile bootstrap over groups of both samples, the temperature fitted again in each
    draw.
    """
    generator = np.random.default_rng(seed)
    losses = _losses(home, column)
    confidence = np.stack([np.exp(_tempered(target, t)).max(axis=1) for t in TEMPERATURES], axis=1)
    value = float(confidence[:, int(np.argmin(losses.mean(axis=0)))].mean())
    home_weights = _group_weights(home_groups, generator)
    target_weights = _group_weights(target_groups, generator)
    best = np.argmin(home_weights @ losses, axis=1)
    means = (target_weights @ confidence) / target_weights.sum(axis=1, keepdims=True)
    low, high = np.quantile(means[np.arange(DRAWS), best], [0.025, 0.975])
    return Expected(value, (float(low), float(high)), float(np.mean(home.argmax(axis=1) == column)))


def _losses(scores: NDArray[np.float64], column: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's log loss at each temperature, (rows, temperatures)."""
    rows = np.arange(len(column))
    return np.stack([-_tempered(scores, float(t))[rows, column] for t in TEMPERATURES], axis=1)


def _tempered(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    cooled = scores / temperature
    shifted = cooled - cooled.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def _group_weights(groups: Sequence[str], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each row is drawn in each bootstrap draw, (draws, rows)."""
    unit = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    units = int(unit.max()) + 1
    drawn = generator.multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return drawn[:, unit].astype(np.float64)
