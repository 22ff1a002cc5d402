"""The pipeline of one recipe, from raw data to a registered release: read the flow below as a table.

Prefect decides when this runs, DVC whether a stage has anything to do, and `tasks/<stage>.py` how it is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.settings import prefect_defaults

prefect_defaults()  # Prefect reads its settings when it is imported

from prefect import State, flow, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.states import Completed  # noqa: E402

from flows.changes import Changes, RecipeName, changes_of  # noqa: E402
from flows.console import find_root  # noqa: E402
from flows.fetch import fetch_data  # noqa: E402
from flows.publish import publish  # noqa: E402
from flows.run_lock import IfRunning  # noqa: E402
from flows.runs import FlowResult, Run, RunRefused, check_start, queue_for_gpu, started  # noqa: E402
from flows.states import ends_in_state, may_go_on, reason_left_to_the_end, stops_the_flow  # noqa: E402
from flows.temporary_server import start_server  # noqa: E402
from tasks.errors import Refused  # noqa: E402
from tasks.stops import sigterm_stops  # noqa: E402


@flow(name="finetune", log_prints=False)
@ends_in_state
def finetune(
    recipe: RecipeName,
    changes: Changes | None = None,
    promote: bool | None = None,
    release: bool = True,
    repin: bool = False,
    if_running: IfRunning = "wait",
) -> FlowResult:
    """Fine-tune a pretrained model by a recipe, and release it if it gained and did not forget.

    Args:
        recipe: Name of a file in `recipes/`.
        changes: Knobs to change for this run only; it then runs in a workspace of its own and is kept as a DVC
            experiment under this run's name.
        promote: Promote if it passes: a release becomes the champion. Left empty: as the recipe says.
        release: Register the model if it passes.
        repin: Compare with the champion of now, not with the one pinned when this data was first evaluated.
        if_running: When this recipe is already being run here: wait for it, or refuse.
    """
    with started(recipe, changes, if_running) as run:
        fetch(run)  #                     raw data, pinned by DVC
        stage(run, "prepare")  #          raw data and base model → splits, benchmark halves
        stage(run, "validate")  #         what must be true of each row
        stage(run, "check")  #            duplicates, leakage, diversity, mismatch
        stage(run, "gate")  #             may these data train? if not: Refused
        stage(run, "finetune")  #         go on training the base, gently
        stage(run, "merge")  #            the best that the forgetting budget allows
        stage(run, "pin", repin)  #       the champion to compare with
        stage(run, "evaluate")  #         base, candidate and champion, on examples kept for the report
        stage(run, "decide")  #           PASS, FAIL or INCONCLUSIVE, with reasons
        save(run)  #                      a run with changes becomes a DVC experiment
        register(run, release, promote)  # PASS: a version in the registry; otherwise Refused
        return run.result()


@stops_the_flow
@task(name="fetch", task_run_name="fetch", cache_policy=NO_CACHE)
@ends_in_state
def fetch(run: Run) -> Any:
    """Have the raw data in place: from the recipe's sources, the DVC cache or the remote."""
    done = fetch_data(run.repo, run.recipe, run.paths)
    run.say(f"raw data: {done}")
    return _cached() if done == "unchanged" else done


@stops_the_flow
@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=10,
    retry_condition_fn=may_go_on,
)
@ends_in_state
def stage(run: Run, name: str, force: bool = False) -> Any:
    """Bring one stage up to date; what it prints appears in the log of this run line by line."""
    try:
        with queue_for_gpu(run, name):
            outcome = run.build(name, force=force)
    except Refused:
        publish(run.paths, name)
        raise
    publish(run.paths, name)
    run.say(f"{name}: {outcome}")
    return outcome if outcome == "executed" else _cached(outcome)


@stops_the_flow
@task(name="save", task_run_name="save", cache_policy=NO_CACHE)
@ends_in_state
def save(run: Run) -> Any:
    """Keep the run: put the lock in order, and save a run with changes as a DVC experiment."""
    return run.save() or _cached("nothing to save")


@stops_the_flow
@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
@ends_in_state
def register(run: Run, wanted: bool, promote: bool | None) -> Any:
    """Register the model if it passed; promote it if that is wanted."""
    run.check_verdict()
    if not wanted:
        return Completed(name="Skipped", message="registering was not asked for")
    receipt = run.register(promote)
    run.say(
        f"{run.recipe.register_.name} version {receipt.version}: {'created' if receipt.created else 'is there'}"
    )
    return receipt if receipt.created or receipt.promoted else _cached("the version is there")


def run_recipe(
    recipe: str,
    *,
    changes: Mapping[str, Any] | Changes | None = None,
    promote: bool | None = None,
    register: bool = True,
    repin: bool = False,
    if_running: IfRunning = "wait",
    root: Path | None = None,
) -> FlowResult:
    """Run the flow from the command line or Python, and return what came of it, refusals included.

    Raises:
        PipelineError: it failed, and the message says why.
        KeyboardInterrupt: it was interrupted.
    """
    given = changes if isinstance(changes, Changes) else changes_of(changes or {})
    root = root or find_root()
    with _in_folder(root), sigterm_stops():
        # So does the flow, but only once Prefect's server runs.
        check_start(root, recipe, given.by_field() if given else {})
        start_server()
        with reason_left_to_the_end():
            state: State[Any] = finetune(
                recipe, given, promote, register, repin, if_running, return_state=True
            )
        outcome: Any = state.result(raise_on_failure=False)
    if isinstance(outcome, RunRefused):
        return outcome.result
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome  # type: ignore[no-any-return]


@contextmanager
def _in_folder(root: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def _cached(message: str = "unchanged") -> State[Any]:
    return Completed(name="Cached", message=message)
