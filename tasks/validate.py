"""Measure what must be true of each row, with Great Expectations. It measures; `gate` judges.

Reads the split tables and their schema and, where tokens are counted, the base model's tokenizer; writes `validate.json`
and, for people, Data Docs into `.retain/<recipe>/data_docs` (not an output: they hold times). Alone:
`python -m tasks validate <recipe>`.

Each family brings its own suite; the recipe adds expectations by their GX names. All see one table of all splits (see
`tasks/validation/columns.py` for its columns), which is read in batches: memory does not grow with the rows, but for
the columns that an expectation must see whole.
"""

from __future__ import annotations

import logging
from typing import Any

from tasks import reports
from tasks.paths import Paths
from tasks.recipe import Validate
from tasks.validation.columns import CountTokens, open_rows
from tasks.validation.data_docs import write_data_docs
from tasks.validation.rules import Rule, family_rules
from tasks.validation.running import quiet_context, reads_of, run

log = logging.getLogger(__name__)

VALUE_CHARACTERS = 80
"""Shown of a failed row."""
OBSERVED_CHARACTERS = 300
"""Shown of what was observed of all rows: their distinct values, say."""


def validate(section: Validate, *, paths: Paths) -> None:
    """Measure every expectation on every row and write `validate.json`.

    Raises: ConfigError: the recipe names an expectation that does not exist, with arguments it cannot take, or that
    would read more of a column whole than may be kept; all are listed. DataError: a split cannot be read.
    """
    schema = reports.read_report(paths.schema, reports.SplitSchema)
    rows = open_rows(paths, schema, _token_counter(section, schema.task, paths))
    rules = [*family_rules(schema.task, section, schema.labels, rows.columns()), *_rules_of_recipe(section)]
    log.info("Validating %d rows against %d expectations", rows.count, len(rules))
    context = quiet_context()
    found = run(rules, rows, context)
    outcomes = [_outcome(rule, outcome) for rule, outcome in zip(rules, found, strict=True)]
    failed = [outcome for outcome in outcomes if not outcome.success]
    report = reports.ValidateReport(
        splits=schema.fingerprint, rows=rows.count, expectations=outcomes, failed_expectations=len(failed)
    )
    reports.write_report(paths.validate, report)
    write_data_docs(context, found, [rule.where for rule in rules], paths.scratch / "data_docs")
    for outcome in failed:
        log.info("Failed: %s %s: %s", outcome.type, outcome.arguments, outcome.observed)
    log.info("%d of %d expectations failed", len(failed), len(outcomes))


def _rules_of_recipe(section: Validate) -> list[Rule]:
    return [
        Rule(expectation.type, expectation.arguments, of_recipe=f"validate.expectations.{position}")
        for position, expectation in enumerate(section.expectations)
    ]


def _token_counter(section: Validate, task: str, paths: Paths) -> CountTokens | None:
    """Return what counts tokens, if the recipe asks for them: it needs the base's tokenizer, and takes time."""
    asked = any("tokens" in str(expectation.arguments) for expectation in section.expectations)
    if section.max_tokens is None and not asked:
        return None
    from tasks.validation.tokens import token_counter

    return token_counter(task, paths)


def _outcome(rule: Rule, outcome: Any) -> reports.Expectation:
    result = outcome.result
    by_rows = "element_count" in result
    count = int(result["unexpected_count"]) if by_rows else 0
    if by_rows:
        observed = f"{count} of {result['element_count']} rows do not hold"
    else:
        observed = f"observed {_shortened(result.get('observed_value'), OBSERVED_CHARACTERS)}"
    places = result.get("partial_unexpected_index_list") or []
    values = result.get("partial_unexpected_list") or []
    return reports.Expectation(
        type=rule.type,
        arguments={**rule.arguments, **({"where": dict(rule.where)} if rule.where else {})},
        success=bool(outcome.success),
        observed=observed,
        failed_ids=[f"{place['split']}/{place['id']}" for place in places],
        failed_values=[_shortened(value, VALUE_CHARACTERS) for value in values[: len(places)]],
        failed_count=count,
        reads=reads_of(rule.type),
    )


def _shortened(value: object, characters: int) -> str:
    text = str(value)
    return text if len(text) <= characters else text[: characters - 1] + "…"
