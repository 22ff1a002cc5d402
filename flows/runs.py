"""One run of the flow: where it works, what it has built, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.build import Outcome, build_stage, check_listed, is_current, open_repo, order_lock
from flows.changes import Changes
from flows.console import find_root
from flows.gpu_queue import gpu_turn
from flows.plan import changed_recipe
from flows.progress import followed
from flows.run_lock import IfRunning, only_run
from flows.workspace import (
    Workspace,
    check_committed,
    commit_of,
    experiment_name,
    own_workspace,
    save_experiment,
)
from tasks.errors import Refused
from tasks.paths import Paths, registry_root
from tasks.recipe import Recipe, load_recipe, recipe_path
from tasks.reports import DecideReport, MergeReport, read_report
from tasks.stages import STAGES
from tasks.stops import sigterm_stops

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tasks.register import Receipt

ON_GPU = ("check", "finetune", "merge", "evaluate")
"""Stages that compute with a model."""


@dataclass(frozen=True)
class FlowResult:
    """What came of a run, for the command line; a refusal is a result too."""

    recipe: str
    run: str
    """Name of the Prefect flow run."""
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE", "GATE"]
    """The release rule's verdict, or GATE: the data were refused before training."""
    reasons: list[str]
    executed: list[str]
    """Stages that ran; the others stood as they were, or came from the cache."""
    restored: list[str]
    """Stages whose results came from the cache."""
    model: str | None = None
    """Fingerprint of the chosen model's folder; None before `merge`."""
    version: int | None = None
    """Version in the registry; None when nothing was registered."""
    created: bool = False
    """Whether this run made the version; False when the same content was there already."""
    promoted: bool = False
    refusal: str = ""
    """Why a model that passed was refused all the same: the champion has moved, say; empty otherwise."""
    experiment: str | None = None
    """Name of the DVC experiment, for a run with changes."""
    workspace: Path | None = None
    """Where a refused run with changes was left for inspection."""
    summary: str | None = None
    """The summary, as Markdown; for a run with changes, whose reports are in no working tree."""

    @property
    def exit_code(self) -> int:
        """Return 0 for PASS and 3 for a refusal."""
        return 0 if self.verdict == "PASS" and not self.refusal else Refused.exit_code


class RunRefused(Refused):
    """A refusal, with what came of the run up to there."""

    def __init__(self, error: Refused, result: FlowResult) -> None:
        super().__init__(error.message, error.problems)
        self.result = result


