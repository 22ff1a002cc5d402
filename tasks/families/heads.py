"""A linear head over a backbone's features: what the classifying families share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import StageError
from tasks.families import DESCRIPTION
from tasks.families.interface import Measured
from tasks.measures.calibration import calibrated_losses, log_tempered
from tasks.recipe import UNLABELLED
from tasks.tables import has_label_lists, indicators

HEAD, START_HEAD = "head.safetensors", "start_head.safetensors"


def load_head(folder: Path, weights: str, description: dict[str, Any]) -> nn.Linear:
    """Load the head that a model folder has under the name `weights`.

    Raises:
        StageError: it is missing or damaged, or has another number of classes than there are labels.
    """
    try:
        state = load_file(folder / weights)
        classes, dimensions = state["weight"].shape
    except (OSError, KeyError, SafetensorError) as error:
        raise StageError(f"{folder} is a damaged classifier: {weights}: {error}") from error
    if classes != len(description["labels"]):
        raise StageError(
            f"{folder}: the head has {classes} classes but {DESCRIPTION} has {len(description['labels'])} labels"
        )
    head = nn.Linear(dimensions, classes)
    head.load_state_dict(state)
    return head


Targets = NDArray[np.int64] | NDArray[np.float32]
"""What rows should be told: label indices `(rows,)`, or indicators `(rows, classes)` where a row has any number."""


def targets(table: pd.DataFrame, classes: int) -> Targets:
    """Return the targets of rows: indices of one label a row, or indicators where the table has lists of labels."""
    if not has_label_lists(table):
        return class_indices(table)
    return indicators(table, classes).astype(np.float32)


def class_indices(table: pd.DataFrame) -> NDArray[np.int64]:
    """Return the label indices of single-label rows, `(rows,)`."""
    return table["label"].to_numpy(np.int64, copy=True)


def class_weights(labels: Targets, classes: int, how: str) -> Tensor | None:
    """Return a weight a class, `(classes,)`, or None: `balanced` makes every class count the same in total.

    Of indicators it is that of the rows that have the label, so that they count as much as those that have it not.
    """
    if how == "none":
        return None
    if labels.ndim == 2:
        have = np.maximum(labels.sum(axis=0), 1)
        return torch.tensor((len(labels) - have) / have, dtype=torch.float32).clamp(min=1e-3)
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def cross_entropy(logits: Tensor, labels: Targets, weights: Tensor | None) -> Tensor:
    """Return the cross-entropy of logits `(rows, classes)`, summed over rows; `weights` has one a class.

    Of indicators it is the binary one, a mean over classes. A row that is `UNLABELLED` has none.
    """
    target = torch.from_numpy(labels).to(logits.device)
    weights = weights.to(logits.device) if weights is not None else None
    if labels.ndim == 2:
        each = functional.binary_cross_entropy_with_logits(
            logits.float(), target, pos_weight=weights, reduction="none"
        )
        return each.mean(dim=1).sum()
    return functional.cross_entropy(
        logits.float(), target, weight=weights, reduction="sum", ignore_index=UNLABELLED
    )


def measured(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Measured:
    """Return cross-entropy, correctness and calibrated cross-entropy of logits `(rows, classes)`, one a row."""
    likelihood = log_shares(logits)
    said = likelihood.argmax(axis=1)
    return Measured(
        -likelihood[np.arange(len(labels)), labels],
        (said == labels).astype(np.float64),
        said.astype(np.int64),
        calibrated_losses(likelihood, labels),
    )


def divergence(base: NDArray[np.float32], own: NDArray[np.float32]) -> float:
    """Return KL(base ‖ own) of the answers that logits `(rows, classes)` stand for: nats, a mean over rows."""
    said, now = (log_shares(logits) for logits in (base, own))
    return float((np.exp(said) * (said - now)).sum(axis=1).mean())


def log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-probabilities that logits `(rows, classes)` stand for."""
    return log_tempered(logits.astype(np.float64), 1.0)


def measured_lists(logits: NDArray[np.float32], truth: NDArray[np.float32], threshold: float) -> Measured:
    """Return binary cross-entropy and F1 of logits `(rows, classes)`, one a row; the predictions are indicators.

    A row's F1 is 2·hits / (its labels + the labels given), and 1 where both are none: its mean is the example-based F1
    of Godbole and Sarawagi 2004, which unlike micro-F1 is a mean of examples that can be compared in pairs.
    """
    scores = logits.astype(np.float64)
    losses = np.logaddexp(0, scores) - scores * truth
    said = said_of(logits, threshold)
    either = truth.sum(axis=1) + said.sum(axis=1)
    hits = 2 * (truth * said).sum(axis=1)
    outcomes = np.divide(hits, either, out=np.ones(len(truth)), where=either > 0)
    yes_or_no = np.stack([np.zeros_like(scores), scores], axis=-1).reshape(-1, 2)
    calibrated = calibrated_losses(yes_or_no, truth.astype(np.int64).ravel()).reshape(scores.shape)
    return Measured(losses.mean(axis=1), outcomes, said, calibrated.mean(axis=1))


def said_of(logits: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return which labels are given, `(rows, classes)`: those whose probability reaches the threshold."""
    return (logits >= np.log(threshold / (1 - threshold))).astype(np.int64)


def label_lists(logits: NDArray[np.float32], labels: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """Return for each row of logits the labels that reach the threshold, likeliest first, and every probability."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    answers = []
    for row, said in zip(probabilities, said_of(logits, threshold), strict=True):
        given = [int(place) for place in np.argsort(-row, kind="stable") if said[place]]
        each = {str(label): float(share) for label, share in zip(labels, row, strict=True)}
        answers.append({"labels": [str(labels[place]) for place in given], "probabilities": each})
    return answers


def shares(logits: NDArray[np.float32], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each row of logits its label, that label's probability, and every label's."""
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return [
        {
            "label": str(labels[row.argmax()]),
            "probability": float(row.max()),
            "probabilities": {str(label): float(share) for label, share in zip(labels, row, strict=True)},
        }
        for row in scores
    ]
