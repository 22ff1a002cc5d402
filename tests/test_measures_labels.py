"""Probes: flipped labels are found, clean ones are not doubted."""

import numpy as np
import pytest

from tasks.measures import harm, labels


def two_classes(rows: int, seed: int, distance: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (rows, 16) of two Gaussians `distance` apart, and which one each is of."""
    chance = np.random.default_rng(seed)
    label = chance.integers(0, 2, rows)
    vectors = chance.standard_normal((rows, 16))
    vectors[:, 0] += distance * label
    return vectors, label


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_flipped_labels_are_found(share: float) -> None:
    vectors, truth = two_classes(600, 1, distance=6)
    flipped = np.random.default_rng(2).permutation(600)[: int(600 * share)]
    given = truth.copy()
    given[flipped] = 1 - given[flipped]
    outcome = labels.probe(vectors, given, names(600), 7)
    assert outcome is not None
    found = labels.suspicious_labels(outcome, given, harm.calibrated(outcome.scores, given))
    right = len(set(found.tolist()) & set(flipped.tolist()))
    assert right / len(flipped) >= 0.9
    assert right / len(found) >= 0.9


def test_clean_separable_labels_are_not_doubted() -> None:
    vectors, truth = two_classes(400, 3, distance=8)
    outcome = labels.probe(vectors, truth, names(400), 7)
    assert outcome is not None
    assert len(labels.suspicious_labels(outcome, truth, harm.calibrated(outcome.scores, truth))) <= 4


def test_probe_is_declined_where_it_cannot_be_fitted() -> None:
    vectors, truth = two_classes(60, 8)
    assert labels.probe(vectors, np.zeros(60, dtype=np.int64), names(60), 7) is None
    assert labels.probe(vectors, truth, ["one group"] * 60, 7) is None
    lonely = np.array([1] + [0] * 59)
    assert labels.probe(vectors, lonely, names(60), 7) is None


def test_probe_handles_a_class_that_a_fold_lacks() -> None:
    vectors, truth = two_classes(90, 9)
    truth[0] = 5
    outcome = labels.probe(vectors, truth, names(90), 7)
    assert outcome is not None
    assert outcome.classes.tolist() == [0, 1, 5]
    assert np.isfinite(outcome.scores).all()
    labels.suspicious_labels(
        outcome, truth, harm.calibrated(outcome.scores, np.searchsorted(outcome.classes, truth))
    )


def test_wilson_interval_of_nothing_is_not_nothing() -> None:
    low, high = labels.wilson(0, 100)
    assert low == 0
    assert 0.03 < high < 0.04
