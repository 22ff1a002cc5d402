"""Ask a linear probe on frozen embeddings what it makes of each label, without having seen that row.

The probe's predictions are out-of-fold, and folds keep groups together. They serve two measures: labels that
are probably wrong (confident learning, Northcutt et al. 2021, by cleanlab) and the accuracy to expect
elsewhere (`harm.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


@dataclass(frozen=True)
class ProbeOutcome:
    """What the probe says of each row, out of fold, and the probe fitted on all rows."""

    scores: NDArray[np.float64]
    """Log-probabilities before calibration, (rows, classes present)."""
    classes: NDArray[np.int64]
    """Which label each column is."""
    weights: NDArray[np.float64]
    """Shape (dim, classes present)."""
    bias: NDArray[np.float64]

    def scores_of(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return uncalibrated log-probabilities of other rows, (rows, classes present)."""
        return log_probabilities(vectors, self.weights, self.bias)


def probe(
    vectors: NDArray[np.floating], labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> ProbeOutcome | None:
    """Fit a logistic probe out of fold on (rows, dim); None with fewer than two classes or five groups."""
    classes, column = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or len(set(groups)) < FOLDS:
        return None
    fold = folds(groups, seed)
    scores = np.empty((len(labels), len(classes)))
    for number in range(FOLDS):
        held = fold == number
        if len(np.unique(column[~held])) < 2:
            return None
        scores[held] = log_probabilities(vectors[held], *fit(vectors[~held], column[~held], len(classes)))
    weights, bias = fit(vectors, column, len(classes))
    return ProbeOutcome(scores, classes, weights, bias)


def suspicious_labels(
    outcome: ProbeOutcome, labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the rows whose label is probably wrong, worst first, by probabilities (rows, classes)."""
    from cleanlab.filter import find_label_issues

    column = np.searchsorted(outcome.classes, labels)
    found = find_label_issues(
        column,
        probabilities,
        filter_by="both",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
        min_examples_per_class=0,
    )
    return np.asarray(found, dtype=np.int64)


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Return Wilson's (1927) 95 % interval of a share."""
    z, share = 1.96, hits / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * float(np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)))
    return max(0.0, centre - half), min(1.0, centre + half)


def folds(groups: Sequence[str], seed: int, count: int = FOLDS) -> NDArray[np.int64]:
    """Return each row's fold, 0 to `count` - 1; rows of a group are in one."""
    unit = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    return np.asarray(np.random.default_rng(seed).permutation(int(unit.max()) + 1)[unit] % count)


def log_probabilities(
    vectors: NDArray[np.floating], weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a probe's uncalibrated log-probabilities of rows (rows, dim), (rows, classes)."""
    return _log_softmax(vectors.astype(np.float64) @ weights + bias)


def fit(
    vectors: NDArray[np.floating], column: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (dim, classes) and bias (classes,); a class absent here gets a probability near 0."""
    from sklearn.linear_model import LogisticRegression

    wide = vectors.astype(np.float64)
    centre, spread = wide.mean(axis=0), float(wide.std()) or 1.0
    model = LogisticRegression(C=0.1, max_iter=1000).fit((wide - centre) / spread, column)
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros(1), intercept])
    weights = np.zeros((wide.shape[1], classes))
    bias = np.full(classes, -30.0)
    weights[:, model.classes_] = coefficients.T / spread
    bias[model.classes_] = intercept - centre @ weights[:, model.classes_]
    return weights, bias


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
