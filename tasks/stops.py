"""SIGTERM to a process that nobody else looks after: it ends as Preempted, once what it does has cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.errors import Preempted


class Terminated(BaseException):
    """SIGTERM came: a BaseException, so that no library takes it for a failure of its own."""


class Stopped(Preempted):
    """This process was asked to stop, so nothing is tried again here; a stage alone can be."""

    def __init__(self) -> None:
        super().__init__("asked to stop (SIGTERM); run it again to go on")


@contextmanager
def sigterm_stops(*, whole_process: bool = False) -> Iterator[None]:
    """Let the first SIGTERM raise `Terminated` in the body; more of them do not disturb what cleans up.

    `timeout` sends two at once: to the command, then to its whole group. `whole_process`: the process ends with the body,
    and no later one (of a parent that died, say) may change the status that it ends with.

    Raises:
        Stopped: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread say what a signal does
        return
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except Terminated:
        raise Stopped from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stopped and whole_process else before)
