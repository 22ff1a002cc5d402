"""How many examples a margin asks for, before there is a model: what a benchmark is refused by, in recipe and gate."""

from __future__ import annotations

import math

from tasks.forgetting.rule import (
    errors_to_margin,
    examples_for_changes,
    fewest_examples,
    smallest_margin,
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


def examples_asked(margin: float, metric: str, rule: Decide) -> int:
    """Return the number of independent examples below which a benchmark may not gate at this margin.

    With fewer, no model could pass; where answers are right or wrong, one that lost nothing would pass less often than
    `decide.power` says. How far other outcomes spread is known only when there is a model.
    """
    fewest = fewest_examples(margin, rule.confidence, ranked=metric == RANKED)
    usual = examples_for_changes(margin, rule.confidence, rule.power, CHANGED)
    return max(fewest, usual) if metric in RIGHT_OR_WRONG else fewest


def margin_carried(examples: int, metric: str, rule: Decide) -> float | None:
    """Return the least margin, to three digits up, that asks for no more examples than these; None where none does."""
    smallest = smallest_margin(max(examples, 1), rule.confidence)
    if metric in RIGHT_OR_WRONG:
        errors = errors_to_margin(rule.confidence, rule.power)
        smallest = max(smallest, errors * math.sqrt(CHANGED / max(examples, 1)))
    carried = math.ceil(smallest * 1000) / 1000
    return carried if carried < 1 and examples_asked(carried, metric, rule) <= examples else None


def why_asked(asked: int, metric: str, rule: Decide) -> str:
    """Say what the number of examples that a margin asks for is needed for."""
    if metric not in RIGHT_OR_WRONG:
        return f"can be shown from {asked} on"
    return (
        f"is shown {rule.power:.0%} of the time from {asked} on, where tuning changes {CHANGED:.0%} of the answers and "
        "loses nothing"
    )
