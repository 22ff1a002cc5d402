"""One process a GPU: the second waits, says for whom, and any death of the first frees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.device import hold_device, hold_devices
from tests.project import CHECKOUT

HOLD = """\
import time
from tasks.device import hold_devices
with hold_devices({devices}):
    print('held', flush=True)
"""


def start(store: Path, body: str, *devices: str, **environment: str) -> subprocess.Popen[str]:
    held = HOLD.format(devices=list(devices or ("cuda:0",)))
    process = subprocess.Popen(
        [sys.executable, "-c", "import logging; logging.basicConfig(level=20)\n" + held + f"    {body}"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "RETAIN_HOME": str(store), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    first = start(tmp_path, "time.sleep(60)", "cuda:2", "cuda:0", "cuda:1")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = start(tmp_path, "pass", "cuda:1")
    assert second.stderr is not None
    said = second.stderr.readline()
    assert f"waiting for cuda-1: process {first.pid} (" in said
    assert second.poll() is None
    first.kill()
    first.communicate()
    assert second.communicate(timeout=30)[0] == "held\n"
    assert second.returncode == 0


def test_those_who_take_several_in_other_orders_never_wait_for_each_other(tmp_path: Path) -> None:
    devices = ["cuda:0", "cuda:1", "cuda:2"]
    body = "time.sleep(0.05)"
    all_of_them = [start(tmp_path, body, *devices[turn:], *devices[:turn]) for turn in (0, 1, 2, 0, 1, 2)]
    for process in all_of_them:
        assert process.communicate(timeout=60)[0] == "held\n"
        assert process.returncode == 0


def test_a_device_has_one_name_by_number_and_by_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    known = [SimpleNamespace(uuid=f"8932-{number}") for number in range(2)]
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known[index])
    with hold_device("cuda:1"):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known[1])
    with hold_device("cuda"):
        pass
    assert [lock.name for lock in (tmp_path / "locks").iterdir()] == ["cuda-8932-1.lock"]


def test_a_device_is_locked_whatever_number_a_process_knows_it_by(tmp_path: Path) -> None:
    first = start(tmp_path, "time.sleep(60)", "cuda:1")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    other = start(tmp_path, "pass", "cuda:0", CUDA_VISIBLE_DEVICES="3,1")
    assert other.communicate(timeout=30)[0] == "held\n", "it sees device 3 as its first"
    same = start(tmp_path, "pass", "cuda", CUDA_VISIBLE_DEVICES="1")
    assert same.stderr is not None
    assert "waiting for cuda-1" in same.stderr.readline()
    first.kill()
    first.communicate()
    assert same.communicate(timeout=30)[0] == "held\n"


def test_no_device_is_held_when_the_body_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RuntimeError), hold_devices(["cuda", "cuda:0", "cuda:1"]):
        raise RuntimeError
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["cuda-0.lock", "cuda-1.lock"]
    assert start(tmp_path, "pass", "cuda:0", "cuda:1").communicate(timeout=30)[0] == "held\n"


def test_the_cpu_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    with hold_device("cpu"):
        assert not (tmp_path / "store").exists()
