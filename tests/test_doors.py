"""Two doors, one result: `dvc repro` and `retain run` leave the same bytes, and nothing for each other to do."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import COMMAND_LINE, STAGES, Project, make_project

pytestmark = pytest.mark.e2e
Door = Callable[[Project], list[str]]


def by_dvc(project: Project) -> list[str]:
    """Run `dvc repro` and return the stages that ran."""
    said = project.dvc("repro").stdout
    return re.findall(r"Running stage '(\w+)@", said)


def by_flow(project: Project, *words: str) -> list[str]:
    """Run `retain run` and return the stages that ran."""
    said = project.retain("run", "tiny", "--no-register", *words)
    return re.findall(r" - (\w+): executed", said.stderr + said.stdout)


def results(project: Project) -> dict[str, str]:
    """Return the sha256 of the lock and of everything that the stages wrote."""
    files = [
        path for path in (project.root / "data").rglob("*") if path.is_file() and "raw" not in path.parts
    ]
    found = {
        str(path.relative_to(project.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [project.root / "dvc.lock", *files]
    }
    assert len(found) > len(STAGES), "the stages wrote something"
    return found


def clone(project: Project, path: Path) -> Project:
    """Return a clean copy, with a cache of its own that is empty."""
    project.command("git", "clone", "--quiet", str(project.root), str(path))
    copy = Project(path)
    copy.git("config", "user.name", "Test")
    copy.git("config", "user.email", "test@localhost")
    return copy


@pytest.fixture
def original(tmp_path: Path) -> Project:
    """Make a project whose raw data are pinned and committed."""
    project = make_project(tmp_path / "original", stand_ins=True)
    project.pin_raw_data()
    project.commit("raw data")
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """Return a clean copy that has the raw data."""
    return with_data(clone(original, tmp_path / "a copy"), original)


def with_data(copy: Project, original: Project) -> Project:
    shutil.copytree(original.root / ".dvc" / "cache", copy.root / ".dvc" / "cache")
    copy.dvc("checkout", "--quiet", "data/raw/tiny.dvc")
    return copy


def experiments(project: Project) -> list[str]:
    """Return the names of the DVC experiments."""
    refs = project.git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return [ref.rsplit("/", 1)[-1] for ref in refs if "/exec/" not in ref]


def test_both_doors_leave_the_same_bytes_and_nothing_to_do(original: Project, tmp_path: Path) -> None:
    one = with_data(clone(original, tmp_path / "one"), original)
    two = with_data(clone(original, tmp_path / "two"), original)
    assert by_dvc(one) == list(STAGES)
    assert by_flow(two) == list(STAGES)
    assert results(one) == results(two)
    assert by_flow(one) == []
    assert by_dvc(two) == []
    assert results(one) == results(two)


@pytest.mark.parametrize("door", [by_dvc, by_flow])
def test_a_bound_reruns_the_gate_and_a_budget_does_not_retrain(project: Project, door: Door) -> None:
    assert door(project) == list(STAGES)
    project.change("refuse_below: 0.05", "refuse_below: 0.04")
    assert door(project) == ["gate"]
    project.change("margin: 0.5", "margin: 0.4")
    assert "finetune" not in (ran := door(project))
    assert {"merge", "decide"} <= set(ran)
    project.change("learning_rate: 1.0e-4", "learning_rate: 2.0e-4")
    assert door(project) == ["finetune", "merge", "evaluate", "decide"]


def test_a_comment_in_the_recipe_reruns_nothing(project: Project) -> None:
    by_dvc(project)
    project.change("# the usual rate", "# another comment")
    assert by_flow(project) == []


def start(project: Project, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, "run", *words],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_recipes_at_once_and_the_same_recipe_twice(tmp_path: Path) -> None:
    project = make_project(tmp_path / "two recipes", stand_ins=True, names=("tiny", "other"))
    for name in ("tiny", "other"):
        project.change("epochs: 1", "epochs: 20", name)
    project.commit("slow training")
    lock = project.root / ".retain" / "tiny" / "run.lock"
    first = start(project, "tiny", "--no-register")
    _wait_for(lambda: lock.exists() and lock.read_text(), first)
    other = start(project, "other", "--no-register")
    told = start(project, "tiny", "--no-register", "--if-running", "refuse")
    waiting = start(project, "tiny", "--no-register")
    said = {run: run.communicate(timeout=300)[0] for run in (first, other, told, waiting)}
    assert [run.returncode for run in said] == [0, 0, 1, 0], said
    assert re.search(r"tiny is already being run here by process \d+ \(run [a-z-]+, since ", said[told])
    assert "--if-running wait" in said[told]
    assert "finetune: executed" in said[first]
    assert "finetune: executed" in said[other]
    assert "waiting: tiny is being run here by process" in said[waiting]
    assert "Nothing to do" in said[waiting]
    assert by_dvc(project) == []


def _wait_for(condition: Callable[[], object], run: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            raise AssertionError(f"waited in vain for {run.args}: {run.communicate()[0]}")
        time.sleep(0.1)


def test_push_then_a_fresh_clone_executes_nothing(project: Project, tmp_path: Path) -> None:
    by_flow(project)
    remote = tmp_path / "remote"
    project.dvc("remote", "add", "--local", "--force", "folder", str(remote))
    project.dvc("push", "--quiet", "--remote", "folder")
    project.commit("the lock")
    fresh = clone(project, tmp_path / "fresh")
    fresh.dvc("remote", "add", "--local", "folder", str(remote))
    fresh.dvc("pull", "--quiet", "--remote", "folder")
    assert by_dvc(fresh) == []
    assert by_flow(fresh) == []
    assert results(fresh) == results(project)


def test_a_run_with_a_change_leaves_the_tree_alone_and_an_experiment_behind(project: Project) -> None:
    by_flow(project)
    project.commit("the lock")
    before = results(project)
    ran = by_flow(project, "--set", "finetune.learning_rate=3e-4")
    assert ran == ["finetune", "merge", "evaluate", "decide"]
    assert results(project) == before
    assert project.git("status", "--porcelain") == ""
    (name,) = experiments(project)
    assert not (project.root / ".retain" / "workspaces" / name).exists()
    project.dvc("exp", "apply", name)
    assert "learning_rate: 0.0003" in project.recipe().read_text()
    assert by_dvc(project) == []
    project.git("checkout", "--quiet", ".")
    project.dvc("checkout", "--quiet")
    assert by_flow(project) == []
    assert results(project) == before


def test_a_kept_run_is_shown_where_nothing_has_been_built(tmp_path: Path) -> None:
    """`dvc exp apply` fails here: it wants what the other recipe has never made."""
    project = make_project(tmp_path / "two recipes", stand_ins=True, names=("tiny", "other"))
    said = project.retain("run", "tiny", "--no-register", "--set", "finetune.learning_rate=3e-4").stdout
    (name,) = experiments(project)
    assert f"retain show {name} shows it again" in said
    shown = project.retain("show", name).stdout
    assert f"kept as the experiment {name}:" in shown
    assert "articles: lost 0.0003" in shown
    assert project.git("rev-parse", "HEAD").strip() in shown
    page = tmp_path / "page.html"
    project.retain("show", name, "--html", str(page))
    assert "May ship" in page.read_text()
    assert project.git("status", "--porcelain") == "", "nothing was brought into the checkout"
    project.change("learning_rate: 1.0e-4", "learning_rate: 3.0e-4")
    assert by_flow(project) == [], "with its change in the recipe, a run comes from the cache"
    shutil.rmtree(project.root / ".dvc" / "cache" / "files")
    lost = project.retain("show", name, check=False)
    assert lost.returncode == 1
    assert f"The experiment {name} lacks reports here. `dvc exp pull` brings them" in lost.stderr
    assert "data/tiny/decision.json" in lost.stderr
    assert "Traceback" not in lost.stderr


def test_a_ruinous_change_is_refused_and_still_kept(project: Project) -> None:
    done = project.retain("run", "tiny", "--set", "finetune.learning_rate=1e-3", check=False)
    assert done.returncode == 3
    assert "retain: refused (FAIL): tiny was not released." in done.stderr
    assert "articles: lost 0.001" in done.stdout
    assert not (project.root / "registry").exists()
    assert len(experiments(project)) == 1


def test_a_change_over_uncommitted_edits_is_refused(project: Project) -> None:
    project.change("epochs: 1", "epochs: 2")
    done = project.retain("run", "tiny", "--set", "finetune.learning_rate=1e-3", check=False)
    assert done.returncode == 1
    assert " M recipes/tiny.yaml" in done.stderr
    assert "Traceback" not in done.stderr
