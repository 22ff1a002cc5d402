"""Drawings stay in their frame, and their ticks are round and unlike."""

from __future__ import annotations

import re

import pytest

from tasks.summary.charts import interval_chart, tick_label, ticks


def test_interval_stays_in_the_drawing_whatever_the_margin() -> None:
    for loss, half, margin in (
        (0.427, 0.03, 0.03),
        (-0.3, 0.01, 0.02),
        (0.0, 0.0, None),
        (0.019, 0.002, 0.02),
    ):
        drawing = interval_chart(loss, loss - half, loss + half, margin, "fail")
        places = [float(value) for value in re.findall(r'(?:cx|x1|x2|x)="([-\d.]+)"', drawing)]
        assert len(places) > 5
        assert all(0 <= place <= 260 for place in places), drawing


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-0.02, 0.05, [-0.02, 0, 0.02, 0.04]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_close_together_do_not_look_the_same() -> None:
    said = [tick_label(tick, percent=True) for tick in ticks(0.0, 0.01)]
    assert said == ["0%", "0.2%", "0.4%", "0.6%", "0.8%", "1%"]
