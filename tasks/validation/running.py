"""Run rules through Great Expectations over rows that need not fit in memory; what is found equals one whole run.

How depends on what an expectation must see (`reads_of`). *Row by row*: it runs on each batch, and the counts are added
up. *Columns*: uniqueness, order, means, quantiles, counts of rows hang on many rows at once and cannot be added up, so
the columns that they name are kept, and it runs on those at the end; where only equality counts (uniqueness), long
contents are kept as digests of 128 bits. *Shape*: names and types of columns, the same in every batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from tasks.errors import ConfigError, StageError, did_you_mean
from tasks.progress_lines import ProgressLines
from tasks.validation.columns import Rows
from tasks.validation.rules import Rule

SHOWN = 20
"""Failed rows shown of an expectation."""
WHOLE_COLUMNS_BYTES = 2**30
"""What may be kept for expectations that read columns whole."""

ROW_BY_ROW = frozenset(
    f"expect_{name}"
    for name in (
        "column_pair_values_a_to_be_greater_than_b column_pair_values_to_be_equal column_pair_values_to_be_in_set "
        "column_value_lengths_to_be_between column_value_lengths_to_equal column_values_to_be_between "
        "column_values_to_be_dateutil_parseable column_values_to_be_in_set column_values_to_be_json_parseable "
        "column_values_to_be_null column_values_to_match_json_schema column_values_to_match_regex "
        "column_values_to_match_regex_list column_values_to_match_strftime_format column_values_to_not_be_in_set "
        "column_values_to_not_be_null column_values_to_not_match_regex column_values_to_not_match_regex_list "
        "multicolumn_sum_to_equal multicolumn_values_to_be_equal select_column_values_to_be_unique_within_record"
    ).split()
)
"""What GX judges by one row alone. What is not named here is never added up."""
SHAPE = frozenset(
    f"expect_{name}"
    for name in (
        "column_to_exist column_type_to_be column_values_to_be_of_type column_values_to_be_in_type_list "
        "table_column_count_to_be_between table_column_count_to_equal table_columns_to_match_ordered_list "
        "table_columns_to_match_set"
    ).split()
)
EQUALITY = frozenset(
    f"expect_{name}"
    for name in (
        "column_values_to_be_unique compound_columns_to_be_unique column_unique_value_count_to_be_between "
        "column_proportion_of_unique_values_to_be_between"
    ).split()
)
"""What needs to know of values only which are equal."""
CONTENT = ("text", "positive", "negative")
"""Columns that may be long."""
PLACE = ("split", "id")

Reads = Literal["batches", "columns", "shape"]
Outcomes = dict[int, Any]


def reads_of(kind: str) -> Reads:
    """Say what an expectation must see: rows one at a time, whole columns, or their names and types."""
    return "batches" if kind in ROW_BY_ROW else "shape" if kind in SHAPE else "columns"


def run(rules: Sequence[Rule], rows: Rows, context: Any) -> list[Any]:
    """Run the rules in one pass over the rows; return GX's outcomes in the rules' order.

    Raises:
        ConfigError: some of the recipe's rules have an unknown name or wrong arguments, cannot be evaluated on these
            columns, or would keep more of them than may be kept.
        StageError: one of the family's own cannot be evaluated.
    """
    expectations = _expectations(rules)
    reads = [reads_of(rule.type) for rule in rules]
    validate = _validator(context)
    kept = KeptColumns([rule for rule, how in zip(rules, reads, strict=True) if how == "columns"], rows)
    found: Outcomes = {}
    done, say = 0, ProgressLines("validate", "rows")
    for number, batch in enumerate(rows.batches()):
        wanted = ("batches",) if number else ("batches", "shape")
        now = validate(batch, [made for made, how in zip(expectations, reads, strict=True) if how in wanted])
        for position, outcome in now.items():
            _add(found, position, outcome)
        kept.add(batch)
        done += len(batch)
        say(done, rows.count)
    for digested in (False, True):
        of_columns = [
            made
            for made, rule, how in zip(expectations, rules, reads, strict=True)
            if how == "columns" and (rule.type in EQUALITY) == digested
        ]
        found |= validate(kept.table(digested), of_columns) if of_columns else {}
    _refuse_what_could_not_run(rules, found, rows.columns())
    return [found[position] for position in range(len(rules))]


def quiet_context() -> Any:
    """Return a GX context that asks nobody, reports nothing and draws no progress bars."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    for noisy in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # at INFO they write hundreds of lines
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _validator(context: Any) -> Any:
    """Return a function that runs expectations on a table and gives their outcomes by position."""
    import great_expectations as gx

    source = context.data_sources.add_pandas("splits").add_dataframe_asset("rows")
    definition = source.add_batch_definition_whole_dataframe("batch")
    shown = {
        "result_format": "SUMMARY",
        "unexpected_index_column_names": list(PLACE),
        "partial_unexpected_count": SHOWN,
    }

    def validate(table: pd.DataFrame, expectations: Sequence[Any]) -> Outcomes:
        if not expectations:
            return {}
        suite = gx.ExpectationSuite(name="rows", expectations=list(expectations))
        batch = definition.get_batch(batch_parameters={"dataframe": table})
        results = batch.validate(suite, result_format=shown).results
        return {outcome.expectation_config.meta["position"]: outcome for outcome in results}

    return validate


