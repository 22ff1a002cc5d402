"""A family that is left out neither fits the weights nor chooses the form that predict its losses."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.measures.harm import harmonic_mean
from tests.bench.left_out import (
    DISAGREEMENT,
    OUR_FORM,
    TRANSPORT,
    Evidence,
    chosen_without,
    with_regions,
)


def evidence(odd_weight: float) -> Evidence:
    """Return three families whose losses are 1 x transport + 0.5 x disagreement; in the last one, another weight."""
    chance = np.random.default_rng(1)
    families = np.repeat(["one", "two", "odd"], 8)
    parts = {name: chance.uniform(0, 0.3, 24) for name in (TRANSPORT, DISAGREEMENT, "noise")}
    weight = np.where(families == "odd", odd_weight, 1.0)
    return Evidence(families, weight * parts[TRANSPORT] + 0.5 * parts[DISAGREEMENT], parts)


def test_weights_come_of_the_other_families() -> None:
    known = evidence(odd_weight=3)
    crossed = known.crossed(OUR_FORM, np.ones(24, dtype=bool))
    odd = known.families == "odd"
    assert crossed[odd] == pytest.approx(known.parts[TRANSPORT][odd] + 0.5 * known.parts[DISAGREEMENT][odd])
    assert np.abs(crossed - known.lost)[~odd].min() > 1e-3, "the odd family moves the weights of the others"


def test_the_form_is_chosen_by_the_other_families() -> None:
    found = {family: (form, lost) for family, form, lost in chosen_without(evidence(odd_weight=1))}
    assert set(found) == {"one", "two", "odd"}
    for form, _ in found.values():
        assert set(form) == set(OUR_FORM)
    known = evidence(odd_weight=3)
    form, lost = {family: (form, lost) for family, form, lost in chosen_without(known)}["odd"]
    assert set(form) == set(OUR_FORM)
    assert lost == pytest.approx((known.lost - 2 * known.parts[TRANSPORT])[known.families == "odd"])


def test_a_family_that_is_not_among_takes_no_part() -> None:
    known = evidence(odd_weight=3)
    plain = known.families != "odd"
    crossed = known.crossed(OUR_FORM, plain)
    assert np.isnan(crossed[~plain]).all()
    assert crossed[plain] == pytest.approx(known.lost[plain])


def test_a_harmonic_mean_takes_a_gain_for_none() -> None:
    one, other = np.array([0.2, -0.1, 0.0, 0.3]), np.array([0.2, 0.3, 0.0, 0.1])
    found = [harmonic_mean(*pair) for pair in zip(one, other, strict=True)]
    assert found == pytest.approx([0.2, 0.0, 0.0, 0.15])
    parts = with_regions({"transport": one}, [0.1] * 4, other.tolist())
    assert set(parts) == {"transport", "transport with regions", "disagreement", "held-out regions"}
