"""What a recipe asks to be kept while training, made ready for the loop: penalties, a teacher, rows to be replayed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import ConfigError, StageError
from tasks.families.interface import Examples, Model
from tasks.recipe import Finetune
from tasks.training.retention import EWC, L2SP, Penalty, diagonal_fisher, replay_batches, rows_beside_replay

log = logging.getLogger(__name__)

FISHER_ROWS = 256
"""Original rows that the Fisher information is estimated from: the first ones."""


@dataclass
class Keeping:
    """How the loop keeps what the base could do; nothing at all where the recipe asks for nothing."""

    batch_size: int
    """New rows of a global batch."""
    share: float = 0.0
    seed: int = 0
    replay: Examples | None = None
    penalties: list[Penalty] = field(default_factory=list)
    teacher: Model | None = None
    distill: float = 0.0

    def replayed(self, batches: list[NDArray[np.int64]], epoch: int) -> list[NDArray[np.int64]]:
        """Return the original rows that each batch of the epoch replays."""
        if self.replay is None:
            return [np.zeros(0, dtype=np.int64)] * len(batches)
        return replay_batches(batches, len(self.replay), self.share, self.seed, epoch)

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss of a global batch, or None."""
        found = [penalty.penalty() for penalty in self.penalties]
        return sum(found[1:], found[0]) if found else None


def make_keeping(model: Model, section: Finetune, original: pd.DataFrame | None) -> Keeping:
    """Make ready what the recipe asks for; the model must be where tuning starts, and it settled what trains.

    `original` are the rows of `data.replay`, None where there are none.

    Raises:
        ConfigError: the recipe asks for original rows and there are none, or for a pull that its method does not know.
        StageError: the original rows cannot be learned from.
    """
    if (section.replay_share or section.ewc) and original is None:
        raise ConfigError(
            "finetune.replay_share and finetune.ewc need data.replay, rows of the original domain."
        )
    examples = model.examples(original) if original is not None else None
    keeping = Keeping(rows_beside_replay(section.batch_size, section.replay_share), seed=section.seed)
    if section.replay_share:
        keeping.share, keeping.replay = section.replay_share, examples
    if section.l2_sp:
        keeping.penalties.append(L2SP(model.network, section.l2_sp, fresh=model.fresh_parameters))
    if section.ewc and examples is not None:
        log.info("elastic weight consolidation: what matters for %d original rows", len(examples))
        fisher = diagonal_fisher(model.network, _losses(model, examples))
        keeping.penalties.append(EWC(model.network, fisher, section.ewc, fresh=model.fresh_parameters))
    if section.distill:
        keeping.teacher, keeping.distill = _teacher(model), section.distill
    return keeping


def _losses(model: Model, examples: Examples) -> Iterator[Callable[[], Tensor]]:
    """Yield the loss of one original row after the other, a mean over what it counts."""
    if model.whole_batches:
        raise StageError(
            f"finetune.ewc: the loss of {model.task} looks across rows, and a row alone has none."
        )
    for row in range(min(len(examples), FISHER_ROWS)):
        if examples.weights[row]:
            yield lambda row=row: model.loss(examples, np.array([row])) / float(examples.weights[row])  # type: ignore[misc]


def _teacher(model: Model) -> Model:
    """Return the base as it is, which takes no gradients."""
    teacher = copy.deepcopy(model)
    teacher.network.requires_grad_(False)
    teacher.network.eval()
    return teacher
