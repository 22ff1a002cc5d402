"""The reports of a run: read from where the stages write them; what no longer holds is left out, and said."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from tasks import reports as r
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.summary import read_history, read_reports, summarize
from tests.test_summary import run_reports


def test_a_stopped_gate_does_not_show_the_verdict_of_the_run_before() -> None:
    summary = summarize(run_reports("gate"), "sentiment")
    assert summary.outcome == "GATE"
    assert not summary.suites
    assert not summary.gains
    assert "earlier run: finetune, merge, pin, evaluate, decision" in summary.notes[0]
    assert "near duplicate share: above 0.05. Remove one of each pair" in summary.reasons[0]


def test_a_decision_about_another_model_is_left_out() -> None:
    reports = run_reports()
    assert reports.merge
    other = dataclasses.replace(reports, merge=reports.merge.model_copy(update={"model": "9" * 64}))
    summary = summarize(other, "sentiment")
    assert summary.outcome == "UNFINISHED"
    assert summary.notes == (
        "Left out, because they are about another model than the chosen one: evaluate, decision.",
    )


def test_reports_on_other_splits_are_left_out() -> None:
    reports = run_reports()
    assert reports.check
    other = dataclasses.replace(reports, check=reports.check.model_copy(update={"splits": "0" * 64}))
    summary = summarize(other, "sentiment")
    assert summary.outcome == "UNFINISHED"
    assert not summary.data
    assert "check, gate, finetune" in summary.notes[0]


def test_reports_are_read_from_where_the_stages_write_them(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "sentiment")
    with pytest.raises(StageError, match="retain run sentiment"):
        read_reports(paths)
    source = run_reports()
    assert source.gate
    assert source.decision
    r.write_report(paths.gate, source.gate)
    r.write_report(paths.decision, source.decision)
    paths.history.write_text("step,loss,validation_loss\n1,0.7,\n2,0.5,0.6\n")
    found = read_reports(paths)
    assert found.gate == source.gate
    assert found.merge is None
    assert [row["loss"] for row in found.history] == [0.7, 0.5]
    assert math.isnan(found.history[0]["validation_loss"])
    assert summarize(found, "x").outcome == "UNFINISHED", "a decision without its evaluation is not shown"


def test_a_broken_history_is_an_error_with_a_place(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n1,much\n")
    with pytest.raises(StageError, match=r"history\.csv is no table of numbers"):
        read_history(path)
