"""A stage's surroundings: its last words are kept however it ends, and it does not outlive its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks.stage_log import ONLY_LOG
from tests.project import CHECKOUT

STAGE = """
import os, signal, sys, time
sys.argv = ["tasks", "prepare", "tiny"]
import tasks.__main__ as command

def stage(*_):
    print("begun", flush=True)
{body}

command.run_stage = stage
sys.exit(command.main())
"""


# In small pieces: a signal that comes between Python's look for one and a long sleep is noticed after the sleep.
WAIT = "for _ in range(600): time.sleep(0.1)"


def start(folder: Path, body: str, **environment: str) -> subprocess.Popen[str]:
    """Run a stage with this body in a session of its own, as `python -m tasks prepare tiny` would."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", STAGE.format(body=indented)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"


def log(folder: Path) -> str:
    return (folder / ".retain" / "tiny" / "logs" / "prepare.log").read_text()


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        (signal.SIGTERM, 75, "prepare: asked to stop (SIGTERM); run it again to go on\n"),
        (signal.SIGINT, 130, "prepare: interrupted; nothing half-written is kept"),
    ],
)
def test_a_signal_to_the_whole_group_leaves_the_stages_words(
    tmp_path: Path, how: signal.Signals, status: int, words: str
) -> None:
    process = start(tmp_path, WAIT)
    begun(process)
    os.killpg(process.pid, how)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == status
    assert words in said
    assert words in log(tmp_path)
    assert "Traceback" not in said


def test_a_library_that_survives_any_error_does_not_swallow_sigterm(tmp_path: Path) -> None:
    body = f"try:\n    {WAIT}\nexcept Exception:\n    print('swallowed')\n{WAIT}"
    process = start(tmp_path, body)
    begun(process)
    process.terminate()
    assert "swallowed" not in process.communicate(timeout=30)[0]
    assert process.returncode == 75


def test_a_second_sigterm_does_not_stop_the_cleaning_up(tmp_path: Path) -> None:
    body = (
        f"try:\n    print('at work', flush=True)\n    {WAIT}\n"
        "finally:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.1)\n    print('cleaned up')"
    )
    process = start(tmp_path, body)
    begun(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n", "a signal before the `try` would not meet its `finally`"
    process.terminate()
    assert "cleaned up" in process.communicate(timeout=30)[0]
    assert process.returncode == 75


def test_native_code_and_a_crash_leave_their_last_words(tmp_path: Path) -> None:
    process = start(
        tmp_path, "os.write(2, b'native words\\n')\nos.system('echo a child')\nraise ValueError('a bug')"
    )
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    for words in ("native words", "a child", "ValueError: a bug"):
        assert words in said
        assert words in log(tmp_path)


def test_the_flow_gets_the_output_by_the_log_alone(tmp_path: Path) -> None:
    process = start(tmp_path, "print('a line')", **{ONLY_LOG: "log"})
    assert process.communicate(timeout=30)[0] == ""
    assert log(tmp_path) == "begun\na line\n"
    start(tmp_path, "pass", **{ONLY_LOG: "log"}).wait(timeout=30)
    assert log(tmp_path) == "begun\n", "a log holds the last run"


def test_a_stage_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    """DVC killed: a stage would hold the GPU for nobody, and stops by itself."""
    stage = STAGE.format(body=f"    {WAIT}\n")
    (tmp_path / "stage.py").write_text(stage)
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, 'stage.py'])"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "DVC_STAGE": "prepare", ONLY_LOG: "log"},
    )
    path = tmp_path / ".retain" / "tiny" / "logs" / "prepare.log"
    assert happens(lambda: path.exists() and "begun" in path.read_text())
    (orphan,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert happens(lambda: ended(orphan)), "it lives on"
    assert "asked to stop (SIGTERM)" in path.read_text()


def ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # whoever adopted it need not have noticed
    except psutil.NoSuchProcess:
        return True


def happens(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Say whether something comes true within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
