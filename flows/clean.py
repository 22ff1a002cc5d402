"""`retain clean`: what runs leave behind, listed with its size first, and removed when it is old enough.

Results are never touched: what DVC holds is `dvc gc`'s, and of the registry only files go that no version names. Nor are
the weights of a first base that a release or a recipe is measured from: they may be had nowhere else any more.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.run_lock import is_held
from flows.workspace import MESSAGE, git, remove_workspace, workspaces
from tasks.errors import ConfigError
from tasks.paths import registry_root, store
from tasks.registry import open_registry
from tasks.registry.protocol import GRACE_SECONDS
from tasks.reports import Base, FirstBase, read_report
from tasks.sources import first_bases_to_keep

Kind = Literal["workspace", "checkpoint", "experiment", "store", "release file"]
DAY_SECONDS = 86400.0
FETCHED = ("bases", "gguf", "sources", "embeddings", "outcomes", "releases")
"""Folders of the store that are made again when they are missing: fetched, or computed."""


@dataclass(frozen=True)
class Leftover:
    """One thing that a run left behind."""

    kind: Kind
    name: str
    path: Path | None
    """None for an experiment: it lies in git and in the DVC cache."""
    bytes: int
    days: float
    """Since it last changed."""


def leftovers(
    root: Path, older_than_days: float, *, with_store: bool = False, with_registry: bool = False
) -> list[Leftover]:
    """Return what has not changed for so many days, and is not in use by a run of this checkout."""
    found = [
        *_workspaces(root),
        *_checkpoints(root),
        *_experiments(root),
        *(_store(root) if with_store else ()),
    ]
    found += _release_files(root, older_than_days) if with_registry else ()
    return [item for item in found if item.days >= older_than_days]


def remove(root: Path, items: list[Leftover]) -> None:
    """Remove leftovers.

    Raises:
        ConfigError: git or DVC could not remove one.
    """
    for item in items:
        if item.kind == "workspace" and item.path:
            remove_workspace(root, item.path)
        elif item.path:
            shutil.rmtree(item.path)
    if files := [item for item in items if item.kind == "release file"]:
        grace = min(item.days for item in files) * DAY_SECONDS
        open_registry(registry_root(root)).collect_garbage(grace_seconds=max(grace - 1, GRACE_SECONDS))
    if names := [item.name for item in items if item.kind == "experiment"]:
        _remove_experiments(root, names)


def _workspaces(root: Path) -> Iterator[Leftover]:
    for folder in _folders(workspaces(root)):
        if not any(is_held(lock) for lock in folder.glob(".retain/*/run.lock")):
            yield _folder("workspace", folder.name, folder)


def _checkpoints(root: Path) -> Iterator[Leftover]:
    # A checkpoint's folder is named by a hash of inputs, not by its run: with a run under way, leave them all.
    locks = [*root.glob(".retain/*/run.lock"), *workspaces(root).glob("*/.retain/*/run.lock")]
    if not any(is_held(lock) for lock in locks):
        for folder in _folders(store() / "checkpoints"):
            yield _folder("checkpoint", folder.name, folder)


def _store(root: Path) -> Iterator[Leftover]:
    first = set(_first_bases(root))
    for part in FETCHED:
        for folder in _folders(store() / part):
            if part != "bases" or folder.name not in first:
                yield _folder("store", f"{part}/{folder.name}", folder)


def _first_bases(root: Path) -> Iterator[str]:
    """Yield the fingerprints of the bases that forgetting is measured from.

    By releases in this registry, by releases made on this machine in others, and by recipes run here.
    """
    yield from first_bases_to_keep()
    for manifest in open_registry(registry_root(root)).manifests():
        first = manifest.lineage.get("first_base")
        if first is not None:
            yield FirstBase.model_validate(first).fingerprint
    for checkout in (root, *_folders(workspaces(root))):
        for path in checkout.glob("data/*/base.json"):
            yield read_report(path, Base).first_base.fingerprint


def _release_files(root: Path, older_than_days: float) -> Iterator[Leftover]:
    # Never younger than the registry's own grace: a publisher may be about to name the file.
    grace = max(older_than_days * DAY_SECONDS, GRACE_SECONDS)
    for stored in open_registry(registry_root(root)).collect_garbage(grace_seconds=grace, dry_run=True):
        yield Leftover("release file", stored.key, None, stored.size, stored.age_seconds / DAY_SECONDS)


def _experiments(root: Path) -> Iterator[Leftover]:
    form = "%(refname)%00%(committerdate:unix)%00%(contents:subject)"
    try:
        lines = git(root, "for-each-ref", f"--format={form}", "refs/exps").splitlines()
    except ConfigError:  # no git repository: no experiments
        return
    for line in lines:
        reference, seconds, subject = line.split("\0")
        if "/exec/" not in reference and subject.startswith(MESSAGE.strip()):
            days = (time.time() - float(seconds)) / DAY_SECONDS
            yield Leftover("experiment", reference.rsplit("/", 1)[-1], None, 0, max(days, 0.0))


def _remove_experiments(root: Path, names: list[str]) -> None:
    from dvc.exceptions import DvcException

    from flows.build import open_repo

    with open_repo(root) as repo:
        try:
            repo.experiments.remove(names)
        except DvcException as error:
            raise ConfigError(f"DVC could not remove the experiments {', '.join(names)}: {error}") from error


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir())


def _folder(kind: Kind, name: str, path: Path) -> Leftover:
    size, newest = 0, path.lstat().st_mtime
    for file in path.rglob("*"):
        try:
            facts = file.lstat()
        except FileNotFoundError:  # it went while we looked
            continue
        newest = max(newest, facts.st_mtime)
        size += facts.st_size if file.is_file() and not file.is_symlink() else 0
    return Leftover(kind, name, path, size, max((time.time() - newest) / DAY_SECONDS, 0.0))
