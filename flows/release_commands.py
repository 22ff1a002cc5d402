"""The commands about releases: register, releases, promote, rollback, predict."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import find_root, say, say_json, say_table
from tasks.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from tasks.summary import Summary

ReleaseName = Annotated[str, typer.Argument(metavar="NAME", help="The release's name in the registry.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one line a thing.")]
BATCH = 256
"""Lines of standard input that are classified at once."""


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (register, releases, promote, rollback, predict):
        app.command()(command)


def champion(root: Path, name: str) -> str:
    """Return the version that `champion` names, as text; `–` when there is none."""
    alias = _registry(root).alias(name, "champion")
    return "–" if alias is None else str(alias.version)


def _registry(root: Path) -> Any:
    from tasks.paths import registry_root
    from tasks.registry import open_registry

    return open_registry(registry_root(root))


def register() -> None:
    """Register."""


def releases() -> None:
    """List."""


def promote() -> None:
    """Promote."""


def rollback() -> None:
    """Rollback."""


def predict() -> None:
    """Predict."""


def release_summary(root: Path, what: str) -> Summary:
    raise NotImplementedError
