"""Train a model by its recipe's section, whatever the method: a probe, all layers, some of them, adapters."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tasks.families.interface import Model
from tasks.recipe import Finetune
from tasks.training.adapters import add_adapters, merge_adapters
from tasks.training.copies import Copies
from tasks.training.loop import Progress, Trainer, Watch
from tasks.training.tensorboard import Board

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """How training went."""

    progress: Progress
    truncated: int
    """Training rows that are longer than what is read of them."""
    parameters: int
    """Numbers that trained."""


def train_model(
    model: Model,
    section: Finetune,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    scratch: Path,
    original: pd.DataFrame | None = None,
    watch: Watch | None = None,
    copies: Copies | None = None,
    board: Board | None = None,
) -> Trained:
    """Train a model that `Model.begin` made ready, as its recipe says; adapters are merged in at the end.

    `original` are the rows of `data.replay`; `watch` is told after every epoch, and may raise to end it all; `copies`
    are where checkpoints are kept beside `scratch`, and `board` where curves are drawn.

    Raises:
        StageError: there is nothing to train on, or the loss or a gradient is not finite.
        Preempted: SIGTERM came; the work is checkpointed in `scratch`.
    """
    if section.method == "probe":
        return _probe(model, train, validation)
    if section.lora is not None:
        add_adapters(model.backbone, **section.lora.model_dump(), seed=section.seed)
    trainer = Trainer(model, section, train, validation, scratch, original, watch, copies, board)
    truncated = trainer.examples.truncated
    if truncated:
        log.warning("%d of %d training rows are cut at %s tokens", truncated, len(train), section.max_length)
    groups = trainer.optimizer.param_groups
    parameters = sum(parameter.numel() for group in groups for parameter in group["params"])
    progress = trainer.fit()
    if section.lora is not None:
        merge_adapters(model.backbone)
        model.settle(train)
    return Trained(progress, truncated, parameters)


def _probe(model: Model, train: pd.DataFrame, validation: pd.DataFrame) -> Trained:
    at_home, measured = model.measure(train), model.measure(validation)
    row: dict[str, float | int | None] = {"step": 0, "epoch": 0, "loss": at_home.loss, "learning_rate": 0.0}
    row |= {"validation_loss": measured.loss, "validation_score": measured.score}
    progress = Progress(
        train_loss=at_home.loss, best_loss=measured.loss, best_score=measured.score, history=[row]
    )
    head = sum(parameter.numel() for parameter in model.network.get_submodule("head").parameters())
    return Trained(progress, model.examples(train).truncated, head)
