"""evaluate: base, candidate and champion, on examples that nothing was chosen with.

Reads the test split and the targets, the *report* halves, the models and `pin.json`; writes `evaluate.json`, a record
for each example under `records/`, and flat `metrics.json`. It measures; `decide` judges. Alone:
`python -m tasks evaluate <recipe>`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tasks import reports
from tasks.device import hold_device
from tasks.errors import StageError
from tasks.families import family, load_model
from tasks.families.interface import Measured, Model
from tasks.files import atomic_folder, folder_fingerprint, write_text
from tasks.forgetting.bootstrap import group_weights, interval, macro_f1, micro_f1
from tasks.forgetting.measure import Subject, compare, records, reference
from tasks.forgetting.rule import paired_loss
from tasks.forgetting.suites import read_suite
from tasks.forgetting.task_metric import task_measure, task_metric, truth_of
from tasks.models import pick_device
from tasks.paths import Paths, registry_root
from tasks.recipe import Decide, Evaluate
from tasks.sources import base_folder
from tasks.splits import first_by_hash, read_splits, target_names
from tasks.tables import has_label_lists, unlabelled, write_table

log = logging.getLogger(__name__)

SAMPLE_SEED = 0
"""Of which rows of a large target are scored; the same for every model, so it is no choice to make."""


def evaluate(section: Evaluate, rule: Decide, *, paths: Paths) -> None:
    """Measure every model on every test set and report half, and write a record for each example.

    Raises:
        StageError: a model, a split or a benchmark cannot be read, or the champion has other labels.
        RegistryError: the champion cannot be fetched.
    """
    base, pin = reports.read_report(paths.base, reports.Base), reports.read_report(paths.pin, reports.Pin)
    device = pick_device()
    with atomic_folder(paths.records) as aside, hold_device(device):
        candidate = load_model(paths.chosen, device, section.precision)
        folder = base_folder(base, paths.root)
        start = family(candidate.task).load_start(folder, paths.tuned, device, section.precision)
        suites = list(_suites(section, base, start, candidate, paths, aside))
        targets = list(_targets(section, rule, pin, start, candidate, paths, aside))
    report = reports.EvaluateReport(
        base_model=base.fingerprint,
        candidate_model=folder_fingerprint(paths.chosen),
        champion=pin.champion,
        start=start.start_means,
        targets=targets,
        suites=suites,
    )
    reports.write_report(paths.evaluate, report)
    write_text(paths.metrics, json.dumps(_flat_metrics(report), indent=2) + "\n")


def _flat_metrics(report: reports.EvaluateReport) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures that `dvc metrics` compares between runs."""
    targets = {}
    for target in report.targets:
        targets[target.name] = {target.metric: round(target.candidate, 4), "gain": round(target.gain, 4)}
        if target.macro_f1 is not None:
            targets[target.name]["macro_f1"] = round(target.macro_f1, 4)
        if target.micro_f1 is not None:
            targets[target.name]["micro_f1"] = round(target.micro_f1, 4)
    suites = {
        suite.name: {suite.metric: round(suite.candidate, 4), "loss": round(suite.loss, 4)}
        for suite in report.suites
    }
    return {"task": targets, "forgetting": suites}


def _suites(
    section: Evaluate, base: reports.Base, start: Model, candidate: Model, paths: Paths, aside: Path
) -> Iterator[reports.SuiteOutcome]:
    before = reference(base, candidate.task, start, section, paths.root)
    after = Subject(candidate, section)
    folders = sorted(folder for folder in paths.report_half.iterdir() if folder.is_dir())
    for folder in folders:
        suite = read_suite(folder)
        outcome = compare(suite, before, after)
        write_table(records(suite, before, after), aside / "suites" / f"{suite.name}.parquet")
        log.info(
            "%s: %s %.4f → %.4f on %d examples",
            suite.name,
            suite.info.metric,
            outcome.base,
            outcome.candidate,
            outcome.examples,
        )
        yield outcome


