"""One process a GPU: an operating-system lock that any death frees."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator

from tasks.paths import store

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_device(device: str) -> Iterator[None]:
    """Hold the lock of a CUDA device while the body runs; the CPU needs none."""
    if device == "cpu":
        yield
        return
    folder = store() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{device.replace(':', '-')}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for %s: another stage on this machine is using it", device)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
