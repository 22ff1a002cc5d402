"""Measure how much there is to learn from: spread of meaning, of wording, and of labels.

A diversity that grows with the number of rows cannot be bounded: more rows of the same would look better. So
the figures a bound is meant for are *rarefied*: the expected value for a subsample of fixed size, as
ecologists compare species counts (Hurlbert 1971). They mean the same for 500 rows and for 500,000.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Vectors = NDArray[np.floating]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, when one can be given."""

    value: float
    interval: tuple[float, float] | None = None


def vendi(vectors: Vectors) -> float:
    """Return the Vendi score of rows of shape (rows, dim): the effective number of distinct rows.

    It is exp of the entropy of the eigenvalues of the cosine kernel divided by the number of rows (Friedman &
    Dieng 2023); a linear kernel has the nonzero eigenvalues of the dim × dim second-moment matrix, so the
    cost is O(rows · dim²).
    """
    if not len(vectors):
        return 0.0
    unit = _unit(vectors)
    moment = (unit.T @ unit if unit.shape[1] <= len(unit) else unit @ unit.T) / len(unit)
    eigenvalues = np.linalg.eigvalsh(moment)
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def effective_diversity(vectors: Vectors, reference: Vectors, seed: int, draws: int = 30) -> Estimate:
    """Return the Vendi score of m rows over that of m reference texts on unlike subjects: 1 is as varied.

    m = min(rows, reference rows), so a set is compared with a reference of its own size under the same
    encoder: neither the number of rows nor an encoder that puts all texts close together moves the scale.
    Copies are rows like any other: 1,050 rows with 10 distinct texts score as 10 among m. The value is the
    mean over `draws` subsamples; the interval is that of this U-statistic (Hoeffding 1948: its variance is at
    most m/rows times that of one subsample), given from 2m rows on.
    """
    rows, size = len(vectors), min(len(vectors), len(reference))
    generator = np.random.default_rng(seed)
    scores = _subsample_scores(vectors, size, draws, generator)
    scale = float(np.mean(_subsample_scores(reference, size, draws, generator)))
    value = float(np.mean(scores)) / scale
    if rows < 2 * size:
        return Estimate(value)
    one_draw = np.var(scores, ddof=1) / (1 - size / rows)
    half = 1.96 * float(np.sqrt(one_draw * size / rows)) / scale
    return Estimate(value, (max(0.0, value - half), value + half))


def distinct_bigrams(texts: Iterable[str], size: int = 2_000) -> tuple[float, int]:
    """Return the expected share of distinct word pairs among `size` of the set's, and the number drawn.

    Fewer are drawn when the set has fewer. This is distinct-2 (Li et al. 2016) freed from its dependence on
    length: the expectation over subsamples without replacement in closed form (Hurlbert 1971), which needs no
    random draw.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for text in texts:
        counts.update(itertools.pairwise(_WORD.findall(text.casefold())))
    total = sum(counts.values())
    drawn = min(size, total)
    if not drawn:
        return 0.0, 0
    occurrences, frequency = np.unique(np.fromiter(counts.values(), dtype=np.int64), return_counts=True)
    rest = total - occurrences
    possible = rest >= drawn
    log_missed = np.where(
        possible,
        _log_choose(np.where(possible, rest, drawn), drawn) - _log_choose(np.array(total), drawn),
        -np.inf,
    )
    return float(np.sum(frequency * (1 - np.exp(log_missed))) / drawn), drawn


def class_counts(labels: Sequence[int], classes: int) -> NDArray[np.int64]:
    """Return the rows of each declared class, shape (classes,)."""
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes)


def class_entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy of the class shares over its maximum: 1 is balanced, 0 is one class."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return max(0.0, float(-np.sum(shares * np.log(shares)) / np.log(len(counts)))) if len(counts) > 1 else 0.0


def _subsample_scores(
    vectors: Vectors, size: int, draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    if size == len(vectors):
        return np.array([vendi(vectors)])
    chosen = (generator.choice(len(vectors), size, replace=False) for _ in range(draws))
    return np.array([vendi(vectors[np.sort(rows)]) for rows in chosen])


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _log_choose(items: NDArray[np.int64], chosen: int) -> NDArray[np.float64]:
    return gammaln(items + 1.0) - gammaln(chosen + 1.0) - gammaln(items - chosen + 1.0)
