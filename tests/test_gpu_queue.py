"""The queue for the GPU: strict, one at a time, and whoever waits says for what."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_two_take_turns_and_the_second_says_what_it_waits_for(tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.testing.utilities import prefect_test_harness

    from flows.gpu_queue import LIMIT, gpu_turn

    said: list[str] = []
    first_in, first_out = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        with gpu_turn("finetune", said.append):
            order.append("first in")
            first_in.set()
            first_out.wait(60)
            order.append("first out")

    with prefect_test_harness(server_startup_timeout=180):
        holder = threading.Thread(target=first)
        holder.start()
        assert first_in.wait(60)
        assert said == [], "a free slot needs no word"
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(LIMIT)
        assert (limit.limit, limit.active_slots) == (1, 1), "made where it was missing"
        threading.Timer(2, first_out.set).start()
        began = time.monotonic()
        with gpu_turn("merge", said.append):
            order.append("second in")
        holder.join(60)
    assert said == ["merge waits for Prefect's concurrency limit `gpu`: 1 of 1 slots are taken"]
    assert order == ["first in", "first out", "second in"]
    assert time.monotonic() - began > 1.5
