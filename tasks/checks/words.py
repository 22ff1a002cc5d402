"""Words that the measures of `check` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.reports import Measure

if TYPE_CHECKING:
    import pandas as pd

WORST = 5
"""Examples shown of a measure."""


def inconclusive(name: str, reason: str, remedy: str) -> Measure:
    reason = reason or (
        "Inconclusive: the training rows have one label only, or so few rows of another that some of them lie in no part "
        "on which a probe is fitted: there is nothing to tell apart."
    )
    return Measure(name=name, value=None, meaning=reason, remedy=remedy)


def significance(p_value: float, permutations: int) -> str:
    verdict = "more than chance" if p_value <= 0.05 else "within chance"
    return f"The difference is {verdict} (p = {p_value:.3g}, {permutations} permutations)."


def rounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Round as far as embeddings agree whatever the batches they were computed in."""
    return (round(interval[0], 4), round(interval[1], 4)) if interval else None


def row_name(table: pd.DataFrame, row: int) -> str:
    return str(table["id"].iloc[row])


def extract(table: pd.DataFrame, row: int) -> str:
    """Return the beginning of a row's text; of a pair, of both texts."""
    text = short(table["text"].iloc[row])
    return f"{text} | {short(table['positive'].iloc[row])}" if "positive" in table else text


def short(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[:400].split())
    return line if len(line) <= 80 else line[:79] + "…"
