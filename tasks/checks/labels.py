"""Which labels look wrong, by a probe on the base model that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.checks.sample import Sample, too_small
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name
from tasks.measures import harm, labels
from tasks.reports import Measure
from tasks.tables import indicators

REMEDY = "Read the rows below and correct their labels."
FEWEST = 5
"""Rows that must have a label, and lack it, for a probe to learn it."""


def label_noise(train: Sample, probe: labels.ProbeOutcome | None, names: Sequence[str]) -> Measure:
    if probe is None:
        return inconclusive("label_noise_share", too_small(train) or "", REMEDY)
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
        remedy=REMEDY,
        worst=worst,
    )


def noise_of_label_lists(train: Sample, names: Sequence[str], seed: int) -> Measure:
    """Doubt each label of rows that have any number of them by a yes-or-no probe of its own."""
    name, have = "label_noise_share", indicators(train.rows, len(names))
    counts = have.sum(axis=0)
    learnable = np.flatnonzero((counts >= FEWEST) & (counts <= len(have) - FEWEST)).tolist()
    if (reason := too_small(train)) or not learnable:
        few = f"Inconclusive: no label is had, and lacked, by {FEWEST} sampled rows, and fewer say nothing."
        return inconclusive(name, reason or few, REMEDY)
    doubtful: dict[int, list[str]] = {}
    for label in learnable:
        probe = labels.probe(train.vectors, have[:, label], train.groups, seed)
        if probe is None:
            continue
        sure = harm.calibrated(probe.scores, have[:, label])
        for row in labels.suspicious_labels(probe, have[:, label], sure).tolist():
            doubtful.setdefault(row, []).append(f"{'not ' if have[row, label] else ''}{names[label]}?")
    return Measure(
        name=name,
        value=round(len(doubtful) / len(have), 4),
        interval=rounded(labels.wilson(len(doubtful), len(have))),
        meaning="Share of training rows with a label, or without one, that confident learning doubts, by a yes-or-no "
        f"probe for each of {len(learnable)} of {len(names)} labels on the base model; its own errors count in: an "
        "upper estimate.",
        remedy=REMEDY,
        worst=[
            f"{row_name(train.rows, row)} [{', '.join(doubts)}]: {extract(train.rows, row)}"
            for row, doubts in list(doubtful.items())[: 2 * WORST]
        ],
    )
