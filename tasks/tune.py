"""tune: search for the best model that forgets at most what the budget allows.

Trials train in this process, on the splits that the gate has cleared, and are judged as `merge` judges: by what
validation says of the best mixture that stays within the budget on the *selection* halves. The report halves and the
test split are never looked at, so the winner still has to pass as any other run. Optuna (Akiba et al. 2019) samples and
prunes; its journal lies in the recipe's scratch folder, and a trial's checkpoints beside it, so that a search that was
stopped or killed goes on in the middle of the trial where it stood. Writes `trials.json` there. Alone, once `gate` has
run: `python -m tasks.tune <recipe> [trials]`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks import reports
from tasks.device import hold_device
from tasks.errors import ConfigError, PipelineError, Preempted
from tasks.exit_status import exit_status
from tasks.families import family
from tasks.families.interface import Measured, Model
from tasks.files import fingerprint, folder_fingerprint, system_says
from tasks.forgetting.search import Ends, Search
from tasks.forgetting.way import BASE, choose, rank_number
from tasks.models import pick_device
from tasks.passport import verify_passport
from tasks.paths import Paths
from tasks.rates import USUAL_RATES
from tasks.recipe import REPLAY, Finetune, Lora, Recipe, Tune, gating_margins, load_recipe, recipe_path
from tasks.sources import base_folder
from tasks.splits import read_splits
from tasks.stage_log import ENDS_WITH_PARENT, end_with_parent
from tasks.stages import version_of
from tasks.stops import Terminated, sigterm_stops
from tasks.training.adapters import merge_adapters
from tasks.training.loop import Progress
from tasks.training.memory import random_state, set_random_state
from tasks.training.run import train_model
from tasks.trials import Trial, ranked, write_trials

log = logging.getLogger(__name__)

USUAL_RANGE = (0.1, 5.0)
ENDS_A_TRIAL = (PipelineError, ValueError, ArithmeticError, torch.OutOfMemoryError)
"""What a ruinous setting can end in: a loss or an outcome that is not finite, no room for the batch."""
STOPS = (Preempted, KeyboardInterrupt, SystemExit, Terminated)
"""What stops a search, at no fault of the trial's."""
SEARCHED = ("full", "lp-ft", "norms", "biases")
"""Methods that need no further setting."""
TAKEN_UP = 2
"""Times that a trial is taken up again after it took its process with it; what does so again will do so every time."""
VERSION = 3
"""Raise it when a change of this module changes what is drawn, or what a trial counts."""


def tune(
    recipe: Recipe, *, paths: Paths, trials: int | None = None, tell: Callable[[Trial], None] | None = None
) -> list[Trial]:
    """Run what is left of the recipe's trials and return all of them, the best first.

    Raises:
        ConfigError: the recipe has no section `tune`, or its values make no valid section `finetune`.
        StageError: the data has not been cleared, or a split, model or benchmark cannot be read.
    """
    import optuna

    section = recipe.tune
    if section is None:
        raise ConfigError(
            "The recipe has no section `tune`: say there how many trials, and what they may change."
        )
    verify_passport(paths)
    device = pick_device()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with hold_device(device):
        torch.use_deterministic_algorithms(device == "cpu")
        attempt = _Attempt(recipe, paths, device)
        study = _study(section, attempt)
        for trial in _take_up(study):
            if tell:
                tell(_as_trial(trial))
        left = (trials or section.trials) - len(_finished(study))
        if left > 0:
            study.optimize(
                lambda trial: attempt.run(trial, section),
                n_trials=left,
                callbacks=[lambda study, trial: tell(_as_trial(trial))] if tell else None,
            )
    for folder in _folder(paths).glob("trial-*"):  # of searches that were given up
        shutil.rmtree(folder, ignore_errors=True)
    return ranked([_as_trial(trial) for trial in _finished(study)])


