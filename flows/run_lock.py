"""One run of a recipe at a time in one working tree; who comes second waits or is told."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from tasks.errors import StageError
from tasks.paths import Paths

IfRunning = Literal["wait", "refuse"]


@contextmanager
def only_run(
    paths: Paths, who: str, if_running: IfRunning, say: Callable[[str], None], *, remind_seconds: float = 60.0
) -> Iterator[int]:
    """Hold the recipe for this run; the operating system lets go of it when the process ends, however it ends.

    Yields the lock's file descriptor: a child that inherits it holds the recipe for as long as it lives too.

    Raises:
        StageError: another run holds it, and `if_running` is `refuse`.
    """
    path = paths.scratch / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _taken(file):
            _wait(file, paths.recipe, if_running, say, remind_seconds)
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "run": who, "since": since}) + "\n")
        file.flush()
        try:
            yield file.fileno()
        finally:
            file.truncate(0)


def is_held(lock: Path) -> bool:
    """Say whether a run holds this lock now."""
    with lock.open("a+", encoding="utf-8") as file:
        if not _taken(file):
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False


def _wait(
    file: IO[str], recipe: str, if_running: IfRunning, say: Callable[[str], None], remind_seconds: float
) -> None:
    if if_running == "refuse":
        raise StageError(
            f"{recipe} is already being run here by {_holder(file)}. Wait for it, or use --if-running wait."
        )
    reminded = 0.0
    while not _taken(file):
        if time.monotonic() - reminded > remind_seconds:
            say(f"waiting: {recipe} is being run here by {_holder(file)}")
            reminded = time.monotonic()
        time.sleep(0.5)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        note = json.loads(file.read())
    except ValueError:
        return "another process"
    return f"process {note['pid']} (run {note['run']}, since {note['since']})"
