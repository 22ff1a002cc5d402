"""A few labelled rows put the confidence of many right: unbiased, covering, narrower than the labelled rows alone."""

import numpy as np
import pytest

from tasks.measures.rectified import enough_labelled, rectified_accuracy


def draw(seed: int, rows: int, labelled: int, bias: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence that promises `bias` too much, which rows are labelled, and which are right."""
    chance = np.random.default_rng(seed)
    truth = np.where(chance.random(rows) < 0.7, 0.97, 0.5)
    right = chance.random(rows) < truth
    return np.clip(truth + bias, 0, 1), np.arange(rows) < labelled, right


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(("labelled", "bias"), [(40, 0.0), (40, 0.15), (150, 0.15), (600, 0.15)])
def test_the_interval_covers_whatever_the_confidence_is_worth(labelled: int, bias: float) -> None:
    covered, values = [], []
    for seed in range(300):
        found = rectified_accuracy(*draw(seed, 600, labelled, bias), names(600))
        covered.append(found.interval[0] <= 0.829 <= found.interval[1])
        values.append(found.accuracy)
    assert 0.86 <= np.mean(covered) <= 0.97
    assert np.mean(values) == pytest.approx(0.829, abs=0.01)


def test_unlabelled_rows_are_worth_labelled_ones() -> None:
    confidence, labelled, right = draw(1, 2000, 100, 0.1)
    together = rectified_accuracy(confidence, labelled, right, names(2000))
    alone = rectified_accuracy(confidence[:100], labelled[:100], right[:100], names(100))
    assert together.effective_rows > 1.1 * 100
    assert alone.effective_rows == pytest.approx(100, rel=0.02)
    assert alone.accuracy == right[:100].mean()


def test_rows_of_one_group_count_as_few() -> None:
    confidence, labelled, right = draw(2, 600, 600, 0.0)
    right = np.repeat(right[:60], 10)
    found = rectified_accuracy(confidence, labelled, right, [str(row // 10) for row in range(600)])
    assert found.effective_rows == pytest.approx(60, rel=0.15)


def test_all_right_is_not_certain_and_constant_confidence_is_no_fault() -> None:
    found = rectified_accuracy(np.full(30, 0.9), np.ones(30, bool), np.ones(30, bool), names(30))
    assert found.accuracy == 1
    assert 0.85 < found.interval[0] < 0.95
    one = rectified_accuracy(np.full(200, 0.9), np.arange(200) < 25, np.arange(200) % 2 == 0, names(200))
    assert one.accuracy == pytest.approx(13 / 25)


def test_too_few_labelled_rows_are_said_to_be() -> None:
    assert not enough_labelled(names(5))
    assert not enough_labelled(["one patient"] * 100)
    assert enough_labelled(names(20))
    with pytest.raises(ValueError, match="No labelled row"):
        rectified_accuracy(np.ones(3), np.zeros(3, bool), np.zeros(3, bool), names(3))


def test_rows_of_few_groups_that_are_all_alike_are_worth_no_more_than_the_groups() -> None:
    chance, covered = np.random.default_rng(0), 0
    groups = [str(row // 10) for row in range(100)]
    for _ in range(1000):
        right = np.repeat(chance.random(10) < 0.85, 10)
        found = rectified_accuracy(np.full(100, 0.6), np.ones(100, bool), right, groups)
        covered += found.interval[0] <= 0.85 <= found.interval[1]
    assert covered / 1000 > 0.88, "of intervals of 90 %"
    wrong = rectified_accuracy(np.full(100, 0.6), np.ones(100, bool), np.zeros(100, bool), groups)
    assert wrong.effective_rows == pytest.approx(10)
    assert wrong.interval[1] > 0.2
