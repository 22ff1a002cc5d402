"""The paired bootstrap: against scikit-learn's figure, and its interval against what is known of it."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tasks.forgetting.bootstrap import group_weights, interval, macro_f1, macro_f1_terms, spearman_terms


@pytest.mark.parametrize("classes", [2, 5])
def test_macro_f1_is_that_of_scikit_learn_in_every_draw(classes: int) -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, classes, 80), rng.integers(0, classes, 80)
    weights = group_weights([str(row // 3) for row in range(80)], 20, seed=1)
    found = macro_f1(truth, said, classes, weights)
    for draw in (0, 1, 20):
        expected = f1_score(truth, said, average="macro", sample_weight=weights[draw], zero_division=0)
        assert found[draw] == pytest.approx(expected)


def test_groups_are_drawn_whole_and_the_first_draw_is_the_sample() -> None:
    weights = group_weights(["a", "a", "b", "c"], 50, seed=2)
    assert weights[0].tolist() == [1, 1, 1, 1]
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[1:, 1:].sum(axis=1) == 3).all()


def test_a_seed_gives_the_same_draws() -> None:
    assert (group_weights(list("abc"), 9, seed=3) == group_weights(list("abc"), 9, seed=3)).all()


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(4).normal(0, 1, 400)
    weights = group_weights([str(row) for row in range(400)], 4000, seed=5)
    low, high = interval(weights @ values / 400, 0.95)
    assert low == pytest.approx(values.mean() - 1.96 / 20, abs=0.015)
    assert high == pytest.approx(values.mean() + 1.96 / 20, abs=0.015)


@pytest.mark.parametrize("rows", [5, 40, 300])
def test_pseudo_values_of_spearman_are_those_of_leaving_each_row_out(rows: int) -> None:
    rng = np.random.default_rng(6)
    first = np.round(rng.normal(size=rows), 1)  # with ties
    second = np.round(first + rng.normal(size=rows), 1)
    whole = stats.spearmanr(first, second).statistic
    each = [stats.spearmanr(np.delete(first, row), np.delete(second, row)).statistic for row in range(rows)]
    expected = rows * whole - (rows - 1) * np.array(each)
    assert spearman_terms(first, second) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("rows", "several"), [(12, False), (90, False), (60, True)])
def test_terms_of_macro_f1_have_it_as_their_mean_and_spread_as_leaving_each_row_out(
    rows: int, several: bool
) -> None:
    rng = np.random.default_rng(7)
    shape = (rows, 4) if several else rows
    truth, said = (rng.integers(0, 2 if several else 4, shape) for _ in range(2))

    def score(keep: np.ndarray) -> float:
        labels = None if several else range(4)
        return f1_score(truth[keep], said[keep], average="macro", labels=labels, zero_division=0)

    everyone = np.arange(rows)
    each = np.array([score(np.delete(everyone, row)) for row in everyone])
    pseudo = rows * score(everyone) - (rows - 1) * each
    terms = macro_f1_terms(truth, said, 4)
    assert terms.mean() == pytest.approx(score(everyone))
    assert terms - terms.mean() == pytest.approx(pseudo - pseudo.mean(), abs=1e-9)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_correlation_with_what_does_not_vary_is_none(constant: int) -> None:
    """As with guessing: `decide` then says that no forgetting can be seen."""
    sides = [np.arange(150.0), np.arange(150.0)]
    sides[constant][:] = 3.0
    assert not spearman_terms(sides[0], sides[1]).any()
