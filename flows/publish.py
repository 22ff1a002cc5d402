"""Reports as Prefect artifacts: what a stage found, beside the run that found it."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from tasks.paths import Paths
from tasks.reports import (
    DecideReport,
    EvaluateReport,
    GateReport,
    MergeReport,
    ValidateReport,
    read_report,
)
from tasks.summary import as_markdown, read_reports, summarize


def publish(paths: Paths, stage: str) -> None:
    """Publish the report of a stage, where it has one for people; with the decision, the whole summary."""
    texts = {"validate": _validate, "gate": _gate, "merge": _merge, "evaluate": _evaluate, "decide": _decide}
    if stage in texts:
        create_markdown_artifact(
            texts[stage](paths),
            key=f"{paths.recipe}-{stage}",
            description=f"{stage} of {paths.recipe}",
        )
    if stage == "validate" and (pages := paths.scratch / "data_docs" / "index.html").is_file():
        create_link_artifact(
            pages.as_uri(),
            link_text="Data Docs",
            key=f"{paths.recipe}-data-docs",
            description="Great Expectations' pages of the last validation on this machine, readable without a network",
        )
    if stage == "decide":
        create_markdown_artifact(
            as_markdown(summarize(read_reports(paths), paths.recipe)),
            key=f"{paths.recipe}-summary",
            description=f"What {paths.recipe} gained, what it forgot, and whether it may ship",
        )


def _validate(paths: Paths) -> str:
    report = read_report(paths.validate, ValidateReport)
    rows = [
        (
            "holds" if item.success else "**fails**",
            item.type,
            ", ".join(f"{name} {value}" for name, value in item.arguments.items()),
            item.observed,
            ", ".join(item.failed_ids[:5]),
        )
        for item in sorted(report.expectations, key=lambda item: item.success)
    ]
    failed = f"**{report.failed_expectations} of {len(report.expectations)} expectations failed** on {report.rows:,} rows"
    return f"{failed}\n\n" + _table(("", "expectation", "arguments", "observed", "rows"), rows)


def _gate(paths: Paths) -> str:
    report = read_report(paths.gate, GateReport)
    rows = [(item.level, item.name, _number(item.value), item.reason) for item in report.items]
    return f"**{report.level}**\n\n" + _table(("level", "measure", "value", "reason"), rows)


def _merge(paths: Paths) -> str:
    report = read_report(paths.merge, MergeReport)
    rows = [
        (
            f"{outcome.alpha:g}",
            f"{outcome.gain:+.3f}",
            "" if outcome.log_likelihood_gain is None else f"{outcome.log_likelihood_gain:+.3f}",
            "yes" if outcome.within_budget else ", ".join(outcome.blocked_by) or "not measured",
        )
        for outcome in report.outcomes
    ]
    chosen = f"α = {report.alpha:g}" + (
        " (rescued: the tuned model itself is over the budget)" if report.rescued else ""
    )
    return f"**{chosen}**\n\n" + _table(("α", "gain", "nats gained", "within budget"), rows)


def _evaluate(paths: Paths) -> str:
    report = read_report(paths.evaluate, EvaluateReport)
    targets = [
        (t.name, str(t.examples), f"{t.base:.3f}", f"{t.candidate:.3f}", f"{t.gain:+.3f}")
        for t in report.targets
    ]
    suites = [
        (s.name, s.metric, f"{s.base:.3f}", f"{s.candidate:.3f}", f"{s.loss:+.3f}") for s in report.suites
    ]
    return (
        _table(("test set", "examples", "base", "candidate", "gain"), targets)
        + "\n"
        + _table(("suite", "metric", "base", "candidate", "loss"), suites)
    )


def _decide(paths: Paths) -> str:
    report = read_report(paths.decision, DecideReport)
    lines = [f"**{report.verdict}**", "", *(f"- {reason}" for reason in report.reasons)]
    lines += ["", *(f"- advice: {advice}" for advice in report.advice)] if report.advice else []
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "inconclusive" if value is None else f"{value:g}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