def _targets(
    section: Evaluate,
    rule: Decide,
    pin: reports.Pin,
    start: Model,
    candidate: Model,
    paths: Paths,
    aside: Path,
) -> Iterator[reports.TargetOutcome]:
    schema, tables = read_splits(paths)
    champion = _champion(pin, candidate, section, paths)
    samples = {"test": tables["test"]} | {
        name: first_by_hash(rows, section.max_target_rows, SAMPLE_SEED)
        for name in target_names(schema)
        if len(rows := _labelled(name, tables[name]))
    }
    models = {"base": start, "candidate": candidate}
    for name, rows in samples.items():
        found = {who: task_measure(model, rows, section) for who, model in models.items()}
        if champion is not None:
            same = champion is candidate
            found["champion"] = found["candidate"] if same else task_measure(champion, rows, section)
        table = pd.DataFrame({"id": rows["id"].astype(str), "group": rows["group"].astype(str)})
        for model, measured in found.items():
            table[model] = measured.outcomes
        write_table(table, aside / "targets" / f"{name}.parquet")
        outcome = _target(name, table, task_metric(candidate, section), rule)
        if candidate.labels:
            outcome = _with_f1(outcome, table, rows, found, len(candidate.labels), rule)
        log.info(
            "%s: %s %.4f → %.4f on %d rows",
            name,
            outcome.metric,
            outcome.base,
            outcome.candidate,
            outcome.examples,
        )
        yield outcome


def _labelled(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be scored: a target may lack labels."""
    if not (absent := unlabelled(rows)).any():
        return rows
    log.info("%s: %d of %d rows have no label and are not scored", name, int(absent.sum()), len(rows))
    return rows[~absent]


def _target(name: str, table: pd.DataFrame, metric: str, rule: Decide) -> reports.TargetOutcome:
    loss = paired_loss(table["base"], table["candidate"], table["group"].tolist(), whole_groups=False)
    each_side = (1 + rule.confidence) / 2
    return reports.TargetOutcome(
        name=name,
        metric=metric,
        examples=len(table),
        base=float(table["base"].mean()),
        candidate=float(table["candidate"].mean()),
        champion=float(table["champion"].mean()) if "champion" in table else None,
        gain=-loss.mean,
        gain_interval=(-loss.upper(each_side), -loss.lower(each_side)),
    )


def _with_f1(
    outcome: reports.TargetOutcome,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    found: dict[str, Measured],
    classes: int,
    rule: Decide,
) -> reports.TargetOutcome:
    weights = group_weights(table["group"].tolist(), rule.bootstrap_draws, rule.seed)
    several = has_label_lists(rows)
    truth = truth_of(rows, classes)
    said = {model: measured.predictions for model, measured in found.items()}
    if said["base"] is None or said["candidate"] is None:
        return outcome
    update: dict[str, object] = {}
    # Of one label a row micro-F1 is accuracy, which is there already.
    for name, measure in {"macro_f1": macro_f1, **({"micro_f1": micro_f1} if several else {})}.items():
        before, after = (
            measure(truth, labels, classes, weights) for labels in (said["base"], said["candidate"])
        )
        update[name] = float(after[0])
        update[f"{name}_gain"] = float(after[0] - before[0])
        update[f"{name}_gain_interval"] = interval(after - before, rule.confidence)
    return outcome.model_copy(update=update)


def _champion(pin: reports.Pin, candidate: Model, section: Evaluate, paths: Paths) -> Model | None:
    """Load the pinned champion; it is the candidate itself when their content is the same."""
    if pin.champion is None:
        return None
    if pin.champion_model == folder_fingerprint(paths.chosen):
        return candidate
    from tasks.registry import open_registry

    with tempfile.TemporaryDirectory() as folder:
        registry = open_registry(registry_root(paths.root))
        registry.download(pin.registry_name, pin.champion, Path(folder) / "champion")
        champion = load_model(Path(folder) / "champion", candidate.device, section.precision)
    if champion.task != candidate.task:
        raise StageError(
            f"The champion, version {pin.champion} of {pin.registry_name}, was tuned for {champion.task}, the candidate "
            f"for {candidate.task}: they cannot be compared. Give the recipe another register.name."
        )
    if list(champion.labels) != list(candidate.labels):
        raise StageError(
            f"The champion, version {pin.champion} of {pin.registry_name}, knows the labels {list(champion.labels)}, "
            f"the candidate {list(candidate.labels)}: they cannot be compared. Give the recipe another register.name."
        )
    return champion
