"""Cleaning up: what is old goes, what is in use or a result stays, and a dry run removes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import cli
from flows.clean import leftovers, remove
from flows.run_lock import is_held, only_run
from flows.workspace import own_workspace
from tasks.paths import Paths, store
from tests.project import Project, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Make a project with a workspace, a checkpoint and a base model, all 20 days old."""
    made = make_project(tmp_path / "a project", stand_ins=True)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.root)
    with own_workspace(made.root, "tiny", "calm-otter", {"finetune.epochs": 2}) as workspace:
        workspace.kept = True
    for folder in ("checkpoints/abc", "bases/def", "outcomes/model", "locks"):
        (store() / folder).mkdir(parents=True)
        (store() / folder / "file").write_bytes(b"x" * 2**20)
    for path in (workspace.root, store()):
        age(path, 20)
    return made


def age(path: Path, days: float) -> None:
    """Make a folder and everything in it look old."""
    then = time.time() - days * 86400
    for file in (*path.rglob("*"), path):
        os.utime(file, (then, then), follow_symlinks=False)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs `retain clean` and returns what it prints."""

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["retain", "clean", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    return run


def names(project: Project, days: float = 14, *, with_store: bool = False) -> list[tuple[str, str]]:
    """Return kind and name of what would go."""
    return [(item.kind, item.name) for item in leftovers(project.root, days, with_store=with_store)]


def test_a_dry_run_names_everything_and_removes_nothing(project: Project, clean: Callable[..., str]) -> None:
    said = clean("--dry-run")
    assert "workspace" in said
    assert "calm-otter" in said
    assert "1.0 MiB" in said
    assert "20 days" in said
    assert "without --dry-run" in said
    assert names(project) == [("workspace", "calm-otter"), ("checkpoint", "abc")]


def test_what_is_old_goes_and_git_forgets_the_worktree(project: Project, clean: Callable[..., str]) -> None:
    assert "Removed 2 thing(s)" in clean()
    assert names(project, 0) == []
    assert "calm-otter" not in project.git("worktree", "list")
    assert (store() / "bases" / "def").exists(), "the store is cleaned only when that is asked for"
    assert clean() == "Nothing to remove that is 14 days old.\n"


def test_what_is_young_stays(project: Project) -> None:
    assert names(project, 30) == []


def test_the_store_goes_when_asked_but_not_its_locks(project: Project, clean: Callable[..., str]) -> None:
    assert {("store", "bases/def"), ("store", "outcomes/model")} <= set(names(project, with_store=True))
    clean("--store")
    assert not (store() / "bases" / "def").exists()
    assert not (store() / "outcomes" / "model").exists()
    assert (store() / "locks" / "file").exists()


def test_what_a_run_uses_stays(project: Project) -> None:
    workspace = project.root / ".retain" / "workspaces" / "calm-otter"
    with only_run(Paths(workspace, "tiny"), "calm-otter", "refuse", print):
        assert is_held(workspace / ".retain" / "tiny" / "run.lock")
        assert names(project, 0) == []
    assert ("workspace", "calm-otter") in names(project, 0)


def experiment(project: Project, name: str, message: str) -> None:
    """Make what DVC makes of an experiment: a commit below refs/exps/<its parent>."""
    head = project.git("rev-parse", "HEAD").strip()
    commit = project.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", message).strip()
    project.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)


def test_experiments_of_runs_go_and_those_of_people_stay(project: Project) -> None:
    experiment(project, "old-run", "retain: tiny {}")
    experiment(project, "by-hand", "dvc: commit experiment")
    assert [name for kind, name in names(project, 0) if kind == "experiment"] == ["old-run"]
    assert [kind for kind, _ in names(project, 14)] == ["workspace", "checkpoint"]
    remove(project.root, [item for item in leftovers(project.root, 0) if item.kind == "experiment"])
    references = project.git("for-each-ref", "refs/exps")
    assert "old-run" not in references
    assert "by-hand" in references


def test_files_that_no_version_names_go_after_the_grace_period(project: Project) -> None:
    from tasks.paths import registry_root
    from tasks.registry import open_registry

    registry, digest = open_registry(registry_root(project.root)), "ab" + "0" * 62
    blob = Path(registry.storage.place) / "blobs" / "sha256" / "ab" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"left by a crash")
    assert [item.kind for item in leftovers(project.root, 0, with_registry=True)].count("release file") == 0
    age(blob, 8)
    found = [item for item in leftovers(project.root, 0, with_registry=True) if item.kind == "release file"]
    assert [item.name for item in found] == [f"blobs/sha256/ab/{digest}"]
    remove(project.root, found)
    assert not blob.exists()


def test_the_weights_that_forgetting_is_measured_from_are_never_garbage(
    project: Project, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    from tasks import reports
    from tasks.paths import registry_root
    from tasks.registry import open_registry
    from tasks.sources import note_first_base

    model = tmp_path / "model"
    model.mkdir()
    save_file({"weight": np.zeros(2)}, model / "model.safetensors")
    for name in ("first-of-release", "first-of-recipe", "first-of-another-checkout"):
        (store() / "bases" / name).mkdir()
        (store() / "bases" / name / "file").write_bytes(b"x")
    note_first_base("first-of-another-checkout", "path:gone: other in s3://elsewhere")
    age(store(), 20)
    lineage = {"first_base": {"source": "path:gone", "fingerprint": "first-of-release"}}
    open_registry(registry_root(project.root)).publish(
        "tiny", model, metrics={}, lineage=lineage, reports={}, run_id="r"
    )
    first = reports.FirstBase(source="path:gone", fingerprint="first-of-recipe")
    base = reports.Base(
        source="s", resolved="s", fingerprint="f", files=[], architecture="bert", first_base=first
    )
    reports.write_report(Paths(project.root, "tiny").base, base)
    assert [name for kind, name in names(project, with_store=True) if kind == "store"] == [
        "bases/def",
        "outcomes/model",
    ]
