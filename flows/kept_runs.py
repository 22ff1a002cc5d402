"""Runs with changes, found again by name: each was kept as a DVC experiment, and its reports lie in the DVC cache.

They are read from there, into nothing that the checkout has. `dvc exp apply` would do more than that, and can fail: it
checks out what all recipes of `params.yaml` have made, and one that this checkout has never built has made nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.workspace import MESSAGE, git
from tasks.errors import StageError
from tasks.paths import Paths

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tasks.summary import Summary


@dataclass(frozen=True)
class KeptRun:
    """A run that was kept as an experiment."""

    name: str
    recipe: str
    changes: str
    """The fields that it changed and their values, as JSON."""
    commit: str
    """The experiment's own commit, whose parent is the one that the run began from."""


def kept_runs(home: Path) -> list[KeptRun]:
    """Return the runs that were kept as experiments, the newest first."""
    if not (home / ".git").exists():
        return []
    form = "--format=%(refname)%00%(objectname)%00%(contents:subject)"
    lines = git(home, "for-each-ref", "--sort=-committerdate", form, "refs/exps").splitlines()
    found = []
    for reference, commit, subject in (line.split("\0") for line in lines):
        # Below exec/ DVC notes what it did last, such as which experiment it applied.
        if "/exec/" not in reference and subject.startswith(MESSAGE):
            recipe, _, changes = subject.removeprefix(MESSAGE).partition(" ")
            found.append(KeptRun(reference.rsplit("/", 1)[-1], recipe, changes, commit))
    return found


def kept_run_summary(home: Path, run: KeptRun) -> Summary:
    """Return the summary of a kept run, from the reports that the DVC cache has of it.

    Raises:
        StageError: they are not in the cache any more, and in no remote.
    """
    from flows.build import dvc_errors, open_repo
    from tasks.summary import read_reports, summarize

    began = git(home, "rev-parse", f"{run.commit}^").strip()
    lineage = {"Run": run.name, "Changes": run.changes, "Commit": began}
    note = f"A run with changes, kept as the experiment {run.name}: {run.changes}"
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder), run.recipe)
        with open_repo(home) as repo, dvc_errors(f"experiment {run.name}"), repo.switch(run.commit):
            _read(repo, home, run, paths)
        return summarize(read_reports(paths), run.recipe, lineage=lineage, notes=[note])


def _read(repo: Repo, home: Path, run: KeptRun, paths: Paths) -> None:
    """Write the reports of a run, as they were at the revision that `repo` stands at, to where `paths` has them."""
    from tasks.summary import KINDS

    lost = []
    for report in (*KINDS, "history"):
        target: Path = getattr(paths, report)
        place = getattr(Paths(home, run.recipe), report).relative_to(home).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_bytes(repo.dvcfs.read_bytes(place))
        except OSError:
            lost.append(place)
    if lost:
        raise StageError(
            f"The experiment {run.name} lacks reports here. `dvc exp pull` brings them from a remote that has them; "
            f"else run {run.recipe} again with its changes, {run.changes}:",
            lost,
        )
