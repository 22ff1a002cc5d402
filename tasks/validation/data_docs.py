"""Write Great Expectations' Data Docs as pages that need no network.

Its own pages fetch styles and scripts from six hosts and are unreadable without them. Here every such reference is
taken out, together with the scripts that need what is no longer there, and a stylesheet stands in the page itself.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
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
.modal, .ge-walkthrough-modal, button, form, footer { display: none; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1e22; } a { color: #7db7ef; }
  .badge, .alert { background: #2c3138; } td, th { border-color: #444; } }
</style></head>"""


def write_data_docs(context: Any, outcomes: Sequence[Any], folder: Path) -> None:
    """Write the outcomes of a run into `folder`, in place of what was there; `index.html` is the page to open."""
    _only_in(context, folder)
    _store(context, outcomes)
    context.build_data_docs()
    for page in folder.rglob("*.html"):
        found = REMOTE.sub("", page.read_text(encoding="utf-8"))
        write_text(page, found.replace("</head>", STYLE, 1))


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
