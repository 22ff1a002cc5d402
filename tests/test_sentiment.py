"""The main job on real weights and data: both doors, changed rates, the ruinous rate, and the release at work.

One long story, told in order: each test goes on where the one before it left the clones. `make test-slow` runs it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import reports
from tasks.paths import Paths
from tests.project import BIN, CHECKOUT, Project
from tests.test_doors import results

pytestmark = [pytest.mark.e2e, pytest.mark.realdata]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder with spaces")


class Clone(Project):
    """A clone of this repository, with the code of the clone."""

    @property
    def environment(self) -> dict[str, str]:
        """Use one store for all clones, so that the base model is fetched once, and the clone's own code."""
        one_store = {"RETAIN_HOME": str(self.root.parent / "store"), "PYTHONPATH": str(self.root)}
        return {**super().environment, **one_store}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `retain` and return what it said, whatever its status."""
        return self.command(str(BIN / "retain"), *words, check=False)


def clone(folder: Path, name: str) -> Clone:
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(folder / name)], check=True)
    made = Clone(folder / name)
    made.git("config", "user.name", "Test")
    made.git("config", "user.email", "test@localhost")
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> Clone:
    return clone(folder, "one")


@pytest.fixture(scope="module")
def two(folder: Path) -> Clone:
    return clone(folder, "two")


def executed(said: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r" - (\w+): executed", said.stdout + said.stderr)


def test_the_first_run_releases_a_model_that_gained_and_did_not_forget(one: Clone) -> None:
    said = one.run("run", "sentiment")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Version 1 released, now the champion." in said.stdout
    paths = Paths(one.root, "sentiment")
    evaluated = reports.read_report(paths.evaluate, reports.EvaluateReport)
    test = evaluated.targets[0]
    assert test.candidate > 0.84
    assert test.gain > 0.02
    losses = {suite.name: suite.loss for suite in evaluated.suites}
    assert losses["constitution"] < 0.03
    assert losses["conversations"] < 0.025
    assert reports.read_report(paths.decision, reports.DecideReport).verdict == "PASS"


def test_the_second_run_has_nothing_to_do_and_says_so(one: Clone) -> None:
    said = one.run("run", "sentiment")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Nothing to do" in said.stdout
    assert executed(said) == []


def test_after_the_flow_dvc_executes_nothing(one: Clone) -> None:
    said = one.dvc("repro").stdout
    assert "Running stage" not in said
    assert "up to date" in said


def test_the_other_door_leaves_the_same_bytes(one: Clone, two: Clone) -> None:
    assert two.run("fetch", "sentiment").returncode == 0
    assert "Running stage 'finetune@sentiment'" in two.dvc("repro").stdout
    assert results(two) == results(one)
    said = two.run("run", "sentiment")
    assert said.returncode == 0, said.stdout + said.stderr
    assert executed(said) == []
    assert "Version 1 released" in said.stdout


def test_a_changed_rate_runs_in_a_workspace_and_the_other_door_takes_its_result(one: Clone) -> None:
    one.commit("the first lock")
    said = one.run("run", "sentiment", "--set", "finetune.learning_rate=5e-5", "--set", "finetune.epochs=1")
    assert said.returncode in (0, 3), said.stdout + said.stderr
    assert executed(said)[0] == "finetune"
    assert one.git("status", "--porcelain") == ""
    (name,) = re.findall(r"Kept as the experiment ([\w-]+):", said.stdout)
    assert name in one.dvc("exp", "list", "--name-only").stdout
    recipe = one.recipe("sentiment")
    text = recipe.read_text()
    recipe.write_text(
        text.replace("learning_rate: 1.0e-4", "learning_rate: 5.0e-05").replace("epochs: 2", "epochs: 1")
    )
    again = one.dvc("repro", "finetune@sentiment", "merge@sentiment").stdout
    assert "Running stage" not in again
    one.git("checkout", "--quiet", "--", ".")
    one.dvc("checkout", "--quiet")


def test_the_ruinous_rate_is_rescued_or_refused(one: Clone) -> None:
    said = one.run(
        "run", "sentiment", "--set", "finetune.method=full", "--set", "finetune.learning_rate=5e-4"
    )
    assert said.returncode in (0, 3), said.stdout + said.stderr
    assert "over the budget: constitution, conversations" in said.stdout + said.stderr
    assert re.search(r"Mixed with the base at α = 0\.\d|no weight of the tuning fits", said.stdout)


def test_the_release_classifies(one: Clone) -> None:
    texts = "It works perfectly and I love it.\nIt broke after two days, awful quality.\n"
    said = subprocess.run(
        [str(BIN / "retain"), "predict", "sentiment@1", "--json"],
        input=texts,
        cwd=one.root,
        env=one.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["label"] for line in said.stdout.splitlines()] == ["positive", "negative"]


def test_what_was_pushed_needs_no_work_in_a_fresh_clone(one: Clone, folder: Path) -> None:
    """The data travel by the remote, the lock by git; the other machine has neither cache nor store."""
    remote = folder / "remote"
    one.dvc("remote", "add", "--force", "--local", "folder", str(remote))
    one.dvc("push", "--quiet", "--remote", "folder")
    fresh = folder / "fresh"
    subprocess.run(["git", "clone", "--quiet", str(one.root), str(fresh)], check=True)
    environment = {**one.environment, "RETAIN_HOME": str(folder / "empty store"), "PYTHONPATH": str(fresh)}
    for words in (
        ["remote", "add", "--force", "--local", "folder", str(remote)],
        ["pull", "--quiet", "--remote", "folder"],
        ["repro"],
    ):
        said = subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=fresh,
            env={**environment, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert "Running stage" not in said
    assert "up to date" in said
