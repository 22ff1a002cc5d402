"""Build the summary of a run from its reports: the verdict in words, the tables and the drawings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tasks.reports import DecideReport, EvaluateReport, FinetuneReport, SuiteVerdict, TargetOutcome
from tasks.summary import charts
from tasks.summary.choice import (
    choice_pictures,
    choice_sentence,
    drift_pictures,
    flip_rows,
    tried_rows,
    tried_sentence,
)
from tasks.summary.content import LEVELS, Outcome, Picture, Row, Summary
from tasks.summary.data import data_rows, data_sentence, failures, views, worst_examples
from tasks.summary.drift import drift_sentence, slice_cells
from tasks.summary.reading import Reports, still_valid
from tasks.summary.words import SHARES, change, counted, listed, metric_name, score, signed, spaced


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
        choice=choice_sentence(reports.merge) if reports.merge else "",
        choice_pictures=choice_pictures(reports),
        tried=tried_rows(reports.merge) if reports.merge else (),
        tried_sentence=tried_sentence(reports.merge) if reports.merge else "",
        training=_training(reports.finetune) if reports.finetune else "",
        training_pictures=_training_pictures(reports.history) if reports.finetune else (),
        data=data_rows(reports.gate) if reports.gate else (),
        data_sentence=data_sentence(reports.schema) if reports.schema else "",
        failures=failures(reports.validate) if reports.validate else (),
        worst=worst_examples(reports),
        views=views(reports),
        flips=flip_rows(reports.merge) if reports.merge and outcome in ("FAIL", "INCONCLUSIVE") else (),
        drift=drift_sentence(reports.merge.drift) if reports.merge else "",
        drift_pictures=drift_pictures(reports),
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
    parts = [f"It forgot more than was agreed on {listed(lost)}."] if lost else []
    parts += [f"Whether it forgot too much on {listed(open_)} is not settled."] if open_ else []
    parts += [] if decision.target_verdict == "PASS" else [f"Its own task: {decision.target_reason}."]
    if decision.champion_verdict == "FAIL":
        parts.append("It is worse than the champion.")
    if decision.champion_verdict == "INCONCLUSIVE":
        parts.append("Whether it is worse than the champion is not settled.")
    if decision.ledger_verdict == "FAIL":
        parts.append("It is not measured from where the releases of this name began.")
    return " ".join([gained, *parts])


def _test_gain(reports: Reports) -> str:
    targets = reports.evaluate.targets if reports.evaluate else []
    test = next((target for target in targets if target.name == "test"), None)
    if _kept_base(reports) and reports.merge:
        gain = change(reports.merge.metric, reports.merge.tuned.gain)
        return f"The tuned model changed {spaced(reports.merge.metric)} on validation by {gain}; nothing of it was kept."
    if test is None:
        return ""
    if not test.gain:
        return f"{metric_name(test.metric)} on its own task stayed at {score(test.metric, test.base)}."
    word = "rose" if test.gain > 0 else "fell"
    before, after = score(test.metric, test.base), score(test.metric, test.candidate)
    return f"{metric_name(test.metric)} on its own task {word} from {before} to {after}."


def _reasons(reports: Reports) -> tuple[str, ...]:
    if reports.gate and reports.gate.level == "refuse":
        refused = [item for item in reports.gate.items if item.level == "refuse"]
        return tuple(f"{spaced(item.name)}: {item.reason} {item.remedy}" for item in refused)
    return tuple(reports.decision.reasons) if reports.decision else ()


def _figures(reports: Reports) -> tuple[tuple[str, str, str], ...]:
    figures = []
    for target in reports.evaluate.targets if reports.evaluate else []:
        if target.name == "test" and not _kept_base(reports):
            detail = f"{score(target.metric, target.base)} before · {change(target.metric, target.gain)}"
            named = f"{metric_name(target.metric)} on its task"
            figures.append((named, score(target.metric, target.candidate), detail))
    if _kept_base(reports) and reports.merge:
        metric, tuned = reports.merge.metric, reports.merge.tuned
        detail = f"on validation · {change(metric, tuned.gain)}"
        figures.append((f"{metric_name(metric)} as tuned", score(metric, tuned.validation_score), detail))
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
    metric = metric_name(evaluate.targets[0].metric) if evaluate.targets else "The task's metric"
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


def _notes(decision: DecideReport | None) -> Iterator[str]:
    """Yield what the verdict rests on beside its figures."""
    if decision and decision.widened:
        yield decision.widened
    if decision and decision.attempts:
        yield decision.attempts
    if decision and decision.rebase:
        yield f"A new ledger begins here: {decision.ledger_reason}."


def _training(finetune: FinetuneReport) -> str:
    truncated = f"; {finetune.truncated_rows:,} rows were truncated" if finetune.truncated_rows else ""
    return (
        f"Method {finetune.method}: {finetune.epochs} epoch(s), {finetune.steps:,} steps, "
        f"{counted(finetune.trainable_parameters)} of {counted(finetune.parameters)} parameters "
        f"trained{truncated}. Validation {spaced(finetune.metric)} {score(finetune.metric, finetune.start_score)} with "
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
