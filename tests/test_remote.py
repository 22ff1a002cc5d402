"""Data on S3: one line of configuration, and a fresh clone has nothing to execute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import Project, make_project
from tests.servers import s3_server

pytestmark = pytest.mark.e2e


def test_what_is_on_s3_needs_no_work_in_a_fresh_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "one", stand_ins=True)
    project.pin_raw_data()
    project.dvc("repro", "--quiet")
    with s3_server(tmp_path) as endpoint:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        import boto3

        boto3.client("s3").create_bucket(Bucket="team")
        project.dvc("remote", "add", "--force", "--default", "s3", "s3://team/data")
        project.dvc("remote", "modify", "s3", "endpointurl", endpoint)
        project.commit("results, and where they lie")
        project.dvc("push", "--quiet", "--run-cache")
        project.command("git", "clone", "--quiet", str(project.root), str(tmp_path / "two"))
        two = Project(tmp_path / "two")
        two.dvc("pull", "--quiet")
        said = two.dvc("repro").stdout
    assert "Running stage" not in said
    assert "up to date" in said
    assert (two.root / "data" / "tiny" / "decision.json").is_file()
