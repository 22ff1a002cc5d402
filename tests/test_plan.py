"""The plan says what would run and why, from a repository that DVC really built."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.plan import Plan, PlannedStage, make_plan
from tasks.errors import ConfigError
from tasks.stages import STAGES

ROOT = Path(__file__).parent.parent
FAKE = """
import pathlib, sys, yaml
stage, recipe = sys.argv[1:]
pipeline = yaml.safe_load(open("dvc.yaml"))["stages"][stage]
for kind in ("outs", "metrics", "plots"):
    for out in pipeline.get(kind, []):
        out = out if isinstance(out, str) else next(iter(out))
        path = pathlib.Path(out.replace("${item.recipe}", recipe))
        path.parent.mkdir(parents=True, exist_ok=True)
        name = "schema.json" if path.name == "splits" else "x"
        if path.suffix:
            path.write_text(stage)
        else:
            path.mkdir(exist_ok=True)
            (path / name).write_text(stage)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the real dvc.yaml with stages that only write their outputs."""
    root = tmp_path_factory.mktemp("repository")
    (root / "recipes").mkdir()
    (root / "tasks").mkdir()
    pipeline = (
        (ROOT / "dvc.yaml")
        .read_text()
        .replace("exec python -m tasks", f"exec {shlex.quote(sys.executable)} fake.py")
    )
    (root / "dvc.yaml").write_text(pipeline)
    (root / "fake.py").write_text(FAKE)
    (root / "params.yaml").write_text("recipes: [sentiment]\n")
    (root / "tasks" / "versions.yaml").write_text((ROOT / "tasks/versions.yaml").read_text())
    (root / "recipes" / "sentiment.yaml").write_text((ROOT / "recipes/sentiment.yaml").read_text())
    (root / "data" / "raw" / "sentiment").mkdir(parents=True)
    (root / "data" / "raw" / "sentiment" / "amazon.tsv").write_text("x")
    from dvc.repo import Repo

    subprocess.run(["git", "init", "-q", str(root)], check=True)
    Repo.init(str(root)).close()
    with contextlib.chdir(root), Repo(str(root)) as repo:
        repo.reproduce(targets=[f"{stage}@sentiment" for stage in STAGES])
    return root


@pytest.fixture
def root(built: Path) -> Path:
    """Give the built repository with its own recipe put back."""
    (built / "recipes" / "sentiment.yaml").write_text((ROOT / "recipes/sentiment.yaml").read_text())
    return built


def states(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.state for stage in plan.stages}


def edit(root: Path, section: str, field: str, value: object) -> None:
    path = root / "recipes" / "sentiment.yaml"
    document = yaml.safe_load(path.read_text())
    document[section][field] = value
    path.write_text(yaml.safe_dump(document))


def test_nothing_to_do(root: Path) -> None:
    plan = make_plan(root, "sentiment")
    assert [stage.name for stage in plan.stages] == list(STAGES)
    assert plan.nothing_to_do


def test_a_rate_retrains_and_says_from_what_to_what(root: Path) -> None:
    edit(root, "finetune", "learning_rate", 0.0005)
    plan = make_plan(root, "sentiment")
    found = {stage.name: stage for stage in plan.stages}
    assert found["finetune"].why == ("finetune.learning_rate: 0.0001 → 0.0005",)
    assert states(plan) == {
        "prepare": "up to date", "validate": "up to date", "check": "up to date", "gate": "up to date",
        "finetune": "runs", "merge": "may run", "pin": "may run", "evaluate": "may run",
        "decide": "runs",  # its advice knows how the recipe trains
    }  # fmt: skip
    assert found["merge"].why == ("if the result of finetune changes",)


def test_a_bound_reruns_gate_and_measures_nothing_again(root: Path) -> None:
    edit(root, "gate", "failed_expectations", {"refuse_above": 1})
    plan = make_plan(root, "sentiment")
    assert [name for name, state in states(plan).items() if state == "runs"] == ["gate"]
    assert plan.stages[3].why == ("gate.failed_expectations.refuse_above: 0 → 1",)


def test_changes_for_one_run_are_planned_without_touching_the_recipe(root: Path) -> None:
    before = (root / "recipes" / "sentiment.yaml").read_bytes()
    plan = make_plan(root, "sentiment", {"finetune.epochs": 1, "register.name": "other"})
    found = {stage.name: stage for stage in plan.stages}
    assert found["finetune"].why == ("finetune.epochs: 2 → 1",)
    assert found["pin"].why == ('register.name: "sentiment" → "other"',)
    assert (root / "recipes" / "sentiment.yaml").read_bytes() == before


def test_wrong_changes_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.rate"):
        make_plan(root, "sentiment", {"finetune.rate": 1})
    with pytest.raises(ConfigError, match=r"finetune\.epochs"):
        make_plan(root, "sentiment", {"finetune.epochs": 0})


def test_missing_data_and_edited_results_are_named(root: Path) -> None:
    raw, gate = root / "data/raw/sentiment/amazon.tsv", root / "data/sentiment/gate.json"
    kept = gate.read_text()
    raw.write_text("y")
    gate.write_text("edited")
    try:
        found = {stage.name: stage for stage in make_plan(root, "sentiment").stages}
    finally:
        raw.write_text("x")
        gate.write_text(kept)
    assert found["prepare"].why == ("data/raw/sentiment changed",)
    assert found["gate"].why == ("data/sentiment/gate.json was edited by hand",)


def test_times_come_from_earlier_runs(root: Path) -> None:
    folder = root / ".retain" / "sentiment" / "timings"
    folder.mkdir(parents=True)
    (folder / "finetune.json").write_text(json.dumps({"stage": "finetune", "started": 1, "seconds": 61.5}))
    (folder / "gate.json").write_text("torn")
    found = {stage.name: stage.seconds for stage in make_plan(root, "sentiment").stages}
    assert found["finetune"] == 61.5
    assert found["gate"] is None
    assert found["merge"] is None


def test_a_recipe_that_params_does_not_list(root: Path) -> None:
    (root / "recipes" / "other.yaml").write_text((ROOT / "recipes/sentiment.yaml").read_text())
    with pytest.raises(ConfigError, match=r"add 'other' to `recipes` in params\.yaml"):
        make_plan(root, "other")


def test_a_stage_that_never_ran(root: Path) -> None:
    lock = root / "dvc.lock"
    kept = lock.read_text()
    lock.unlink()
    try:
        plan = make_plan(root, "sentiment")
    finally:
        lock.write_text(kept)
    assert {stage.why for stage in plan.stages} == {("has not run yet",)}


def test_cost_adds_what_is_known_and_names_what_is_not() -> None:
    stages = (
        PlannedStage("finetune", "runs", (), 60.0),
        PlannedStage("merge", "may run", (), 5.0),
        PlannedStage("evaluate", "may run", (), None),
    )
    assert Plan("x", stages).seconds("runs") == (60.0, [])
    assert Plan("x", stages).seconds("runs", "may run") == (65.0, ["evaluate"])
