"""Two processes on the CPU (gloo) train as one does, by DDP and by FSDP2: same losses, same model, resumed alike."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ConfigError, Preempted
from tasks.recipe import Finetune
from tasks.training import launch
from tasks.training.distributed import find_team
from tests.short_training import SECTION, CausalLM, short_trainer
from tests.tiny_lm import tiny_lm, tiny_tokenizer

# Batches of 7 of which 2 or so are replayed; the last has one new row, of which a process has none.
PLAIN = {"batch_size": 7, "checkpoint_every": 3, "attention_dropout": 0.0, "average_last": 0.6}
HOW = {"DDP": {"sharding": "replicate"}, "FSDP2": {"sharding": "shard"}}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.short_training"])


def rank(number: int, size: int, folder: Path, more: dict[str, Any], stop_at: int) -> None:
    """Train as one of several processes; the first writes what came of it. It may be stopped after a step."""
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{folder / f'meeting-{stop_at}'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=size)
    trainer = short_trainer(folder / "scratch", **more)
    if stop_at and number == size - 1:  # one of them is told, and all must stop

        def step(*rows: np.ndarray) -> float:
            if trainer.progress.step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return made(*rows)

        made, trainer._step = trainer._step, step  # type: ignore[method-assign]
    with contextlib.suppress(Preempted):
        progress = trainer.fit()
        if number == 0:
            (folder / "progress.json").write_text(json.dumps(vars(progress)))
            state = {name: value.clone() for name, value in trainer.given.network.state_dict().items()}
            save_file(state, folder / "model.safetensors")
    os._exit(0)  # as a rank of the stage does


def trained(
    folder: Path, size: int, stop_at: int = 0, **more: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train in `size` processes; return what the first says and its model."""
    folder.mkdir(exist_ok=True)
    given = {**PLAIN, "devices": size, **more}
    team = [
        processes.Process(target=rank, args=(number, size, folder, given, stop_at)) for number in range(size)
    ]
    for process in team:
        process.start()
    for process in team:
        process.join(120)
    assert [process.exitcode for process in team] == [0] * size
    if stop_at:
        assert not (folder / "progress.json").exists()
        return {}, {}
    return json.loads((folder / "progress.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return trained(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("how", HOW)
def test_two_processes_have_the_losses_of_one(
    alone: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path, how: str
) -> None:
    story, weights = alone
    together, same = trained(tmp_path, 2, **HOW[how])
    losses = [row["loss"] for row in story["history"]]
    assert len(losses) > 20
    assert losses[0] - losses[-1] > 0.1, "it learns"
    assert [row["loss"] for row in together["history"]] == pytest.approx(losses, abs=1e-5)
    assert together["best_loss"] == pytest.approx(story["best_loss"], abs=1e-5)
    assert same.keys() == weights.keys()
    assert max(float((same[name] - value).abs().max()) for name, value in weights.items()) < 1e-4


@pytest.mark.parametrize("stop_at", [15, 17], ids=["before validation", "in an epoch"])
@pytest.mark.parametrize("how", HOW)
def test_stopped_and_resumed_two_processes_end_with_the_same_bits(
    tmp_path: Path, how: str, stop_at: int
) -> None:
    more = {**HOW[how], "attention_dropout": 0.1}  # each process has random numbers of its own
    story, weights = trained(tmp_path / "whole", 2, **more)
    trained(tmp_path / "stopped", 2, stop_at=stop_at, **more)
    assert [path.name for path in sorted((tmp_path / "stopped" / "scratch").iterdir())][
        -1
    ] == f"step-{stop_at:08d}"
    again, same = trained(tmp_path / "stopped", 2, **more)
    assert again == story
    assert all(torch.equal(same[name], value) for name, value in weights.items())


def test_what_cannot_be_divided_is_refused_with_every_reason() -> None:
    model = CausalLM(tiny_lm("llama"), tiny_tokenizer(), "cpu", "fp32")
    given = {**SECTION, "devices": 2, "sharding": "shard", "l2_sp": 0.1, "unfreeze_every": 3}
    with pytest.raises(ConfigError) as caught:
        find_team(model, Finetune.model_validate(given))
    assert [problem.split()[0] for problem in caught.value.problems] == ["l2_sp", "unfreeze_every"]
    model.whole_batches = True  # type: ignore[misc]
    with pytest.raises(ConfigError, match="compares all rows of a batch with each other"):
        find_team(model, Finetune.model_validate({**SECTION, "devices": 2}))


def test_more_devices_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Finetune.model_validate({**SECTION, "devices": 4096})
    with pytest.raises(
        ConfigError, match=r"finetune\.devices is 4096, but this machine shows \d+ (CUDA|proc)"
    ):
        launch.pick_devices(section)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"shows 2 CUDA device\(s\): lower it, or look at CUDA_VISIBLE"):
        launch.pick_devices(section)
    assert launch.pick_devices(section.model_copy(update={"devices": 2})) == ["cuda:0", "cuda:1"]
