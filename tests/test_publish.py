"""What a run shows beside itself: reports as artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

import flows.publish
from flows.publish import publish
from tasks.paths import Paths
from tasks.reports import ValidateReport, write_report


def test_a_validation_is_published_with_a_link_to_its_data_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, str] = {}
    monkeypatch.setattr(
        flows.publish, "create_markdown_artifact", lambda text, key, **more: shown.update({key: text})
    )
    monkeypatch.setattr(
        flows.publish, "create_link_artifact", lambda link, key, **more: shown.update({key: link})
    )
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
