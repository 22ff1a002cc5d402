"""How a summary writes names and figures."""

from __future__ import annotations

from collections.abc import Sequence

SHARES = ("accuracy",)
"""Metrics that are shares, and read best as percentages."""
METRICS = {
    "log_likelihood": "Log-likelihood a token (nats)",
    "mrr": "MRR",
    "macro_f1": "Macro-F1",
    "example F1": "F1 of a row's labels",
}


def percent(share: float) -> str:
    """Write a share as a percentage: 0.789 → 78.9 %."""
    return f"{100 * share:.1f} %"


def score(metric: str, value: float) -> str:
    """Write a score in its metric's unit: a share as a percentage, anything else with three digits."""
    return percent(value) if metric in SHARES else f"{value:.3f}".replace("-", "−")


def change(metric: str, value: float) -> str:
    """Write a change of a score in its metric's unit."""
    return signed_points(value) if metric in SHARES else signed(value)


def signed(change: float) -> str:
    """Write a change with its sign: −0.006."""
    return f"{round(change, 3) + 0.0:+.3f}".replace("-", "−")


def signed_points(change: float) -> str:
    """Write a change of a share in percentage points: +9.7 points."""
    return f"{round(100 * change, 1) + 0.0:+.1f} points".replace("-", "−")


def metric_name(name: str) -> str:
    """Write the name of a metric."""
    return METRICS.get(name, name.replace("_", " ").capitalize())


def spaced(name: str) -> str:
    """Write a name of the code in words: near_duplicate_share → near duplicate share."""
    return name.replace("_", " ")


def listed(names: Sequence[str]) -> str:
    """Write names in a row: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(number: int) -> str:
    """Write a number of parameters: 22.7 million."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"
