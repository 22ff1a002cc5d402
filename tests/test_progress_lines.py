"""Progress is said every ten seconds, and not before."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tasks import progress_lines
from tasks.training.batches import length_batches


def test_long_work_says_how_much_is_done_and_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    for _ in length_batches(np.full(40, 10), 100):  # four batches of ten rows
        now[0] += 6.0
    assert [record.message for record in caplog.records] == [
        "reading: 20 of 40 rows, about 12 s to go",
        "reading: 40 of 40 rows, about 0 s to go",
    ]


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert sum(len(rows) for rows in length_batches(np.full(40, 10), 100)) == 40
    assert not caplog.records
