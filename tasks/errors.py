"""The errors a user can act on.

    PipelineError            exit 1   anything below; its message says what, where, and what to do
    ├── ConfigError                   a recipe, a parameter or a setting is wrong
    ├── DataError                     raw data or a split cannot be used
    ├── StageError                    a stage could not do its work
    ├── RegistryError                 a release cannot be read, written or moved
    ├── Refused              exit 3   measured, and the answer is no; never retried
    └── Preempted            exit 75  asked to stop; the work is checkpointed and will go on

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PipelineError(Exception):
    """Tell the user what is wrong, where, and what to do; `problems` lists every one at once."""

    exit_code = 1

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {problem}" for problem in self.problems)])


class ConfigError(PipelineError):
    """A recipe, a parameter or a setting is wrong."""


class DataError(PipelineError):
    """Raw data or a split cannot be used."""


class StageError(PipelineError):
    """A stage could not do its work."""


class RegistryError(PipelineError):
    """A release cannot be read, written or moved."""


class Refused(PipelineError):
    """What was measured says no. Never retried: the same inputs give the same answer."""

    exit_code = 3


class Preempted(PipelineError):
    """The process was asked to stop and has saved its work."""

    exit_code = 75


def first_of(problems: Sequence[str], most: int = 20) -> list[str]:
    """Return the first problems of many, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return what ends the message on an unknown name: a question after the nearest known ones, if any is near."""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"; did you mean {' or '.join(near)}?" if near and name not in near else ""
