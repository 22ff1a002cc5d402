"""What the registry writes down: the manifest of a version, and where an alias points."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from tasks.files import fingerprint
from tasks.reports import FileRecord, Report

NOT_CONTENT = ("run_id", "created_at", "git_commit")
"""What may differ between two releases of the same content."""


class Manifest(Report):
    """One version: its files, what it gained and lost, and what made it."""

    name: str
    version: int = Field(ge=1)
    files: list[FileRecord]
    """The model folder, by path."""
    reports: dict[str, FileRecord]
    """What was measured and decided, the recipe, and the examples of the benchmarks, by name."""
    metrics: dict[str, Any]
    """The figures of `metrics.json`."""
    lineage: dict[str, Any]
    """First base, base, data, chosen α, champion it was compared with."""
    digest: str
    """sha256 of all of the above, version apart: equal content has equal digests."""
    git_commit: str
    run_id: str
    created_at: str
    """UTC, ISO 8601."""

    @property
    def model_fingerprint(self) -> str:
        """Name the model by its content, as `tasks.files.folder_fingerprint` names its folder."""
        return fingerprint([(file.path, file.sha256) for file in self.files])


def content_digest(
    name: str,
    files: list[FileRecord],
    reports: dict[str, FileRecord],
    metrics: dict[str, Any],
    lineage: dict[str, Any],
) -> str:
    """Return the sha256, in hex, of what a version is: not of when, where and by which run it was made."""
    content = {
        "name": name,
        "files": [file.model_dump() for file in files],
        "reports": {key: file.model_dump() for key, file in reports.items()},
        "metrics": metrics,
        "lineage": {key: value for key, value in lineage.items() if key not in NOT_CONTENT},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Move(Report):
    """One move of an alias."""

    version: int
    rollback: bool = False
    reason: str
    run_id: str
    at: str
    """UTC, ISO 8601."""


class Attempt(Report):
    """One candidate that was measured on a report half, for a release of this name."""

    half: str
    """Fingerprint of the half."""
    number: int = Field(ge=1)
    """Of the candidates that were measured on it, in their order."""
    model: str
    """Fingerprint of the candidate."""
    at: str
    """UTC, ISO 8601."""


class Alias(Report):
    """Where an alias points, and every move that brought it there."""

    name: str
    alias: str
    version: int
    history: list[Move]

    @property
    def withdrawn(self) -> dict[int, Move]:
        """Return the versions that were left for one that had been there before, and the moves that left them."""
        left: dict[int, Move] = {}
        been: list[int] = []
        for move in self.history:
            left.pop(move.version, None)
            if move.version in been and been[-1] != move.version:
                left[been[-1]] = move
            been.append(move.version)
        return left

    @property
    def previous(self) -> int | None:
        """Return the version that a rollback would bring back; None when there is none."""
        stack: list[int] = []
        for move in self.history:
            if move.rollback and len(stack) > 1:
                stack.pop()
            elif not stack or stack[-1] != move.version:
                stack.append(move.version)
        return stack[-2] if len(stack) > 1 else None
