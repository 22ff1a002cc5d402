"""What a search found: its trials, which of them won, and why none did. Written by `tasks.tune`, read by whoever asks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.errors import Refused, StageError
from tasks.files import write_text
from tasks.forgetting.way import rank
from tasks.paths import Paths
from tasks.recipe import Finetune

NAMED = 5
"""Failures that a refusal quotes at most."""


@dataclass(frozen=True)
class Trial:
    """One training and the best that is within the budget between its base and it."""

    number: int
    changes: Mapping[str, Any]
    """Fields of the recipe, as `retain run --set` takes them."""
    state: str
    """`complete`, `pruned`, or `failed: ` and the reason."""
    gain: float | None = None
    """On validation, of the chosen mixture, over where tuning started."""
    log_likelihood_gain: float | None = None
    """Likewise; it orders the trials of tasks with labels (`tasks/forgetting/way.py`)."""
    alpha: float | None = None
    path: str | None = None
    tuned_gain: float | None = None
    """Of the tuned model as it is, whatever it forgot."""
    losses: Mapping[str, float] | None = None
    """What the tuned model lost, by gating suite, on the selection halves."""
    kept: Mapping[str, float] | None = None
    """What the chosen mixture lost, likewise."""
    model: str | None = None
    """Fingerprint of the chosen model's folder: the run of the winner makes the same on a CPU."""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended by an error."""
        return self.state.startswith("failed")

    @property
    def settings(self) -> str:
        """What it trained with, in words, but for what changes nothing (no pull to the base, say)."""
        words = []
        for field, value in self.changes.items():
            name = field.removeprefix("finetune.")
            if name == "lora":
                words += [f"rank {value['rank']}"] if value else []
            elif value != Finetune.model_fields[name].default:
                words.append(f"{name} {value}")
        return ", ".join(words)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Sort trials as `merge` orders mixtures within the budget, the best first; unended ones last."""

    def place(trial: Trial) -> tuple[Any, ...]:
        if trial.gain is None:
            return False, False, 0.0, 0.0, -trial.number
        return True, *rank(trial.gain, trial.log_likelihood_gain, trial.alpha or 0.0), -trial.number

    return sorted(trials, key=place, reverse=True)


def winner(trials: Sequence[Trial], margins: Mapping[str, float]) -> Trial:
    """Return the best trial that gained within the budget; `margins` are what each gating suite may lose.

    Raises:
        Refused: none gained anything; the message says what each kind of trial fell at, and what would help.
    """
    first = next(iter(ranked(trials)), None)
    if first is not None and first.gain is not None and first.gain > 0:
        return first
    problems = [*_over(trials, margins), *_ended(trials)]
    raise Refused("No trial gained anything within the forgetting budget:", problems)


def _over(trials: Sequence[Trial], margins: Mapping[str, float]) -> list[str]:
    """Say what those lost that learned something, and that others learned nothing."""
    ended = [trial for trial in trials if trial.tuned_gain is not None]
    learned = [trial for trial in ended if (trial.tuned_gain or 0.0) > 0]
    problems = []
    if learned:
        best = max(learned, key=lambda trial: trial.tuned_gain or 0.0)
        lost = ", ".join(
            f"{name} {loss:+.4f} (allowed {margins[name]:g})"
            for name, loss in (best.losses or {}).items()
            if name in margins
        )
        problems.append(
            f"{len(learned)} learned, but what they learned is over the budget; the best, trial {best.number}, gained "
            f"{best.tuned_gain:+.4f} and lost {lost}: try lower `tune.learning_rates`, `freeze_layers`, a wider "
            "margin in `budget`, or a larger benchmark, whose losses are known more precisely"
        )
    if count := len(ended) - len(learned):
        problems.append(
            f"{count} learned nothing that validation shows: try more `tune.epochs` or higher `tune.learning_rates`"
        )
    return problems


def _ended(trials: Sequence[Trial]) -> list[str]:
    """Say which trials did not come to an end, and why."""
    failed = [trial for trial in trials if trial.failed]
    problems = [f"trial {trial.number} {trial.state}" for trial in failed[:NAMED]]
    if len(failed) > NAMED:
        problems.append(f"and {len(failed) - NAMED} more failed")
    if pruned := sum(trial.state == "pruned" for trial in trials):
        problems.append(f"{pruned} pruned: behind the median of the others")
    return problems


def trials_file(paths: Paths) -> Path:
    """Return where what came of a search lies."""
    return paths.scratch / "tune" / "trials.json"


def write_trials(trials: Sequence[Trial], paths: Paths) -> None:
    """Write the trials of a search, in their order."""
    write_text(trials_file(paths), json.dumps([asdict(trial) for trial in trials], indent=2) + "\n")


def read_trials(paths: Paths) -> list[Trial]:
    """Read the trials of the last search.

    Raises:
        StageError: they are missing or damaged.
    """
    try:
        return [Trial(**trial) for trial in json.loads(trials_file(paths).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise StageError(f"{trials_file(paths)} cannot be read: {error}; run the search again.") from None
