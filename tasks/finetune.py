"""finetune: go on training the base model, gently.

Reads the splits, the passport that clears them and `base.json`; writes `tuned/` (a model folder, with the linear
probe that tuning started from where the task has labels), `history.csv` and `finetune.json`. Alone:
`python -m tasks finetune <recipe>`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml

from tasks import reports
from tasks.device import hold_device
from tasks.errors import ConfigError
from tasks.families import family
from tasks.families.interface import Model
from tasks.files import write_text
from tasks.models import pick_device
from tasks.passport import verify_passport
from tasks.paths import Paths, store
from tasks.recipe import REPLAY, Finetune
from tasks.sources import base_folder
from tasks.splits import read_splits
from tasks.training.adapters import add_adapters, merge_adapters
from tasks.training.loop import Progress, Trainer

log = logging.getLogger(__name__)

TOO_HIGH = 10
"""Times the usual rate that a recipe may ask for without saying so."""
HISTORY = ["step", "epoch", "loss", "learning_rate", "validation_loss", "validation_score"]


def finetune(section: Finetune, *, paths: Paths) -> None:
    """Tune the base on the training split and keep the epoch with the least validation loss.

    Raises:
        ConfigError: the rate is more than ten times the usual one and not forced.
        StageError: the data has not been cleared, or the loss is not finite.
        Preempted: SIGTERM came; the work is checkpointed.
    """
    schema, tables = read_splits(paths)
    kind = family(schema.task)
    refuse_high_rate(section, kind)
    verify_passport(paths)
    base = reports.read_report(paths.base, reports.Base)
    device = pick_device()
    with hold_device(device):
        torch.use_deterministic_algorithms(device == "cpu")
        torch.manual_seed(section.seed)
        train, validation = tables["train"], tables["validation"]
        model = kind.begin(base_folder(base, paths.root), section, schema.labels, train, validation, device)
        log.info("%s: validation %s %.4f", model.start_means, model.metric, model.start_score)
        scratch = store() / "checkpoints" / _inputs_hash(section, base, schema)
        trained = _train(model, section, train, validation, scratch, tables.get(REPLAY))
    model.save(paths.tuned)
    history = pd.DataFrame(trained.progress.history, columns=HISTORY)
    write_text(paths.history, history.to_csv(index=False, float_format="%.6g"))
    reports.write_report(paths.finetune, _report(section, model, trained))
    shutil.rmtree(scratch, ignore_errors=True)


def refuse_high_rate(section: Finetune, kind: type[Model]) -> None:
    """Return when the rate is one that fine-tuning survives.

    Raises:
        ConfigError: it is more than ten times the usual one of this task and method, and not forced.
    """
    usual = kind.usual_rates[section.method]
    if (
        section.method != "probe"
        and section.learning_rate > TOO_HIGH * usual
        and not section.force_learning_rate
    ):
        raise ConfigError(
            f"finetune.learning_rate is {section.learning_rate:g}: more than ten times the {usual:g} that `method: "
            f"{section.method}` wants for {kind.task}, and the surest way to forget. Lower it, or set "
            "force_learning_rate: true."
        )


@dataclass(frozen=True)
class Trained:
    """How training went."""

    progress: Progress
    truncated: int
    """Training rows that are longer than what is read of them."""
    parameters: int
    """Numbers that trained."""


def _train(
    model: Model,
    section: Finetune,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    scratch: Path,
    original: pd.DataFrame | None = None,
) -> Trained:
    if section.method == "probe":
        return _probe(model, train, validation)
    if section.lora is not None:
        add_adapters(model.backbone, **section.lora.model_dump(), seed=section.seed)
    trainer = Trainer(model, section, train, validation, scratch, original)
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


def _inputs_hash(section: Finetune, base: reports.Base, schema: reports.SplitSchema) -> str:
    """Name the stage's inputs, so that a checkpoint is only ever resumed by the run it belongs to."""
    versions = yaml.safe_load(Path(__file__).with_name("versions.yaml").read_text(encoding="utf-8"))
    inputs = [section.model_dump(mode="json"), base.fingerprint, schema.fingerprint, versions["finetune"]]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _report(section: Finetune, model: Model, trained: Trained) -> reports.FinetuneReport:
    progress = trained.progress
    return reports.FinetuneReport(
        method=section.method,
        steps=progress.step,
        epochs=progress.epoch,
        trainable_parameters=trained.parameters,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        truncated_rows=trained.truncated,
        metric=model.metric,
        start=model.start_means,
        start_score=model.start_score,
        best_epoch=progress.best_epoch,
        validation_loss=progress.best_loss,
        validation_score=progress.best_score,
        train_loss=progress.train_loss,
    )
