"""Training's progress: what the loop prints is what the flow reads, and one artifact follows it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from flows import progress
from tasks.stage_log import progress_of
from tests.short_training import short_trainer


def test_what_the_loop_prints_is_what_the_flow_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.training.loop.SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        trainer = short_trainer(tmp_path, epochs=1)
        trainer.fit()
    shares = [share for line in caplog.messages if (share := progress_of(line)) is not None]
    assert shares == [step / trainer.steps for step in range(1, trainer.steps + 1)]
    line = next(line for line in caplog.messages if progress_of(line))
    told = re.search(r"loss \d+\.\d{4}  rate \S+  \d+ rows/s  \d+ tokens/s  \d+ s left  (\d+\.\d\d) GB", line)
    assert told, line
    assert 0.05 < float(told[1]) < 50
    assert progress_of("epoch 1: validation loss 0.5") is None


def test_one_artifact_follows_the_lines_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def create(*arguments: Any) -> str:
        calls.append(("create", *arguments))
        return "id"

    monkeypatch.setattr(progress, "_create", create)
    monkeypatch.setattr(progress, "_update", lambda *arguments: calls.append(("update", *arguments)))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    said: list[str] = []
    follow = progress.followed(said.append, "tiny", seconds=60)
    lines = [
        "frozen",
        "step 1/4  loss 1",
        "step 2/4  loss 1",
        "epoch 1",
        "step 3/4  loss 1",
        "step 4/4  loss 1",
    ]
    for line in lines:
        follow(line)
    assert calls == [("create", 0.25, "tiny", lines[1]), ("update", "id", 1.0, lines[5])]
    link = "progress: http://127.0.0.1:4200/artifacts/artifact/id"
    assert said == [*lines[:2], link, *lines[2:]]
