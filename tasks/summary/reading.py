"""The reports of one run: read from where the stages wrote them, and left out where they no longer hold."""

from __future__ import annotations

import csv
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import StageError
from tasks.paths import Paths
from tasks.reports import (
    Base,
    CheckReport,
    DecideReport,
    EvaluateReport,
    FinetuneReport,
    GateReport,
    MergeReport,
    Pin,
    Report,
    SplitSchema,
    ValidateReport,
    read_report,
)

KINDS: dict[str, type[Report]] = {
    "base": Base,
    "schema": SplitSchema,
    "validate": ValidateReport,
    "check": CheckReport,
    "gate": GateReport,
    "finetune": FinetuneReport,
    "merge": MergeReport,
    "pin": Pin,
    "evaluate": EvaluateReport,
    "decision": DecideReport,
}


@dataclass(frozen=True)
class Reports:
    """What the stages of one run wrote; None where a stage has not run (or its report no longer holds)."""

    base: Base | None = None
    schema: SplitSchema | None = None
    validate: ValidateReport | None = None
    check: CheckReport | None = None
    gate: GateReport | None = None
    finetune: FinetuneReport | None = None
    merge: MergeReport | None = None
    pin: Pin | None = None
    evaluate: EvaluateReport | None = None
    decision: DecideReport | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """Rows of `history.csv`; NaN where a cell is empty."""


def read_reports(paths: Paths) -> Reports:
    """Read what the stages of a recipe have written so far.

    Raises:
        StageError: nothing was written yet, or a report cannot be read.
    """
    found: dict[str, Any] = {
        name: read_report(getattr(paths, name), kind)
        for name, kind in KINDS.items()
        if getattr(paths, name).exists()
    }
    if not found:
        raise StageError(
            f"{paths.recipe} has not run here yet: {paths.out} holds no report. "
            f"Run it with `retain run {paths.recipe}`, or take it from the remote with `dvc pull`."
        )
    if paths.history.exists():
        found["history"] = read_history(paths.history)
    return Reports(**found)


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the training history: a row a logged step, NaN for empty cells.

    Raises:
        StageError: a cell is no number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [{key: float(value) if value else math.nan for key, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise StageError(f"{path} is no table of numbers ({error}): run `finetune` again.") from None


def still_valid(reports: Reports) -> tuple[Reports, list[str]]:
    """Leave out the reports that earlier ones no longer stand behind, and say which.

    A refused or stopped run leaves the later stages' files of the run before it on the disk.
    """
    merge, evaluate, decision = reports.merge, reports.evaluate, reports.decision
    if later := _overtaken(reports):
        left = [name for name in later if getattr(reports, name)]
        note = [f"Left out, from an earlier run: {', '.join(left)}."] if left else []
        nothing: dict[str, Any] = dict.fromkeys(later)
        return dataclasses.replace(reports, **nothing, history=[]), note
    stale = []
    if evaluate and (not merge or evaluate.candidate_model != merge.model):
        stale.append("evaluate")
    if decision and (stale or not evaluate or decision.model != evaluate.candidate_model):
        stale.append("decision")
    note = [f"Left out, because they are about another model than the chosen one: {', '.join(stale)}."]
    left_out: dict[str, Any] = dict.fromkeys(stale)
    return dataclasses.replace(reports, **left_out), note if stale else []


def _overtaken(reports: Reports) -> tuple[str, ...]:
    """Name the reports that follow new splits or a refusal of the gate, and were written before it."""
    trained = ("finetune", "merge", "pin", "evaluate", "decision")
    measured = [name for name in ("validate", "check") if _on_other_splits(reports, name)]
    if measured:
        return (*measured, "gate", *trained)
    return trained if reports.gate and reports.gate.level == "refuse" else ()


def _on_other_splits(reports: Reports, name: str) -> bool:
    splits = getattr(getattr(reports, name), "splits", "")
    return bool(reports.schema and splits and splits != reports.schema.fingerprint)
