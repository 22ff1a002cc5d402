"""A run with changed parameters: in a working tree of its own, kept as a DVC experiment.

The checkout is never edited. The workspace is a git worktree at HEAD that shares the checkout's DVC cache, so what has
been built before is taken from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import environment
from tasks.errors import ConfigError, StageError
from tasks.files import write_text
from tasks.paths import registry_root
from tasks.recipe import load_recipe, recipe_path

if TYPE_CHECKING:
    from dvc.repo import Repo

CODE = ("dvc.yaml", "params.yaml", "recipes", "tasks", "flows", ".dvc/config", ".dvcignore")
"""What a run depends on and git must hold: changes to these must be committed before a run of its own."""
MESSAGE = "retain: "
"""How the message of an experiment begins that a run has saved."""
SIGNATURE = {"NAME": "retain", "EMAIL": "retain@localhost"}
"""Who signs an experiment where git knows nobody."""


def workspaces(home: Path) -> Path:
    """Return the folder of the checkout's workspaces."""
    return home / ".retain" / "workspaces"


def git(root: Path, *arguments: str) -> str:
    """Run git in `root` and return what it prints.

    Raises:
        ConfigError: there is no git, or it says no.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError("git is needed: install it (apt-get install git).") from None
    if done.returncode:
        raise ConfigError(f"`git {' '.join(arguments)}` failed in {root}: {done.stderr.strip()}")
    return done.stdout


def commit_of(root: Path) -> str:
    """Return the commit that the working tree stands at.

    Raises:
        ConfigError: it is in no git repository, or nothing has been committed.
    """
    if not (root / ".git").exists():
        raise ConfigError(
            f"{root} is no git repository, and a release's lineage names a commit: "
            "run `git init`, `git add --all` and `git commit` there."
        )
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except ConfigError:
        raise ConfigError(f"{root} has no commit yet: `git add --all`, then `git commit`.") from None


def uncommitted(root: Path) -> list[str]:
    """Return what of the code and the recipes differs from HEAD, as `git status` writes it."""
    found = git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return [line for line in found.splitlines() if line.strip()]


def check_committed(root: Path) -> str:
    """Return the commit that a run with changes starts from.

    Raises:
        ConfigError: there is none, or something that such a run depends on is not in it.
    """
    commit = commit_of(root)
    if problems := uncommitted(root):
        raise ConfigError(
            f"A run with changes starts from the last commit ({commit[:10]}), and these are not in it. "
            "Commit them, or put them back:",
            problems,
        )
    return commit


@dataclass
class Workspace:
    """A working tree of a run's own."""

    root: Path
    kept: bool = False
    """Whether it stays when the run ends."""


