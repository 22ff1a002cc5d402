"""Raw data: fetched once and pinned, then taken from where they are; never other data than the pinned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.build import open_repo
from flows.fetch import fetch_data, pointer_of
from tasks.errors import DataError
from tasks.paths import Paths
from tasks.recipe import load_recipe
from tests.project import Project, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Make a project whose raw data have been fetched."""
    made = make_project(tmp_path / "a project", stand_ins=True)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    assert fetch(made) == "fetched"
    return made


def fetch(project: Project) -> str:
    with open_repo(project.root) as repo:
        return fetch_data(repo, load_recipe(project.recipe()), Paths(project.root, "tiny"))


def raw(project: Project) -> Path:
    return Paths(project.root, "tiny").raw


def test_fetched_once_then_unchanged_then_restored(project: Project) -> None:
    assert fetch(project) == "unchanged"
    shutil.rmtree(raw(project))
    assert fetch(project) == "restored"
    assert sorted(path.name for path in raw(project).iterdir()) == ["articles.jsonl", "train.csv"]


def test_without_data_and_cache_it_is_fetched_again_and_must_be_the_same(project: Project) -> None:
    shutil.rmtree(raw(project))
    shutil.rmtree(project.root / ".dvc" / "cache")
    assert fetch(project) == "fetched"
    shutil.rmtree(raw(project))
    assert fetch(project) == "restored", "it went into the cache"

    shutil.rmtree(raw(project))
    shutil.rmtree(project.root / ".dvc" / "cache")
    source = project.root.parent / f"{project.root.name}-data" / "train.csv"
    source.write_text(source.read_text() + "one more row,positive\n")
    before = pointer_of(Paths(project.root, "tiny")).read_text()
    with pytest.raises(DataError, match=r"has changed since data/raw/tiny.dvc was pinned"):
        fetch(project)
    assert pointer_of(Paths(project.root, "tiny")).read_text() == before


def test_edited_data_are_refused_with_both_ways_out(project: Project) -> None:
    file = raw(project) / "train.csv"
    file.chmod(0o644)
    file.write_text("text,label\n")
    with pytest.raises(DataError) as caught:
        fetch(project)
    assert "dvc add data/raw/tiny" in str(caught.value)
    assert "dvc checkout --force data/raw/tiny.dvc" in str(caught.value)


def test_other_sources_than_the_pinned_are_named(project: Project) -> None:
    project.change("/train.csv", "/other.csv")
    with pytest.raises(DataError) as caught:
        fetch(project)
    assert "rm -r data/raw/tiny data/raw/tiny.dvc" in caught.value.message
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("train.csv: pinned from path:")


def test_a_source_that_came_later_is_named(project: Project) -> None:
    project.change("  source:\n", "  source:\n    more.csv: path:/more.csv\n")
    with pytest.raises(DataError) as caught:
        fetch(project)
    assert caught.value.problems == ["more.csv: pinned from nothing, the recipe says path:/more.csv"]


def test_a_corrupted_cache_is_noticed_and_the_data_fetched_again(project: Project) -> None:
    shutil.rmtree(raw(project))
    damaged: list[Any] = [
        path
        for path in (project.root / ".dvc" / "cache").rglob("*")
        if path.is_file() and not path.name.endswith(".dir")
    ]
    for path in damaged:
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    assert fetch(project) == "fetched"
    assert "damaged" not in (raw(project) / "train.csv").read_text()


def test_push_and_pull_know_the_raw_data(project: Project) -> None:
    """DVC reads .gitignore in its own way: with a wrong pattern it would not look into data/raw."""
    with open_repo(project.root) as repo:
        found = {stage.relpath for stage in repo.index.stages}
    assert "data/raw/tiny.dvc" in found
    assert "?? data/raw/tiny.dvc" in project.git("status", "--porcelain", "--untracked-files=all")
    assert project.git("check-ignore", "data/raw/tiny/train.csv", "data/tiny/base.json").count("\n") == 2
