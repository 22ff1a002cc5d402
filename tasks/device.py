"""One process a GPU: operating-system locks that any death frees."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.paths import store

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_device(device: str) -> Iterator[None]:
    """Hold the lock of a CUDA device while the body runs; the CPU needs none."""
    with hold_devices([device]):
        yield


@contextlib.contextmanager
def hold_devices(devices: Sequence[str]) -> Iterator[None]:
    """Hold the locks of CUDA devices while the body runs; the CPU needs none.

    Whoever takes several takes them in one order, so that no two processes wait for each other.
    """
    names = sorted({_lock_name(device) for device in devices if device != "cpu"})
    with contextlib.ExitStack() as held:
        for name in names:
            held.enter_context(_hold(name))
        yield


@contextlib.contextmanager
def _hold(name: str) -> Iterator[None]:
    path = store() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for %s: %s is using it", name, _holder(path))
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)  # what a dead holder wrote
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _lock_name(device: str) -> str:
    """Name a device as every process of this machine does: `cuda:0` is the first of those that this one may see."""
    index = int(device.partition(":")[2] or 0)
    if identity := _identity(index):
        return f"cuda-{identity}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    seen = [name.strip() for name in visible.split(",") if name.strip()]
    return f"cuda-{seen[index] if index < len(seen) else index}"


def _identity(index: int) -> str:
    """Return the UUID of a CUDA device, which may be asked for by number or by UUID; empty where there is none."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))


def _holder(path: Path) -> str:
    """Return which process holds a lock, for people; it may have written nothing yet."""
    number = path.read_text().strip()
    if not number.isdecimal():
        return "another stage on this machine"
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has just ended, or this system has no /proc
        return f"process {number}"
    return f"process {number} ({' '.join(words).strip()[-60:]})"
