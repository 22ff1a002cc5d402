"""`retain tune`: clear the data, search in a process of its own, and let only the winner become a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flows.build import build_stage, check_listed, open_repo
from flows.fetch import fetch_data
from flows.run_lock import only_run
from flows.workspace import check_committed
from tasks.errors import ConfigError, Preempted, StageError
from tasks.paths import Paths
from tasks.recipe import gating_margins, load_recipe, recipe_path
from tasks.stage_log import ENDS_WITH_PARENT
from tasks.stops import Terminated, sigterm_stops
from tasks.trials import Trial, read_trials

BEFORE = ("prepare", "validate", "check", "gate")
"""Stages that a search stands on."""


def check_run_may_follow(root: Path) -> None:
    """Check, before a search that takes hours, what the run of its best trial will ask of the repository.

    Raises:
        ConfigError: there is no commit to start from, or something that a run depends on is not in it.
    """
    try:
        check_committed(root)
    except ConfigError as error:
        raise ConfigError(
            f"The best trial becomes a run (with --no-run it does not). {error.message}", error.problems
        ) from None


def search(root: Path, recipe: str, trials: int | None, say: Callable[[str], None]) -> list[Trial]:
    """Run a recipe's search and return its trials, the best first.

    Raises:
        ConfigError: the recipe has no section `tune`.
        Refused: the gate refuses the data.
        StageError: the search failed; what it said is on the terminal.
        Preempted: it was stopped; run again, it goes on.
    """
    loaded = load_recipe(recipe_path(root, recipe))
    if loaded.tune is None:
        raise ConfigError(
            f"recipes/{recipe}.yaml has no section `tune`: say there how many trials, and what they may change. "
            "docs/recipes.md lists its fields, recipes/sentiment.yaml has one."
        )
    paths = Paths(root, recipe)
    with only_run(paths, "tune", "refuse", say) as lock:
        with open_repo(root) as repo:
            check_listed(repo, recipe)
            fetch_data(repo, loaded, paths)
            for stage in BEFORE:
                say(f"{stage}: {build_stage(repo, recipe, stage, say)}")
        with sigterm_stops():
            _search_in_process(root, recipe, trials, lock)
    return read_trials(paths)


def _search_in_process(root: Path, recipe: str, trials: int | None, lock: int) -> None:
    """Run `tasks.tune` to its end; it answers for its own words, which go straight to the terminal.

    It inherits the recipe's lock: where this process is killed, nobody begins beside a search that is still ending.
    """
    words = [sys.executable, "-m", "tasks.tune", recipe, *([str(trials)] if trials else [])]
    environment = {**os.environ, ENDS_WITH_PARENT: "1"}
    with subprocess.Popen(words, cwd=root, env=environment, pass_fds=[lock]) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal told the search too, which must not be killed while it notes that it ended
            raise
        except Terminated:
            process.terminate()
            process.wait()
            raise
    if status == Preempted.exit_code:
        raise Preempted("the search was stopped; run it again to go on where it stood")
    if status:
        raise StageError(f"The search ended with status {status}; run it again to go on where it stood.")


def margins(root: Path, recipe: str) -> dict[str, float]:
    """Return what each gating suite of a recipe may lose."""
    return gating_margins(load_recipe(recipe_path(root, recipe)).budget)
