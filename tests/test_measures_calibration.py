"""One temperature makes a model as sure as its answers allow; what is left is how well it tells labels apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.measures.calibration import TEMPERATURES, calibrated_losses, log_tempered, temperature


def drawn(rows: int, classes: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scores, and labels that were drawn from them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, classes)) * 2
    shares = np.exp(log_tempered(scores, 1.0))
    return scores, np.array([rng.choice(classes, p=row) for row in shares], dtype=np.int64)


def test_the_temperature_that_made_scores_too_sure_is_found() -> None:
    scores, labels = drawn(4000, 3, 0)
    assert temperature(scores, labels) == pytest.approx(1.0, rel=0.1)
    assert temperature(scores * 5, labels) == pytest.approx(5.0, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), classes=st.integers(2, 5), seed=st.integers(0, 1000), sure=st.floats(0.1, 30))
def test_no_temperature_of_the_grid_fits_better(rows: int, classes: int, seed: int, sure: float) -> None:
    scores, labels = drawn(rows, classes, seed)
    own = np.arange(rows)
    losses = [-log_tempered(scores * sure, heat)[own, labels].mean() for heat in TEMPERATURES]
    assert calibrated_losses(scores * sure, labels).mean() == pytest.approx(min(losses), abs=1e-9)


def test_how_sure_a_model_is_counts_for_nothing_and_what_it_tells_apart_does() -> None:
    scores, labels = drawn(500, 2, 1)
    plain, sure = (calibrated_losses(scores * times, labels).mean() for times in (1.0, 4.0))
    assert sure == pytest.approx(plain, abs=2e-3)
    blurred = scores + np.random.default_rng(2).normal(size=scores.shape) * 2
    assert calibrated_losses(blurred, labels).mean() > plain + 0.02


def test_no_rows_have_no_losses() -> None:
    assert calibrated_losses(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)).shape == (0,)
