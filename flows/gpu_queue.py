"""The fair queue in front of the GPU: Prefect's concurrency limit `gpu`, which many machines may share.

The lock that keeps two processes off one device is the operating system's (`tasks/device.py`); this only orders them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIMIT = "gpu"


@contextmanager
def gpu_turn(stage: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a slot of the limit while the body runs; say what is waited for when none is free.

    A server without the limit gets one with a single slot: Prefect lets everyone through where there is none.
    """
    from prefect.concurrency.sync import concurrency

    taken, slots = _slots()
    if taken >= slots:
        say(f"{stage} waits for Prefect's concurrency limit `{LIMIT}`: {taken} of {slots} slots are taken")
    with concurrency(LIMIT, occupy=1, strict=True):
        yield


def _slots() -> tuple[int, int]:
    """Return how many slots of the limit are taken, and how many there are; make the limit where it is missing."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
            return 0, 1
    return (limit.active_slots if limit.active else 0), limit.limit
