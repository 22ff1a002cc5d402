"""Write Great Expectations' Data Docs as pages that need no network.

Its own pages fetch styles and scripts from six hosts and are unreadable without them. Here every such reference is
taken out, together with the scripts that need what is no longer there, and a stylesheet stands in the page itself. The
first page, which scripts fill, is one of our own.
"""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.files import write_text

SUITE = "rows"
REMOTE = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*\bhref=\"https?://[^>]*>|<img\b[^>]*\bsrc=\"https?://[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
STYLE = """<style>
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
a { color: #0a58a5; text-decoration: none; }
.container-fluid { padding: 1rem 2rem; } .row { display: flex; flex-wrap: wrap; gap: 1rem; }
.col-md-2, .col-lg-2 { flex: 0 0 14rem; } .col-md-10, .col-lg-10 { flex: 1; min-width: 0; }
.collapse, .d-none { display: block !important; } .navbar, .breadcrumb { display: flex; gap: .7rem; list-style: none; }
table { border-collapse: collapse; margin: .5rem 0; } th { text-align: left; }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; vertical-align: top; overflow-wrap: anywhere; }
.badge { background: #eef1f4; border-radius: .3rem; padding: 0 .35rem; }
.alert { padding: .4rem .8rem; border-radius: .3rem; background: #eef1f4; }
.text-success, .fa-check-circle { color: #17803d; } .text-danger, .fa-times { color: #b3261e; }
.fa-check-circle::before { content: "✓ holds"; } .fa-times::before { content: "✗ fails"; }
.modal, .ge-walkthrough-modal, button, form, footer, .card:has(.btn-group), a[data-toggle="collapse"] { display: none; }
.container-fluid h5 { margin: 0; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1e22; } a { color: #7db7ef; }
  .badge, .alert { background: #2c3138; } td, th { border-color: #444; } }
</style></head>"""
INDEX = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Data Docs</title></head>
<body><div class="container-fluid"><h1>Data Docs</h1><p>{held} of {count} expectations hold.</p><ul>
{links}
</ul></div></body></html>
"""


def write_data_docs(
    context: Any, found: Sequence[Any], rows: Sequence[Mapping[str, str] | None], folder: Path
) -> None:
    """Write what a run found into `folder`, in place of what was there; `index.html` is the page to open.

    `rows` are the values to which each of its expectations is restricted, or None.
    """
    outcomes = [_of_rows(outcome, where) for outcome, where in zip(found, rows, strict=True)]
    _only_in(context, folder)
    _store(context, outcomes)
    context.build_data_docs()
    write_text(folder / "index.html", _index(outcomes, folder))
    for page in folder.rglob("*.html"):
        found = REMOTE.sub("", page.read_text(encoding="utf-8"))
        write_text(page, found.replace("</head>", STYLE, 1))


def _of_rows(outcome: Any, where: Mapping[str, str] | None) -> Any:
    """Return an outcome that says which rows it is of: Great Expectations' pages leave that out."""
    if not where or "observed_value" not in outcome.result:
        return outcome
    of = ", ".join(f"{column} {value}" for column, value in where.items())
    told = copy.copy(outcome)
    told.result = {**outcome.result, "observed_value": f"{outcome.result['observed_value']} ({of})"}
    return told


def _index(outcomes: Sequence[Any], folder: Path) -> str:
    """Return the first page: links to the others."""
    told = {"validations": "What held and what did not", "expectations": "The suite: what was expected"}
    places = {
        kind: page.relative_to(folder).as_posix()
        for kind in told
        for page in folder.glob(f"{kind}/**/*.html")
    }
    links = "\n".join(f'<li><a href="{place}">{told[kind]}</a></li>' for kind, place in places.items())
    held = sum(bool(outcome.success) for outcome in outcomes)
    return INDEX.format(held=held, count=len(outcomes), links=links)


def _only_in(context: Any, folder: Path) -> None:
    """Let the context write Data Docs into `folder`, not into the temporary folder that it makes for itself."""
    for name, site in list(context.list_data_docs_sites().items()):
        own = Path(site["store_backend"]["base_directory"])
        context.delete_data_docs_site(name)
        if own.is_relative_to(tempfile.gettempdir()):
            shutil.rmtree(own, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    site = {
        "class_name": "SiteBuilder",
        "store_backend": backend,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    context.add_data_docs_site("retain", site)


def _store(context: Any, outcomes: Sequence[Any]) -> None:
    """Give the context the outcomes as one validation of one suite: it knows only runs over one batch."""
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult, RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    held = sum(outcome.success for outcome in outcomes)
    run = RunIdentifier(run_name=SUITE)
    result = ExpectationSuiteValidationResult(
        success=held == len(outcomes),
        results=list(outcomes),
        suite_name=SUITE,
        statistics={
            "evaluated_expectations": len(outcomes),
            "successful_expectations": held,
            "unsuccessful_expectations": len(outcomes) - held,
            "success_percent": held / len(outcomes) * 100,
        },
        meta={"great_expectations_version": gx.__version__, "run_id": run, "validation_time": run.run_time},
    )
    suite = ExpectationSuiteIdentifier(SUITE)
    context.suites.add(gx.ExpectationSuite(name=SUITE))
    context.validation_results_store.store_validation_results(
        suite_validation_result=result,
        suite_validation_result_identifier=ValidationResultIdentifier(suite, run, "all"),
        expectation_suite_identifier=suite,
    )