@contextmanager
def own_workspace(home: Path, recipe: str, name: str, changes: Mapping[str, Any]) -> Iterator[Workspace]:
    """Make a workspace with the changed recipe; remove it at the end unless it is to be kept.

    Raises:
        ConfigError: there is no commit to start from, or uncommitted changes; or the changes make no valid recipe.
    """
    commit = check_committed(home)
    root = workspaces(home) / name
    if root.exists():
        raise ConfigError(
            f"The workspace {root} exists already: give the run another name, or `retain clean`."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    git(home, "worktree", "add", "--quiet", "--detach", str(root), commit)
    try:
        _share_cache(home, root)
        _bring_pins(home, root)
        change_recipe(recipe_path(root, recipe), changes)
        list_in_params(root, recipe)
    except BaseException:
        remove_workspace(home, root)
        raise
    registry = os.environ.get("RETAIN_REGISTRY")
    os.environ["RETAIN_REGISTRY"] = registry_root(home)
    workspace = Workspace(root)
    try:
        yield workspace
    finally:
        if registry is None:
            del os.environ["RETAIN_REGISTRY"]
        if not workspace.kept:
            remove_workspace(home, root)


def remove_workspace(home: Path, root: Path) -> None:
    """Remove a workspace and git's note of it."""
    try:
        git(home, "worktree", "remove", "--force", str(root))
    except ConfigError:  # git does not know it any more
        shutil.rmtree(root, ignore_errors=True)
        git(home, "worktree", "prune")


def change_recipe(path: Path, changes: Mapping[str, Any]) -> None:
    """Change fields of a recipe (`finetune.learning_rate`: 1e-5), leaving the rest of the file as it is.

    Raises:
        ConfigError: the result is no valid recipe; the file is then untouched.
    """
    from ruamel.yaml import YAML

    before = path.read_text(encoding="utf-8") if path.exists() else None
    load_recipe(path)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(path)
    for field, value in changes.items():
        *sections, last = field.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise ConfigError(f"{field}: {section} is no section of the recipe {path.stem}.")
        place[last] = value
    text = StringIO()
    yaml.dump(document, text)
    write_text(path, text.getvalue())
    try:
        load_recipe(path)
    except ConfigError:
        write_text(path, before or "")
        raise


def list_in_params(root: Path, recipe: str) -> None:
    """List a recipe in `params.yaml`, so that DVC builds it; nothing is changed where it is listed."""
    from ruamel.yaml import YAML

    path = root / "params.yaml"
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8")) if path.exists() else None
    document = document or {}
    recipes = document.setdefault("recipes", [])
    if recipe not in recipes:
        recipes.append(recipe)
        text = StringIO()
        yaml.dump(document, text)
        write_text(path, text.getvalue())


def save_experiment(repo: Repo, name: str, stages: Sequence[str], recipe: str, message: str) -> str:
    """Save the workspace as a DVC experiment of its commit, and return the experiment's commit.

    Raises:
        StageError: DVC could not.
    """
    from dvc.exceptions import DvcException

    root = Path(repo.root_dir)
    untracked = git(
        root, "ls-files", "--others", "--exclude-standard", "--", "data/raw", "dvc.lock"
    ).splitlines()
    try:
        with signed(root):
            commit = repo.experiments.save(
                targets=[f"{stage}@{recipe}" for stage in stages],
                name=name,
                include_untracked=untracked,
                message=f"{MESSAGE}{message}",
            )
    except DvcException as error:
        raise StageError(f"The run could not be saved as experiment {name}: {error}") from error
    if not commit:
        raise StageError(f"The run could not be saved as experiment {name}: DVC found nothing to save.")
    return str(commit)


@contextmanager
def signed(root: Path) -> Iterator[None]:
    """Let commits be signed as `SIGNATURE` meanwhile, where git knows no name: a machine that only trains has none."""
    given: dict[str, str] = {}
    for who in ("AUTHOR", "COMMITTER"):
        try:
            git(root, "-c", "user.useConfigOnly=true", "var", f"GIT_{who}_IDENT")
        except ConfigError:
            given |= {f"GIT_{who}_{part}": value for part, value in SIGNATURE.items()}
    with environment(given):
        yield


def experiment_name(run_name: str, home: Path) -> str:
    """Return a name for the run's experiment and workspace that git accepts and that is not taken, nor a recipe's."""
    name = re.sub(r"[^A-Za-z0-9-]+", "-", run_name).strip("-").lower() or "run"
    taken = {path.name for path in workspaces(home).glob("*")}
    taken |= {path.stem for path in (home / "recipes").glob("*.yaml")}
    refs = git(home, "for-each-ref", "--format=%(refname)", "refs/exps")
    taken |= {line.rsplit("/", 1)[-1] for line in refs.splitlines()}
    free, number = name, 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _share_cache(home: Path, root: Path) -> None:
    """Point the workspace's DVC at the checkout's cache, and let it keep its own state inside itself."""
    from configobj import ConfigObj
    from dvc.repo import Repo

    with Repo(str(home)) as repo:
        cache = repo.cache.local_cache_dir
    local = home / ".dvc" / "config.local"
    config = ConfigObj(str(local), encoding="utf-8") if local.exists() else ConfigObj(encoding="utf-8")
    config.setdefault("cache", {})["dir"] = str(cache)
    # Beneath the workspace, so that it goes when the workspace goes.
    config.setdefault("core", {})["site_cache_dir"] = str(root / ".dvc" / "tmp" / "site")
    for section, values in _remotes(home):
        config.setdefault(section, {}).setdefault("url", values)
    config.filename = str(root / ".dvc" / "config.local")
    config.write()


def _remotes(home: Path) -> list[tuple[str, str]]:
    """Return the checkout's folder remotes, which its configuration names relative to itself."""
    from dvc.config import Config

    config = Config(str(home / ".dvc"))
    return [
        (f'remote "{name}"', str(remote["url"]))
        for name, remote in config["remote"].items()
        if os.path.isabs(str(remote["url"]))
    ]


def _bring_pins(home: Path, root: Path) -> None:
    """Copy what DVC writes and people commit later: the lock and the data pointers."""
    for path in [
        home / "dvc.lock",
        *(home / "data" / "raw").glob("*.dvc"),
        home / "data" / "raw" / ".gitignore",
    ]:
        if path.exists():
            target = root / path.relative_to(home)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