class KeptColumns:
    """The columns that rules read whole, collected from the batches; where equality is enough, as digests."""

    def __init__(self, rules: Sequence[Rule], rows: Rows) -> None:
        self._rules, self._bytes = rules, 0
        known = rows.columns()
        self._parts: dict[tuple[str, bool], list[pd.Series]] = {}
        for rule in rules:
            digested = rule.type in EQUALITY
            for column in [*PLACE, *_columns_of(rule, known)]:
                self._parts.setdefault((column, digested), [])

    def add(self, batch: pd.DataFrame) -> None:
        """Keep what the rules read of a batch.

        Raises: ConfigError: it is more than may be kept.
        """
        for (column, digested), parts in self._parts.items():
            part = batch[column]
            parts.append(_digests(part) if digested and column in CONTENT else part)
            self._bytes += int(parts[-1].memory_usage(index=False, deep=True))
        if self._bytes > WHOLE_COLUMNS_BYTES:
            raise ConfigError(
                f"More than {WHOLE_COLUMNS_BYTES / 2**30:g} GiB of columns would have to be read whole, because these "
                "expectations hang on many rows at once and cannot be added up over batches; leave out those on long "
                "columns, or put expectations on each row in their place:",
                [f"{rule.of_recipe or 'validate'}: {rule.type} {rule.arguments}" for rule in self._rules],
            )

    def table(self, digested: bool) -> pd.DataFrame:
        """Return the kept columns, all rows."""
        parts = {column: found for (column, hashed), found in self._parts.items() if hashed == digested}
        return pd.DataFrame({column: pd.concat(found, ignore_index=True) for column, found in parts.items()})


def _columns_of(rule: Rule, known: Iterable[str]) -> list[str]:
    """Return the columns that a rule names in its arguments, as far as there are such."""
    named = set(rule.where or {})
    for key, value in rule.arguments.items():
        if key.startswith("column"):
            named |= {value} if isinstance(value, str) else set(value if isinstance(value, list) else [])
    condition = str(rule.arguments.get("row_condition", ""))
    return [column for column in known if column in named or column in condition]


def _digests(column: pd.Series) -> pd.Series:
    digests = [
        None if pd.isna(text) else hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        for text in column
    ]
    return pd.Series(digests, index=column.index, dtype="str")


# --- adding up -----------------------------------------------------------------------------------------


def _add(found: Outcomes, position: int, outcome: Any) -> None:
    """Add what an expectation found in one batch to what it found in those before."""
    if position not in found:
        found[position] = outcome
        return
    total = found[position]
    if _exceptions(total.exception_info):
        return
    if _exceptions(outcome.exception_info):
        found[position] = outcome
        return
    mine, more = total.result, outcome.result
    for name in ("element_count", "missing_count", "unexpected_count"):
        if name in mine:
            mine[name] += more[name]
    for name in ("partial_unexpected_list", "partial_unexpected_index_list"):
        if more.get(name):
            mine[name] = [*(mine.get(name) or []), *more[name]][:SHOWN]
    _settle(total)


