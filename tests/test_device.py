"""One process a GPU: the second waits, says so, and any death of the first frees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.device import hold_device
from tests.project import CHECKOUT

HOLD = "import time\nfrom tasks.device import hold_device\nwith hold_device('cuda:0'):\n    print('held', flush=True)\n"


def start(store: Path, body: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import logging; logging.basicConfig(level=20)\n" + HOLD + f"    {body}"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "RETAIN_HOME": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def test_the_second_waits_says_so_and_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    first = start(tmp_path, "time.sleep(60)")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = start(tmp_path, "pass")
    assert second.stderr is not None
    assert "waiting for cuda:0: another stage on this machine is using it" in second.stderr.readline()
    assert second.poll() is None
    first.kill()
    first.communicate()
    assert second.communicate(timeout=30)[0] == "held\n"
    assert second.returncode == 0


def test_the_cpu_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    with hold_device("cpu"):
        assert not (tmp_path / "store").exists()
