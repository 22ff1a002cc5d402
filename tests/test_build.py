"""One stage at a time through DVC, in-process: what runs, what is restored, and what the user is told."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.build import (
    build_stage,
    check_listed,
    is_current,
    last_words,
    open_repo,
    order_lock,
    stage_failure,
)
from tasks.errors import ConfigError, PipelineError, Preempted, Refused, StageError
from tasks.paths import Paths
from tests.project import Project, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Make a project with stand-in stages and its raw data pinned."""
    made = make_project(tmp_path / "a project", stand_ins=True)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    with open_repo(made.root) as repo:
        add_raw_data(made, repo)
    return made


@pytest.fixture
def repo(project: Project) -> Iterator[Any]:
    with open_repo(project.root) as opened:
        yield opened


def add_raw_data(project: Project, repo: Any, name: str = "tiny") -> None:
    """Put the raw data under DVC."""
    raw = project.root / "data" / "raw" / name
    shutil.copytree(project.root.parent / f"{project.root.name}-data", raw)
    repo.add(str(raw))
    repo._reset()


def build(repo: Any, *stages: str, recipe: str = "tiny") -> list[str]:
    """Build stages and return their outcomes."""
    return [build_stage(repo, recipe, stage, lambda line: None) for stage in stages]


def test_executed_then_unchanged_then_restored(project: Project, repo: Any) -> None:
    assert not is_current(repo, "tiny", "prepare")
    assert build(repo, "prepare", "validate") == ["executed", "executed"]
    assert is_current(repo, "tiny", "prepare")
    assert build(repo, "prepare", "validate") == ["unchanged", "unchanged"]
    report = Paths(project.root, "tiny").validate
    before = report.read_bytes()
    report.unlink()
    repo._reset()
    assert build(repo, "validate") == ["restored"]
    assert report.read_bytes() == before


def test_a_forced_stage_runs_again(repo: Any) -> None:
    build(repo, "prepare")
    said: list[str] = []
    assert build_stage(repo, "tiny", "prepare", said.append, force=True) == "executed"
    assert said == ["prepare begins", "prepare ends"]


def test_lines_arrive_while_the_stage_runs(project: Project, repo: Any) -> None:
    project.change("epochs: 1", "epochs: 3")
    build(repo, "prepare", "validate", "check", "gate")
    said: list[tuple[str, float]] = []
    build_stage(repo, "tiny", "finetune", lambda line: said.append((line, time.monotonic())))
    assert [line for line, _ in said] == [
        "finetune begins",
        "epoch 0 größer",
        "epoch 1 größer",
        "finetune ends",
    ]
    assert said[2][1] - said[1][1] > 0.5, "they must not come all at once at the end"


def test_a_refusal_brings_its_reasons_and_its_report(project: Project, repo: Any) -> None:
    project.change("failed_expectations: {refuse_above: 0}", "failed_expectations: {refuse_above: -1}")
    build(repo, "prepare", "validate", "check")
    with pytest.raises(Refused) as caught:
        build(repo, "gate")
    assert "The data may not train:" in str(caught.value)
    assert "failed_expectations: too many" in str(caught.value)
    assert caught.value.exit_code == 3
    assert Paths(project.root, "tiny").gate.exists()
    assert "gate@tiny" not in yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]


@pytest.mark.parametrize(
    ("batch_size", "error", "words"),
    [
        (13, StageError, ["the loss is not finite", "step 3", "step 4"]),
        (14, StageError, ["ValueError: a bug", "Traceback"]),
        (75, Preempted, ["asked to stop"]),
    ],
)
def test_a_failure_says_what_the_stage_said_last(
    project: Project, repo: Any, batch_size: int, error: type[PipelineError], words: list[str]
) -> None:
    project.change("batch_size: 16", f"batch_size: {batch_size}")
    build(repo, "prepare", "validate", "check", "gate")
    with pytest.raises(error) as caught:
        build(repo, "finetune")
    assert [word for word in words if word not in str(caught.value)] == []
    assert not is_current(repo, "tiny", "finetune")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (-9, StageError, "ran out of memory"),
        (137, StageError, "ended by signal 9"),
        (-15, StageError, "ended by signal 15"),
        (42, StageError, "exited with status 42"),
        (130, KeyboardInterrupt, ""),
    ],
)
def test_what_an_exit_status_means(status: int, kind: type[BaseException], words: str) -> None:
    failure = stage_failure("finetune", status, "")
    assert type(failure) is kind
    assert words in str(failure)


def test_last_words_are_the_error_or_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_words(log, "gate") == ""
    log.write_text("a\ngate: first\nb\ngate: no\n  - one\n  - two\n")
    assert last_words(log, "gate") == "no\n  - one\n  - two"
    log.write_text("".join(f"line {number}\n" for number in range(40)))
    assert last_words(log, "gate").splitlines()[0] == "line 25"


@pytest.mark.e2e
def test_the_lock_does_not_tell_which_recipe_ran_first(tmp_path: Path) -> None:
    locks = []
    for order in (("tiny", "other"), ("other", "tiny")):
        project = make_project(tmp_path / order[0], stand_ins=True, names=("tiny", "other"))
        for name in ("tiny", "other"):  # the same recipe texts in both projects
            text = project.recipe(name).read_text().replace(str(project.root), "/somewhere")
            project.recipe(name).write_text(text)
        with open_repo(project.root) as repo:
            for name in order:
                add_raw_data(project, repo, name)
            for name in order:
                build(repo, "prepare", "validate", recipe=name)
            before = (project.root / "dvc.lock").read_text()
            order_lock(repo)
            assert build(repo, "prepare", "validate") == ["unchanged", "unchanged"]
        locks.append((project.root / "dvc.lock").read_text())
    assert locks[0] == locks[1]
    assert before != locks[1], "the order was different, or this test tests nothing"


def test_a_recipe_that_dvc_does_not_build(project: Project, repo: Any) -> None:
    with pytest.raises(ConfigError, match=r"list 'nobody' under `recipes:` in params\.yaml"):
        check_listed(repo, "nobody")


def test_a_folder_without_dvc(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `dvc init` there"), open_repo(tmp_path):
        pass


def test_another_dvc_process_is_waited_for(project: Project) -> None:
    """DVC itself gives up after three seconds, and would throw the stage's work away."""
    import subprocess
    import sys

    code = (
        "import sys, time; from dvc.repo import Repo\n"
        "with Repo('.') as repo, repo.lock:\n    print('held', flush=True); time.sleep(5)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=project.root, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with open_repo(project.root) as repo:
            assert build(repo, "prepare") == ["executed"]
    with open_repo(project.root, lock_wait_seconds=600) as repo:
        assert is_current(repo, "tiny", "prepare")
