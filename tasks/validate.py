"""Measure what must be true of each row, with Great Expectations. It measures; `gate` judges.

Reads the split tables and their schema; writes `validate.json` and, for people, Data Docs into
`.retain/<recipe>/data_docs` (not an output: they hold times). Alone: `python -m tasks validate <recipe>`.

The text-classification family brings its own suite; the recipe adds expectations by their GX names. Both see
one table with the columns id, text, label (by name), group and split (train, validation, test, or a target's
name).
"""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import reports
from tasks.errors import ConfigError, StageError
from tasks.expectations import Rule, family_rules, one_table
from tasks.paths import Paths
from tasks.recipe import Validate
from tasks.splits import read_splits

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def validate(section: Validate, *, paths: Paths) -> None:
    """Measure every expectation on every row and write `validate.json`.

    Raises: ConfigError: the recipe names an expectation that does not exist, or with arguments it cannot
    take; all are listed. DataError: a split cannot be read.
    """
    schema, tables = read_splits(paths)
    rows = one_table(tables, schema.labels)
    rules = [*family_rules(schema.task, section, schema.labels, rows), *_rules_of_recipe(section)]
    log.info("Validating %d rows against %d expectations", len(rows), len(rules))
    outcomes = _run(rules, rows, paths.scratch / "data_docs")
    failed = [outcome for outcome in outcomes if not outcome.success]
    report = reports.ValidateReport(
        splits=schema.fingerprint, rows=len(rows), expectations=outcomes, failed_expectations=len(failed)
    )
    reports.write_report(paths.validate, report)
    for outcome in failed:
        log.info("Failed: %s %s: %s", outcome.type, outcome.arguments, outcome.observed)
    log.info("%d of %d expectations failed", len(failed), len(outcomes))


def _rules_of_recipe(section: Validate) -> list[Rule]:
    return [
        Rule(expectation.type, expectation.arguments, of_recipe=f"validate.expectations.{position}")
        for position, expectation in enumerate(section.expectations)
    ]


def _run(rules: Sequence[Rule], rows: pd.DataFrame, docs: Path) -> list[reports.Expectation]:
    """Run the rules in one pass of GX over the table; return their outcomes in the rules' order."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    for noisy in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # at INFO they write hundreds of lines
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    _only_data_docs(context, docs)
    suite = gx.ExpectationSuite(name="rows", expectations=_expectations(rules))
    source = context.data_sources.add_pandas("splits").add_dataframe_asset("rows")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name="rows",
            data=source.add_batch_definition_whole_dataframe("all"),
            suite=context.suites.add(suite),
        )
    )
    result = definition.run(
        batch_parameters={"dataframe": rows},
        result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["split", "id"]},
    )
    context.build_data_docs()
    outcomes: list[Any] = list(result.results)
    found = {outcome.expectation_config.meta["position"]: outcome for outcome in outcomes}
    _refuse_what_could_not_run(rules, found)
    return [_outcome(rule, found[position]) for position, rule in enumerate(rules)]


def _only_data_docs(context: Any, docs: Path) -> None:
    """Let the context write Data Docs into `docs`, not into the temporary folder that it makes for itself."""
    for name, site in list(context.list_data_docs_sites().items()):
        folder = Path(site["store_backend"]["base_directory"])
        context.delete_data_docs_site(name)
        if folder.is_relative_to(tempfile.gettempdir()):
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir(parents=True)
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
    context.add_data_docs_site(
        "retain",
        {
            "class_name": "SiteBuilder",
            "store_backend": backend,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )


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
        near = difflib.get_close_matches(rule.type, list_registered_expectation_implementations(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
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


def _refuse_what_could_not_run(rules: Sequence[Rule], found: Mapping[int, Any]) -> None:
    problems = []
    for position, rule in enumerate(rules):
        messages = _exceptions(found[position].exception_info)
        if messages and rule.of_recipe is None:
            raise StageError(f"{rule.type} {rule.arguments} could not be evaluated: {messages[0]}")
        if messages:
            problems.append(f"{rule.of_recipe}: {rule.type}: {messages[0]}")
    if problems:
        raise ConfigError(
            "Expectations of the recipe could not be evaluated on the columns id, text, label, group, split:",
            problems,
        )


def _exceptions(info: Mapping[str, Any]) -> list[str]:
    """Return the messages in GX's `exception_info`, which holds one exception or one for each metric."""
    parts = [info] if "raised_exception" in info else list(info.values())
    raised = [part["exception_message"] or "no message" for part in parts if part["raised_exception"]]
    return sorted(message.strip().splitlines()[0] for message in raised)


def _outcome(rule: Rule, outcome: Any) -> reports.Expectation:
    result = outcome.result
    count = int(result.get("unexpected_count", 0))
    if "unexpected_count" in result:
        observed = f"{count} of {result['element_count']} rows do not hold"
    else:
        observed = f"observed {result.get('observed_value')}"
    places = result.get("partial_unexpected_index_list") or []
    return reports.Expectation(
        type=rule.type,
        arguments={**rule.arguments, **({"where": dict(rule.where)} if rule.where else {})},
        success=bool(outcome.success),
        observed=observed,
        failed_ids=[f"{place['split']}/{place['id']}" for place in places[:20]],
        failed_count=count,
    )
