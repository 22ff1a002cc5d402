"""Run one stage of one recipe: `python -m tasks <stage> <recipe>`. Both doors run this command.

Exit status: 0 done, 1 an error the user can act on, 2 usage, 3 refused, 75 preempted and checkpointed.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from tasks.exit_status import exit_status
from tasks.files import write_text
from tasks.paths import Paths
from tasks.recipe import NAME_PATTERN, load_recipe, recipe_path
from tasks.stage_log import end_with_parent, keep_log
from tasks.stages import STAGES
from tasks.stops import sigterm_stops


def main(arguments: list[str] | None = None) -> int:
    """Run the stage named on the command line in the repository of the working folder; return its status."""
    as_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2 or arguments[0] not in STAGES:
        print(f"usage: python -m tasks {{{','.join(STAGES)}}} RECIPE", file=sys.stderr)
        return 2
    stage, name = arguments
    if as_process and NAME_PATTERN.match(name):
        keep_log(Paths(Path.cwd(), name).stage_log(stage))
    if as_process and "DVC_STAGE" in os.environ:
        end_with_parent()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    return exit_status(stage, sigterm_stops(whole_process=True)(lambda: run_stage(stage, name, Path.cwd())))


def run_stage(stage: str, name: str, root: Path) -> None:
    """Call the stage's function with its own sections of the recipe and its paths, and note how long it took."""
    recipe = load_recipe(recipe_path(root, name))
    paths = Paths(root, name)
    module = importlib.import_module(f"tasks.{stage}")
    started = time.time()
    getattr(module, stage)(*recipe.sections(STAGES[stage]).values(), paths=paths)
    timing = {
        "stage": stage,
        "started": started,
        "seconds": round(time.time() - started, 3),
        "process_seconds": _process_seconds(),
    }
    write_text(paths.scratch / "timings" / f"{stage}.json", json.dumps(timing) + "\n")


def _process_seconds() -> float | None:
    """Return how long this process has existed, imports included; None where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return round(up - ticks / os.sysconf("SC_CLK_TCK"), 3)


if __name__ == "__main__":
    sys.exit(main())
