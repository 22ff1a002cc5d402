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


def class_indices(table: pd.DataFrame) -> NDArray[np.int64]:
    """Return the label indices of single-label rows, `(rows,)`."""
    return table["label"].to_numpy(np.int64, copy=True)


def class_weights(labels: NDArray[np.int64], classes: int, how: str) -> Tensor | None:
    """Return a weight a class, `(classes,)`, or None: `balanced` makes every class count the same in total."""
    if how == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def cross_entropy(logits: Tensor, labels: NDArray[np.int64], weights: Tensor | None) -> Tensor:
    """Return the cross-entropy of logits `(rows, classes)`, summed over rows; `weights` has one a class."""
    target = torch.from_numpy(labels).to(logits.device)
    weights = weights.to(logits.device) if weights is not None else None
    return functional.cross_entropy(logits.float(), target, weight=weights, reduction="sum")


def measured(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Measured:
    """Return cross-entropy and correctness of logits `(rows, classes)`, one a row."""
    likelihood = log_shares(logits)
    said = likelihood.argmax(axis=1)
    return Measured(
        -likelihood[np.arange(len(labels)), labels],
        (said == labels).astype(np.float64),
        said.astype(np.int64),
    )


def divergence(base: NDArray[np.float32], own: NDArray[np.float32]) -> float:
    """Return KL(base ‖ own) of the answers that logits `(rows, classes)` stand for: nats, a mean over rows."""
    said, now = (log_shares(logits) for logits in (base, own))
    return float((np.exp(said) * (said - now)).sum(axis=1).mean())


def log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-probabilities that logits `(rows, classes)` stand for."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    likelihood: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return likelihood


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