def sample(trial: Any, section: Tune, recipe: Recipe) -> dict[str, Any]:
    """Return a trial's changes to the section `finetune`, by field."""
    kind = family(recipe.task)
    methods: list[str] = [*section.methods] or [
        method for method in SEARCHED if method in USUAL_RATES[kind.task]
    ]
    method = trial.suggest_categorical("method", methods)
    share = trial.suggest_categorical("replay_share", section.replay_share)
    low, high = section.learning_rates or USUAL_RANGE
    multiple = trial.suggest_float("rate_multiple", low, high, log=True)
    changes: dict[str, Any] = {
        "method": method,
        "learning_rate": float(f"{USUAL_RATES[kind.task][method] * multiple:.3g}"),
        "epochs": trial.suggest_categorical("epochs", section.epochs or [recipe.finetune.epochs]),
        "l2_sp": trial.suggest_categorical("l2_sp", section.l2_sp) if method != "lora" else 0.0,
        "layer_decay": trial.suggest_categorical(
            "layer_decay", section.layer_decay or [recipe.finetune.layer_decay]
        ),
        "replay_share": share,
        "distill": _distilled(trial, section.distill or [recipe.finetune.distill], share, recipe),
        "average_last": trial.suggest_categorical("average_last", section.average_last),
        "freeze_layers": _frozen(trial.suggest_categorical("freeze_layers", section.freeze_layers)),
        "lora": None,
    }
    if method == "lora":
        rank = trial.suggest_categorical("lora_rank", section.lora_ranks)
        given = recipe.finetune.lora.model_dump(mode="json") if recipe.finetune.lora else {}
        changes["lora"] = Lora.model_validate({**given, "rank": rank, "alpha": 2.0 * rank}).model_dump(
            mode="json"
        )
    return changes


def _distilled(trial: Any, strengths: Sequence[float], share: float, recipe: Recipe) -> float:
    """Draw a strength of distillation; one above 0 where the trial replays rows that may lack labels."""
    replay = recipe.data.replay
    if share and replay and replay.may_lack_labels:
        positive = [strength for strength in strengths if strength]
        return float(trial.suggest_categorical("distill of replayed rows", positive))
    return float(trial.suggest_categorical("distill", strengths))


def _frozen(share: float) -> float | int:
    return share or 0


