"""Perplexity: what it is of known losses, that rows of a group are one, and when it says nothing."""

import numpy as np
import pytest

from tasks.measures.perplexity import perplexity, ratio


def losses(means: list[float], tokens: list[int]) -> np.ndarray:
    return np.array([[mean * count, count] for mean, count in zip(means, tokens, strict=True)])


def test_the_mean_is_over_tokens_and_rows_without_a_token_do_not_count() -> None:
    found = perplexity(losses([1.0, 2.0, 0.0], [30, 10, 0]), ["a", "b", "c"])
    assert found.value == pytest.approx(np.exp((30 + 20) / 40))
    assert found.units == 2
    assert found.interval[0] < found.value < found.interval[1]


def test_equal_losses_leave_no_doubt_and_copies_of_a_group_add_nothing() -> None:
    assert perplexity(losses([2.0] * 5, [7] * 5), list("abcde")).interval == pytest.approx((np.exp(2),) * 2)
    means, tokens = [1.0, 1.5, 2.0, 2.5], [10, 20, 30, 40]
    once = perplexity(losses(means, tokens), list("abcd"))
    thrice = perplexity(losses(means * 3, tokens * 3), list("abcd") * 3)
    assert thrice.interval == pytest.approx(once.interval)


def test_ratio_of_texts_half_as_surprising() -> None:
    chance = np.random.default_rng(7)
    names = [str(row) for row in range(200)]
    one, other = (
        perplexity(losses((level + 0.1 * chance.standard_normal(200)).tolist(), [50] * 200), names)
        for level in (3.0, 3.0 + np.log(2))
    )
    value, interval = ratio(other, one)
    assert value == pytest.approx(2, rel=0.05)
    assert interval[0] < 2 < interval[1]
    assert interval[1] - interval[0] < 0.2


@pytest.mark.parametrize("groups", [["a", "a"], ["a", "b"]])
def test_one_group_has_no_spread(groups: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 2 are needed"):
        perplexity(losses([1.0, 2.0], [5, 0]), groups)
