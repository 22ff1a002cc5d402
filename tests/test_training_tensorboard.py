"""Curves for TensorBoard: those of the history, on request, gone on with after a stop."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.training.loop import Trainer
from tasks.training.tensorboard import TAGS, open_board
from tests.short_training import short_trainer


def curves(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: {item.step: item.value for item in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_the_curves_are_the_history_also_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("RETAIN_TENSORBOARD", str(tmp_path / "board"))
    first = short_trainer(tmp_path / "scratch", checkpoint_every=4)
    first.board = open_board("tiny")

    def crash(*rows: object) -> float:
        if first.progress.step == 10:
            raise RuntimeError("crash")
        return Trainer._step(first, *rows)  # type: ignore[arg-type]

    first._step = crash  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="crash"):
        first.fit()
    assert max(curves(tmp_path / "board" / "tiny")["train/loss"]) == 10
    second = short_trainer(tmp_path / "scratch", checkpoint_every=4)
    second.board = open_board("tiny")
    progress = second.fit()
    drawn = curves(tmp_path / "board" / "tiny")
    for column, tag in TAGS.items():
        rows = {row["step"]: row[column] for row in progress.history if row.get(column) is not None}
        assert rows
        assert drawn[tag] == pytest.approx(rows, rel=1e-5), tag


def test_nothing_is_drawn_unless_asked_for_and_a_missing_package_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RETAIN_TENSORBOARD", raising=False)
    assert open_board("tiny") is None
    monkeypatch.setenv("RETAIN_TENSORBOARD", "somewhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"RETAIN_TENSORBOARD is set, but .* pip install 'retain\[tensorboard\]'"
    ):
        open_board("tiny")
