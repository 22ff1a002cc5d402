"""tune: trials are judged within the budget, a killed search goes on, a ruinous trial ends alone, the winner is run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.run_lock import is_held
from flows.tune import search
from flows.workspace import change_recipe
from tasks import tune as module
from tasks.__main__ import run_stage
from tasks.errors import ConfigError, Preempted, Refused, StageError
from tasks.families.interface import Measured
from tasks.forgetting.search import Search
from tasks.forgetting.way import rank_number
from tasks.paths import Paths
from tasks.recipe import Recipe, Tune, load_recipe, recipe_path
from tasks.reports import AlphaOutcome, MergeReport, read_report
from tasks.stage_log import ENDS_WITH_PARENT
from tasks.stops import Terminated
from tasks.training.loop import Progress
from tasks.trials import Trial, ranked, read_trials, winner
from tasks.tune import sample, tune
from tests.models_data import tuned_project
from tests.project import CHECKOUT, make_project


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
    ended = [trial for trial in found if trial.log_likelihood_gain is not None]
    assert ended
    orders = [((trial.gain or 0.0) > 0, trial.log_likelihood_gain or 0.0) for trial in ended]
    assert orders == sorted(orders, reverse=True)
    for trial in found:
        assert trial.state in ("complete", "pruned")
        assert trial.changes["finetune.method"] in ("full", "lp-ft")
        assert 1e-5 <= trial.changes["finetune.learning_rate"] <= 5e-4
        if trial.state == "complete":
            assert trial.gain is not None
            assert trial.gain >= 0, "the base itself is always within the budget"
            assert set(trial.losses or {}) == set(trial.kept or {}) == {"articles"}
    assert not list((paths.scratch / "tune").glob("trial-*")), "nothing is left of the trials' models"


def test_what_gains_counts_more_than_the_base_however_likely_its_labels(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser is steered by the order in which trials are shown and won."""
    gains = iter([(0.0, 0.0), (0.02, -0.05), (0.01, 0.03)])
    values: list[float] = []
    run = module._Attempt.run

    def chosen(outcomes: Sequence[AlphaOutcome]) -> AlphaOutcome:
        gain, likelier = next(gains)
        return outcomes[-1].model_copy(update={"gain": gain, "log_likelihood_gain": likelier})

    def kept(attempt: Any, trial: Any, section: Tune) -> float:
        values.append(run(attempt, trial, section))
        return values[-1]

    monkeypatch.setattr(module, "choose", chosen)
    monkeypatch.setattr(module._Attempt, "run", kept)
    found = tune(searched(paths, seed=17, epochs=[1]), paths=paths)
    assert [trial.number for trial in found] == [2, 1, 0]
    assert sorted((0, 1, 2), key=lambda number: -values[number]) == [2, 1, 0]


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


