"""The linear probe: logistic regression on frozen features. Where LP-FT starts, and what α = 0 means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tasks.errors import StageError

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
ROUNDING = 1e-6
"""Relative to the feature: fp32 keeps some seven digits, and a sum over a text's tokens loses one."""
DEAD = 1e-3
"""Relative to the features' median spread. A dead unit (MiniLM has three, one with a spread of 10⁻⁹) may tell labels
apart, but only with weights that ruin the model as soon as the unit moves in training."""


def fit_probe(
    train: np.ndarray, labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray, classes: int
) -> tuple[dict[str, Tensor], float]:
    """Fit a linear head on features `(rows, dim)`; regularisation is chosen by validation loss.

    Returns:
        The weights of an `nn.Linear` (weight `(classes, dim)`, bias `(classes,)`) over features that are not
        standardised, and the accuracy on validation.

    Raises:
        StageError: a feature is not finite, or a class has no training rows; validation may lack some.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    _refuse_not_finite(train, validation)
    _refuse_missing(labels, classes)
    mean, scale = train.mean(axis=0), _spread(train)
    best_loss, best = np.inf, None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit((train - mean) / scale, labels)
        probabilities = model.predict_proba((validation - mean) / scale)
        loss = log_loss(validation_labels, probabilities, labels=list(range(classes)))
        if loss < best_loss:
            accuracy = float((probabilities.argmax(axis=1) == validation_labels).mean())
            best_loss, best = loss, (model, accuracy)
    if best is None:
        raise ValueError("no finite validation loss: the features hold NaN")
    model, accuracy = best
    weight, bias = _all_classes(model.coef_, model.intercept_)
    weight = weight / scale
    bias = bias - weight @ mean
    return {
        "weight": torch.tensor(weight, dtype=torch.float32),
        "bias": torch.tensor(bias, dtype=torch.float32),
    }, accuracy


def _spread(features: np.ndarray) -> np.ndarray:
    """Return each feature's deviation, `(dim,)`; infinite, so that it gets no weight, where it is rounding or dead."""
    spread = features.std(axis=0)
    alive = (spread > ROUNDING * np.abs(features).max(axis=0)) & (spread > DEAD * np.median(spread))
    return np.where(alive, spread, np.inf)


def fit_label_probes(
    train: np.ndarray, indicators: np.ndarray, validation: np.ndarray, validation_indicators: np.ndarray
) -> dict[str, Tensor]:
    """Fit one yes-or-no probe for each label, on indicators `(rows, classes)`; one regularisation for all of them.

    Returns:
        The weights of an `nn.Linear` as `fit_probe` does. A label that all training rows have, or none, gets its
        (smoothed) share, whatever the text.

    Raises:
        StageError: a feature is not finite.
    """
    _refuse_not_finite(train, validation)
    mean, scale = train.mean(axis=0), _spread(train)
    known, unseen = (train - mean) / scale, (validation - mean) / scale
    found = []
    for strength in STRENGTHS:
        weight, bias = _label_probes(known, indicators, strength)
        scores = unseen @ weight.T + bias
        found.append((float((np.logaddexp(0, scores) - scores * validation_indicators).mean()), weight, bias))
    _, weight, bias = min(found, key=lambda one: one[0])
    weight = weight / scale
    return {
        "weight": torch.tensor(weight, dtype=torch.float32),
        "bias": torch.tensor(bias - weight @ mean, dtype=torch.float32),
    }


def _label_probes(
    features: np.ndarray, indicators: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    rows, classes = indicators.shape
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    for label in range(classes):
        have = int(indicators[:, label].sum())
        if 0 < have < rows:
            model = LogisticRegression(C=strength, max_iter=2000).fit(features, indicators[:, label])
            weight[label], bias[label] = model.coef_[0], model.intercept_[0]
        else:
            bias[label] = np.log((have + 0.5) / (rows - have + 0.5))
    return weight, bias


def _refuse_not_finite(*features: np.ndarray) -> None:
    if not all(np.isfinite(part).all() for part in features):
        raise StageError("the base's sentence vectors are not all finite: are its weights whole? Try fp32.")


def _refuse_missing(labels: np.ndarray, classes: int) -> None:
    if missing := sorted(set(range(classes)) - set(labels.tolist())):
        places = ", ".join(str(label + 1) for label in missing)
        raise StageError(
            f"no training row has label {places} of the {classes} of data.labels, so that nothing can be learned of "
            "it: add rows that have it, or take it out of data.labels."
        )


def fresh_head(dimensions: int, classes: int, seed: int) -> nn.Linear:
    """Return a seeded head: weights normal with deviation 0.02 as in BERT, biases zero."""
    head = nn.Linear(dimensions, classes)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=0.02, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def _all_classes(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write a two-class model, which has one row, as two rows with the same probabilities."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
