"""Judge what `validate` and `check` measured by the recipe's bounds: a passport, or every reason why not.

Reads `validate.json`, `check.json`, the splits' schema and the report halves' sizes. Writes `gate.json` whatever the
answer, and `passport.json`, without which `finetune` does not start, only when no bound refuses. It also refuses a
forgetting budget that its benchmark could never show to be kept, for want of examples or because the training rows hold
them: better now than after the training. Alone: `python -m tasks gate <recipe>`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.errors import ConfigError, Refused, StageError, did_you_mean
from tasks.forgetting.rule import equal_groups
from tasks.forgetting.sizes import examples_asked, margin_carried, why_asked
from tasks.forgetting.suites import read_suite
from tasks.paths import Paths
from tasks.recipe import Bound, Decide, Gate, Suite, gating_margins
from tasks.reports import (
    CheckReport,
    Expectation,
    GateItem,
    GateReport,
    Level,
    Measure,
    Passport,
    SplitSchema,
    ValidateReport,
    read_report,
    write_report,
)

log = logging.getLogger(__name__)

NOTHING_TO_LEARN = Bound(warn_above=0.0, refuse_above=0.5)
"""For the share of rows without a token that carries loss, where the recipe has no bound of its own."""
CONTAMINATED = 0.05
"""Share of a gating benchmark's examples in the training rows above which it measures what was taught.

Half of the margin, where that is less: examples that were learnt by heart hide as much of what the others lost.
"""
FAILED_EXPECTATIONS = "failed_expectations"
UNSUPERVISED = "unsupervised_share"
_SEVERITY: tuple[Level, ...] = ("pass", "warn", "refuse")


def gate(section: Gate, budget: Mapping[str, Suite], rule: Decide, *, paths: Paths) -> None:
    """Hold every bounded measure and every benchmark's size against its bound; write `gate.json` and the passport.

    Raises:
        ConfigError: a bound names a measure that `check.json` does not have.
        StageError: a report is missing or measured other splits.
        Refused: at least one measure is beyond a refusing bound; all of them are listed.
    """
    for stale in (paths.passport, paths.gate):
        stale.unlink(missing_ok=True)
    schema = read_report(paths.schema, SplitSchema)
    validated, checked = read_report(paths.validate, ValidateReport), read_report(paths.check, CheckReport)
    _must_be_of_these_splits(schema, validated, checked)
    measures = {FAILED_EXPECTATIONS: _failed_expectations(validated), **{m.name: m for m in checked.measures}}
    bounds = {FAILED_EXPECTATIONS: section.failed_expectations, **section.measures}
    if UNSUPERVISED in measures:
        bounds.setdefault(UNSUPERVISED, NOTHING_TO_LEARN)
    _must_be_measured(bounds, measures)
    items = [_judge(measures[name], bound) for name, bound in bounds.items()]
    gating = gating_margins(budget)
    items += [
        _uncontaminated(name, margin, measures)
        for name, margin in gating.items()
        if _overlap(name) not in bounds
    ]
    items += [_carries(name, margin, rule, paths) for name, margin in gating.items()]
    worst = max((item.level for item in items), key=_SEVERITY.index)
    write_report(paths.gate, GateReport(level=worst, items=items))
    for item in items:
        log.info("%-6s %s: %s", item.level, item.name, item.reason)
    if refused := [item for item in items if item.level == "refuse"]:
        raise Refused(
            f"The data of {paths.recipe} is refused: {len(refused)} of {len(items)} bounds are crossed "
            f"(all measures: {paths.check}).",
            [f"{item.name}: {item.reason} {item.remedy}" for item in refused],
        )
    write_report(paths.passport, Passport(splits=schema.fingerprint, cleared_by=sorted(bounds)))


def _must_be_of_these_splits(schema: SplitSchema, validated: ValidateReport, checked: CheckReport) -> None:
    problems = [
        f"{name}.json measured splits {report.splits[:12] or 'unknown'}, these are {schema.fingerprint[:12]}"
        for name, report in (("validate", validated), ("check", checked))
        if report.splits != schema.fingerprint
    ]
    if problems:
        raise StageError("Measured on other splits; run the stages again (`dvc repro`):", problems)


def _must_be_measured(bounds: dict[str, Bound], measures: dict[str, Measure]) -> None:
    problems = [
        f"gate.measures.{name}{did_you_mean(name, measures)}" for name in bounds if name not in measures
    ]
    if problems:
        known = ", ".join(name for name in measures if name != FAILED_EXPECTATIONS)
        raise ConfigError(
            "The recipe bounds measures that check does not take:", [*problems, f"it takes: {known}"]
        )


def _failed_expectations(validated: ValidateReport) -> Measure:
    failed = [item for item in validated.expectations if not item.success]
    return Measure(
        name=FAILED_EXPECTATIONS,
        value=len(failed),
        meaning="Expectations that failed: "
        + ("; ".join(f"{item.type}{_of_column(item)} ({item.observed})" for item in failed) or "none")
        + ".",
        remedy="See validate.json for the rows, and correct the raw data or the expectation.",
    )


def _of_column(item: Expectation) -> str:
    column = item.arguments.get("column")
    return f" of {column}" if column else ""


def _overlap(name: str) -> str:
    return f"contaminated_{name}_share"


def _uncontaminated(name: str, margin: float, measures: dict[str, Measure]) -> GateItem:
    """Judge a gating benchmark's overlap with the training rows, for which the recipe has no bound of its own."""
    if _overlap(name) not in measures:
        raise StageError(
            f"check.json does not say whether the training rows hold benchmark {name}: run `check` again."
        )
    return _judge(measures[_overlap(name)], Bound(warn_above=0.0, refuse_above=min(CONTAMINATED, margin / 2)))