@dataclass
class _Attempt:
    """What every trial shares: data, base, device."""

    recipe: Recipe
    paths: Paths
    device: str

    def __post_init__(self) -> None:
        self.schema, self.tables = read_splits(self.paths)
        self.base = reports.read_report(self.paths.base, reports.Base)
        self.folder = base_folder(self.base, self.paths.root)
        self.kind = family(self.schema.task)

    def run(self, trial: Any, section: Tune) -> float:
        """Train once, search the way back to the base, and return what orders what is chosen within the budget."""
        import optuna

        changes = sample(trial, section, self.recipe)
        trial.set_user_attr("changes", {f"finetune.{name}": value for name, value in changes.items()})
        started = time.monotonic()
        try:
            return self._gain(trial, self._section(changes))
        except BaseException as error:
            if _stops(error):
                trial.set_user_attr("stopped", True)
                raise
            if not isinstance(error, ENDS_A_TRIAL):
                raise
            # A loss that is not finite, say: this trial failed, the search goes on.
            trial.set_user_attr("failure", str(error))
            raise optuna.TrialPruned from error
        finally:
            trial.set_user_attr("seconds", round(time.monotonic() - started, 1))

    def _section(self, changes: Mapping[str, Any]) -> Finetune:
        try:
            return Finetune.model_validate(self.recipe.finetune.model_dump(mode="json") | dict(changes))
        except ValueError as error:
            raise ConfigError(f"the section `tune` makes no valid section `finetune`: {error}") from None

    def _gain(self, trial: Any, section: Finetune) -> float:
        # Named by what is trained, on what: taken up again after a kill, the trial finds its own checkpoints there,
        # and never those of another search.
        inputs = [("search", trial.study.study_name), ("section", section.model_dump_json())]
        scratch = _folder(self.paths) / f"trial-{fingerprint(inputs)[:16]}"
        try:
            torch.manual_seed(section.seed)
            train, validation = self.tables["train"], self.tables["validation"]
            model = self.kind.begin(self.folder, section, self.schema.labels, train, validation, self.device)
            original = self.tables.get(REPLAY)
            watch = self._pruner(trial, model, section, scratch / "so-far")
            train_model(model, section, train, validation, scratch / "checkpoints", original, watch)
            gain = self._judge(trial, model, scratch)
        except Preempted:
            raise
        except Exception:  # the trial's own end; Ctrl-C is not, and finds its checkpoints again
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch, ignore_errors=True)
        return gain

    def _pruner(
        self, trial: Any, model: Model, section: Finetune, folder: Path
    ) -> Callable[[Progress, Measured], None]:
        """Return what ends a trial that lags behind half of the others, at the same share of their epochs.

        A model that lost much may be best halfway back to the base, so what counts is the better of the two; the last
        epoch is followed by the judgement itself.
        """
        import optuna

        def watch(progress: Progress, measured: Measured) -> None:
            if progress.epoch >= section.epochs:
                return
            trial.report(self._promise(model, section, folder), round(1000 * progress.epoch / section.epochs))
            if trial.should_prune():
                raise optuna.TrialPruned

        return watch

    def _promise(self, model: Model, section: Finetune, folder: Path) -> float:
        """Return what orders the model so far, or halfway to the base, by validation; training never knows of it."""
        state = random_state()
        so_far = model
        if section.lora is not None:
            so_far = copy.deepcopy(model)
            merge_adapters(so_far.backbone)
            so_far.settle(self.tables["train"])
        so_far.save(folder)
        search = self._search(folder)
        looks = [search.look((BASE[0], alpha)) for alpha in (0.5, 1.0)]
        shutil.rmtree(folder)
        set_random_state(state)
        return max(rank_number(look.gain, look.log_likelihood_gain, look.alpha) for look in looks)

    def _search(self, tuned: Path) -> Search:
        precision = self.recipe.evaluate.precision
        ends = Ends.load(self.kind, self.folder, tuned, self.device, precision)
        return Search.of_recipe(self.recipe, self.paths, self.base, ends, self.tables)

    def _judge(self, trial: Any, model: Model, scratch: Path) -> float:
        tuned, kept = scratch / "tuned", scratch / "chosen"
        model.save(tuned)
        search = self._search(tuned)
        outcomes = search.outcomes()
        chosen = choose(outcomes)
        whole = reports.tuned_outcome(outcomes)
        search.model(chosen.path, chosen.alpha).save(kept)
        said = {
            "alpha": chosen.alpha,
            "path": chosen.path,
            "gain": chosen.gain,
            "log_likelihood_gain": chosen.log_likelihood_gain,
            "tuned_gain": whole.gain,
            "losses": self._gating(whole),
            "kept": self._gating(chosen),
            "model": folder_fingerprint(kept),
        }
        for name, value in said.items():
            trial.set_user_attr(name, value)
        return rank_number(chosen.gain, chosen.log_likelihood_gain, chosen.alpha)

    def _gating(self, outcome: reports.AlphaOutcome) -> dict[str, float]:
        return {
            suite.name: suite.loss
            for suite in outcome.suites
            if suite.name in gating_margins(self.recipe.budget)
        }


def _stops(error: BaseException) -> bool:
    """Say whether the search was stopped, by a signal or by what would stop every trial (a full disk)."""
    return isinstance(error, STOPS) or bool(system_says(error))


