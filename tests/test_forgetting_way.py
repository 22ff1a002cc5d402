"""The search for α over made-up curves of gain and loss: what it finds, what it may not take, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.forgetting.way import BASE, LOOKS, TUNED, Point, choose, rank, rank_number, spread, walk
from tasks.recipe import Merge
from tasks.reports import AlphaOutcome

TENTHS = [round(0.1 * step, 1) for step in range(11)]


@dataclass
class Curves:
    """What there is to find, and what was asked of it."""

    gain: Callable[[Point], float]
    fits: Callable[[Point], bool]
    likelier: Callable[[Point], float | None] = lambda _: None
    measured: list[Point] = field(default_factory=list)
    looked: list[Point] = field(default_factory=list)

    def measure(self, point: Point) -> AlphaOutcome:
        self.measured.append(point)
        return self._outcome(point, point == BASE or self.fits(point))

    def look(self, point: Point) -> AlphaOutcome:
        self.looked.append(point)
        return self._outcome(point, None)

    def _outcome(self, point: Point, fits: bool | None) -> AlphaOutcome:
        path, alpha = point
        gain = 0.0 if point == BASE else self.gain(point)
        blocked = ["suite"] if fits is False else []
        return AlphaOutcome(
            path=path,
            alpha=alpha,
            validation_score=gain,
            gain=gain,
            log_likelihood_gain=0.0
            if point == BASE and self.likelier(point) is not None
            else self.likelier(point),
            suites=[],
            within_budget=fits,
            blocked_by=blocked,
        )

    def chosen(self, alphas: list[float] = TENTHS, *paths: str) -> Point:
        section = Merge.model_validate({"alphas": alphas, "paths": list(paths) or ["wise-ft"]})
        found = choose(walk(section, self.measure, self.look))
        return found.path, found.alpha


def peak(at: float) -> Callable[[Point], float]:
    return lambda point: 0.05 - (point[1] - at) ** 2


def rising(point: Point) -> float:
    return point[1]


def anything(point: Point) -> bool:
    return True


def test_a_gain_that_is_greatest_below_the_tuned_model_is_found() -> None:
    curves = Curves(peak(0.6), anything)
    assert curves.chosen() == ("wise-ft", 0.6)
    assert curves.looked == [("wise-ft", alpha) for alpha in (0.2, 0.4, 0.6, 0.8)]
    assert curves.measured == [BASE, TUNED, ("wise-ft", 0.6)], "only the winner is asked of the benchmarks"


def test_a_gain_that_is_greatest_below_the_largest_alpha_that_fits_is_found() -> None:
    curves = Curves(peak(0.3), lambda point: point[1] <= 0.7)
    assert curves.chosen() == ("wise-ft", 0.3)
    assert all(alpha < 0.7 for _, alpha in curves.looked)


def test_a_gain_that_rises_is_taken_at_the_largest_alpha_and_confirms_nothing() -> None:
    curves = Curves(rising, lambda point: point[1] <= 0.7)
    assert curves.chosen() == ("wise-ft", 0.7)
    assert sorted(alpha for _, alpha in curves.measured) == [0.0, 0.5, 0.7, 0.8, 1.0], (
        "both ends, and bisection"
    )


def test_a_winner_that_is_over_the_budget_is_not_taken() -> None:
    over = {0.6, 0.4}
    curves = Curves(peak(0.6), lambda point: point[1] not in over)
    assert curves.chosen() == ("wise-ft", 0.8), "0.4 gains as much, but it is over the budget too"
    assert curves.measured[2:] == [("wise-ft", alpha) for alpha in (0.6, 0.4, 0.8)]


def test_of_equal_gains_the_nearest_to_the_base_is_confirmed() -> None:
    curves = Curves(lambda point: 0.02, anything)
    assert curves.chosen() == ("wise-ft", 0.2)
    assert curves.measured == [BASE, TUNED, ("wise-ft", 0.2)]


def test_what_gains_nothing_is_not_measured() -> None:
    curves = Curves(lambda point: -point[1], anything)
    assert curves.chosen() == BASE
    assert curves.measured == [BASE, TUNED]


def test_where_nothing_fits_nothing_is_looked_at() -> None:
    curves = Curves(rising, lambda point: False)
    assert curves.chosen(TENTHS, "wise-ft", "lines") == BASE
    assert not curves.looked


def test_every_path_is_looked_at_below_its_own_largest_alpha() -> None:
    """At α = 0 `lines` is no base, so it is a value below as any other."""

    def gain(point: Point) -> float:
        return 0.06 if point == ("lines", 0.25) else 0.05 - abs(point[1] - 0.5)

    curves = Curves(gain, anything)
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curves.chosen(quarters, "wise-ft", "lines") == ("lines", 0.25)
    assert [alpha for path, alpha in curves.looked if path == "wise-ft"] == quarters[1:4]
    assert [alpha for path, alpha in curves.looked if path == "lines"] == quarters[:4]


def test_what_was_only_looked_at_says_so() -> None:
    curves = Curves(peak(0.6), anything)
    section = Merge.model_validate({"alphas": TENTHS})
    found = {outcome.alpha: outcome.within_budget for outcome in walk(section, curves.measure, curves.look)}
    assert found == {0.0: True, 0.2: None, 0.4: None, 0.6: True, 0.8: None, 1.0: True}


def test_of_mixtures_that_gain_the_likeliest_is_taken() -> None:
    likelier: dict[float, float] = {0.2: 0.05, 0.4: 0.02, 0.6: -0.1, 0.8: 0.04, 1.0: 0.1}
    gains = {0.2: -0.01, 0.4: 0.01, 0.6: 0.05, 0.8: 0.01, 1.0: 0.02}
    alphas = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

    def chosen(fits: Callable[[Point], bool], gain: Callable[[Point], float]) -> Point:
        return Curves(gain, fits, lambda point: likelier.get(point[1], 0.0)).chosen(alphas)

    assert chosen(lambda _: True, lambda point: gains[point[1]]) == TUNED
    below = chosen(lambda point: point[1] < 1, lambda point: gains[point[1]])
    assert below == ("wise-ft", 0.8), (
        "0.2 is likelier, but its metric falls; 0.6 gains more, but is less likely"
    )
    assert chosen(lambda _: True, lambda _: 0.0) == BASE, "what gains nothing is no reason to leave the base"
    worse = chosen(
        lambda point: point[1] in (0.0, 0.2, 0.4, 0.6), lambda point: 0.01 if point[1] == 0.6 else -0.01
    )
    assert worse == ("wise-ft", 0.6), "less likely than under the base, but all there is that gains"


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(1, 40),
    gains=st.lists(st.integers(-5, 5), min_size=82, max_size=82),
    allowed=st.lists(st.booleans(), min_size=82, max_size=82),
    both=st.booleans(),
)
def test_whatever_the_curves_the_choice_fits_and_the_costs_are_bounded(
    steps: int, gains: list[int], allowed: list[bool], both: bool
) -> None:
    """Neither gain nor loss need go one way."""
    alphas = [step / steps for step in range(steps + 1)]
    paths = ["wise-ft", "lines"] if both else ["wise-ft"]
    place = {(path, alpha): 41 * (path == "lines") + at for path in paths for at, alpha in enumerate(alphas)}
    curves = Curves(lambda point: gains[place[point]] / 10, lambda point: allowed[place[point]])
    chosen = curves.chosen(alphas, *paths)
    assert chosen == BASE or allowed[place[chosen]]
    assert chosen in curves.measured
    best = max(
        0.0 if point == BASE else curves.gain(point)
        for point in curves.measured
        if point == BASE or allowed[place[point]]
    )
    assert best == (0.0 if chosen == BASE else curves.gain(chosen))
    assert len(curves.looked) <= LOOKS * len(paths)
    assert len(curves.measured) <= 2 + len(paths) * (2 + math.ceil(math.log2(steps + 1)) + LOOKS)
    assert len(set(curves.measured)) == len(curves.measured)
    assert len(set(curves.looked)) == len(curves.looked)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], []), ([0.5], [0.5]), (TENTHS[1:5], TENTHS[1:5]), (TENTHS[1:10], [0.2, 0.4, 0.6, 0.8])],
)
def test_values_are_spread_evenly(values: list[float], expected: list[float]) -> None:
    assert spread(values, LOOKS) == expected


def test_without_looks_only_the_largest_alpha_counts() -> None:
    curves = Curves(peak(0.8), anything)
    section = Merge.model_validate({"alphas": TENTHS})
    assert choose(walk(section, curves.measure, curves.look, looks=0)).alpha == 1
    assert not curves.looked


RANKED = [
    (-0.3, None, 0.4),
    (-0.1, 0.5, 0.4),
    (0.0, 0.2, 1.0),
    (0.0, 0.2, 0.1),
    (0.0, None, 0.0),
    (0.01, -1e6, 0.1),
    (0.02, -12.0, 0.1),
    (0.02, -0.05, 1.0),
    (0.01, -0.05, 0.9),
    (0.02, 0.0, 0.5),
    (0.1, None, 0.6),
    (0.1, None, 0.5),
    (0.02, 0.1 + 1e-8, 1.0),
    (0.02, 3.0, 0.2),
    (0.02, 1e6, 1.0),
]
"""Gain, gain in log-likelihood and α, from the worst to the best."""


def test_one_number_orders_mixtures_as_their_rank_does() -> None:
    assert sorted(RANKED, key=lambda one: rank(*one)) == RANKED
    assert sorted(reversed(RANKED), key=lambda one: rank_number(*one)) == RANKED
    numbers = [rank_number(*one) for one in RANKED]
    assert len(set(numbers)) == len(RANKED)


THOUSANDTHS = st.integers(-5000, 5000).map(lambda number: number / 1000)
MIXTURES = st.tuples(THOUSANDTHS, THOUSANDTHS | st.none(), st.sampled_from(TENTHS))


@given(MIXTURES, MIXTURES)
def test_one_number_orders_any_two_mixtures_as_their_rank_does(
    one: tuple[float, float | None, float], other: tuple[float, float | None, float]
) -> None:
    assert (rank(*one) < rank(*other)) == (rank_number(*one) < rank_number(*other))