@dataclass(eq=False)
class Run:
    """A run under way: the recipe as changed, the working tree, and the open DVC repository."""

    name: str
    repo: Repo
    recipe: Recipe
    paths: Paths
    home: Path
    """The checkout."""
    changes: dict[str, Any]
    say: Callable[[str], None]
    workspace: Workspace | None = None
    """Its own working tree, when the run has changes; `paths.root` lies there then."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    experiment: str | None = None
    commit: str = ""
    receipt: Receipt | None = None

    def build(self, stage: str, *, force: bool = False) -> Outcome:
        """Bring a stage up to date."""
        say = followed(_logger().info, self.paths.recipe)
        try:
            self.outcomes[stage] = build_stage(self.repo, self.paths.recipe, stage, say, force=force)
        except Refused:
            self.outcomes[stage] = "executed"  # it ran, and said no
            raise
        return self.outcomes[stage]

    def save(self) -> str | None:
        """Put the lock in order; save a run with changes as an experiment and return its name."""
        order_lock(self.repo)
        self.commit = commit_of(self.home)
        if self.workspace is None:
            return None
        changed = json.dumps(self.changes, ensure_ascii=False)
        with only_run(
            Paths(self.home, "experiments"), self.name, "wait", self.say
        ):  # DVC's exec refs are shared
            self.commit = save_experiment(
                self.repo, self.name, list(STAGES), self.paths.recipe, f"{self.paths.recipe} {changed}"
            )
        self.experiment = self.name
        self.workspace.kept = False
        self.say(f"saved as experiment {self.name}: `retain show {self.name}` shows it")
        return self.experiment

    def check_verdict(self) -> None:
        """Raise `Refused` with every reason unless the verdict is PASS."""
        decision = read_report(self.paths.decision, DecideReport)
        if decision.verdict != "PASS":
            raise Refused(f"{decision.verdict}: {self.paths.recipe} must not ship.", decision.reasons)

    def register(self, promote: bool | None) -> Receipt:
        """Publish the model, with the lineage of this run."""
        from tasks.register import register

        self.receipt = register(
            self.paths.recipe,
            self.recipe.register_,
            paths=self.paths,
            registry_location=registry_root(self.home),
            promote=self.recipe.register_.promote if promote is None else promote,
            run_id=self.name,
            git_commit=self.commit,
        )
        return self.receipt

    def result(self, refused: Refused | None = None) -> FlowResult:
        """Return what has come of the run."""
        decided = self.outcomes.get("decide") is not None
        decision = read_report(self.paths.decision, DecideReport) if decided else None
        made = self.receipt
        return FlowResult(
            recipe=self.paths.recipe,
            run=self.name,
            verdict=decision.verdict if decision else "GATE",
            reasons=decision.reasons
            if decision
            else (refused.problems or [refused.message] if refused else []),
            executed=[stage for stage, outcome in self.outcomes.items() if outcome == "executed"],
            restored=[stage for stage, outcome in self.outcomes.items() if outcome == "restored"],
            model=read_report(self.paths.merge, MergeReport).model if "merge" in self.outcomes else None,
            version=made.version if made else None,
            created=bool(made and made.created),
            promoted=bool(made and made.promoted),
            refusal=str(refused) if refused and decision and decision.verdict == "PASS" else "",
            experiment=self.experiment,
            workspace=self.workspace.root if self.workspace and self.workspace.kept else None,
            summary=self._summary() if self.workspace else None,
        )

    def _summary(self) -> str:
        from tasks.summary import as_markdown, read_reports, summarize

        return as_markdown(summarize(read_reports(self.paths), self.paths.recipe))


def check_start(home: Path, recipe: str, fields: Mapping[str, Any]) -> None:
    """Check what can be known of a run before anything is started, Prefect's server included.

    Raises:
        ConfigError: the recipe, the changes or the repository do not allow it.
    """
    _check_checkout(home, recipe, fields)
    if not fields:  # else it is listed in a workspace of its own
        with open_repo(home) as repo:
            check_listed(repo, recipe)


def _check_checkout(home: Path, recipe: str, fields: Mapping[str, Any]) -> None:
    load_recipe(recipe_path(home, recipe))
    if fields:
        check_committed(home)
        changed_recipe(home, recipe, fields)
    else:
        commit_of(home)


@contextmanager
def started(recipe: str, changes: Changes | None, if_running: IfRunning) -> Iterator[Run]:
    """Start a run in the checkout, or in a workspace of its own when it has changes; hold the recipe meanwhile.

    Raises:
        ConfigError: the recipe, the changes or the repository do not allow it.
        StageError: the recipe is being run already, and `if_running` is `refuse`.
        RunRefused: the run was refused; what came of it is in `result`.
    """
    home = find_root()
    fields = changes.by_field() if changes else {}
    _check_checkout(home, recipe, fields)
    say = _logger().info
    name = experiment_name(_flow_run_name(), home) if fields else _flow_run_name()
    with ExitStack() as stack:
        if not _by_worker():  # which knows from SIGTERM what is to come of the run
            stack.enter_context(sigterm_stops())
        workspace = stack.enter_context(own_workspace(home, recipe, name, fields)) if fields else None
        root = workspace.root if workspace else home
        paths = Paths(root, recipe)
        stack.enter_context(only_run(paths, name, if_running, say))
        repo = stack.enter_context(open_repo(root))
        check_listed(repo, recipe)
        run = Run(name, repo, load_recipe(recipe_path(root, recipe)), paths, home, fields, say, workspace)
        if workspace:
            workspace.kept = True  # for inspection, until the run is saved
        try:
            yield run
        except Refused as error:
            raise RunRefused(error, run.result(error)) from None
        finally:
            if workspace and workspace.kept:
                say(f"the workspace is left at {root}; `retain clean` removes it")


@contextmanager
def queue_for_gpu(run: Run, stage: str) -> Iterator[None]:
    """Take a turn in Prefect's `gpu` queue, where there is a GPU and the stage has work for it."""
    if (
        stage not in ON_GPU
        or not Path("/dev/nvidiactl").exists()
        or is_current(run.repo, run.paths.recipe, stage)
    ):
        yield
        return
    with gpu_turn(stage, run.say):
        yield


def _by_worker() -> bool:
    from prefect.runtime import deployment

    return deployment.id is not None


def _flow_run_name() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.name)


def _logger() -> Any:
    from prefect.logging import get_run_logger

    return get_run_logger()
