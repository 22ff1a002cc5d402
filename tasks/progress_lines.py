"""A line in the log about progress every ten seconds, for work whose length nobody can know beforehand."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class ProgressLines:
    """Says how much is done, and how long the rest may take, when ten seconds have passed since it last did."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.begun = self.said = time.monotonic()

    def __call__(self, done: int, whole: int) -> None:
        """Take notice that so many of the whole are done."""
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES or not done:
            return
        self.said = now
        left = (now - self.begun) * (whole - done) / done
        log.info("%s: %d of %d %s, about %.0f s to go", self.name, done, whole, self.unit, left)
