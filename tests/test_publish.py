"""What a run shows beside itself: reports as artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

import flows.publish
from flows.publish import publish
from tasks.paths import Paths
from tasks.reports import ValidateReport, write_report
from tests.test_summary import run_reports


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what is published, by key."""
    found: dict[str, str] = {}
    for name in ("create_markdown_artifact", "create_link_artifact"):
        monkeypatch.setattr(flows.publish, name, lambda content, key, **more: found.update({key: content}))
    return found


def test_a_validation_is_published_with_a_link_to_its_data_docs(
    tmp_path: Path, shown: dict[str, str]
) -> None:
    paths = Paths(tmp_path, "tiny")
    write_report(paths.validate, ValidateReport(splits="s", rows=3, expectations=[], failed_expectations=0))
    publish(paths, "validate")
    assert list(shown) == ["tiny-validate"], "no pages, no link"
    page = paths.scratch / "data_docs" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("Data Docs")
    publish(paths, "validate")
    assert shown["tiny-data-docs"] == page.as_uri()
    assert Path(shown["tiny-data-docs"].removeprefix("file://")).read_text() == "Data Docs"


def test_the_mixtures_are_published_with_what_orders_them(tmp_path: Path, shown: dict[str, str]) -> None:
    merge = run_reports("pass").merge
    assert merge is not None
    outcomes = [item.model_copy(update={"log_likelihood_gain": 0.25}) for item in merge.outcomes]
    outcomes[0] = merge.outcomes[0]
    paths = Paths(tmp_path, "tiny")
    write_report(paths.merge, merge.model_copy(update={"outcomes": outcomes}))
    publish(paths, "merge")
    rows = [line.split(" | ") for line in shown["tiny-merge"].splitlines() if line.startswith("| ")]
    assert rows[0][2] == "nats gained"
    assert [row[2] for row in rows[2:]] == ["", *["+0.250"] * (len(outcomes) - 1)]
