"""The release rule against published values, its own promises, and the ways in which such rules go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from tasks.forgetting import rule
from tasks.forgetting.rule import (
    PairedLoss,
    examples_for_changes,
    examples_for_spread,
    examples_needed,
    fewest_examples,
    holm,
    paired_loss,
)


def binary(lost: int, won: int, both: int) -> PairedLoss:
    base = [1.0] * lost + [0.0] * won + [1.0] * both
    candidate = [0.0] * lost + [1.0] * won + [1.0] * both
    return paired_loss(base, candidate, [str(row) for row in range(len(base))])


def continuous(values: np.ndarray) -> PairedLoss:
    return paired_loss(values, np.zeros_like(values), [str(row) for row in range(len(values))])


def constrained_score(lost: int, won: int, pairs: int, loss: float) -> float:
    """The score statistic from the likelihood itself, maximised numerically under the hypothesis."""

    def negative(share_won: float) -> float:
        both = pairs - lost - won
        terms = [(lost, share_won + loss), (won, share_won), (both, 1 - 2 * share_won - loss)]
        return -sum(count * np.log(share) for count, share in terms if count)

    bounds = (max(1e-9, 1e-9 - loss), (1 - loss) / 2 - 1e-9)
    share = optimize.minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (lost - won - pairs * loss) / np.sqrt(pairs * (2 * share + loss * (1 - loss)))


@pytest.mark.parametrize(("lost", "won", "pairs"), [(0, 1, 44), (5, 2, 60), (12, 30, 400), (40, 20, 90)])
@pytest.mark.parametrize("loss", [-0.05, 0.02, 0.1])
def test_score_statistic_is_that_of_the_constrained_likelihood(
    lost: int, won: int, pairs: int, loss: float
) -> None:
    made = binary(lost, won, pairs - lost - won)
    assert made._score(loss) == pytest.approx(constrained_score(lost, won, pairs, loss), rel=1e-3, abs=1e-3)


def test_score_test_of_no_difference_is_mcnemar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "CALIBRATION", 1.0)
    loss = binary(lost=5, won=17, both=200)
    assert loss.p_not_below(0.0) == pytest.approx(stats.norm.cdf((5 - 17) / np.sqrt(22)), rel=1e-6)


def test_t_without_skewness_is_the_t_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "CALIBRATION", 1.0)
    monkeypatch.setattr(rule, "FEW", 0)
    values = np.concatenate([np.linspace(-0.2, 0.2, 201), np.linspace(-0.2, 0.2, 201)]) + 0.01
    expected = stats.ttest_1samp(values, 0.03, alternative="less").pvalue
    assert continuous(values).p_not_below(0.03) == pytest.approx(expected, rel=0.02)


def test_bounds_and_p_values_say_the_same() -> None:
    for loss in (binary(9, 4, 300), continuous(np.random.default_rng(0).normal(0.01, 0.1, 150))):
        upper, lower = loss.upper(0.95), loss.lower(0.95)
        assert lower < loss.mean < upper
        assert loss.p_not_below(upper) == pytest.approx(0.05, abs=1e-3)
        assert loss.p_not_above(lower) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 5, 60, 97, 99])
def test_agreement_on_few_examples_settles_nothing(groups: int) -> None:
    """Below the size at which a share of total losses at the margin stays unseen, no set passes."""
    assert groups < fewest_examples(0.03, 0.95) == 100
    assert binary(0, 0, groups).upper(0.95) > 0.03
    if groups < 99:  # the score test asks for one more
        assert continuous(np.zeros(groups)).upper(0.95) > 0.03


def test_identical_models_pass_where_the_set_is_large_enough() -> None:
    assert binary(0, 0, 100).upper(0.95) < 0.03
    assert continuous(np.zeros(100)).p_not_below(0.03) <= 0.05


def test_rows_of_a_group_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(1)
    each = rng.choice([0.0, 1.0, -1.0], size=30, p=[0.8, 0.1, 0.1])
    values = np.repeat(each, 20)
    alone = continuous(values)
    together = paired_loss(values, np.zeros(600), [str(row // 20) for row in range(600)])
    assert together.mean == pytest.approx(alone.mean)
    assert together.standard_error > 4 * alone.standard_error
    assert together.upper(0.95) > alone.upper(0.95)
    assert together.effective_examples == pytest.approx(30, abs=2)


@pytest.mark.parametrize("whole_groups", [True, False])
def test_one_group_shows_nothing(whole_groups: bool) -> None:
    values = np.random.default_rng(0).normal(-1.0, 0.1, size=100)  # each row gains
    loss = paired_loss(values, np.zeros(100), ["one document"] * 100, whole_groups=whole_groups)
    assert (loss.p_not_below(0.03), loss.p_not_above(-2.0)) == (1.0, 1.0)


def test_small_groups_with_independent_rows_keep_their_worth() -> None:
    values = np.random.default_rng(2).choice([0.0, 1.0, -1.0], size=600, p=[0.8, 0.1, 0.1])
    together = paired_loss(values, np.zeros(600), [str(row // 4) for row in range(600)])
    assert together.effective_examples > 400


def test_groups_of_unlike_size_keep_the_mean_over_examples() -> None:
    values = np.array([0.3] * 10 + [0.0, 0.1, -0.1, 0.0])
    loss = paired_loss(values, np.zeros(14), ["a"] * 10 + ["b", "c", "d", "e"])
    assert loss.by_group.mean() == pytest.approx(values.mean())
    assert loss.groups == 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=2, max_size=60), st.floats(0.6, 0.99))
def test_bounds_hold_the_mean_and_widen_with_confidence(values: list[float], confidence: float) -> None:
    loss = continuous(np.array(values))
    assert -1 <= loss.lower(confidence) <= loss.mean + 1e-6
    assert loss.mean - 1e-6 <= loss.upper(confidence) <= 1
    assert loss.upper(confidence) <= loss.upper(0.995) + 1e-9


def test_exchanging_the_models_exchanges_the_bounds() -> None:
    loss = binary(12, 5, 200)
    assert loss.reversed().upper(0.9) == pytest.approx(-loss.lower(0.9))


def test_losses_that_are_rare_and_total_do_not_slip_through() -> None:
    """The plain t test passes such models up to 15 % of the time at the margin."""
    rng = np.random.default_rng(3)
    passed = plain = 0
    for _ in range(1000):
        values = (rng.random(200) < 0.03).astype(float)
        noisy = values * rng.uniform(0.9, 1.0, 200)
        passed += continuous(noisy).p_not_below(0.0285) <= 0.05
        plain += stats.ttest_1samp(noisy + 1e-9 * rng.random(200), 0.0285, alternative="less").pvalue <= 0.05
    assert plain > 75
    assert passed <= 50


def test_examples_needed_are_enough() -> None:
    rng = np.random.default_rng(4)
    probabilities = [0.05, 0.05, 0.9]
    pilot = continuous(rng.choice([1.0, -1.0, 0.0], size=300, p=probabilities))
    needed = examples_needed(pilot, 0.03, 0.95, 0.8)
    assert needed is not None
    assert needed > 300
    passed = sum(
        continuous(rng.choice([1.0, -1.0, 0.0], size=needed, p=probabilities)).p_not_below(0.03) <= 0.05
        for _ in range(300)
    )
    assert passed >= 240


def test_what_cannot_be_settled_is_said() -> None:
    assert examples_needed(continuous(np.random.default_rng(5).normal(0, 0.5, 50)), 0.0001, 0.95, 0.8) is None


def test_holm_rejects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]
    assert holm([0.01, 0.02, 0.04], 0.05) == [True, True, True]
    assert holm([], 0.05) == []


@pytest.mark.parametrize(
    ("base", "candidate", "groups"),
    [
        ([], [], []),
        ([1.0], [1.0, 0.0], ["a"]),
        ([1.0], [float("nan")], ["a"]),
        ([1.0, 0.0], [1.0, 0.0], ["a"]),
    ],
)
def test_what_cannot_be_paired_is_an_error(
    base: list[float], candidate: list[float], groups: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"outcome|groups"):
        paired_loss(base, candidate, groups)


def test_groups_that_may_be_lost_whole_count_as_one_each() -> None:
    """Forty groups of ten that all agree may hide one of twenty groups that is lost whole: a chance of 0.13."""
    agree = paired_loss(np.ones(400), np.ones(400), [str(row // 10) for row in range(400)])
    assert agree.equal_groups == 40
    assert agree.p_not_below(0.05) == pytest.approx(0.95**40)


def test_unlike_groups_are_worth_fewer() -> None:
    sizes = [1, 1, 2, 3, 10] * 12
    groups = [str(place) for place, size in enumerate(sizes) for _ in range(size)]
    loss = paired_loss(np.ones(len(groups)), np.zeros(len(groups)), groups)
    assert loss.equal_groups == pytest.approx(sum(sizes) ** 2 / sum(size**2 for size in sizes))
    assert loss.equal_groups < 31 < loss.groups


def test_the_standard_error_is_that_of_leaving_each_group_out() -> None:
    rng = np.random.default_rng(8)
    place = np.repeat(np.arange(9), rng.integers(1, 8, 9))
    values = rng.normal(size=len(place)) + rng.normal(size=9)[place]
    means = np.array([values[place != group].mean() for group in range(9)])
    expected = np.sqrt(8 / 9 * ((means - values.mean()) ** 2).sum())
    loss = paired_loss(values, np.zeros(len(place)), [str(group) for group in place])
    assert loss.standard_error == pytest.approx(expected)


def test_a_gain_shows_in_rows_that_fail_one_by_one_though_their_groups_are_few() -> None:
    """As on the demo's 73 reviews: where a review cannot be lost whole, its rows are what was seen."""
    draw = np.random.default_rng(0)
    groups = [str(row % 60) for row in range(660)]
    base = (draw.random(660) < 0.8).astype(float)
    candidate = np.where(draw.random(660) < 0.25, 1.0, base)
    whole = paired_loss(base, candidate, groups)
    rows = paired_loss(base, candidate, groups, whole_groups=False)
    assert whole.standard_error == rows.standard_error
    assert rows.p_not_below(0.0) < 0.01 < whole.p_not_below(0.0)
    assert rows.upper(0.95) < 0.0
    assert rows.reversed().whole_groups is False


