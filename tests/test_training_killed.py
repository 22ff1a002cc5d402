"""`kill -9` at random moments, and in the middle of writing a checkpoint: the next run ends with the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import StageError
from tasks.training import checkpoints
from tests.short_training import train_and_tell

POINTS = 20
# A process of its own for each run, forked from one that has imported what it needs and has run nothing.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.short_training"])


def start(function: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def trained(folder: Path, scratch: Path) -> str:
    """Train to the end in a process of its own, and return the hash of what it made."""
    told = folder / "told"
    process = start(train_and_tell, scratch, told)
    process.join(120)
    assert process.exitcode == 0
    return told.read_text()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.002)


@pytest.mark.e2e
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tmp_path, tmp_path / "whole")
    assert trained(tmp_path, tmp_path / "twice") == whole
    began, seconds = tmp_path / "timed.began", 0.0
    process = start(train_and_tell, tmp_path / "timed-scratch", tmp_path / "timed")
    wait_for(began)
    started = time.monotonic()
    process.join(120)
    seconds = time.monotonic() - started
    moments = np.random.default_rng(20).uniform(0, seconds, POINTS)
    steps, halves = [], 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = start(train_and_tell, folder / "scratch", folder / "told")
        wait_for(folder / "told.began")
        time.sleep(moment)
        process.kill()
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0)
        steps.append(max((int(path.name[5:]) for path in folder.glob("scratch/step-*")), default=0))
        halves += bool(list(folder.glob("scratch/.new.*")))
        assert trained(folder, folder / "scratch") == whole, f"killed after {moment:.3f} s, step {steps[-1]}"
    print(f"killed after steps {steps}; {halves} while a checkpoint was being written")
    assert len(set(steps)) >= 5, "the moments lie all over the training"


def killed_in_writing(call: str, occasion: int, scratch: Path, told: Path) -> None:
    """Train, and die by SIGKILL when `call` of the checkpoints' module is made for the n-th time."""
    owner, _, name = call.rpartition(".")
    holder = {"os": os, "torch": checkpoints.torch, "shutil": checkpoints.shutil}.get(owner, checkpoints)
    function, calls = getattr(holder, name), 0

    def dies(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == occasion:
            if call == "torch.save":  # half of it has been written
                arguments[1].write(b"PK half a checkpoint")  # type: ignore[attr-defined]
                arguments[1].flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(holder, name, dies)
    train_and_tell(scratch, told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, folder / "scratch")


@pytest.mark.parametrize(
    ("call", "occasion"),
    [("torch.save", 1), ("torch.save", 6), ("os.fsync", 9), ("write_text", 5), ("shutil.rmtree", 14)],
)
def test_killed_while_it_writes_a_checkpoint_it_ends_with_the_same_bits(
    whole: str, tmp_path: Path, call: str, occasion: int
) -> None:
    process = start(killed_in_writing, call, occasion, tmp_path / "scratch", tmp_path / "killed")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert trained(tmp_path, tmp_path / "scratch") == whole


def test_rows_without_a_token_that_carries_loss_stop_and_are_named() -> None:
    from tests.short_training import CausalLM, texts, tiny_lm, tiny_tokenizer

    model = CausalLM(tiny_lm("llama"), tiny_tokenizer(), "cpu", "fp32", max_length=8)
    turns = [{"role": "user", "content": "a long question " * 9}, {"role": "assistant", "content": "good"}]
    model.tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    table = texts(4).assign(messages=json.dumps(turns))
    with pytest.raises(StageError, match=r"No token of 4 rows carries loss .* Rows: r0, r1, r2, r3"):
        model.examples(table)


def test_what_is_killed_reads_packs_and_replays_original_rows(tmp_path: Path) -> None:
    from tests.short_training import short_trainer

    trainer = short_trainer(tmp_path)
    assert trainer.model.find_packing() is not None
    assert trainer.keeping.replay is not None
    assert sum(map(len, trainer.keeping.replayed(trainer._batches(0), 0))) > 5
