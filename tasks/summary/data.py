"""What a summary says of the data: rows and labels, bounds, failed expectations, and the worst examples."""

from __future__ import annotations

from tasks.reports import GateReport, SplitSchema, ValidateReport
from tasks.summary.content import Row
from tasks.summary.reading import Reports
from tasks.summary.words import spaced

READ = "unsupervised_share"
"""The measure whose examples show what the model reads."""


def data_rows(gate: GateReport) -> tuple[Row, ...]:
    """Return a row for each bound on the data, the gravest first."""
    order = {"refuse": 0, "warn": 1, "pass": 2}
    levels = {"refuse": "fail", "warn": "inconclusive", "pass": "pass"}
    words = {"refuse": "refused", "warn": "warning", "pass": "fine"}
    return tuple(
        Row(
            (
                spaced(item.name),
                "not settled" if item.value is None else f"{item.value:.4g}",
                words[item.level],
                item.reason,
                "" if item.level == "pass" else item.remedy,
            ),
            levels[item.level],
        )
        for item in sorted(gate.items, key=lambda item: order[item.level])
    )


def data_sentence(schema: SplitSchema) -> str:
    """Say in words how many rows there are, of which labels."""
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


def failures(validate: ValidateReport) -> tuple[str, ...]:
    """Say in words which expectations failed."""
    failed = [item for item in validate.expectations if not item.success]
    return tuple(
        f"{item.type}: {item.failed_count:,} row(s), {item.observed}"
        + (f"; for example {', '.join(item.failed_ids[:5])}" if item.failed_ids else "")
        for item in failed
    )


def worst_examples(reports: Reports) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the measures that warned or refused, with their worst examples."""
    if not reports.gate or not reports.check:
        return ()
    judged = {item.name for item in reports.gate.items if item.level != "pass"}
    return tuple(
        (f"{spaced(item.name)}: {item.meaning}", tuple(item.worst[:5]))
        for item in reports.check.measures
        if item.name in judged - {READ} and item.worst
    )


def views(reports: Reports) -> tuple[str, ...]:
    """Return training rows as a language model reads them."""
    measures = reports.check.measures if reports.check else []
    return tuple(view for item in measures if item.name == READ for view in item.worst)
