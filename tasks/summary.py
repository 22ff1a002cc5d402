"""The summary of a run or a release: what it gained, what it forgot, whether it may ship, and why.

A pure function of the report files: `read_reports` → `summarize` → `as_markdown` or `as_html`. The page is
one file without scripts, fonts or links to load, so that it can be mailed, printed and kept.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from tasks import charts
from tasks.drift_words import drift_drawings, drift_sentence, slice_cells
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.reports import (
    AlphaOutcome,
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
    SuiteVerdict,
    TargetOutcome,
    ValidateReport,
    read_report,
)

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "GATE", "UNFINISHED"]
BADGES: dict[Outcome, str] = {
    "PASS": "May ship",
    "FAIL": "Must not ship",
    "INCONCLUSIVE": "Not settled: must not ship",
    "GATE": "Stopped at the data gate",
    "UNFINISHED": "No verdict yet",
}
LEVELS: dict[Outcome, str] = {
    "PASS": "pass",
    "FAIL": "fail",
    "INCONCLUSIVE": "inconclusive",
    "GATE": "fail",
    "UNFINISHED": "info",
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


SHARES = ("accuracy",)
"""Metrics that are shares, and read best as percentages."""
READ = "unsupervised_share"
"""The measure whose examples show what the model reads."""
PATHS = {"wise-ft": "all weights alike (WiSE-FT)", "lines": "depth-scaled (LiNeS)"}
METRICS = {
    "log_likelihood": "Log-likelihood a token (nats)",
    "mrr": "MRR",
    "macro_f1": "Macro-F1",
    "example F1": "F1 of a row's labels",
}
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


# --- what a summary says -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a table: plain texts, a level for its colour and a drawing (SVG) for the page."""

    cells: tuple[str, ...]
    level: str = ""
    drawing: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing (SVG), what it shows and the names of its series, in order."""

    drawing: str
    caption: str
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a page or a Markdown text shows; every text is plain and not yet escaped."""

    title: str
    outcome: Outcome
    sentence: str
    notes: tuple[str, ...] = ()
    """What the reader must know first, for example that the figures are out of date."""
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()
    """Key figures: label, value, detail."""
    gains: tuple[Row, ...] = ()
    gains_sentence: str = ""
    """What before and after are, in words."""
    champion: int | None = None
    suites: tuple[Row, ...] = ()
    suites_sentence: str = ""
    """What was measured, of which model and on what."""
    confidence: float | None = None
    choice: str = ""
    choice_pictures: tuple[Picture, ...] = ()
    tried: tuple[Row, ...] = ()
    """Mixtures of base and tuned model that were tried: on the selection halves, or on validation alone."""
    training: str = ""
    training_pictures: tuple[Picture, ...] = ()
    data: tuple[Row, ...] = ()
    data_sentence: str = ""
    failures: tuple[str, ...] = ()
    """Expectations that failed, in words."""
    worst: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Measures that warned or refused, with their worst examples."""
    views: tuple[str, ...] = ()
    """Training rows as a language model reads them; what carries loss stands between ⟦ and ⟧."""
    flips: tuple[Row, ...] = ()
    drift: str = ""
    """How far the answers moved, in words."""
    drift_pictures: tuple[Picture, ...] = ()
    slices: tuple[Row, ...] = ()
    """Where the tuned model lost: the worst slices of the selection halves."""
    lineage: tuple[tuple[str, str], ...] = ()

    @property
    def badge(self) -> str:
        """Return the verdict in a few words."""
        return BADGES[self.outcome]

    @property
    def level(self) -> str:
        """Return the class that colours the verdict."""
        return LEVELS[self.outcome]


def summarize(
    reports: Reports,
    title: str,
    *,
    lineage: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """Build the summary; `lineage` adds lines (release, commit, …), `notes` what to say first."""
    reports, outdated = still_valid(reports)
    outcome = _outcome(reports)
    decision, evaluate = reports.decision, reports.evaluate
    return Summary(
        title=title,
        outcome=outcome,
        sentence=_sentence(reports, outcome),
        notes=(*notes, *outdated, *_notes(decision)),
        reasons=_reasons(reports),
        advice=tuple(decision.advice) if decision else (),
        figures=_figures(reports),
        gains=_gains(evaluate.targets) if evaluate and not _kept_base(reports) else (),
        gains_sentence=_gains_sentence(evaluate) if evaluate else "",
        champion=evaluate.champion if evaluate else None,
        suites=tuple(map(_suite, _shown_suites(reports))),
        suites_sentence=_suites_sentence(reports),
        confidence=decision.confidence if decision else None,
        choice=_choice(reports.merge) if reports.merge else "",
        choice_pictures=_choice_pictures(reports),
        tried=_tried(reports.merge) if reports.merge else (),
        training=_training(reports.finetune) if reports.finetune else "",
        training_pictures=_training_pictures(reports.history) if reports.finetune else (),
        data=_data(reports.gate) if reports.gate else (),
        data_sentence=_data_sentence(reports.schema) if reports.schema else "",
        failures=_failures(reports.validate) if reports.validate else (),
        worst=_worst(reports),
        views=_views(reports),
        flips=_flips(reports.merge) if reports.merge and outcome in ("FAIL", "INCONCLUSIVE") else (),
        drift=drift_sentence(reports.merge.drift) if reports.merge else "",
        drift_pictures=_drift_pictures(reports),
        slices=tuple(map(Row, slice_cells(reports.merge.slices))) if reports.merge else (),
        lineage=(*_lineage(reports), *(lineage or {}).items()),
    )


def _kept_base(reports: Reports) -> bool:
    return bool(reports.decision and reports.merge and reports.merge.kept_base)


def _shown_suites(reports: Reports) -> Sequence[SuiteVerdict]:
    """Return what the chosen model forgot; where that is the base itself, what the tuned model forgot."""
    if reports.decision is None:
        return []
    return reports.decision.tuned_suites or reports.decision.suites


def _suites_sentence(reports: Reports) -> str:
    said = "What the base model could do before, measured on the same examples before and after"
    if reports.decision and reports.decision.tuned_suites:
        return f"{said}: the tuned model, on the selection halves. Nothing of it was kept."
    return f"{said}."


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


def _outcome(reports: Reports) -> Outcome:
    if reports.gate and reports.gate.level == "refuse":
        return "GATE"
    return reports.decision.verdict if reports.decision else "UNFINISHED"


def _sentence(reports: Reports, outcome: Outcome) -> str:
    decision = reports.decision
    if outcome == "GATE":
        count = sum(item.level == "refuse" for item in reports.gate.items) if reports.gate else 0
        return f"The data crossed {count} bound(s), so nothing was trained on it."
    if decision is None:
        return "The pipeline has not come to its end; below is what is known so far."
    gating = [suite for suite in _shown_suites(reports) if suite.margin is not None]
    gained = _test_gain(reports)
    if outcome == "PASS":
        kept = {1: "the original ability", 2: "both original abilities"}
        named = kept.get(len(gating), f"all {len(gating)} original abilities")
        return f"{gained} It kept {named} within the loss that was agreed."
    lost = [suite.name for suite in gating if suite.verdict == "FAIL"]
    open_ = [suite.name for suite in gating if suite.verdict == "INCONCLUSIVE"]
    parts = [f"It forgot more than was agreed on {_listed(lost)}."] if lost else []
    parts += [f"Whether it forgot too much on {_listed(open_)} is not settled."] if open_ else []
    parts += [] if decision.target_verdict == "PASS" else [f"Its own task: {decision.target_reason}."]
    return " ".join([gained, *parts])


def _test_gain(reports: Reports) -> str:
    targets = reports.evaluate.targets if reports.evaluate else []
    test = next((target for target in targets if target.name == "test"), None)
    if _kept_base(reports) and reports.merge:
        gain = change(reports.merge.metric, reports.merge.tuned.gain)
        return f"The tuned model changed {_words(reports.merge.metric)} on validation by {gain}; nothing of it was kept."
    if test is None:
        return ""
    if not test.gain:
        return f"{_metric(test.metric)} on its own task stayed at {score(test.metric, test.base)}."
    word = "rose" if test.gain > 0 else "fell"
    before, after = score(test.metric, test.base), score(test.metric, test.candidate)
    return f"{_metric(test.metric)} on its own task {word} from {before} to {after}."


def _reasons(reports: Reports) -> tuple[str, ...]:
    if reports.gate and reports.gate.level == "refuse":
        refused = [item for item in reports.gate.items if item.level == "refuse"]
        return tuple(f"{_words(item.name)}: {item.reason} {item.remedy}" for item in refused)
    return tuple(reports.decision.reasons) if reports.decision else ()


def _figures(reports: Reports) -> tuple[tuple[str, str, str], ...]:
    figures = []
    for target in reports.evaluate.targets if reports.evaluate else []:
        if target.name == "test" and not _kept_base(reports):
            detail = f"{score(target.metric, target.base)} before · {change(target.metric, target.gain)}"
            named = f"{_metric(target.metric)} on its task"
            figures.append((named, score(target.metric, target.candidate), detail))
    if _kept_base(reports) and reports.merge:
        metric, tuned = reports.merge.metric, reports.merge.tuned
        detail = f"on validation · {change(metric, tuned.gain)}"
        figures.append((f"{_metric(metric)} as tuned", score(metric, tuned.validation_score), detail))
    gating = [suite for suite in _shown_suites(reports) if suite.margin]
    if gating:
        kept = sum(suite.verdict == "PASS" for suite in gating)
        detail = "by the tuned model" if _kept_base(reports) else "within the agreed loss"
        figures.append(("Abilities kept", f"{kept} of {len(gating)}", detail))
        worst = max(gating, key=lambda suite: suite.upper / (suite.margin or 1))
        share = worst.upper / (worst.margin or 1)
        value = f"{max(share, 0):.0%}" if share < 10 else f"{share:.0f} ×"
        figures.append(("Agreed loss used, at worst", value, f"on {worst.name}"))
    if reports.merge:
        detail = "0 is the base, 1 the tuned model"
        figures.append(("Weight of the tuning (α)", f"{reports.merge.alpha:g}", detail))
    return tuple(figures)


def _gains(targets: Sequence[TargetOutcome]) -> tuple[Row, ...]:
    lows = [min(target.base, target.candidate, target.base + target.gain_interval[0]) for target in targets]
    shares = all(target.metric in SHARES for target in targets)
    highs = [max(target.base, target.candidate, target.base + target.gain_interval[1]) for target in targets]
    room = 0.1 * (max(highs, default=1.0) - min(lows, default=0.0)) + 1e-6
    bounds = (min(lows, default=0.0) - room, max(highs, default=1.0) + room)
    if shares:
        bounds = (max(min(lows, default=0.0) - 0.03, 0.0), 1.0)
    rows = []
    for target in targets:
        low, high = target.gain_interval
        cells = (
            "its own task (test set)" if target.name == "test" else f"{target.name} (other domain)",
            f"{target.examples:,}",
            score(target.metric, target.base),
            score(target.metric, target.candidate),
            "" if target.champion is None else score(target.metric, target.champion),
            change(target.metric, target.gain),
            f"{change(target.metric, low).removesuffix(' points')} … {change(target.metric, high)}",
            _f1(target),
        )
        level = "pass" if low > 0 else "fail" if high < 0 else ""
        drawing = charts.gain_chart(
            target.base, target.candidate, target.gain_interval, bounds, percent=shares, name=target.metric
        )
        rows.append(Row(cells, level, drawing))
    return tuple(rows)


def _gains_sentence(evaluate: EvaluateReport) -> str:
    metric = _metric(evaluate.targets[0].metric) if evaluate.targets else "The task's metric"
    return (
        f"{metric}: before (ring) is {evaluate.start}, after (dot) the chosen model. The band is where after may "
        "plausibly lie."
    )


def _f1(target: TargetOutcome) -> str:
    if target.macro_f1 is None:
        return ""
    micro = "" if target.micro_f1 is None else f" (micro {target.micro_f1:.3f})"
    return f"{target.macro_f1:.3f}{micro}"


def _suite(suite: SuiteVerdict) -> Row:
    level = "info" if suite.margin is None else LEVELS[suite.verdict]
    cells = (
        suite.name,
        suite.metric.upper() if suite.metric == "mrr" else suite.metric,
        f"{suite.examples:,}",
        f"{suite.base:.3f}",
        f"{suite.candidate:.3f}",
        signed(-suite.loss),
        signed(-suite.upper),
        "shown only" if suite.margin is None else signed(-suite.margin),
        "–" if suite.margin is None else suite.verdict,
        suite.reason,
    )
    drawing = charts.interval_chart(suite.loss, suite.lower, suite.upper, suite.margin, level)
    return Row(cells, level, drawing)


def _choice(merge: MergeReport) -> str:
    chosen = next(
        (item for item in merge.outcomes if (item.path, item.alpha) == (merge.path, merge.alpha)), None
    )
    gain = f", {change(merge.metric, chosen.gain)} on validation" if chosen else ""
    way = f"α = {merge.alpha:g}" + (" with depth-scaled deltas (LiNeS)" if merge.path == "lines" else "")
    if merge.rescued:
        return (
            f"The tuned model alone forgot too much. Mixed with the base at {way}{gain}, "
            "it gains the most that the forgetting budget allows."
        )
    if merge.kept_base:
        if any(item.within_budget for item in merge.outcomes if item.alpha > 0):
            return "No mix within the forgetting budget did better on validation than the base, so the base was kept."
        return "No mix of base and tuned model stayed within the forgetting budget, so the base was kept."
    beaten = ""
    if merge.alpha < 1 and merge.tuned.within_budget:
        beaten = f" The tuned model alone fits it too, and gains no more ({change(merge.metric, merge.tuned.gain)})."
    return f"{way}{gain}: the most gain that the forgetting budget allows.{beaten}"


def _notes(decision: DecideReport | None) -> Iterator[str]:
    """Yield what the verdict rests on beside its figures."""
    if decision and decision.attempts:
        yield decision.attempts
    if decision and decision.rebase:
        yield f"A new ledger begins here: {decision.ledger_reason}."


def _tried(merge: MergeReport) -> tuple[Row, ...]:
    """Return a row for each mixture: path, α, what it gains, the losses on the selection halves, and whether it fits."""
    rows = []
    for outcome in merge.outcomes:
        losses = "; ".join(
            f"{suite.name} {suite.base:.3f} → {suite.candidate:.3f} ({signed(-suite.loss)})"
            for suite in outcome.suites
        )
        chosen = (outcome.path, outcome.alpha) == (merge.path, merge.alpha)
        cells = (
            PATHS.get(outcome.path, outcome.path),
            f"{outcome.alpha:g}",
            change(merge.metric, outcome.gain),
            "not measured" if outcome.within_budget is None else losses,
            "chosen" if chosen else _fits(outcome),
        )
        rows.append(Row(cells, "pass" if chosen else "fail" if outcome.within_budget is False else ""))
    return tuple(rows)


def _fits(outcome: AlphaOutcome) -> str:
    if outcome.within_budget is None:
        return "gains no more"
    return "fits" if outcome.within_budget else f"too much lost, or too unsure: {_listed(outcome.blocked_by)}"


def _choice_pictures(reports: Reports) -> tuple[Picture, ...]:
    """Return what the mixtures on the straight way gain, and what they forget of each gating benchmark."""
    merge = reports.merge
    if not merge or len(merge.outcomes) < 2:
        return ()
    outcomes = [item for item in merge.outcomes if item.path == "wise-ft"]
    chosen = merge.alpha if merge.path == "wise-ft" else None
    gained = _gain_picture(outcomes, merge.metric, chosen)
    suites = reports.decision.suites if reports.decision else []
    margins = {suite.name: suite.margin for suite in suites if suite.margin}
    forgotten = _forgetting_picture(outcomes, margins, chosen)
    return (gained, forgotten) if forgotten else (gained,)


def _gain_picture(outcomes: Sequence[AlphaOutcome], metric: str, chosen: float | None) -> Picture:
    chart = charts.line_chart(
        [charts.Line("gain", [(item.alpha, item.gain) for item in outcomes])],
        y_label=f"{_words(metric)} gained",
        x_label="α",
        percent=metric in SHARES,
        mark=chosen,
    )
    return Picture(chart, "What the tuning gains on the validation split as its weight grows.")


def _forgetting_picture(
    outcomes: Sequence[AlphaOutcome], margins: Mapping[str, float], chosen: float | None
) -> Picture | None:
    """Draw the losses as shares of their margins; None where no benchmark was asked of every measured mixture."""
    measured = [item for item in outcomes if item.within_budget is not None]
    lines = [
        charts.Line(name, [(item.alpha, _loss(item.suites, name) / margin) for item in measured])
        for name, margin in margins.items()
        if all(any(suite.name == name for suite in item.suites) for item in measured)
    ]
    if not lines:
        return None
    chart = charts.line_chart(
        lines,
        y_label="loss, as a share of what is allowed",
        x_label="α",
        percent=True,
        mark=chosen,
        limit=1.0,
        limit_label="allowed",
    )
    caption = "What it forgets meanwhile, on the selection halves of the benchmarks."
    if len(measured) < len(outcomes):
        caption += " A dot is a mixture that they were asked of."
    return Picture(chart, caption, tuple(line.name for line in lines))


def _loss(suites: Sequence[Any], name: str) -> float:
    return float(next(suite.loss for suite in suites if suite.name == name))


def _training(finetune: FinetuneReport) -> str:
    truncated = f"; {finetune.truncated_rows:,} rows were truncated" if finetune.truncated_rows else ""
    return (
        f"Method {finetune.method}: {finetune.epochs} epoch(s), {finetune.steps:,} steps, "
        f"{_count(finetune.trainable_parameters)} of {_count(finetune.parameters)} parameters "
        f"trained{truncated}. Validation {_words(finetune.metric)} {score(finetune.metric, finetune.start_score)} with "
        f"{finetune.start}, {score(finetune.metric, finetune.validation_score)} after the best epoch "
        f"({finetune.best_epoch})."
    )


def _training_pictures(history: Sequence[Mapping[str, float]]) -> tuple[Picture, ...]:
    lines = []
    for column, name in (("loss", "training loss"), ("validation_loss", "validation loss")):
        points = [(row["step"], row[column]) for row in history if math.isfinite(row.get(column, math.nan))]
        if points:
            lines.append(charts.Line(name, points))
    if not any(len(line.points) > 1 for line in lines):
        return ()
    drawing = charts.line_chart(lines, y_label="loss", x_label="step")
    return (Picture(drawing, "Loss over training.", tuple(line.name for line in lines)),)


def _data(gate: GateReport) -> tuple[Row, ...]:
    order = {"refuse": 0, "warn": 1, "pass": 2}
    levels = {"refuse": "fail", "warn": "inconclusive", "pass": "pass"}
    words = {"refuse": "refused", "warn": "warning", "pass": "fine"}
    return tuple(
        Row(
            (
                _words(item.name),
                "not settled" if item.value is None else f"{item.value:.4g}",
                words[item.level],
                item.reason,
                "" if item.level == "pass" else item.remedy,
            ),
            levels[item.level],
        )
        for item in sorted(gate.items, key=lambda item: order[item.level])
    )


def _data_sentence(schema: SplitSchema) -> str:
    rows = ", ".join(f"{count:,} {name}" for name, count in schema.rows.items())
    dropped = sum(count for reasons in schema.dropped.values() for count in reasons.values())
    left = f" {dropped:,} rows were left out, by the recipe's rules." if dropped else ""
    labels = (
        schema.labels
        if len(schema.labels) <= 12
        else [*schema.labels[:10], f"{len(schema.labels) - 10} more"]
    )
    any_number = ", any number of them a row" if schema.multi_label else ""
    named = f" Labels ({len(schema.labels)}{any_number}): {', '.join(labels)}." if labels else ""
    return f"Rows: {rows}.{left}{named}"


def _failures(validate: ValidateReport) -> tuple[str, ...]:
    failed = [item for item in validate.expectations if not item.success]
    return tuple(
        f"{item.type}: {item.failed_count:,} row(s), {item.observed}"
        + (f"; for example {', '.join(item.failed_ids[:5])}" if item.failed_ids else "")
        for item in failed
    )


def _worst(reports: Reports) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not reports.gate or not reports.check:
        return ()
    judged = {item.name for item in reports.gate.items if item.level != "pass"}
    return tuple(
        (f"{_words(item.name)}: {item.meaning}", tuple(item.worst[:5]))
        for item in reports.check.measures
        if item.name in judged - {READ} and item.worst
    )


def _views(reports: Reports) -> tuple[str, ...]:
    measures = reports.check.measures if reports.check else []
    return tuple(view for item in measures if item.name == READ for view in item.worst)


def _flips(merge: MergeReport) -> tuple[Row, ...]:
    return tuple(
        Row(
            (flip.suite, flip.id, flip.extract, f"{flip.base:.3f}", f"{flip.candidate:.3f}"),
            drawing=f'<img class="example" alt="" src="{escape(flip.picture)}">' if flip.picture else "",
        )
        for flip in merge.flips
    )


def _drift_pictures(reports: Reports) -> tuple[Picture, ...]:
    drawings = drift_drawings(reports.merge.drift) if reports.merge else []
    return tuple(Picture(*drawing) for drawing in drawings)


def _lineage(reports: Reports) -> list[tuple[str, str]]:
    lines = []
    if reports.base:
        lines.append(("Base model", f"{reports.base.source} ({reports.base.architecture})"))
        if reports.base.resolved != reports.base.source:
            lines.append(("Base model, resolved", reports.base.resolved))
        lines.append(("Base fingerprint", reports.base.fingerprint))
        first = reports.base.first_base
        if first.fingerprint != reports.base.fingerprint:
            lines.append(("First base (reference)", f"{first.source} · {first.fingerprint}"))
    if reports.pin and reports.pin.champion is not None:
        lines.append(
            ("Compared with", f"{reports.pin.registry_name} version {reports.pin.champion} (champion)")
        )
    if reports.schema:
        lines.append(("Data fingerprint", reports.schema.fingerprint))
        lines += _raw_files(reports.schema.source)
    if reports.merge:
        lines.append(("Chosen model", reports.merge.model))
    return lines


def _raw_files(source: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name each file with its sha256, and a folder by its number of files: the data fingerprint covers them."""
    folders = Counter(name.split("/")[0] for name in source if "/" in name)
    yield from ((f"Raw file {name}", sha256) for name, sha256 in source.items() if "/" not in name)
    yield from ((f"Raw folder {name}", f"{count} file(s)") for name, count in folders.items())