def test_where_answers_change_both_ways_the_number_named_passes_with_the_power_asked_for() -> None:
    margin, confidence, power, changed = 0.05, 0.95, 0.8, 0.06
    n, draws = examples_for_changes(margin, confidence, power, changed), 1500
    chance, passed = np.random.default_rng(7), 0
    groups = [str(row) for row in range(n)]
    for _ in range(draws):
        move = chance.choice([-1.0, 0.0, 1.0], n, p=[changed / 2, 1 - changed, changed / 2])
        base = np.where(move > 0, 0.0, np.where(move < 0, 1.0, chance.integers(0, 2, n)))
        passed += paired_loss(base, base + move, groups).p_not_below(margin) <= 1 - confidence
    assert passed / draws == pytest.approx(power + 0.015, abs=0.03)


@pytest.mark.parametrize(("margin", "spread"), [(0.03, 0.15), (0.05, 0.15)])
def test_where_outcomes_spread_the_number_named_passes_with_the_power_asked_for(
    margin: float, spread: float
) -> None:
    n, draws, chance = examples_for_spread(margin, 0.95, 0.8, spread), 1500, np.random.default_rng(3)
    groups = [str(row) for row in range(n)]
    passed = [
        paired_loss(chance.normal(0, spread, n), np.zeros(n), groups).p_not_below(margin) <= 0.05
        for _ in range(draws)
    ]
    assert np.mean(passed) == pytest.approx(0.805, abs=0.025)