def _settle(outcome: Any) -> None:
    """Set what follows from the counts, as GX does: shares, the most common failures, success by `mostly`."""
    result = outcome.result
    elements, unexpected = result["element_count"], result["unexpected_count"]
    present = elements - result.get("missing_count", 0)
    result["unexpected_percent"] = _percent(unexpected, present)
    if "missing_count" in result:
        result["missing_percent"] = _percent(result["missing_count"], elements)
        result["unexpected_percent_total"] = _percent(unexpected, elements)
        result["unexpected_percent_nonmissing"] = _percent(unexpected, present)
    try:
        counted = Counter(
            tuple(value.values()) if isinstance(value, dict) else value
            for value in result["partial_unexpected_list"]
        ).most_common()
        result["partial_unexpected_counts"] = [{"value": value, "count": count} for value, count in counted]
    except TypeError:
        result.pop("partial_unexpected_counts", None)
    mostly = outcome.expectation_config.kwargs.get("mostly", 1)
    outcome.success = not present or (present - unexpected) / present >= mostly


def _percent(part: int, whole: int) -> float | None:
    return part / whole * 100 if whole else None


# --- expectations --------------------------------------------------------------------------------------


def _expectations(rules: Sequence[Rule]) -> list[Any]:
    """Make GX expectations of the rules.

    Raises:
        ConfigError: some of the recipe's have an unknown name or wrong arguments.
    """
    made, problems = [], []
    for position, rule in enumerate(rules):
        try:
            made.append(_expectation(rule, position))
        except ValueError as error:
            if rule.of_recipe is None:
                raise
            problems.append(f"{rule.of_recipe}: {rule.type}: {error}")
    if problems:
        raise ConfigError(f"{len(problems)} expectation(s) of the recipe cannot be used:", problems)
    return made


def _expectation(rule: Rule, position: int) -> Any:
    from great_expectations.compatibility.pydantic import ValidationError
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )
    from great_expectations.expectations.row_conditions import AndCondition, Column

    try:
        kind = get_expectation_impl(rule.type)
    except ExpectationNotFoundError:
        hint = did_you_mean(rule.type, list_registered_expectation_implementations(), most=3)
        raise ValueError(f"Great Expectations has no expectation of this name{hint}") from None
    if reserved := {"id", "meta", "batch_id"} & set(rule.arguments):
        raise ValueError(f"{', '.join(sorted(reserved))}: set by the pipeline, leave it out")
    arguments = dict(rule.arguments)
    if rule.where:
        conditions: list[Any] = [Column(column) == value for column, value in rule.where.items()]
        arguments["row_condition"] = AndCondition(conditions=conditions)
    try:
        return kind(**arguments, meta={"position": position})
    except ValidationError as error:
        wrong = {f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()}
        raise ValueError("; ".join(sorted(wrong))) from None


def _refuse_what_could_not_run(
    rules: Sequence[Rule], found: Mapping[int, Any], columns: Sequence[str]
) -> None:
    problems = []
    for position, rule in enumerate(rules):
        messages = _exceptions(found[position].exception_info)
        if messages and rule.of_recipe is None:
            raise StageError(f"{rule.type} {rule.arguments} could not be evaluated: {messages[0]}")
        if messages:
            problems.append(f"{rule.of_recipe}: {rule.type}: {messages[0]}")
    if problems:
        raise ConfigError(
            f"Expectations of the recipe could not be evaluated on the columns {', '.join(columns)}:",
            problems,
        )


def _exceptions(info: Mapping[str, Any]) -> list[str]:
    """Return the messages in GX's `exception_info`, which holds one exception or one for each metric."""
    parts = [info] if "raised_exception" in info else list(info.values())
    raised = [part["exception_message"] or "no message" for part in parts if part["raised_exception"]]
    return sorted(message.strip().splitlines()[0] for message in raised)
