"""Contenders that train in turn, a step each, in one process: what every step costs in time and memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 1800.0


class EnoughError(Exception):
    """A contender has made all its steps."""


@dataclass
class Costs:
    """What the steps of one contender cost, in order."""

    tokens: list[int] = field(default_factory=list)
    """Tokens that were trained on, padding not counted."""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    """Resident memory at its highest, less what it was before the step."""

    def rate(self, clock: str = "cpu_seconds") -> float:
        """Return tokens a second, over all steps."""
        return sum(self.tokens) / sum(getattr(self, clock))

    @property
    def peak(self) -> float:
        """Median peak of a step, bytes."""
        return statistics.median(self.peak_bytes)


class Turns:
    """Gives the turn to one contender after the other; the others sleep meanwhile."""

    def __init__(self, names: list[str], steps: int, warm: int = 1) -> None:
        self.names, self.steps, self.warm = names, steps, warm
        self.costs = {name: Costs() for name in names}
        self._turn, self._made = 0, dict.fromkeys(names, 0)
        self._open: tuple[float, float, int] | None = None
        self._tokens = 0
        self._changed = threading.Condition()
        self._failure: Exception | None = None

    def begin(self, name: str) -> None:
        """Say that a contender is about to make its next step; returns when it is its turn.

        Raises:
            EnoughError: it has made all its steps, or another one has failed.
        """
        with self._changed:
            if self._open is not None and self.names[self._turn] == name:
                self._close(name)
            ready = self._changed.wait_for(
                lambda: self._failure is not None or self.names[self._turn] == name, PATIENCE_SECONDS
            )
            if not ready or self._failure is not None:
                raise EnoughError
            if self._made[name] == self.steps + self.warm:
                self._pass_on()
                raise EnoughError
            resident = _forget_peak()
            self._tokens, self._open = 0, (time.perf_counter(), time.process_time(), resident)

    def count(self, tokens: int) -> None:
        """Note how many tokens the step that is being made trains on."""
        self._tokens += tokens

    def run(self, contenders: dict[str, Callable[[], object]]) -> dict[str, Costs]:
        """Let all of them train, each in a thread of its own, and return what their steps cost."""
        threads = [
            threading.Thread(target=self._guarded, args=(name, contenders[name]), daemon=True)
            for name in self.names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return self.costs

    def _guarded(self, name: str, train: Callable[[], object]) -> None:
        try:
            train()
            raise RuntimeError(f"{name} ended before its steps were made: give it more rows or epochs")
        except EnoughError:
            return
        except Exception as error:  # noqa: BLE001  `run` raises it again, in the thread that waits
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _close(self, name: str) -> None:
        if self._open is None:
            return
        wall, cpu, resident = self._open
        costs, self._open = self.costs[name], None
        self._made[name] += 1
        if self._made[name] > self.warm:
            costs.seconds.append(time.perf_counter() - wall)
            costs.cpu_seconds.append(time.process_time() - cpu)
            costs.tokens.append(self._tokens)
            costs.peak_bytes.append(_status_bytes("VmHWM") - resident)
        self._pass_on()

    def _pass_on(self) -> None:
        self._turn = (self._turn + 1) % len(self.names)
        self._changed.notify_all()


def _forget_peak() -> int:
    """Give freed memory back, let the kernel forget the peak, and return what is resident now, bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
