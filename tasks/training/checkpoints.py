"""Scratch checkpoints: written aside, fsynced, renamed, the manifest last; a damaged one is skipped.

They are kept by a hash of the stage's inputs in the machine's store, so workspaces share them, and are removed
when the stage has succeeded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tasks.files import sha256_of, write_text

log = logging.getLogger(__name__)

KEPT = 2
LONGEST_WRITE = 3600.0
"""Seconds after which nobody still writes a checkpoint; two workspaces may train the same at once."""
STATE = "state.pt"
MANIFEST = "manifest.json"


def folder_of(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps below `folder`, and return where; keep the last two.

    What killed writers left goes too, once no writer can still be at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new."))
    try:
        with (aside / STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"step": step, "sha256": sha256_of(aside / STATE)}
        write_text(aside / MANIFEST, json.dumps(manifest) + "\n")
        target = folder / folder_of(step)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _sync_folder(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in [*sorted(folder.glob("step-*"))[:-KEPT], *_left_behind(folder)]:
        if old != target:  # which damaged ones of later steps would displace
            shutil.rmtree(old, ignore_errors=True)
    return target


def _left_behind(folder: Path) -> list[Path]:
    now = time.time()
    found = []
    for aside in folder.glob(".new.*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just ended with it
            found += [aside] if now - aside.stat().st_mtime > LONGEST_WRITE else []
    return found


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk: a rename is not, before, and may be lost with the power."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def whole_steps(folder: Path) -> list[int]:
    """Return the steps whose checkpoints are there and whole."""
    return [
        int(candidate.name.removeprefix("step-"))
        for candidate in folder.glob("step-*")
        if _damage(candidate) is None
    ]


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Load the newest whole checkpoint; damaged ones that are newer are removed with a warning."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        reason = _damage(candidate)
        if reason is None:
            state: dict[str, Any] = torch.load(candidate / STATE, map_location="cpu", weights_only=True)
            return state
        log.warning("skipping the damaged checkpoint %s (%s)", candidate, reason)
        shutil.rmtree(candidate, ignore_errors=True)
    return None


def _damage(candidate: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((candidate / MANIFEST).read_text(encoding="utf-8"))
        whole = sha256_of(candidate / STATE) == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if whole else "its content does not match its manifest"
