"""A stage process's surroundings: its log, and its end when the process that started it is gone."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ONLY_LOG = "RETAIN_STAGE_OUTPUT"
"""Environment variable: `log` writes a stage's output to its log alone; the flow sets it and shows the log."""


PROGRESS = re.compile(r"step (\d+)/(\d+)  ")
"""How a line about training's progress begins; the flow reads it."""


def progress_of(line: str) -> float | None:
    """Return the share of training that a line says is done, or None if it is about something else."""
    found = PROGRESS.match(line)
    return None if found is None else int(found[1]) / int(found[2])


def keep_log(log: Path) -> None:
    """Write everything this process and its children print to `log`, and to the terminal unless told otherwise.

    Works on file descriptors, so native code and a crash leave their last words too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    if os.environ.get(ONLY_LOG) == "log":
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    else:
        tees = [_tee(log, number) for number in (1, 2)]
        atexit.register(_finish, tees)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


ENDS_WITH_PARENT = "RETAIN_ENDS_WITH_PARENT"
"""Set in the environment of a process that is to end with the one that began it."""


def end_with_parent(seconds: float = 1.0) -> None:
    """Ask this process to stop (SIGTERM) when its parent dies: an orphan would hold the GPU for nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _tee(log: Path, number: int) -> subprocess.Popen[bytes]:
    # Ctrl-C and a SIGTERM to the whole group are for the stage, whose answer to them must still be written.
    tee = subprocess.Popen(
        ["tee", "-a", str(log)], stdin=subprocess.PIPE, stdout=number, preexec_fn=_ignore_signals
    )
    stdin = tee.stdin
    if stdin is None:
        raise RuntimeError("a pipe was asked for")
    os.dup2(stdin.fileno(), number)
    stdin.close()
    return tee


def _ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _finish(tees: list[subprocess.Popen[bytes]]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    for tee in tees:
        try:
            tee.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a child of the stage still holds the pipe
            tee.kill()