def _study(section: Tune, attempt: _Attempt) -> Any:
    """Open the journal of this very search: other data, base, benchmarks, budget or code begin another one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(_folder(attempt.paths) / "journal.log")))
    name = hashlib.sha256(json.dumps(_inputs(attempt), sort_keys=True).encode()).hexdigest()[:16]
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    # A search that goes on must not draw again what it drew before.
    study.sampler = optuna.samplers.TPESampler(
        seed=section.seed + len(study.trials), n_startup_trials=max(section.trials // 3, 1)
    )
    return study


def _inputs(attempt: _Attempt) -> list[Any]:
    """Return what the outcomes of trials depend on: settings, and the content behind them."""
    recipe, paths = attempt.recipe, attempt.paths
    whole = recipe.model_dump(mode="json", exclude={"profiles", "register_", "gate", "check", "validate_"})
    whole["tune"].pop("trials")
    halves = [paths.selection / name / "benchmark.json" for name in sorted(recipe.budget)]
    benchmarks = [reports.read_report(half, reports.BenchmarkInfo).fingerprint for half in halves]
    bases = [attempt.base.fingerprint, attempt.base.first_base.fingerprint]
    code = [VERSION, *map(version_of, ("finetune", "merge", "evaluate"))]
    return [whole, attempt.schema.fingerprint, bases, benchmarks, code, torch.device(attempt.device).type]


def _take_up(study: Any) -> list[Any]:
    """Put trials that were interrupted first in the queue, as they were drawn: their checkpoints are still there.

    Return those that are given up instead: their process was killed too often.
    """
    import optuna

    states = optuna.trial.TrialState
    taken_up, given_up = set(study.user_attrs.get("taken_up", [])), []
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING, states.FAIL)):
        if trial.number in taken_up:
            continue
        kills = trial.user_attrs.get("kills", 0)
        if not trial.user_attrs.get(
            "stopped"
        ):  # whoever ran it was killed, or ended by an error of the code's
            kills += 1
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
        if kills > TAKEN_UP:
            given_up.append(_give_up(study, trial, kills))
        elif trial.params:
            log.info("trial %d was interrupted: it is taken up again", trial.number)
            study.enqueue_trial(trial.params, user_attrs={"kills": kills})
        taken_up.add(trial.number)
        study.set_user_attr("taken_up", sorted(taken_up))
    return given_up


def _give_up(study: Any, trial: Any, kills: int) -> Any:
    """Add a trial with the same draw that failed, and return it: the search learns from it, and goes on to others."""
    import optuna

    failure = f"it took its process with it {kills} times: out of memory, most often"
    ended = optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**trial.user_attrs, "failure": failure},
    )
    study.add_trial(ended)
    return study.trials[-1]


def _folder(paths: Paths) -> Path:
    folder = paths.scratch / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finished(study: Any) -> list[Any]:
    import optuna

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in done]


def _as_trial(trial: Any) -> Trial:
    said = trial.user_attrs
    state = f"failed: {said['failure']}" if "failure" in said else trial.state.name.lower()
    return Trial(
        number=trial.number,
        changes=said.get("changes", {}),
        state=state,
        gain=said.get("gain"),
        log_likelihood_gain=said.get("log_likelihood_gain"),
        alpha=said.get("alpha"),
        path=said.get("path"),
        tuned_gain=said.get("tuned_gain"),
        losses=said.get("losses"),
        kept=said.get("kept"),
        model=said.get("model"),
        seconds=said.get("seconds", 0.0),
    )


def _say(trial: Trial) -> None:
    if trial.gain is None:
        log.info("trial %d: %s", trial.number, trial.state)
        return
    log.info(
        "trial %d: gain %+.4f within the budget (%s α = %g); %+.4f as tuned; %s",
        trial.number,
        trial.gain,
        trial.path,
        trial.alpha,
        trial.tuned_gain,
        trial.settings,
    )


def main() -> int:
    """Run from the command line, in the repository of the working folder."""
    words = sys.argv[1:]
    if not 1 <= len(words) <= 2 or (len(words) == 2 and not words[1].isdigit()):
        print("usage: python -m tasks.tune RECIPE [TRIALS]", file=sys.stderr)
        return 2
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    if os.environ.pop(ENDS_WITH_PARENT, ""):
        end_with_parent()
    trials = int(words[1]) if len(words) == 2 else None
    return exit_status("tune", sigterm_stops(whole_process=True)(lambda: _search(words[0], trials)))


def _search(name: str, trials: int | None) -> None:
    paths = Paths(Path.cwd(), name)
    recipe = load_recipe(recipe_path(paths.root, name))
    write_trials(tune(recipe, paths=paths, trials=trials, tell=_say), paths)


if __name__ == "__main__":
    sys.exit(main())
