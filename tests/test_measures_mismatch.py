"""Two-sample tests: at α = 0.05 about 5 % of null draws are rejected, shifts are seen, groups are respected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tasks.measures.mismatch import TwoSample, classifier_test, kernel_test, pool


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
