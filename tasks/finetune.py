"""finetune: go on training the base model, gently.

Reads the splits, the passport that clears them and `base.json`; writes `tuned/` (a model folder with the linear
probe that tuning started from), `history.csv` and `finetune.json`. Alone: `python -m tasks finetune <recipe>`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from tasks import reports
from tasks.device import hold_device
from tasks.errors import ConfigError
from tasks.files import write_text
from tasks.models import Classifier, Encoder, load_encoder, make_classifier, pick_device, save_classifier
from tasks.passport import verify_passport
from tasks.paths import Paths, store
from tasks.recipe import Finetune
from tasks.sources import base_folder
from tasks.training.loop import Progress, Rows, Trainer, score
from tasks.training.probe import fit_probe, fresh_head

log = logging.getLogger(__name__)

USUAL_RATE = 1e-4
HISTORY = ["step", "epoch", "loss", "learning_rate", "validation_loss", "validation_accuracy"]


def finetune(section: Finetune, *, paths: Paths) -> None:
    """Tune the base on the training split and keep the epoch with the least validation loss.

    Raises:
        ConfigError: the rate is more than ten times the usual one and not forced.
        StageError: the data has not been cleared, or the loss is not finite.
        Preempted: SIGTERM came; the work is checkpointed.
    """
    _refuse_high_rate(section)
    verify_passport(paths)
    base = reports.read_report(paths.base, reports.Base)
    schema = reports.read_report(paths.schema, reports.SplitSchema)
    device = pick_device()
    with hold_device(device):
        torch.use_deterministic_algorithms(device == "cpu")
        encoder = load_encoder(base_folder(base, paths.root), device, section.precision)
        train, validation = _rows(paths.train, encoder), _rows(paths.validation, encoder)
        probe, probe_accuracy = _probe(encoder, section, train, validation, len(schema.labels))
        classifier = _classifier(encoder, section, probe, schema.labels)
        scratch = store() / "checkpoints" / _inputs_hash(section, base, schema)
        progress = _train(classifier, section, train, validation, scratch)
    save_classifier(classifier, paths.tuned, start_head=probe)
    history = pd.DataFrame(progress.history, columns=HISTORY)
    write_text(paths.history, history.to_csv(index=False, float_format="%.6g"))
    report = _report(section, classifier, train, progress, probe_accuracy)
    reports.write_report(paths.finetune, report)
    shutil.rmtree(scratch, ignore_errors=True)


def _refuse_high_rate(section: Finetune) -> None:
    if (
        section.method != "probe"
        and section.learning_rate > 10 * USUAL_RATE
        and not section.force_learning_rate
    ):
        raise ConfigError(
            f"finetune.learning_rate is {section.learning_rate:g}: more than ten times the {USUAL_RATE:g} that "
            "fine-tuning an encoder wants, and the surest way to forget. Lower it, or set force_learning_rate: true."
        )


def _rows(path: Path, encoder: Encoder) -> Rows:
    table = pd.read_parquet(path)
    texts = table["text"].tolist()
    return Rows(texts, table["label"].to_numpy(np.int64), table["id"].tolist(), encoder.token_counts(texts))


def _probe(
    encoder: Encoder, section: Finetune, train: Rows, validation: Rows, classes: int
) -> tuple[dict[str, torch.Tensor], float]:
    log.info("linear probe: embedding %d rows", len(train.texts) + len(validation.texts))
    features = [
        encoder.encode(rows.texts, max_length=section.max_length, normalise=False)
        for rows in (train, validation)
    ]
    probe, accuracy = fit_probe(features[0], train.labels, features[1], validation.labels, classes)
    log.info("linear probe: validation accuracy %.4f", accuracy)
    return probe, accuracy


def _classifier(
    encoder: Encoder, section: Finetune, probe: dict[str, torch.Tensor], labels: list[str]
) -> Classifier:
    classes, dimensions = probe["weight"].shape
    head = fresh_head(dimensions, classes, section.seed)
    if section.method != "full":
        head.load_state_dict(probe)
    return make_classifier(encoder, head, labels, section.max_length)


def _train(
    classifier: Classifier, section: Finetune, train: Rows, validation: Rows, scratch: Path
) -> Progress:
    if section.method == "probe":
        train_loss, _ = score(classifier, train)
        loss, accuracy = score(classifier, validation)
        row: dict[str, float | int | None] = {"step": 0, "epoch": 0, "loss": train_loss, "learning_rate": 0.0}
        row |= {"validation_loss": loss, "validation_accuracy": accuracy}
        return Progress(train_loss=train_loss, best_loss=loss, best_accuracy=accuracy, history=[row])
    return Trainer(classifier, section, train, validation, scratch).fit()


def _inputs_hash(section: Finetune, base: reports.Base, schema: reports.SplitSchema) -> str:
    """Name the stage's inputs, so that a checkpoint is only ever resumed by the run it belongs to."""
    versions = yaml.safe_load(Path(__file__).with_name("versions.yaml").read_text(encoding="utf-8"))
    inputs = [section.model_dump(mode="json"), base.fingerprint, schema.fingerprint, versions["finetune"]]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _report(
    section: Finetune, classifier: Classifier, train: Rows, progress: Progress, probe_accuracy: float
) -> reports.FinetuneReport:
    longest = min(section.max_length, classifier.limit)
    truncated = int((train.lengths > longest).sum())
    if truncated:
        log.warning("%d of %d training rows are cut at %d tokens", truncated, len(train.texts), longest)
    parameters = [*classifier.model.parameters(), *classifier.head.parameters()]
    trained = parameters if section.method != "probe" else list(classifier.head.parameters())
    return reports.FinetuneReport(
        method=section.method,
        steps=progress.step,
        epochs=progress.epoch,
        trainable_parameters=sum(parameter.numel() for parameter in trained if parameter.requires_grad),
        parameters=sum(parameter.numel() for parameter in parameters),
        truncated_rows=truncated,
        probe_validation_accuracy=probe_accuracy,
        best_epoch=progress.best_epoch,
        validation_loss=progress.best_loss,
        validation_accuracy=progress.best_accuracy,
        train_loss=progress.train_loss,
    )
