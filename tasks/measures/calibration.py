"""How sure a classifier may be: the temperature at which its scores fit the labels best, and its losses at it.

Of two models that differ in ten of a few hundred answers, accuracy tells hardly anything. Log-likelihood looks at every
row; and where each model is as sure as its answers allow, one that is only too sure loses nothing by it.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

TEMPERATURES = np.geomspace(0.2, 20, 60)


def temperature(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature at which scores `(rows, classes)` fit labels `(rows,)` best.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    rows = np.arange(len(labels))

    @functools.cache
    def loss(place: int) -> float:
        return float(-log_tempered(scores, float(TEMPERATURES[place]))[rows, labels].mean())

    low, high = 0, len(TEMPERATURES) - 1
    while low < high:  # cross-entropy is convex in 1 / temperature: it falls, then rises
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= loss(middle + 1) else (middle + 1, high)
    return float(TEMPERATURES[low])


def tempered(scores: NDArray[np.float64], heat: float) -> NDArray[np.float64]:
    """Return probabilities, `(rows, classes)`, of scores at a temperature."""
    return np.exp(log_tempered(scores, heat))


def log_tempered(scores: NDArray[np.float64], heat: float) -> NDArray[np.float64]:
    """Return log-probabilities, `(rows, classes)`, of scores at a temperature."""
    cooled = scores / heat
    shifted = cooled - cooled.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def calibrated_losses(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's cross-entropy in nats, `(rows,)`, at the temperature that fits these very rows best."""
    if not len(labels):
        return np.zeros(0)
    found = log_tempered(scores, temperature(scores, labels))
    return np.asarray(-found[np.arange(len(labels)), labels])
