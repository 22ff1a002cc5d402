"""Which labels look wrong, by a probe on the base model that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.checks.sample import Sample, too_small
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name
from tasks.measures import harm, labels
from tasks.reports import Measure


def label_noise(train: Sample, probe: labels.ProbeOutcome | None, names: Sequence[str]) -> Measure:
    remedy = "Read the rows below and correct their labels."
    if probe is None:
        return inconclusive("label_noise_share", too_small(train) or "", remedy)
    column = np.searchsorted(probe.classes, train.labels)
    probabilities = harm.calibrated(probe.scores, column)
    found = labels.suspicious_labels(probe, train.labels, probabilities)
    accuracy = float(np.mean(probe.scores.argmax(axis=1) == column))
    worst = []
    for row in found[: 2 * WORST].tolist():
        guess = int(probe.classes[probe.scores[row].argmax()])
        worst.append(
            f"{row_name(train.rows, row)} [{names[train.labels[row]]}, not "
            f"{names[guess]}?]: {extract(train.rows, row)}"
        )
    return Measure(
        name="label_noise_share",
        value=round(len(found) / len(train.rows), 4),
        interval=rounded(labels.wilson(len(found), len(train.rows))),
        meaning="Share of training rows whose label confident learning doubts, by a probe "
        "on the base model that "
        f"has not seen them. It is right on {accuracy:.0%}, and its own errors count in: an upper estimate.",
        remedy=remedy,
        worst=worst,
    )
