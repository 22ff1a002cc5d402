"""What a gain on the task is counted in: the family's own metric, or macro-F1, in which every class counts the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.errors import StageError
from tasks.families.interface import Measured, Model
from tasks.forgetting.bootstrap import macro_f1_terms
from tasks.forgetting.kept import kept_measure
from tasks.recipe import Evaluate
from tasks.tables import has_label_lists, indicators


def task_metric(model: Model, section: Evaluate) -> str:
    """Return the name of the metric."""
    return section.metric or model.metric


def task_measure(model: Model, rows: pd.DataFrame, section: Evaluate) -> Measured:
    """Measure a model on labelled rows of its task, or return what was measured of it before.

    Its outcomes are in the recipe's metric. Those of macro-F1 are a term a row (`macro_f1_terms`), whose mean is the
    metric, so that base and candidate are compared in pairs as in any other. In the log-likelihood, too, every class
    counts the same then.

    Raises:
        StageError: the model predicts no labels, of which a metric by class could be made.
    """
    measured = kept_measure(model, rows)
    if section.metric is None:
        return measured
    if measured.predictions is None:
        raise StageError(f"evaluate.metric is {section.metric}, but a {model.task} model predicts no labels.")
    truth = truth_of(rows, len(model.labels))
    terms = macro_f1_terms(truth, measured.predictions, len(model.labels))
    calibrated = measured.calibrated
    if calibrated is not None and truth.ndim == 1:
        counts = np.bincount(truth, minlength=len(model.labels))
        calibrated = calibrated * len(truth) / ((counts > 0).sum() * counts[truth])
    return replace(measured, outcomes=terms, calibrated=calibrated)


def truth_of(rows: pd.DataFrame, classes: int) -> NDArray[np.int64]:
    """Return the labels as indices `(rows,)`; of lists of labels, indicators `(rows, classes)`."""
    return indicators(rows, classes) if has_label_lists(rows) else rows["label"].to_numpy(np.int64)
