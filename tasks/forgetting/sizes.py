"""How many examples a margin asks for, before there is a model: what a benchmark is refused by, in recipe and gate."""

from __future__ import annotations

import bisect

from tasks.forgetting.rule import (
    examples_for_changes,
    examples_for_spread,
    fewest_examples,
)
from tasks.recipe import Decide

METRICS = {
    "retrieval": "mrr",
    "probe": "accuracy",
    "knn": "accuracy",
    "similarity": "spearman",
    "head": "accuracy",
    "choices": "accuracy",
    "last-word": "accuracy",
    "perplexity": "log_likelihood",
    "masked-lm": "log_likelihood",
}
"""By kind of benchmark; a task of the harness names its own."""
RIGHT_OR_WRONG = ("accuracy", "acc", "acc_norm")
"""Metrics whose outcomes are 0 or 1."""
RANKED = "spearman"
CHANGED = 0.05
"""Share of right-or-wrong answers that tuning usually changes, for the better or the worse: 1 to 8 % of those of a small
language model (docs/forgetting.md)."""


SPREAD = {"mrr": 0.15, "log_likelihood": 0.1}
"""Standard deviation of the paired losses that tuning usually leaves, in the metric's unit: 0.14 and 0.17 of the demo's
two, 0.09 nats of blocks of WikiText (`make bench-margins`). Of a rank correlation it depends on the correlation too."""


def examples_asked(margin: float, metric: str, rule: Decide) -> int:
    """Return the number of independent examples below which a benchmark may not gate at this margin.

    With fewer, no model could pass; or one that lost nothing would pass less often than `decide.power` says, where tuning
    moves outcomes as it usually does.
    """
    asked = fewest_examples(margin, rule.confidence, ranked=metric == RANKED)
    if metric in RIGHT_OR_WRONG:
        asked = max(asked, examples_for_changes(margin, rule.confidence, rule.power, CHANGED))
    if metric in SPREAD:
        asked = max(asked, examples_for_spread(margin, rule.confidence, rule.power, SPREAD[metric]))
    return asked


def margin_carried(examples: int, metric: str, rule: Decide) -> float | None:
    """Return the least margin, to three digits up, that asks for no more examples than these; None where none does."""
    thousandths = range(1, 1000)
    place = bisect.bisect_left(
        thousandths, True, key=lambda margin: examples_asked(margin / 1000, metric, rule) <= examples
    )
    return thousandths[place] / 1000 if place < len(thousandths) else None


def why_asked(asked: int, metric: str, rule: Decide) -> str:
    """Say what the number of examples that a margin asks for is needed for."""
    shown = f"is shown {rule.power:.0%} of the time from {asked} on, where tuning"
    if metric in RIGHT_OR_WRONG:
        return f"{shown} changes {CHANGED:.0%} of the answers and loses nothing"
    if metric in SPREAD:
        return f"{shown} moves the outcomes by {SPREAD[metric]:g} and loses nothing"
    return f"can be shown from {asked} on"
