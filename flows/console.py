"""What the commands share: finding the repository, and writing to a terminal or a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError


def find_root(start: Path | None = None) -> Path:
    """Return the repository that the working folder (or `start`) lies in.

    Raises:
        ConfigError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "recipes").is_dir():
            return folder
    raise ConfigError(
        f"{start} is in no Retain repository: no folder above it has dvc.yaml and recipes/. "
        "Change into your clone and try again."
    )


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment meanwhile; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read `finetune.learning_rate=5e-4` and the like; a value is YAML, and a number may be written as 5e-4.

    Raises:
        ConfigError: a setting is not of the form field=value, or names a field twice.
    """
    import yaml

    changes: dict[str, Any] = {}
    problems = []
    for setting in settings:
        field, equals, text = setting.partition("=")
        field = field.strip()
        if not equals or "." not in field or not text.strip():
            problems.append(f"{setting!r}: write it as section.field=value, for example finetune.epochs=1")
        elif field in changes:
            problems.append(f"{setting!r}: {field} is given twice")
        else:
            try:
                changes[field] = _number(yaml.safe_load(text))
            except yaml.YAMLError:
                problems.append(f"{setting!r}: the value is no YAML")
    if problems:
        raise ConfigError("--set was not understood:", problems)
    return changes


def _number(value: Any) -> Any:
    # YAML 1.1 reads 5e-4 as text, because it has no point.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def say(text: str = "") -> None:
    """Write a line to standard output."""
    print(text)


def say_json(value: Any) -> None:
    """Write a value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write an aligned table; nothing is cut, so that a pipe gets every character."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def say_markdown(text: str) -> None:
    """Write Markdown: formatted on a terminal, as it is into a pipe."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def duration(seconds: float) -> str:
    """Write a duration as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
