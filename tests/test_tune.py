"""tune: trials are judged within the budget, a stopped search goes on, a ruinous trial ends alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import tune as module
from tasks.errors import ConfigError, StageError
from tasks.paths import Paths
from tasks.recipe import Recipe, Tune, load_recipe, recipe_path
from tasks.tune import Trial, ranked, tune
from tests.models_data import tuned_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    tuned_project(folder, until="gate")
    return folder


@pytest.fixture
def paths(project: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("RETAIN_HOME", str(project / "store"))
    return Paths(project / "project", "tiny")


def searched(paths: Paths, **more: object) -> Recipe:
    section = {"trials": 3, "seed": 1, "methods": ["full", "lp-ft"], "epochs": [1], **more}
    return load_recipe(recipe_path(paths.root, "tiny")).model_copy(
        update={"tune": Tune.model_validate(section)}
    )


def test_every_trial_says_what_it_changed_and_what_came_of_it(paths: Paths) -> None:
    told: list[Trial] = []
    found = tune(searched(paths), paths=paths, tell=told.append)
    assert [trial.number for trial in told] == [0, 1, 2]
    assert sorted(trial.number for trial in found) == [0, 1, 2]
    gains = [trial.gain for trial in found if trial.gain is not None]
    assert gains == sorted(gains, reverse=True)
    for trial in found:
        assert trial.state in ("complete", "pruned")
        assert trial.changes["finetune.method"] in ("full", "lp-ft")
        assert 1e-5 <= trial.changes["finetune.learning_rate"] <= 5e-4
        if trial.state == "complete":
            assert trial.gain is not None
            assert trial.gain >= 0, "the base itself is always within the budget"
            assert set(trial.losses or {}) == {"articles"}
    assert not list((paths.scratch / "tune").glob(".trial.*")), "nothing is left of the trials' models"


def test_a_search_goes_on_where_it_stood(paths: Paths) -> None:
    first = tune(searched(paths, seed=2), paths=paths, trials=1)
    assert len(first) == 1
    told: list[Trial] = []
    again = tune(searched(paths, seed=2), paths=paths, trials=3, tell=told.append)
    assert [trial.number for trial in told] == [1, 2]
    assert next(trial for trial in again if trial.number == 0) == first[0]
    rates = [trial.changes["finetune.learning_rate"] for trial in again]
    assert len(set(rates)) == 3, "what was drawn before is not drawn again"
    assert len(tune(searched(paths, seed=2), paths=paths, trials=2)) == 3, "nothing is left to do"


def test_other_budgets_are_other_searches(paths: Paths) -> None:
    recipe = searched(paths, seed=3)
    tune(recipe, paths=paths, trials=1)
    margin = recipe.budget["articles"].model_copy(update={"margin": 0.4})
    told: list[Trial] = []
    other = recipe.model_copy(update={"budget": {"articles": margin}})
    tune(other, paths=paths, trials=1, tell=told.append)
    assert [trial.number for trial in told] == [0]


def test_a_trial_that_fails_does_not_end_the_search(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = module.train_model, []

    def failing(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) == 1:
            raise StageError("step 3: the loss is nan")
        return train(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_model", failing)
    found = tune(searched(paths, seed=4, trials=2), paths=paths)
    assert [trial.state for trial in found] == ["complete", "failed: step 3: the loss is nan"]


def test_the_best_comes_first_and_what_did_not_end_last() -> None:
    made = [Trial(0, {}, "pruned"), Trial(1, {}, "complete", gain=0.1), Trial(2, {}, "complete", gain=0.3)]
    assert [trial.number for trial in ranked(made)] == [2, 1, 0]


def test_a_recipe_without_a_search_says_what_it_lacks(paths: Paths) -> None:
    with pytest.raises(ConfigError, match="no section `tune`"):
        tune(load_recipe(recipe_path(paths.root, "tiny")), paths=paths)


def test_data_that_was_not_cleared_is_not_searched_over(paths: Paths, project: Path) -> None:
    passport = paths.passport.read_bytes()
    paths.passport.unlink()
    try:
        with pytest.raises(StageError, match="has not been cleared"):
            tune(searched(paths), paths=paths)
    finally:
        paths.passport.write_bytes(passport)


def test_alone_it_writes_its_trials(paths: Paths) -> None:
    recipe = recipe_path(paths.root, "tiny")
    before = recipe.read_text()
    recipe.write_text(before + "\ntune: {trials: 1, seed: 9, methods: [lp-ft], epochs: [1]}\n")
    try:
        command = [sys.executable, "-m", "tasks.tune", "tiny"]
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            command, cwd=paths.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "trial 0: gain" in done.stdout
        (trial,) = json.loads(module.trials_file(paths).read_text())
        assert trial["changes"]["finetune.method"] == "lp-ft"
    finally:
        recipe.write_text(before)
