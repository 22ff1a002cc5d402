"""Scratch checkpoints: written aside, fsynced, renamed, the manifest last; a damaged one is skipped.

They are kept by a hash of the stage's inputs in the machine's store, so workspaces share them, and are removed
when the stage has succeeded.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tasks.files import sha256_of, write_text

log = logging.getLogger(__name__)

KEPT = 2
STATE = "state.pt"
MANIFEST = "manifest.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` steps below `folder`; keep the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new."))
    try:
        with (aside / STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"step": step, "sha256": sha256_of(aside / STATE)}
        write_text(aside / MANIFEST, json.dumps(manifest) + "\n")
        target = folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Load the newest whole checkpoint; a damaged one is skipped with a warning."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((candidate / MANIFEST).read_text(encoding="utf-8"))
            if sha256_of(candidate / STATE) == manifest["sha256"]:
                state: dict[str, Any] = torch.load(candidate / STATE, map_location="cpu", weights_only=True)
                return state
            reason = "its content does not match its manifest"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        log.warning("skipping the damaged checkpoint %s (%s)", candidate, reason)
    return None