def test_a_trial_that_lags_behind_half_of_the_others_is_given_up(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the last epoch there is nothing left to give up: it is not asked.
    promises = [[0.9] * 2, [0.8] * 2, [0.7] * 2, [0.1], [0.95] * 2]
    trial, epochs = iter(promises), list[int]()

    def trained(*given: Any) -> None:
        watch, own = given[-1], iter(next(trial))
        monkeypatch.setattr(module._Attempt, "_promise", lambda *_: next(own))
        for epoch in (1, 2, 3):
            epochs.append(epoch)
            watch(Progress(epoch=epoch), Measured(np.zeros(2), np.zeros(2)))

    monkeypatch.setattr(module, "train_model", trained)
    recipe = searched(paths, seed=9, trials=5, epochs=[3])
    found = {trial.number: trial.state for trial in tune(recipe, paths=paths)}
    assert found == {0: "complete", 1: "complete", 2: "complete", 3: "pruned", 4: "complete"}
    assert epochs == [*[1, 2, 3] * 3, 1, 1, 2, 3]


def test_trials_are_compared_at_the_same_share_of_their_epochs(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: dict[int, dict[int, float]] = {}

    def trained(*given: Any) -> None:
        section, watch = given[1], given[-1]
        for epoch in range(1, section.epochs + 1):
            watch(Progress(epoch=epoch), Measured(np.zeros(2), np.zeros(2)))

    def promise(self: Any, model: Any, section: Any, folder: Any) -> float:
        return float(section.epochs)

    report = optuna.trial.Trial.report

    def kept(self: optuna.trial.Trial, value: float, step: int) -> None:
        reported.setdefault(int(value), {})[step] = value
        report(self, value, step)

    monkeypatch.setattr(module, "train_model", trained)
    monkeypatch.setattr(module._Attempt, "_promise", promise)
    monkeypatch.setattr(optuna.trial.Trial, "report", kept)
    tune(searched(paths, seed=19, trials=6, epochs=[1, 2, 4]), paths=paths)
    assert reported == {2: {500: 2.0}, 4: {250: 4.0, 500: 4.0, 750: 4.0}}


@pytest.mark.parametrize("method", ["lp-ft", "lora"])
def test_to_ask_what_a_trial_promises_changes_nothing_of_it(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    promise, found = module._Attempt._promise, list[float]()

    def kept(*given: Any) -> float:
        found.append(promise(*given))
        return found[-1]

    monkeypatch.setattr(module._Attempt, "_promise", kept)
    recipe = searched(paths, seed=20, trials=1, methods=[method], epochs=[2], learning_rates=[3.0, 5.0])
    (asked,) = tune(recipe, paths=paths)
    assert len(found) == 1
    assert -2 < found[0] < 2
    monkeypatch.setattr(module._Attempt, "_promise", lambda *_: 0.0)
    shutil.rmtree(paths.scratch / "tune")
    (unasked,) = tune(recipe, paths=paths)
    assert asked.model == unasked.model
    assert asked.log_likelihood_gain == unasked.log_likelihood_gain


def test_what_is_best_halfway_to_the_base_is_not_given_up(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ruined model whose mixture gains promises what the mixture gains."""
    recipe = searched(paths, seed=21, trials=1, methods=["lp-ft"], epochs=[2])
    gains = {0.5: (0.02, 0.03), 1.0: (-0.05, -0.4)}

    def look(self: Search, point: tuple[str, float]) -> AlphaOutcome:
        gain, likelier = gains[point[1]]
        return AlphaOutcome(
            alpha=point[1],
            validation_score=0.8,
            gain=gain,
            log_likelihood_gain=likelier,
            suites=[],
            within_budget=None,
            blocked_by=[],
        )

    promise, found = module._Attempt._promise, list[float]()

    def kept(*given: Any) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Search, "look", look)
            found.append(promise(*given))
        return found[-1]

    monkeypatch.setattr(module._Attempt, "_promise", kept)
    tune(recipe, paths=paths)
    assert found == [rank_number(0.02, 0.03, 0.5)]


def test_other_budgets_are_other_searches(paths: Paths) -> None:
    recipe = searched(paths, seed=3)
    tune(recipe, paths=paths, trials=1)
    margin = recipe.budget["articles"].model_copy(update={"margin": 0.4})
    told: list[Trial] = []
    other = recipe.model_copy(update={"budget": {"articles": margin}})
    tune(other, paths=paths, trials=1, tell=told.append)
    assert [trial.number for trial in told] == [0]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("base.json", ["fingerprint"]),
        ("base.json", ["first_base", "fingerprint"]),
        ("selection/articles/benchmark.json", ["fingerprint"]),
    ],
)
def test_other_weights_or_benchmarks_behind_the_same_recipe_are_other_searches(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, file: str, fields: list[str]
) -> None:
    monkeypatch.setattr(module, "base_folder", lambda base, root: root)
    monkeypatch.setattr(module._Attempt, "run", lambda attempt, trial, section: 0.0)
    recipe, told = searched(paths, seed=12), list[Trial]()
    tune(recipe, paths=paths, trials=1)
    tune(recipe, paths=paths, trials=1, tell=told.append)
    assert told == [], "the same content goes on with the same search"
    report = paths.out / file
    before = report.read_text()
    content = part = json.loads(before)
    for field in fields[:-1]:
        part = part[field]
    part[fields[-1]] = "f" * 64
    report.write_text(json.dumps(content))
    try:
        tune(recipe, paths=paths, trials=1, tell=told.append)
    finally:
        report.write_text(before)
    assert [trial.number for trial in told] == [0]


def test_a_trial_never_goes_on_from_the_checkpoints_of_another_search(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[object, Path]] = []

    def failing(
        model: object, section: object, train: object, validation: object, scratch: Path, *_: object
    ) -> None:
        trained.append((section, scratch))
        raise StageError("step 3: the loss is nan")

    monkeypatch.setattr(module, "train_model", failing)
    recipe = searched(paths, seed=13)
    margin = recipe.budget["articles"].model_copy(update={"margin": 0.4})
    for one in (recipe, recipe.model_copy(update={"budget": {"articles": margin}})):
        tune(one, paths=paths, trials=1)
    (section, scratch), (same, other) = trained
    assert section == same
    assert scratch != other


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


def test_a_full_disk_ends_the_search_and_no_trial(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said, train = os.strerror(errno.ENOSPC), module.train_model

    def full(*given: object) -> None:
        raise StageError("the checkpoint cannot be written") from OSError(errno.ENOSPC, said)

    recipe = searched(paths, seed=7, trials=1, methods=["lp-ft"])
    monkeypatch.setattr(module, "load_recipe", lambda path: recipe)
    monkeypatch.setattr(module, "train_model", full)
    monkeypatch.setattr(sys, "argv", ["tune", "tiny"])
    monkeypatch.chdir(paths.root)
    assert module.main() == 1
    assert capsys.readouterr().err == "tune: the checkpoint cannot be written\n"
    monkeypatch.setattr(module, "train_model", train)
    assert [trial.state for trial in tune(recipe, paths=paths)] == ["complete"], "it is taken up again"


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (KeyboardInterrupt(), True),
        (SystemExit(143), True),
        (Preempted("stopped after step 3"), True),
        (StageError("step 3: the loss is nan"), False),
        (optuna.TrialPruned(), False),
    ],
    ids=["ctrl-c", "exit", "preempted", "failed", "pruned"],
)
def test_only_a_trials_own_end_takes_its_checkpoints(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, end: BaseException, kept: bool
) -> None:
    train, found = module.train_model, list[bool]()

    def ending(*given: Any) -> object:
        checkpoint = given[4] / "of-the-test"
        found.append(checkpoint.is_file())
        if len(found) > 1:
            return train(*given)
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        raise end

    monkeypatch.setattr(module, "train_model", ending)
    recipe = searched(paths, seed=14, trials=1, methods=["lp-ft"], epochs=[1, 2, 3])
    scratch = paths.scratch / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    left: list[Path] = []
    with pytest.raises(type(end)) if kept else contextlib.nullcontext():
        tune(recipe, paths=paths, tell=lambda _: left.extend(scratch.glob("trial-*")))
    if not kept:
        assert left == [], "before the search ends"
        return
    assert [trial.state for trial in tune(recipe, paths=paths)] == ["complete"]
    assert found == [False, True], "it is taken up again, beside its checkpoints"


class Killed(BaseException):
    """Ends a process where it stands: Optuna hears of no end either."""


def test_a_trial_whose_process_is_killed_again_and_again_fails_and_the_search_goes_on(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, drawn = module.train_model, list[Any]()

    def killed(*given: Any) -> object:
        drawn.append(given[1])
        if given[1] == drawn[0]:
            raise Killed
        return train(*given)

    monkeypatch.setattr(module, "train_model", killed)
    recipe = searched(paths, seed=15, trials=2)
    for _ in range(3):
        with pytest.raises(Killed):
            tune(recipe, paths=paths)
    told: list[Trial] = []
    found = tune(recipe, paths=paths, tell=told.append)
    assert len(drawn) == 4, "drawn once, taken up twice, and another one"
    reason = "failed: it took its process with it 3 times: out of memory, most often"
    assert [trial.state for trial in told] == [reason, "complete"]
    assert [trial.state for trial in found] == ["complete", reason]
    assert found[1].changes["finetune.learning_rate"] == drawn[0].learning_rate
    assert tune(recipe, paths=paths, tell=told.append) == found, "it is told once"
    assert len(told) == 2


def test_a_trial_may_be_stopped_as_often_as_one_likes(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [Killed(), KeyboardInterrupt(), Terminated(), KeyboardInterrupt(), Terminated(), Killed()]
    train, stops = module.train_model, iter(ends)

    def stopped(*given: Any) -> object:
        for stop in stops:
            raise stop
        return train(*given)

    monkeypatch.setattr(module, "train_model", stopped)
    recipe = searched(paths, seed=16, trials=1, methods=["lp-ft"])
    for _ in range(6):
        with pytest.raises((Killed, KeyboardInterrupt, Terminated)):
            tune(recipe, paths=paths)
    assert [trial.state for trial in tune(recipe, paths=paths)] == ["complete"]


def test_an_error_of_the_codes_own_is_met_three_times_and_the_search_goes_on(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, ends = module.train_model, iter([MemoryError("of the test")] * 3)

    def failing(*given: Any) -> object:
        for end in ends:
            raise end
        return train(*given)

    monkeypatch.setattr(module, "train_model", failing)
    recipe = searched(paths, seed=17, trials=2)
    for _ in range(3):
        with pytest.raises(MemoryError, match="of the test"):
            tune(recipe, paths=paths)
    assert [trial.state.split(":")[0] for trial in tune(recipe, paths=paths)] == ["complete", "failed"]


def test_sigterm_while_a_trial_is_judged_is_no_fault_of_the_trials(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, judge, times = searched(paths, seed=18, trials=1, methods=["lp-ft"]), Search.outcomes, list[int]()

    def stopped(self: Search) -> object:
        times.append(len(times))
        if len(times) <= 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(self)

    monkeypatch.setattr(module, "load_recipe", lambda path: recipe)
    monkeypatch.setattr(Search, "outcomes", stopped)
    monkeypatch.setattr(sys, "argv", ["tune", "tiny"])
    monkeypatch.chdir(paths.root)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert [module.main() for _ in range(5)] == [75, 75, 75, 75, 0]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "asked to stop (SIGTERM); run it again to go on" in capsys.readouterr().err
    assert [trial.state for trial in tune(recipe, paths=paths)] == ["complete"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            OSError(errno.ENOSPC, "No room", "trials.json"),
            1,
            "No space left on device (trials.json). Nothing",
        ),
        (PermissionError(errno.EACCES, "No", "tune"), 1, "tune: No. Change its rights or owner.\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written is kept"),
    ],
)
def test_what_the_system_refuses_a_search_is_said_without_a_traceback(
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def end(*given: object) -> None:
        raise error

    monkeypatch.setattr(module, "tune", lambda *given, **named: [])
    monkeypatch.setattr(module, "write_trials", end)
    monkeypatch.setattr(sys, "argv", ["tune", "tiny"])
    monkeypatch.chdir(paths.root)
    assert module.main() == status
    assert capsys.readouterr().err.startswith(f"tune: {words}")


def test_a_search_in_which_every_trial_diverges_says_so(paths: Paths) -> None:
    recipe = searched(paths, seed=5, trials=2, methods=["full"], learning_rates=[1e35, 1e36])
    found = tune(recipe, paths=paths)
    assert [trial.failed for trial in found] == [True, True]
    assert "nan" in found[0].state
    with pytest.raises(Refused, match="No trial gained anything") as refused:
        winner(found, {"articles": 0.1})
    assert refused.value.problems == [f"trial {trial.number} {trial.state}" for trial in found]


def test_the_run_of_a_trial_makes_its_very_model(paths: Paths) -> None:
    found = tune(searched(paths, seed=6, trials=2, epochs=[2]), paths=paths)
    trial = next(trial for trial in found if trial.number == 1)
    recipe = recipe_path(paths.root, "tiny")
    before = recipe.read_text()
    try:
        change_recipe(recipe, trial.changes)
        for stage in ("finetune", "merge"):
            run_stage(stage, "tiny", paths.root)
        assert read_report(paths.merge, MergeReport).model == trial.model
    finally:
        recipe.write_text(before)


@pytest.mark.e2e
def test_killed_in_the_middle_of_a_trial_a_search_ends_as_it_would_have(paths: Paths) -> None:
    settings = "{trials: 1, seed: 11, methods: [full], learning_rates: [1, 2], epochs: [8]}"
    with searching(paths, settings, "checkpoint_every: 1") as start:
        checkpoints = paths.scratch / "tune"
        first = start()
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("trial-*/checkpoints/step-*")):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.kill()
        first.wait()
        said, _ = start().communicate()
        assert "trial 0 was interrupted: it is taken up again" in said
        assert "going on from the checkpoint" in said
        killed = read_trials(paths)
        shutil.rmtree(checkpoints)
        start().communicate()
        whole = read_trials(paths)
    assert len(killed) == len(whole) == 1
    assert killed[0].changes == whole[0].changes
    assert (killed[0].gain, killed[0].model) == (whole[0].gain, whole[0].model)


def test_the_best_comes_first_and_what_did_not_end_last() -> None:
    made = [Trial(0, {}, "pruned"), Trial(1, {}, "complete", gain=0.1), Trial(2, {}, "complete", gain=0.3)]
    assert [trial.number for trial in ranked(made)] == [2, 1, 0]


def test_of_equal_gains_the_one_nearest_to_its_base_comes_first() -> None:
    made = [Trial(n, {}, "complete", gain=0.1, alpha=alpha) for n, alpha in enumerate((0.8, 0.4, 0.4))]
    assert [trial.number for trial in ranked(made)] == [1, 2, 0]


def test_trials_that_gain_come_in_the_order_of_their_log_likelihood() -> None:
    said = [(0.05, 0.01), (0.01, 0.03), (0.0, 0.09), (None, None), (0.02, -0.02)]
    made = [
        Trial(n, {}, "complete" if gain is not None else "pruned", gain=gain, log_likelihood_gain=likelier)
        for n, (gain, likelier) in enumerate(said)
    ]
    assert [trial.number for trial in ranked(made)] == [1, 0, 4, 2, 3]
    assert winner(made, {}).number == 1


def test_a_trial_tells_what_it_trained_with_and_not_what_changes_nothing() -> None:
    neutral = {"finetune.l2_sp": 0.0, "finetune.layer_decay": 1.0, "finetune.lora": None}
    kept = {"finetune.method": "lora", "finetune.distill": 1.0}
    assert Trial(0, neutral | kept, "complete").settings == "method lora, distill 1.0"
    assert Trial(0, {"finetune.lora": {"rank": 8, "alpha": 16.0}}, "complete").settings == "rank 8"


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
    with searching(paths, "{trials: 1, seed: 9, methods: [lp-ft], epochs: [1]}") as start:
        said, problems = (done := start()).communicate()
    assert done.returncode == 0, problems
    assert "trial 0: gain" in said
    (trial,) = read_trials(paths)
    assert trial.changes["finetune.method"] == "lp-ft"


@contextlib.contextmanager
def searching(
    paths: Paths, settings: str, finetune: str = ""
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Give the recipe a search, and yield what starts one in a process of its own."""
    recipe = recipe_path(paths.root, "tiny")
    before = recipe.read_text()
    changed = before.replace("finetune:\n", f"finetune:\n  {finetune}\n") if finetune else before
    recipe.write_text(f"{changed}\ntune: {settings}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "tasks.tune", "tiny"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        yield lambda: subprocess.Popen(command, cwd=paths.root, env=environment, **pipes)
    finally:
        recipe.write_text(before)


MARGINS = {"articles": 0.05}


def test_the_winner_is_what_gained_most_within_the_budget() -> None:
    trials = [Trial(0, {}, "complete", gain=0.1), Trial(1, {}, "complete", gain=0.2), Trial(2, {}, "pruned")]
    assert winner(trials, MARGINS).number == 1


def test_without_a_winner_every_reason_is_said() -> None:
    over = Trial(3, {}, "complete", gain=0.0, tuned_gain=0.2, losses={"articles": 0.3})
    dull = Trial(4, {}, "complete", gain=0.0, tuned_gain=0.0, losses={"articles": 0.0})
    trials = [over, dull, Trial(5, {}, "pruned"), Trial(6, {}, "failed: the loss is nan")]
    with pytest.raises(Refused) as refused:
        winner(trials, MARGINS)
    said = refused.value.problems
    assert "trial 3, gained +0.2000 and lost articles +0.3000 (allowed 0.05)" in said[0]
    assert "1 learned nothing" in said[1]
    assert said[2:] == ["trial 6 failed: the loss is nan", "1 pruned: behind the median of the others"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["full", "ruin"]}, "tune.methods"),
        ({"methods": []}, None),
        ({"learning_rates": [5.0, 0.1]}, "the least multiple comes first"),
        ({"learning_rates": [1.0, 50.0]}, "more than 10 times the usual rate"),
        ({"replay_share": [0.0, 0.3]}, "needs data.replay"),
        ({"distill": [-1.0]}, "tune.distill"),
        ({"layer_decay": [0.0]}, "tune.layer_decay"),
        ({"trials": 0}, "tune.trials"),
    ],
)
def test_a_search_that_could_not_be_run_is_refused_with_the_recipe(
    paths: Paths, tmp_path: Path, changes: dict[str, object], said: str | None
) -> None:
    section = json.dumps({"trials": 1, "seed": 1, **changes})
    recipe = recipe_path(tmp_path, "tiny")
    recipe.parent.mkdir()
    recipe.write_text(f"{recipe_path(paths.root, 'tiny').read_text()}\ntune: {section}\n")
    if said is None:
        assert load_recipe(recipe).tune is not None
        return
    with pytest.raises(ConfigError, match=said):
        load_recipe(recipe)


@pytest.mark.parametrize("name", ["sentiment", "support-chat", "medical-imaging"])
def test_whatever_a_recipes_search_tries_could_become_a_run(name: str, tmp_path: Path) -> None:
    """The winner's settings go into the recipe as they are, beside the section `tune` that found them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    original = recipe_path(CHECKOUT, name)
    loaded = load_recipe(original)
    assert loaded.tune is not None
    changed = recipe_path(tmp_path, name)
    changed.parent.mkdir()
    tried = set()
    for _ in range(30):
        changes = sample(study.ask(), loaded.tune, loaded)
        shutil.copy(original, changed)
        change_recipe(changed, {f"finetune.{field}": value for field, value in changes.items()})
        assert load_recipe(changed).finetune.learning_rate == changes["learning_rate"]
        tried.add((changes["method"], changes["l2_sp"] > 0))
    assert len(tried) > len(loaded.tune.methods), "with L2-SP and without"


def test_rows_without_labels_are_replayed_only_to_be_distilled() -> None:
    """A trial that replays them draws from the strengths above 0, any other from all of them."""
    loaded = load_recipe(recipe_path(CHECKOUT, "medical-imaging"))
    assert loaded.tune is not None
    assert loaded.data.replay is not None
    assert loaded.data.replay.may_lack_labels
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [sample(study.ask(), loaded.tune, loaded) for _ in range(40)]
    assert {(made["replay_share"], made["distill"]) for made in drawn} == {(0.0, 0.0), (0.0, 1.0), (0.5, 1.0)}


def test_a_search_that_would_replay_rows_without_labels_for_nothing_is_refused(tmp_path: Path) -> None:
    changed = recipe_path(tmp_path, "medical-imaging")
    changed.parent.mkdir()
    shutil.copy(recipe_path(CHECKOUT, "medical-imaging"), changed)
    with pytest.raises(ConfigError, match=r"tune\.distill: replayed rows that may lack labels teach nothing"):
        change_recipe(changed, {"tune.distill": [0.0]})


def test_what_a_search_does_not_vary_is_as_the_recipe_trains(paths: Paths) -> None:
    recipe = searched(paths)
    trains = recipe.finetune.model_copy(update={"layer_decay": 0.8, "distill": 0.5})
    recipe = recipe.model_copy(update={"finetune": trains})
    assert recipe.tune is not None
    made = sample(optuna.create_study().ask(), recipe.tune, recipe)
    assert (made["layer_decay"], made["distill"]) == (0.8, 0.5)


def test_ctrl_c_leaves_the_search_time_to_end(tmp_path: Path) -> None:
    program = tmp_path / "search"
    program.write_text(
        f"#!{sys.executable}\nimport time\ntry:\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    open('ended', 'w').close()\n"
    )
    program.chmod(0o755)
    code = (
        f"import pathlib, sys; sys.executable = {str(program)!r}; from flows import tune; "
        "tune._search_in_process(pathlib.Path.cwd(), 'tiny', None, 2)"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert (tmp_path / "ended").exists()


def test_a_search_ends_with_the_command_that_began_it_and_holds_the_recipe_until_then(tmp_path: Path) -> None:
    program = tmp_path / "search"
    program.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "def stop(*_):\n    time.sleep(2)\n    open('ended', 'w').close()\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('begun', flush=True)\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    code = (
        f"import pathlib, sys; sys.executable = {str(program)!r}\n"
        "from flows import tune\nfrom flows.run_lock import only_run\nfrom tasks.paths import Paths\n"
        "from tasks.stops import sigterm_stops\n"
        "with only_run(Paths(pathlib.Path.cwd(), 'tiny'), 'tune', 'refuse', print) as lock, sigterm_stops():\n"
        "    tune._search_in_process(pathlib.Path.cwd(), 'tiny', None, lock)"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    lock = Paths(tmp_path, "tiny").scratch / "run.lock"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        time.sleep(0.5)
        assert is_held(lock), "the search is still ending"
        _, said = process.communicate(timeout=60)
    assert "Stopped: asked to stop (SIGTERM)" in said
    assert (tmp_path / "ended").exists()
    assert not is_held(lock)


def test_a_search_whose_command_is_killed_ends_too(tmp_path: Path) -> None:
    (tmp_path / "search.py").write_text(
        "import sys, time\nfrom tasks import tune\n"
        "tune._search = lambda *given: (print('begun', flush=True), time.sleep(60))\n"
        "sys.exit(tune.main())\n"
    )
    (tmp_path / "command.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'search.py', 'tiny'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), ENDS_WITH_PARENT: "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "command.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
        _, said = process.communicate(timeout=30)  # until the search has closed its ends of the pipes
    assert said.endswith("tune: asked to stop (SIGTERM); run it again to go on\n")


# --- the command ---------------------------------------------------------------------------------------

FOUND = [
    Trial(
        1,
        {"finetune.method": "lp-ft", "finetune.learning_rate": 2e-4, "finetune.lora": None},
        "complete",
        gain=0.08,
        alpha=0.6,
        path="lines",
        tuned_gain=0.1,
        losses={"constitution": 0.06, "conversations": 0.01},
        kept={"constitution": 0.015, "conversations": -0.01},
        model="abc",
    ),
    Trial(0, {"finetune.method": "full", "finetune.learning_rate": 1e-3}, "failed: step 3: the loss is nan"),
]


def command(monkeypatch: pytest.MonkeyPatch, found: list[Trial]) -> Result:
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setattr("flows.tune.search", lambda *given: found)
    return CliRunner().invoke(app, ["tune", "sentiment", "--no-run"])


def test_the_command_shows_every_trial_and_how_to_run_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    done = command(monkeypatch, FOUND)
    assert done.exit_code == 0, done.output
    best, failed = (
        next(line for line in done.output.splitlines() if word in line) for word in ("lp-ft", "nan")
    )
    for word in ("+0.0800", "0.6", "50%", "+0.1000", "200%", "method lp-ft, learning_rate 0.0002"):
        assert word in best
    assert "learning_rate 0.001" in failed
    settings = shlex.split(done.output.rpartition("retain run sentiment ")[2])
    assert settings[1::2] == ["finetune.learning_rate=0.0002"], "where it differs from the recipe"


def test_the_command_refuses_when_nothing_was_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    done = command(monkeypatch, FOUND[1:])
    assert isinstance(done.exception, Refused)
    assert done.exception.problems == ["trial 0 failed: step 3: the loss is nan"]


def test_what_a_run_may_not_start_from_is_told_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "a project", stand_ins=True)
    monkeypatch.chdir(project.root)
    searches: list[object] = []

    def search(*given: object) -> list[Trial]:
        searches.append(given)
        return FOUND[1:]

    monkeypatch.setattr("flows.tune.search", search)
    project.change("epochs: 1", "epochs: 2")
    done = CliRunner().invoke(app, ["tune", "tiny"])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.message.startswith(
        "The best trial becomes a run (with --no-run it does not). A run"
    )
    assert done.exception.problems == [" M recipes/tiny.yaml"]
    assert searches == []
    assert isinstance(CliRunner().invoke(app, ["tune", "tiny", "--no-run"]).exception, Refused)
    assert len(searches) == 1


def test_a_recipe_without_a_search_is_told_before_anything_is_built(paths: Paths) -> None:
    with pytest.raises(ConfigError, match=r"recipes/tiny.yaml has no section `tune`"):
        search(paths.root, "tiny", None, print)
