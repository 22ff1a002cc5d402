"""How far the training rows are from where the model will be used, and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.checks.sample import Sample, too_small
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name, significance
from tasks.measures import diversity, harm, labels, mismatch
from tasks.measures.rectified import Rectified, enough_labelled, rectified_accuracy
from tasks.recipe import ORIGINAL, UNLABELLED, Check
from tasks.reports import Measure


def distance(train: Sample, target: Sample, section: Check) -> list[Measure]:
    """Say whether two samples differ, and how much: training rows and a target, or either and what the base saw."""
    remedy = (
        "Different is no fault: what the base is measured on is far from these rows. The further, the more can be "
        "forgotten: replay original rows (data.replay), and keep the rate low."
        if target.name == ORIGINAL
        else "Add rows like the target's to the training data; different need not harm: see expected_accuracy."
    )
    of = "training rows" if train.name == "train" else train.name
    suffix = target.name if train.name == "train" else f"{train.name}_{target.name}"
    names = f"mismatch_auc_{suffix}", f"mmd_{suffix}"
    if reason := too_small(train) or too_small(target):
        return [inconclusive(name, reason, remedy) for name in names]
    pooled = mismatch.pool(train.vectors, target.vectors, train.groups, target.groups)
    area, scores = mismatch.classifier_test(pooled, section.permutations, section.seed)
    kernel = mismatch.kernel_test(pooled, section.permutations, section.seed)
    unlike = np.argsort(-scores[pooled.second], kind="stable")[:WORST].tolist()
    return [
        Measure(
            name=names[0],
            value=round(area.value, 4),
            interval=rounded(area.interval),
            meaning=f"How well a classifier tells {target.name} from the {of}: 0.5 not "
            "at all, 1 always. " + significance(area.p_value, section.permutations),
            remedy=remedy,
            worst=[f"{row_name(target.rows, row)}: {extract(target.rows, row)}" for row in unlike],
        ),
        Measure(
            name=names[1],
            value=round(kernel.value, 4),
            interval=rounded(kernel.interval),
            meaning=f"Squared maximum mean discrepancy of {target.name} and the {of}: 0 "
            "is none, 2 the most. " + significance(kernel.p_value, section.permutations),
            remedy=remedy,
        ),
    ]


def expected_accuracy(train: Sample, target: Sample, home: harm.Home | None) -> Measure:
    """Say how accurate a model of the training rows would be on a target, from its labelled rows where there are some."""
    name = f"expected_accuracy_{target.name}"
    remedy = f"Label a few rows of {target.name} and measure; train on some of them."
    if home is None or too_small(target):
        return inconclusive(name, _unknown(train, target), remedy)
    scores = home.outcome.scores_of(target.vectors)
    found = harm.expected_accuracy(home, target.vectors, target.groups)
    unsure = np.argsort(scores.max(axis=1), kind="stable")[:WORST].tolist()
    measure = Measure(
        name=name,
        value=round(found.accuracy, 4),
        interval=rounded(found.interval),
        confidence=0.9,
        backed_by=0,
        meaning=f"Accuracy to expect on {target.name} from a probe on the base model ({found.at_home:.2f} at "
        f"home), estimated without labels: {found.transport:.2f} less by how unlike home's labels its probabilities are, "
        f"{found.region_loss:.2f} less on parts of the training rows that are held out, {found.disagreement:.2f} less by "
        "how much seldomer two probes agree there; the weights come of real pairs. What it cannot see is a text "
        "that means something else there: it warns, and refuses nothing.",
        remedy=remedy,
        worst=[f"{row_name(target.rows, row)}: {extract(target.rows, row)}" for row in unsure],
    )
    known = target.labels != UNLABELLED
    if not enough_labelled([group for group, use in zip(target.groups, known, strict=True) if use]):
        return measure if home.region_loss is not None else inconclusive(name, NO_REGION, remedy)
    right = home.outcome.classes[scores.argmax(axis=1)] == target.labels
    backed = rectified_accuracy(found.confidence, known, right, target.groups)
    return _backed(measure, target, known, backed, alone=home.region_loss is not None)


NO_REGION = (
    "Inconclusive: the training rows fall into no parts that are large enough for one to be held out (at least "
    f"{harm.FEWEST_IN_REGION} rows, and {harm.FEWEST_OUTSIDE} beside them): what a shift costs them is not known."
)


def _backed(
    measure: Measure, target: Sample, known: NDArray[np.bool_], found: Rectified, *, alone: bool
) -> Measure:
    """Return the measure with its estimate put right by labelled rows; `alone`: without them there would be one."""
    low, high = measure.interval or (0.0, 1.0)
    without = f" Without labels {measure.value:.2f} was to be expected ({low:.2f} to {high:.2f})."
    return measure.model_copy(
        update={
            "value": round(found.accuracy, 4),
            "interval": rounded(found.interval),
            "backed_by": int(known.sum()),
            "meaning": f"Accuracy of a probe on the base model on {target.name}, from {known.sum()} labelled of "
            f"{len(known)} rows, which are worth {found.effective_rows:.0f} independent ones.{without if alone else ''}",
        }
    )


def _unknown(train: Sample, target: Sample) -> str:
    """Return why what needs a probe cannot be estimated; empty where the probe had one label only."""
    several = "Inconclusive: rows have any number of labels, and this is estimated for one label a row."
    return too_small(train) or too_small(target) or (several if train.has_label_lists else "")


def covered(train: Sample, target: Sample) -> Measure:
    """Say how much of a target the training rows lie near to."""
    name, remedy = f"coverage_{target.name}", f"Collect training rows like those of {target.name} below."
    if reason := too_small(train) or too_small(target):
        return inconclusive(name, reason, remedy)
    found = diversity.coverage(train.vectors, target.vectors, 0)
    far = np.argsort(-found.missed, kind="stable")[:WORST].tolist()
    return Measure(
        name=name,
        value=round(found.share.value, 4),
        interval=rounded(found.share.interval),
        meaning=f"Share of the rows of {target.name} that as many training rows lie near to (no farther than the fifth "
        f"nearest other row of {target.name}); {found.alike:.2f} is to be expected when both are alike.",
        remedy=remedy,
        worst=[
            f"{row_name(target.rows, row)}: {extract(target.rows, row)}"
            for row in far
            if found.missed[row] > 0.5
        ],
    )


def label_shift(
    train: Sample, target: Sample, probe: labels.ProbeOutcome | None, names: Sequence[str], seed: int
) -> Measure:
    """Say how much the shares of the labels differ on a target whose labels are not looked at."""
    name = f"label_shift_{target.name}"
    remedy = (
        f"Label a few rows of {target.name}; weigh classes (finetune.class_weights), or train on its shares."
    )
    if probe is None or too_small(target):
        return inconclusive(name, _unknown(train, target), remedy)
    named, there = probe.scores.argmax(axis=1), probe.scores_of(target.vectors).argmax(axis=1)
    column = np.searchsorted(probe.classes, train.labels)
    classes = len(probe.classes)
    found = mismatch.label_shift(named, column, there, classes, train.groups, target.groups, seed)
    moved = np.argsort(-np.abs(found.shares - found.at_home), kind="stable")[:WORST].tolist()
    return Measure(
        name=name,
        value=round(found.distance, 4),
        meaning=f"How far the shares of the labels on {target.name} are from those at home: half the sum of the "
        "differences, estimated without its labels from how often a probe names each and what it confuses at "
        "home. It holds where texts of one label are alike in both. The probe's least sure direction has "
        f"{found.weakest:.2f} of 1.",
        remedy=remedy,
        worst=[
            f"{names[int(probe.classes[place])]}: {found.at_home[place]:.2f} at home, {found.shares[place]:.2f} there "
            f"({found.intervals[place, 0]:.2f} to {found.intervals[place, 1]:.2f})"
            for place in moved
        ],
    )
