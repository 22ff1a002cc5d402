"""A tiny project with its stages run up to a tuned model, in the test's own folder and store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tasks.__main__ import run_stage
from tasks.paths import Paths
from tasks.stages import STAGES
from tests.project import make_project


def tuned_project(folder: Path, *, until: str = "finetune", dropout: float = 0.1) -> Paths:
    """Make a tiny project and run its stages, in this process, up to and with `until`."""
    project = make_project(folder / "project", dropout=dropout)
    shutil.copytree(folder / "project-data", project.root / "data" / "raw" / "tiny")
    before = os.environ.get("RETAIN_HOME")
    os.environ["RETAIN_HOME"] = str(folder / "store")
    try:
        for stage in STAGES:
            run_stage(stage, "tiny", project.root)
            if stage == until:
                break
    finally:
        if before is None:
            del os.environ["RETAIN_HOME"]
        else:
            os.environ["RETAIN_HOME"] = before
    return Paths(project.root, "tiny")
