"""Two-sample tests: at α = 0.05 about 5 % of null draws are rejected, shifts are seen, groups are respected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tasks.measures import mismatch
from tasks.measures.mismatch import LabelShift, TwoSample, classifier_test, kernel_test, label_shift, pool


def classifier(*arguments: Any) -> TwoSample:
    return classifier_test(*arguments)[0]


TESTS = pytest.mark.parametrize("test", [classifier, kernel_test])
DRAWS = 400


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def rejected(test: Callable[..., TwoSample], draw: Callable[[np.random.Generator], Any]) -> float:
    hits = 0
    for seed in range(DRAWS):
        hits += test(pool(*draw(np.random.default_rng(seed))), 99, seed).p_value <= 0.05
    return hits / DRAWS


@TESTS
@pytest.mark.parametrize("second", [60, 31])
def test_type_one_error_is_five_per_cent(test: Callable[..., TwoSample], second: int) -> None:
    def draw(chance: np.random.Generator) -> Any:
        rows = chance.standard_normal((60 + second, 8)) * np.arange(1, 9)
        return rows[:60], rows[60:], names(60), names(second)

    # 0.05 ± 2.7 standard errors of 400 draws
    assert 0.02 <= rejected(test, draw) <= 0.08


@TESTS
def test_type_one_error_holds_when_rows_go_by_group(test: Callable[..., TwoSample]) -> None:
    def draw(chance: np.random.Generator) -> Any:
        centres = np.repeat(chance.standard_normal((24, 6)) * 3, 5, axis=0)
        rows = centres + chance.standard_normal((120, 6))
        groups = [str(row // 5) for row in range(60)]
        return rows[:60], rows[60:], groups, groups

    assert 0.02 <= rejected(test, draw) <= 0.08


@TESTS
def test_planted_shift_is_seen(test: Callable[..., TwoSample]) -> None:
    def draw(chance: np.random.Generator) -> Any:
        shift = np.zeros(8)
        shift[3] = 1.0
        return chance.standard_normal((60, 8)), chance.standard_normal((60, 8)) + shift, names(60), names(60)

    assert rejected(test, draw) >= 0.8


def test_area_is_known_for_a_known_shift_and_its_interval_covers() -> None:
    covered = 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        first, second = chance.standard_normal((300, 1)), chance.standard_normal((300, 1)) + 1
        found = classifier(pool(first, second, names(300), names(300)), 99, seed)
        covered += found.interval[0] <= 0.7602 <= found.interval[1]
    assert 88 <= covered <= 99


def test_kernel_distance_interval_covers_a_known_distance() -> None:
    wide = np.random.default_rng(1234)
    truth = kernel_test(
        pool(
            wide.standard_normal((20_000, 3)),
            wide.standard_normal((20_000, 3)) + 1,
            names(20_000),
            names(20_000),
        ),
        99,
        1,
    ).value
    covered = 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        first, second = chance.standard_normal((300, 3)), chance.standard_normal((300, 3)) + 1
        found = kernel_test(pool(first, second, names(300), names(300)), 99, 1)
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered >= 85


def test_samples_told_apart_without_error_keep_an_interval() -> None:
    first, second = np.zeros((50, 2)), np.ones((40, 2))
    found = classifier(pool(first, second, names(50), names(40)), 99, 1)
    assert found.value == 1
    assert found.interval == (pytest.approx(1 - 3 / 40), 1)


@TESTS
def test_identical_rows_are_no_difference(test: Callable[..., TwoSample]) -> None:
    found = test(pool(np.ones((40, 4)), np.ones((40, 4)), names(40), names(40)), 99, 1)
    assert found.p_value == 1
    assert found.value == pytest.approx(0.5 if test is classifier else 0)


@TESTS
def test_same_seed_same_answer(test: Callable[..., TwoSample]) -> None:
    rows = np.random.default_rng(5).standard_normal((80, 6))
    pooled = pool(rows[:40], rows[40:], names(40), names(40))
    assert test(pooled, 99, 3) == test(pooled, 99, 3)


@TESTS
def test_chunks_change_nothing(test: Callable[..., TwoSample], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(6).standard_normal((300, 6)).astype(np.float32)
    pooled = pool(rows[:180], rows[180:] + 0.2, names(180), names(120))
    whole = test(pooled, 99, 3)
    monkeypatch.setattr(mismatch, "_ROWS_A_CHUNK", 37)
    monkeypatch.setattr(mismatch, "_SCORES_A_BLOCK", 1_000)
    found = test(pooled, 99, 3)
    assert found.p_value == whole.p_value
    assert (found.value, *found.interval) == pytest.approx((whole.value, *whole.interval), abs=1e-6)


def test_permuted_areas_are_those_of_ranks() -> None:
    from sklearn.metrics import roc_auc_score

    chance = np.random.default_rng(2)
    scores, second = chance.integers(0, 9, 200).astype(float), chance.random(200) < 0.3
    assert mismatch._area(scores, second) == pytest.approx(roc_auc_score(second, scores))


SHARES = np.array([0.6, 0.3, 0.1])


def shifted(seed: int, shares: np.ndarray, rows: int = 1500) -> LabelShift:
    """Return the estimate from a probe that errs in 20 % and a target of these label shares."""
    chance = np.random.default_rng(seed)
    errors = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    labels, there = (chance.choice(3, rows, p=each) for each in (SHARES, shares))
    named, target_named = (
        np.array([chance.choice(3, p=errors[label]) for label in side]) for side in (labels, there)
    )
    return label_shift(named, labels, target_named, 3, names(rows), names(rows), seed)


def test_label_shares_of_a_target_are_estimated_without_its_labels() -> None:
    target = np.array([0.2, 0.3, 0.5])
    found = shifted(1, target)
    assert found.shares == pytest.approx(target, abs=0.05)
    assert found.at_home == pytest.approx(SHARES, abs=0.05)
    assert found.distance == pytest.approx(0.4, abs=0.06)
    assert found.weakest > 0.5
    assert found.shares.sum() == pytest.approx(1)


def test_label_share_intervals_hold_the_truth() -> None:
    target, inside = np.array([0.2, 0.3, 0.5]), 0
    for seed in range(40):
        found = shifted(100 + seed, target, rows=400)
        inside += int(((found.intervals[:, 0] <= target) & (target <= found.intervals[:, 1])).sum())
    assert 0.9 <= inside / 120 <= 0.995


def test_a_probe_that_cannot_tell_classes_apart_says_so() -> None:
    chance = np.random.default_rng(3)
    labels, named = chance.integers(0, 2, 400), chance.integers(0, 2, 400)
    found = label_shift(named, labels, named, 2, names(400), names(400), 1)
    assert found.weakest < 0.2
    assert found.intervals[0, 1] - found.intervals[0, 0] > 0.5


def test_label_shift_without_rows_of_a_class_or_a_target_is_refused() -> None:
    some = np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"no rows of class \[2\]"):
        label_shift(some, some, some, 3, names(4), names(4), 1)
    with pytest.raises(ValueError, match="no target rows"):
        label_shift(some, some, some[:0], 2, names(4), [], 1)
