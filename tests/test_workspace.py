"""A run with changes: its own git worktree, the checkout's cache, and at the end a DVC experiment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from flows.build import build_stage, open_repo
from flows.fetch import fetch_data
from flows.kept_runs import KeptRun, kept_runs
from flows.workspace import (
    change_recipe,
    commit_of,
    experiment_name,
    git,
    own_workspace,
    save_experiment,
    signed,
    workspaces,
)
from tasks.errors import ConfigError
from tasks.paths import Paths, registry_root
from tasks.recipe import load_recipe
from tasks.stages import STAGES
from tests.project import Project, make_project

RATE = {"finetune.learning_rate": 3e-4}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Make a project with stand-in stages."""
    made = make_project(tmp_path / "a project", stand_ins=True)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("RETAIN_REGISTRY", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    return made


def build_all(root: Path) -> list[str]:
    """Have the data, build every stage and return the outcomes."""
    paths = Paths(root, "tiny")
    with open_repo(root) as repo:
        fetch_data(repo, load_recipe(root / "recipes" / "tiny.yaml"), paths)
        return [build_stage(repo, "tiny", stage, lambda line: None) for stage in STAGES]


def test_the_workspace_has_the_change_and_the_checkout_has_not(project: Project) -> None:
    before = project.recipe().read_text()
    with own_workspace(project.root, "tiny", "calm-otter", RATE) as workspace:
        changed = workspace.root / "recipes" / "tiny.yaml"
        assert load_recipe(changed).finetune.learning_rate == 3e-4
        assert "# the usual rate" in changed.read_text(), "comments stay"
        assert workspace.root == workspaces(project.root) / "calm-otter"
        assert registry_root(workspace.root) == str(project.root / "registry"), (
            "releases go where they always go"
        )
    assert not workspace.root.exists()
    assert "calm-otter" not in project.git("worktree", "list")
    assert registry_root(workspace.root) == str(workspace.root / "registry")
    assert project.recipe().read_text() == before
    assert project.git("status", "--porcelain") == ""


def test_a_workspace_that_is_kept_stays(project: Project) -> None:
    with own_workspace(project.root, "tiny", "calm-otter", RATE) as workspace:
        workspace.kept = True
    assert workspace.root.is_dir()
    with (
        pytest.raises(ConfigError, match="exists already: give the run another name"),
        own_workspace(project.root, "tiny", "calm-otter", RATE),
    ):
        pass


def test_a_dirty_tree_is_refused_and_everything_dirty_is_named(project: Project) -> None:
    project.change("epochs: 1", "epochs: 2")
    (project.root / "tasks" / "mine.py").write_text("")
    (project.root / "notes.txt").write_text("no matter")
    with (
        pytest.raises(ConfigError) as caught,
        own_workspace(project.root, "tiny", "calm-otter", RATE),
    ):
        pass
    assert "Commit them, or put them back" in caught.value.message
    assert caught.value.problems == [" M recipes/tiny.yaml", "?? tasks/mine.py"]
    assert not workspaces(project.root).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune.epochs": 0, "finetune.epoch": 1}, ["finetune.epochs", "finetune.epoch:"]),
        ({"base.x": 1}, ["base.x: base is no section"]),
        ({"fine.tune": 1}, ["fine: there is no such field"]),
    ],
)
def test_a_wrong_change_leaves_no_workspace(
    project: Project, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught, own_workspace(project.root, "tiny", "calm-otter", changes):
        pass
    assert [word for word in words if word not in str(caught.value)] == []
    assert list(workspaces(project.root).iterdir()) == []
    assert "calm-otter" not in project.git("worktree", "list")


def test_without_git_and_without_a_commit(project: Project, tmp_path: Path) -> None:
    project.git("update-ref", "-d", "HEAD")
    with pytest.raises(ConfigError, match="has no commit yet: `git add --all`, then `git commit`"):
        commit_of(project.root)
    shutil.rmtree(project.root / ".git")
    with (
        pytest.raises(ConfigError, match=r"is no git repository.*run `git init`"),
        own_workspace(project.root, "tiny", "calm-otter", RATE),
    ):
        pass


def test_a_recipe_is_untouched_by_a_change_that_makes_it_wrong(project: Project) -> None:
    before = project.recipe().read_text()
    with pytest.raises(ConfigError, match=r"merge has|has 1 problem"):
        change_recipe(project.recipe(), {"merge.alphas": [0.5, 1]})
    assert project.recipe().read_text() == before


def test_a_name_that_git_takes_and_that_is_free(project: Project) -> None:
    assert experiment_name("Grüne Otter!", project.root) == "gr-ne-otter"
    assert experiment_name("??", project.root) == "run"
    (workspaces(project.root) / "calm-otter").mkdir(parents=True)
    assert experiment_name("calm-otter", project.root) == "calm-otter-2"
    assert experiment_name("tiny", project.root) == "tiny-2", "`retain show` takes either name"


@pytest.mark.e2e
def test_what_was_built_before_is_taken_and_what_is_built_is_kept(project: Project) -> None:
    assert build_all(project.root) == ["executed"] * 9
    lock = (project.root / "dvc.lock").read_text()
    with own_workspace(project.root, "tiny", "calm-otter", RATE) as workspace:
        outcomes = dict(zip(STAGES, build_all(workspace.root), strict=True))
        with open_repo(workspace.root) as repo:
            commit = save_experiment(
                repo, "calm-otter", list(STAGES), "tiny", 'tiny {"finetune.learning_rate": 3e-4}'
            )
        decision = Paths(workspace.root, "tiny").decision.read_bytes()
    executed = [stage for stage, outcome in outcomes.items() if outcome == "executed"]
    assert executed == ["finetune", "merge", "evaluate", "decide"]
    assert outcomes["prepare"] == "restored"
    assert (project.root / "dvc.lock").read_text() == lock, "the checkout is as it was"
    assert project.git("rev-parse", "HEAD").strip() in project.git("log", "--format=%P", "-1", commit)
    assert "learning_rate: 0.0003" in project.git("show", f"{commit}:recipes/tiny.yaml")
    assert "calm-otter" in project.git("for-each-ref", "refs/exps")
    changes = '{"finetune.learning_rate": 3e-4}'
    assert kept_runs(project.root) == [KeptRun("calm-otter", "tiny", changes, commit)]
    assert experiment_name("calm-otter", project.root) == "calm-otter-2"

    project.commit("the lock of the first run")
    project.dvc("exp", "apply", "calm-otter")
    assert load_recipe(project.recipe()).finetune.learning_rate == 3e-4
    assert Paths(project.root, "tiny").decision.read_bytes() == decision
    assert build_all(project.root) == ["unchanged"] * 9
    assert [run.name for run in kept_runs(project.root)] == ["calm-otter"], "DVC's note of it is no run"


def test_where_git_knows_no_name_commits_are_signed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "half@localhost")
    git(tmp_path, "init", "--quiet")

    def author() -> str:
        git(tmp_path, "-c", "user.useConfigOnly=true", "commit", "--quiet", "--allow-empty", "-m", "one")
        return git(tmp_path, "log", "-1", "--format=%an <%ae>, %cn <%ce>").strip()

    with pytest.raises(ConfigError, match="git"):
        author()
    with signed(tmp_path):
        assert author() == "retain <retain@localhost>, retain <retain@localhost>"
    assert os.environ["GIT_AUTHOR_EMAIL"] == "half@localhost"
    assert "GIT_COMMITTER_NAME" not in os.environ
    git(tmp_path, "config", "user.name", "Ada")
    git(tmp_path, "config", "user.email", "ada@localhost")
    with signed(tmp_path):
        assert author() == "Ada <half@localhost>, Ada <ada@localhost>"
