"""decide: the release rule. May this model ship? PASS, FAIL or INCONCLUSIVE, with reasons.

Reads `evaluate.json`, the records, `merge.json` and `pin.json`; writes `decision.json`. It never fails for the answer:
the flow and `register` refuse what is not a PASS. Alone: `python -m tasks decide <recipe>`.

PASS needs every gating suite within its margin, a gain on the test split over the frozen base with its linear probe,
and no loss against the champion, each shown at the full confidence (`tasks/forgetting/rule.py`); and the first base and
the benchmarks that the releases of this name began with, or a reason for others (`register.rebase`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from tasks import reports
from tasks.advice import Against, Trained, advise
from tasks.errors import StageError
from tasks.forgetting.ledger import asked_otherwise, moved
from tasks.forgetting.rule import (
    FULL_ATTEMPTS,
    PairedLoss,
    examples_needed,
    fewest_examples,
    holm,
    level_at,
    level_spent,
    paired_loss,
)
from tasks.forgetting.sizes import RIGHT_OR_WRONG
from tasks.paths import Paths
from tasks.recipe import Data, Decide, Finetune, Register, Suite, gating_margins

log = logging.getLogger(__name__)

Verdict = reports.Verdict
Judged = tuple[Verdict, str]
"""One answer, and the reason for it."""
_SEVERITY: dict[Verdict, int] = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
AT_MOST_ONE = (*RIGHT_OR_WRONG, "example F1", "macro_f1", "mrr")
"""Metrics in which a model without an error has 1, in each row."""
_MEASURED = {"name", "metric", "base", "candidate", "loss", "examples"}
"""What the verdict on a suite repeats of its outcome."""


def decide(
    section: Decide,
    budget: Mapping[str, Suite],
    registration: Register,
    task: str,
    data: Data,
    finetune: Finetune,
    *,
    paths: Paths,
) -> None:
    """Apply the release rule to the records and write the verdict, every reason, and what would help.

    How the recipe trains is read for the advice alone.

    Raises:
        StageError: a report or a record is missing, or they are of different models.
    """
    evaluated = reports.read_report(paths.evaluate, reports.EvaluateReport)
    merged = reports.read_report(paths.merge, reports.MergeReport)
    pin = reports.read_report(paths.pin, reports.Pin)
    _must_belong_together(evaluated, merged, pin, budget)
    made = _judge(evaluated, merged, pin, section, budget, registration, paths)
    ceiling = "" if made.target == "PASS" else _ceiling(evaluated, section, paths)
    against = Against(
        made.suites, made.target, made.champion, made.ledger, ceiling, ledgered=pin.ledger is not None
    )
    judged = made.answers()
    report = reports.DecideReport(
        verdict=min((answer for answer, _ in judged), key=_SEVERITY.__getitem__),
        reasons=_reasons(judged),
        advice=advise(against, merged, Trained(task, data, finetune)),
        confidence=section.confidence,
        target_verdict=made.target,
        target_reason=made.target_reason,
        ledger_verdict=made.ledger,
        ledger_reason=made.ledger_reason,
        rebase=registration.rebase if made.ledger_reason and made.ledger == "PASS" else None,
        widened=_widened(pin, budget),
        attempts=_attempts(made.suites, section, ledgered=pin.ledger is not None),
        champion=pin.champion,
        champion_verdict=made.champion,
        suites=made.suites,
        tuned_suites=made.tuned,
        model=evaluated.candidate_model,
    )
    reports.write_report(paths.decision, report)
    _tell(report, judged)


@dataclass(frozen=True)
class _Judgement:
    """Every answer of the release rule, and its reason."""

    suites: list[reports.SuiteVerdict]
    tuned: list[reports.SuiteVerdict]
    """The tuned model, where nothing of it was kept."""
    target: Verdict
    target_reason: str
    champion: Verdict | None
    champion_reason: str
    ledger: Verdict
    ledger_reason: str

    def answers(self) -> list[Judged]:
        """Return what decides, in the order in which it is told."""
        judged = [
            *_of_gating(self.suites),
            (self.target, f"its own task: {self.target_reason}"),
            *_of_gating(self.tuned, ", as tuned"),
        ]
        if self.champion:
            judged.append((self.champion, f"champion: {self.champion_reason}"))
        if self.ledger_reason:
            judged.append((self.ledger, f"ledger: {self.ledger_reason}"))
        return judged


def _judge(
    evaluated: reports.EvaluateReport,
    merged: reports.MergeReport,
    pin: reports.Pin,
    section: Decide,
    budget: Mapping[str, Suite],
    registration: Register,
    paths: Paths,
) -> _Judgement:
    suites = _judge_suites(evaluated, pin, budget, section, paths)
    tuned = _judge_tuned(merged, budget, section) if merged.kept_base else []
    return _Judgement(
        suites,
        tuned,
        *_judge_target(evaluated, merged, section, paths),
        *_judge_champion(evaluated, pin, section, paths),
        *_judge_ledger(pin, budget, registration.rebase),
    )


def _tell(report: reports.DecideReport, judged: Sequence[Judged]) -> None:
    log.info("%s", report.verdict)
    for answer, reason in judged:
        log.info("%-12s %s", answer, reason)
    for note in filter(None, (report.widened, report.attempts)):
        log.info("%s", note)


def _reasons(judged: list[Judged]) -> list[str]:
    """Return why the verdict is not PASS, the gravest first; where it is, why."""
    against = [(answer, reason) for answer, reason in judged if answer != "PASS"]
    against.sort(key=lambda item: _SEVERITY[item[0]])
    return [reason for _, reason in against] or ["every suite is within its margin, and the task gained"]


def _must_belong_together(
    evaluated: reports.EvaluateReport,
    merged: reports.MergeReport,
    pin: reports.Pin,
    budget: Mapping[str, Suite],
) -> None:
    problems = []
    if evaluated.candidate_model != merged.model:
        problems.append("evaluate.json measured another model than merge.json chose")
    if evaluated.champion != pin.champion:
        problems.append(f"evaluate.json knows champion {evaluated.champion}, pin.json {pin.champion}")
    if evaluated.candidate_model != pin.candidate_model:
        problems.append("pin.json counted the attempts of another model than evaluate.json measured")
    measured = {suite.name for suite in evaluated.suites}
    for name, known in (("evaluate.json", measured), ("pin.json", set(pin.attempts))):
        if missing := sorted(set(budget) - known):
            problems.append(f"{name} has no {', '.join(missing)}, which the budget names")
    if problems:
        raise StageError("The reports do not belong together; run the stages again (`dvc repro`):", problems)


def _judge_suites(
    evaluated: reports.EvaluateReport,
    pin: reports.Pin,
    budget: Mapping[str, Suite],
    section: Decide,
    paths: Paths,
) -> list[reports.SuiteVerdict]:
    measured = {suite.name: suite for suite in evaluated.suites}
    tables = {name: _records(paths.records / "suites" / f"{name}.parquet") for name in budget}
    _must_be_whole(tables, measured)
    losses = {name: _loss(table, "base") for name, table in tables.items()}
    gating = gating_margins(budget)
    failed = _forgotten({name: losses[name].p_not_above(margin) for name, margin in gating.items()}, section)
    return [
        _judge_suite(
            measured[name],
            losses[name],
            suite.margin,
            section,
            failed=name in failed,
            blind=_blind(measured[name], tables[name], section),
            attempt=pin.attempts[name],
        )
        for name, suite in budget.items()
    ]


def _forgotten(p_values: Mapping[str, float], section: Decide) -> set[str]:
    """Return which suites lost more than their margin, by the p values of «it lost no more», corrected by Holm."""
    fails = holm(list(p_values.values()), 1 - section.confidence)
    return {name for name, fail in zip(p_values, fails, strict=True) if fail}


def _of_gating(suites: Sequence[reports.SuiteVerdict], which: str = "") -> list[Judged]:
    """Return what is said of the suites that gate; `which` model it is follows their names."""
    return [
        (suite.verdict, f"{suite.name}{which}: {suite.reason}")
        for suite in suites
        if suite.margin is not None
    ]


def _judge_tuned(
    merged: reports.MergeReport, budget: Mapping[str, Suite], section: Decide
) -> list[reports.SuiteVerdict]:
    """Judge the tuned model on the selection halves, by its standard error: of the base there is nothing to tell."""
    outcomes = [outcome for outcome in merged.tuned.suites if outcome.name in budget]
    margins = gating_margins(budget)
    p_values = {one.name: 1 - _p_by_error(one, margins[one.name]) for one in outcomes if one.name in margins}
    failed = _forgotten(p_values, section)
    return [
        _judge_by_error(outcome, budget[outcome.name].margin, section, failed=outcome.name in failed)
        for outcome in outcomes
    ]


def _p_by_error(outcome: reports.SuiteOutcome, margin: float) -> float:
    """Return the p value of «the loss is at least `margin`», of a loss whose standard error alone is known."""
    return float(stats.norm.cdf((outcome.loss - margin) / max(outcome.standard_error, 1e-12)))


def _judge_by_error(
    outcome: reports.SuiteOutcome, margin: float | None, section: Decide, *, failed: bool
) -> reports.SuiteVerdict:
    level = 1 - section.confidence
    width = float(stats.norm.isf(level)) * outcome.standard_error
    lower, upper = outcome.loss - width, outcome.loss + width
    verdict: Verdict = "PASS"
    if margin is not None:
        shows = outcome.p_guessing <= level and outcome.independent >= fewest_examples(
            margin, section.confidence
        )
        verdict = "FAIL" if failed else "PASS" if shows and upper < margin else "INCONCLUSIVE"
    reason = (
        f"{outcome.metric} {outcome.base:.3f} → {outcome.candidate:.3f} on {outcome.examples} selection examples, lost "
        f"{_signed(outcome.loss)} ({_signed(lower)} to {_signed(upper)} with {section.confidence:.0%} confidence a side)"
    )
    return reports.SuiteVerdict(
        **outcome.model_dump(include=_MEASURED),
        margin=margin,
        lower=lower,
        upper=upper,
        p_value=1.0 if margin is None else _p_by_error(outcome, margin),
        examples_needed=None,
        verdict=verdict,
        test="z",
        reason=reason if margin is None else f"{reason}; the margin is {margin:g}",
    )


def _blind(outcome: reports.SuiteOutcome, table: pd.DataFrame, section: Decide) -> str:
    """Say why a benchmark would show no forgetting: nothing is known that could be lost, or nothing is measured."""
    excess = paired_loss(table["base"], np.full(len(table), outcome.chance), table["group"].tolist())
    if excess.p_not_above(0.0) > 1 - section.confidence:
        return (
            f"the base scores {outcome.base:.3f}, guessing scores {outcome.chance:.3f}, on {outcome.examples} examples: "
            "where nothing is shown to be known, no forgetting can be seen. Take a benchmark that the base can do"
        )
    first, after = (float(table[side].iloc[0]) for side in ("base", "candidate"))
    constant = bool((table["base"] == first).all() and (table["candidate"] == after).all())
    if constant and not (first == 1 and outcome.metric in AT_MOST_ONE):
        return (
            f"{outcome.metric} is {first:.3f} for each of {outcome.examples} examples by the base, {after:.3f} by this "
            "model: what never varies does not measure them. Look at the benchmark"
        )
    return ""


def _judge_suite(
    outcome: reports.SuiteOutcome,
    loss: PairedLoss,
    margin: float | None,
    section: Decide,
    *,
    failed: bool,
    blind: str,
    attempt: int,
) -> reports.SuiteVerdict:
    level = 1 - section.confidence if margin is None else level_at(1 - section.confidence, attempt)
    lower, upper = loss.lower(section.confidence), loss.upper(1 - level)
    p_value, needed = 1.0 if margin is None else loss.p_not_below(margin), None
    verdict: Verdict
    if margin is None:
        verdict = "PASS"
        reason = (
            f"lost {_signed(outcome.loss)} ({_signed(lower)} to {_signed(upper)} with {section.confidence:.0%} "
            f"confidence a side, on {outcome.examples} examples); informative, it does not decide"
        )
    elif blind:
        verdict, reason = "INCONCLUSIVE", blind
    else:
        needed = examples_needed(loss, margin, 1 - level, section.power)
        verdict = "FAIL" if failed else "PASS" if p_value <= level else "INCONCLUSIVE"
        confidence = section.confidence if failed else 1 - level
        reason = _suite_reason(outcome, margin, (lower, upper), needed, confidence, verdict)
    return reports.SuiteVerdict(
        **outcome.model_dump(include=_MEASURED),
        margin=margin,
        lower=lower,
        upper=upper,
        p_value=p_value,
        examples_needed=needed,
        verdict=verdict,
        test=loss.test,
        attempt=attempt,
        blind=bool(blind) and margin is not None,
        alpha_spent=level_spent(1 - section.confidence, attempt),
        reason=reason,
    )


def _suite_reason(
    outcome: reports.SuiteOutcome,
    margin: float,
    bounds: tuple[float, float],
    needed: int | None,
    confidence: float,
    verdict: Verdict,
) -> str:
    lower, upper = bounds
    sure = f"{100 * confidence:.3g}%"
    seen = f"{outcome.metric} {outcome.base:.3f} → {outcome.candidate:.3f}, lost {_signed(outcome.loss)}"
    if verdict == "PASS":
        return f"{seen}; at most {_signed(upper)} with {sure} confidence, the margin is {margin:g}"
    if verdict == "FAIL":
        return f"{seen}; at least {_signed(lower)} with {sure} confidence, the margin is {margin:g}"
    if needed is None:
        settled = "this set cannot settle it"
    elif outcome.examples >= needed:
        settled = f"these {outcome.examples} examples would do for a model that lost nothing: what was lost is too much"
    else:
        settled = f"a model that lost nothing would need about {needed} examples to pass, here are {outcome.examples}"
    return f"{seen}; between {_signed(lower)} and {_signed(upper)}, the margin is {margin:g}: {settled}"


def _judge_target(
    evaluated: reports.EvaluateReport, merged: reports.MergeReport, section: Decide, paths: Paths
) -> Judged:
    if merged.kept_base:
        return "FAIL", _why_the_base_was_kept(merged)
    test = next(target for target in evaluated.targets if target.name == "test")
    table = _records(paths.records / "targets" / "test.parquet")
    _must_be_whole({"test": table}, {"test": test})
    loss = _loss(table, "base", whole_groups=False)
    seen = f"{test.metric} {test.base:.3f} → {test.candidate:.3f} on {test.examples} rows"
    if loss.p_not_below(0.0) <= 1 - section.confidence:
        return "PASS", f"{seen}; gained at least {_signed(-loss.upper(section.confidence))}"
    if loss.p_not_above(0.0) <= 1 - section.confidence:
        return "FAIL", f"{seen}: worse than {evaluated.start}"
    return "INCONCLUSIVE", f"{seen}: no gain over {evaluated.start} is shown"


def _ceiling(evaluated: reports.EvaluateReport, section: Decide, paths: Paths) -> str:
    """Say what the start reaches on the test split, where a model without an error could not show a gain over it."""
    test = next(target for target in evaluated.targets if target.name == "test")
    if test.metric not in AT_MOST_ONE:
        return ""
    table = _records(paths.records / "targets" / "test.parquet")
    gain = _loss(table.assign(candidate=1.0), "base", whole_groups=False)
    if gain.p_not_below(0.0) <= 1 - section.confidence:
        return ""
    return f"{evaluated.start} reaches {test.metric} {test.base:.3f} on {test.examples} rows"


def _why_the_base_was_kept(merged: reports.MergeReport) -> str:
    allowed = [outcome for outcome in merged.outcomes if outcome.alpha > 0 and outcome.within_budget]
    if not allowed:
        return "no weight of the tuning fits the forgetting budget: what is left is the base itself"
    best = max(allowed, key=lambda outcome: outcome.gain)
    return (
        f"tuning gained nothing on validation ({_signed(best.gain)} at α = {best.alpha:g}, within the forgetting "
        "budget): what is left is the base itself"
    )


def _judge_champion(
    evaluated: reports.EvaluateReport, pin: reports.Pin, section: Decide, paths: Paths
) -> tuple[Verdict | None, str]:
    if pin.champion is None:
        return None, ""
    if pin.champion_model == evaluated.candidate_model:
        return "PASS", f"this model is the champion, version {pin.champion}"
    loss = _loss(_records(paths.records / "targets" / "test.parquet"), "champion", whole_groups=False)
    level, margin = 1 - section.confidence, section.champion_margin
    upper = loss.upper(section.confidence)
    metric = evaluated.targets[0].metric
    seen = f"against version {pin.champion}, {_signed(-loss.mean)} {metric} on {len(loss.values)} rows"
    if loss.p_not_below(margin) <= level:
        return "PASS", f"{seen}; worse by at most {_signed(upper)}, the margin is {margin:g}"
    if loss.p_not_above(margin) <= level:
        return (
            "FAIL",
            f"{seen}; worse by at least {_signed(loss.lower(section.confidence))}, the margin is {margin:g}",
        )
    needed = examples_needed(loss, margin, section.confidence, section.power)
    return "INCONCLUSIVE", (
        f"{seen}; it may be worse by {_signed(upper)}, the margin is {margin:g}: an equal model would need about "
        f"{needed or 'more rows than can be had'} test rows to show it (decide.champion_margin sets the margin)"
    )


def _judge_ledger(pin: reports.Pin, budget: Mapping[str, Suite], rebase: str | None) -> Judged:
    """Say whether forgetting is still measured from where, and on what, the releases of this name began."""
    ledger = pin.ledger
    if ledger is None or not (changed := moved(pin, ledger, gating_margins(budget))):
        return "PASS", ""
    said = f"{'; '.join(changed)} since version {ledger.version} of {pin.registry_name}"
    if rebase is None:
        return "FAIL", f"{said}. Put it back, or set `register.rebase: <reason>` to begin anew"
    if rebase in ledger.reasons:
        return (
            "FAIL",
            f"{said}, and the reason in register.rebase is that of an earlier change: give one for this",
        )
    return "PASS", f"{said}; begun anew: {rebase}"


def _widened(pin: reports.Pin, budget: Mapping[str, Suite]) -> str:
    """Say which margins are wider than the ledger began with. No refusal: a margin is reviewed with its recipe."""
    ledger = pin.ledger
    if ledger is None:
        return ""
    wider = [
        f"{name} {margin:g}, was {ledger.margins[name]:g}"
        for name, margin in gating_margins(budget).items()
        if margin > ledger.margins.get(name, math.inf)
        and not asked_otherwise(ledger.asked.get(name, {}), pin.asked.get(name, {}))
    ]
    if not wider:
        return ""
    return (
        f"Margins are wider than the releases of {pin.registry_name} began with (version {ledger.version}): "
        f"{'; '.join(wider)}. What the releases lost since the first base is bounded by the margins of now."
    )


def _attempts(suites: list[reports.SuiteVerdict], section: Decide, *, ledgered: bool) -> str:
    """Say how often the gating report halves have been used, and what that costs; nothing at the first attempt."""
    gating = {suite.name: suite.attempt for suite in suites if suite.margin is not None}
    most = max(gating.values())
    if most == 1:
        return ""
    level = 1 - section.confidence
    counted = ", ".join(f"{name} {attempt}" for name, attempt in gating.items())
    stricter = (
        f" From attempt {FULL_ATTEMPTS + 1} on the rule is stricter: this one is judged at {level_at(level, most):.2%}."
        if most > FULL_ATTEMPTS
        else ""
    )
    return (
        f"Attempt {most} on these report halves ({counted}). Each passes a model that lost the whole margin with a "
        f"chance of up to {level:.0%}, one of {most} with up to {level_spent(level, most):.0%}, and more if they were "
        f"made with an eye on earlier verdicts.{stricter} New examples for a benchmark begin its count anew"
        f"{', and need a reason in register.rebase' if ledgered else ''}."
    )


def _records(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read ({error}): run `evaluate` again.") from None
    if missing := sorted({"id", "group", "base", "candidate"} - set(table)):
        raise StageError(f"{path} has no column {', '.join(missing)}: run `evaluate` again.")
    if bad := table.loc[table[["base", "candidate"]].isna().any(axis=1), "id"].tolist():
        raise StageError(
            f"{path} lacks outcomes of {len(bad)} examples, {bad[:5]} among them: run `evaluate` again."
        )
    return table


def _must_be_whole(
    tables: Mapping[str, pd.DataFrame], measured: Mapping[str, reports.SuiteOutcome | reports.TargetOutcome]
) -> None:
    """Refuse records that lack examples: what is missing may be what was lost."""
    problems = [
        f"{name}: records of {len(table)} examples, {measured[name].examples} were measured"
        for name, table in tables.items()
        if len(table) != measured[name].examples
    ]
    if problems:
        raise StageError("The records are not those of evaluate.json; run `evaluate` again:", problems)


def _loss(table: pd.DataFrame, against: str, *, whole_groups: bool = True) -> PairedLoss:
    try:
        groups = table["group"].tolist()
        return paired_loss(table[against], table["candidate"], groups, whole_groups=whole_groups)
    except (KeyError, ValueError) as error:
        raise StageError(
            f"The records do not pair {against} and candidate ({error}): run `evaluate` again."
        ) from None


def _signed(value: float) -> str:
    return f"{value:+.3f}" if round(value, 3) else "0.000"
