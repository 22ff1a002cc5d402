"""`retain tune`: clear the data, search in a process of its own, and let only the winner become a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.build import build_stage, check_listed, open_repo
from flows.fetch import fetch_data
from flows.run_lock import only_run
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.recipe import load_recipe, recipe_path

BEFORE = ("prepare", "validate", "check", "gate")
"""Stages that a search stands on."""


def search(root: Path, recipe: str, trials: int | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run a recipe's search and return its trials, the best first.

    Raises:
        Refused: the gate refuses the data.
        StageError: the search failed; what it said is on the terminal.
    """
    loaded = load_recipe(recipe_path(root, recipe))
    paths = Paths(root, recipe)
    with only_run(paths, "tune", "refuse", say), open_repo(root) as repo:
        check_listed(repo, recipe)
        fetch_data(repo, loaded, paths)
        for stage in BEFORE:
            say(f"{stage}: {build_stage(repo, recipe, stage, say)}")
    words = [sys.executable, "-m", "tasks.tune", recipe, *([str(trials)] if trials else [])]
    done = subprocess.run(words, cwd=root, check=False)
    if done.returncode:
        raise StageError(
            f"The search ended with status {done.returncode}; run it again to go on where it stood."
        )
    found: list[dict[str, Any]] = json.loads(
        (paths.scratch / "tune" / "trials.json").read_text(encoding="utf-8")
    )
    return found