def _carries(name: str, margin: float, rule: Decide, paths: Paths) -> GateItem:
    """Say whether the report half of a benchmark is large enough to show that its margin is kept."""
    suite = read_suite(paths.report_half / name)
    groups, metric = suite.examples["group"], suite.info.metric
    independent = int(equal_groups(groups.value_counts()))
    asked = examples_asked(margin, metric, rule)
    level: Level = "pass" if independent >= asked else "refuse"
    reason = (
        f"{len(groups)} examples in {groups.nunique()} groups, worth {independent} independent ones; that a "
        f"margin of {margin:g} was kept {why_asked(asked, metric, rule)}"
    )
    carried = margin_carried(independent, metric, rule)
    widen = f"widen budget.{name}.margin to {carried:g} or more, " if carried else ""
    remedy = f"Give benchmark {name} more examples, {widen}or mark it `informative: true`."
    return GateItem(
        name=f"report_examples_{name}",
        value=len(groups),
        level=level,
        reason=f"{reason}.",
        remedy="" if level == "pass" else remedy,
    )


def _judge(measure: Measure, bound: Bound) -> GateItem:
    level, reason = _verdict(measure, bound)
    return GateItem(name=measure.name, value=measure.value, level=level, reason=reason, remedy=measure.remedy)


def _verdict(measure: Measure, bound: Bound) -> tuple[Level, str]:
    """Return the level and the reason; what could not be measured warns or refuses, it never passes."""
    if measure.value is None:
        return bound.inconclusive, measure.meaning
    value = measure.value
    seen = f"{value:.4g}"
    if measure.interval:
        seen += f" ({100 * measure.confidence:g} % interval {measure.interval[0]:.4g} to {measure.interval[1]:.4g})"
    limits = _limits(bound)
    for limit in limits:
        if value > limit.value if limit.above else value < limit.value:
            held = _why_not_refused(measure, limit)
            level: Level = "warn" if held else limit.level
            return level, f"{seen} is {limit}{held}. {measure.meaning}"
    return "pass", f"{seen} is not {' and not '.join(map(str, limits))}."


def _why_not_refused(measure: Measure, limit: _Limit) -> str:
    """Return why an estimate that is beyond a refusing limit only warns, or nothing when it refuses.

    What is estimated from unlabelled rows may be wrong for a reason that they do not show; what few labelled rows say
    may be chance.
    """
    if limit.level != "refuse" or measure.backed_by is None:
        return ""
    if not measure.backed_by:
        return ", but no labelled row backs it, so it warns"
    low, high = measure.interval or (-math.inf, math.inf)
    if low <= limit.value if limit.above else high >= limit.value:
        return ", but its interval reaches the bound, so it warns"
    return ""


@dataclass(frozen=True)
class _Limit:
    level: Level
    value: float
    above: bool

    def __str__(self) -> str:
        return f"{'above' if self.above else 'below'} {self.value:.4g} ({self.level})"


def _limits(bound: Bound) -> list[_Limit]:
    """Return the limits that a bound sets, the refusing one first."""
    set_limits: list[tuple[Level, float | None, bool]] = [
        ("refuse", bound.refuse_above, True),
        ("refuse", bound.refuse_below, False),
        ("warn", bound.warn_above, True),
        ("warn", bound.warn_below, False),
    ]
    return [_Limit(level, value, above) for level, value, above in set_limits if value is not None]