# --- words and figures -------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Write a share as a percentage: 0.789 → 78.9 %."""
    return f"{100 * share:.1f} %"


def score(metric: str, value: float) -> str:
    """Write a score in its metric's unit: a share as a percentage, anything else with three digits."""
    return percent(value) if metric in SHARES else f"{value:.3f}".replace("-", "−")


def change(metric: str, value: float) -> str:
    """Write a change of a score in its metric's unit."""
    return signed_points(value) if metric in SHARES else signed(value)


def _metric(name: str) -> str:
    return METRICS.get(name, name.replace("_", " ").capitalize())


def signed(change: float) -> str:
    """Write a change with its sign: −0.006."""
    return f"{round(change, 3) + 0.0:+.3f}".replace("-", "−")


def signed_points(change: float) -> str:
    """Write a change of a share in percentage points: +9.7 points."""
    return f"{round(100 * change, 1) + 0.0:+.1f} points".replace("-", "−")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _count(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


# --- the two forms -----------------------------------------------------------------------------------


def as_markdown(summary: Summary) -> str:
    """Render the summary as Markdown, for terminals, pull requests and Prefect's artifacts."""
    return re.sub(r"\n{3,}", "\n\n", _render("summary.md.j2", summary)).strip() + "\n"


def as_html(summary: Summary) -> str:
    """Render the summary as one self-contained HTML page."""
    return _render("summary.html.j2", summary)


def _render(template: str, summary: Summary) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _markdown_text
    environment.filters["marked"] = _marked
    return environment.get_template(template).render(summary=summary)


def _marked(text: str) -> str:
    """Return HTML in which what stands between ⟦ and ⟧ is marked."""
    from markupsafe import Markup

    return Markup(str(escape(text)).replace("⟦", "<mark>").replace("⟧", "</mark>"))


def _markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, and keep the text on one line."""
    return re.sub(r"([\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
