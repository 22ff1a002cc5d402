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

import pandas as pd
import torch

from tasks import reports
from tasks.device import hold_devices
from tasks.families import family
from tasks.families.interface import Model
from tasks.files import write_text
from tasks.models import pick_device
from tasks.passport import verify_passport
from tasks.paths import Paths, store
from tasks.recipe import REPLAY, Finetune
from tasks.sources import base_folder
from tasks.splits import read_splits
from tasks.stages import version_of
from tasks.training.copies import open_copies
from tasks.training.distributed import first_rank, is_rank
from tasks.training.launch import launch, pick_devices
from tasks.training.run import Trained, train_model
from tasks.training.tensorboard import open_board

log = logging.getLogger(__name__)

HISTORY = ["step", "epoch", "loss", "learning_rate", "validation_loss", "validation_score"]


def finetune(section: Finetune, *, paths: Paths) -> None:
    """Tune the base on the training split and keep the epoch with the least validation loss.

    Raises:
        ConfigError: there are fewer devices.
        StageError: the data has not been cleared, or the loss is not finite.
        Preempted: SIGTERM came; the work is checkpointed.
    """
    schema, tables = read_splits(paths)
    kind = family(schema.task)
    verify_passport(paths)
    base = reports.read_report(paths.base, reports.Base)
    scratch = store() / "checkpoints" / _inputs_hash(section, base, schema)
    copies, board = open_copies(scratch.name), open_board(paths.recipe)
    if section.devices > 1 and section.method != "probe" and not is_rank():
        devices = pick_devices(section)
        with hold_devices(devices):
            launch(paths.recipe, len(devices))
        return
    device = pick_device()
    # Of several processes that train together, their parent holds the devices.
    with hold_devices([] if is_rank() else [device]):
        torch.use_deterministic_algorithms(device == "cpu")
        torch.manual_seed(section.seed)
        train, validation = tables["train"], tables["validation"]
        model = kind.begin(base_folder(base, paths.root), section, schema.labels, train, validation, device)
        log.info("%s: validation %s %.4f", model.start_means, model.metric, model.start_score)
        trained = train_model(
            model, section, train, validation, scratch, tables.get(REPLAY), copies=copies, board=board
        )
    if not first_rank():
        return
    model.save(paths.tuned)
    history = pd.DataFrame(trained.progress.history, columns=HISTORY)
    write_text(paths.history, history.to_csv(index=False, float_format="%.6g"))
    reports.write_report(paths.finetune, _report(section, model, trained))
    shutil.rmtree(scratch, ignore_errors=True)
    if copies is not None:
        copies.remove()


def _inputs_hash(section: Finetune, base: reports.Base, schema: reports.SplitSchema) -> str:
    """Name the stage's inputs, so that a checkpoint is only ever resumed by the run it belongs to."""
    inputs = [
        section.model_dump(mode="json"),
        base.fingerprint,
        schema.fingerprint,
        version_of("finetune"),
    ]
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
