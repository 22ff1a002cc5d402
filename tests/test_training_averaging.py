"""Weights averaged over the last steps: their mean is measured and kept, and training goes on as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.training.averaging import Average
from tasks.training.loop import Trainer
from tests.short_training import short_trainer

State = dict[str, torch.Tensor]


def followed(made: Trainer) -> tuple[list[State], list[State]]:
    """Train; return the weights after every step, and those that validation was asked with."""
    after, measured = [], []
    step, measure = made._step, made.model.measure

    def state() -> State:
        return {name: value.clone() for name, value in made.network.state_dict().items()}

    def stepped(*rows: np.ndarray) -> float:
        loss = step(*rows)
        after.append(state())
        return loss

    def asked(table: Any) -> Any:
        measured.append(state())
        return measure(table)

    made._step, made.model.measure = stepped, asked  # type: ignore[method-assign,assignment]
    made.fit()
    return after, measured


def mean(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def same(one: State, other: State) -> bool:
    return all(torch.allclose(value, other[name], atol=1e-7) for name, value in one.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    return followed(short_trainer(tmp_path_factory.mktemp("plain")))[0]


@pytest.mark.parametrize(("share", "averaged"), [(0.25, 6), (0.75, 18), (1.0, 24)])
def test_epochs_are_measured_with_the_mean_of_the_last_steps_so_far(
    tmp_path: Path, plain: list[State], share: float, averaged: int
) -> None:
    made = short_trainer(tmp_path, average_last=share)
    after, (first, second) = followed(made)
    assert len(after) == len(plain) == 24
    assert all(same(one, other) for one, other in zip(after, plain, strict=True)), "training is what it was"
    before = 24 - averaged
    assert same(first, mean(after[before:12]) if before < 12 else after[11])
    assert same(second, mean(after[before:]))
    best = (first, second)[made.progress.best_epoch - 1]
    assert same(best, dict(made.network.state_dict()))


def test_of_no_step_the_network_is_shown_as_it_is() -> None:
    layer = nn.Linear(2, 2)
    average, before = Average(dict(layer.named_parameters()), 4, 0.5), layer.weight.clone()
    for step in (1, 2):
        average.take(step)
    with average.shown():
        assert torch.equal(layer.weight, before)
    assert average.state == {"count": 0, "mean": {}}


def test_what_was_shown_is_taken_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    average = Average(dict(layer.named_parameters()), 2, 1.0)
    average.take(1)
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.take(2)
    shown = []

    def failing() -> None:
        with average.shown():
            shown.append(layer.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.allclose(shown[0], first + 0.5)
    assert torch.allclose(layer.weight, first + 1)
