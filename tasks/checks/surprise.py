"""How well the base, a language model, knows the rows already: its perplexity of what carries loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.checks.sample import SMALLEST_GROUPS, SMALLEST_SAMPLE, sampled
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name
from tasks.measures.perplexity import Perplexity, perplexity, ratio
from tasks.reports import Measure

SCORED_ROWS = 200
"""Rows whose likelihood is computed at most, a table: a stratified sample beyond."""
Losses = Callable[[pd.DataFrame], NDArray[np.float32]]
"""Rows → (sum of nats, tokens) of what carries loss in them, (rows, 2)."""


class Likelihoods:
    """Lets `embed` keep what a language model makes of rows as it keeps vectors, by the rows' content."""

    def __init__(self, model: Any, column: str) -> None:
        self._model = model
        self._column = column

    def encode(self, contents: Sequence[str | bytes], *, max_length: int) -> NDArray[np.float32]:
        """Return (sum of nats, tokens) of each row, (rows, 2)."""
        rows = pd.DataFrame({"id": np.arange(len(contents)), self._column: contents})
        found: NDArray[np.float32] = self._model.nats(rows, max_length).astype(np.float32)
        return found


@dataclass(frozen=True)
class _Scored:
    name: str
    rows: pd.DataFrame
    losses: NDArray[np.float32]

    @property
    def problem(self) -> str | None:
        """Why nothing can be said of these rows, or None."""
        held = self.losses[:, 1] > 0
        groups = self.rows["group"][held].nunique()
        if held.sum() < SMALLEST_SAMPLE or groups < SMALLEST_GROUPS:
            return (
                f"Inconclusive: {self.name} has {held.sum()} rows in {groups} groups with a token that carries loss, and "
                f"fewer than {SMALLEST_SAMPLE} in {SMALLEST_GROUPS} say nothing."
            )
        return None

    @property
    def perplexity(self) -> Perplexity:
        return perplexity(self.losses, [str(group) for group in self.rows["group"]])


def surprise(tables: dict[str, pd.DataFrame], losses: Losses, length: int, seed: int) -> list[Measure]:
    """Measure each table's perplexity under the base, `train` first, and the others' as a multiple of it."""
    scored = []
    for name, table in tables.items():
        rows = sampled(table, SCORED_ROWS, seed)
        scored.append(_Scored(name, rows, losses(rows)))
    home, *others = scored
    measures = [_perplexity(home, "base_perplexity", length)]
    for there in others:
        measures += [
            _perplexity(there, f"base_perplexity_{there.name}", length),
            _ratio(there, home),
        ]
    return measures


def _perplexity(of: _Scored, name: str, length: int) -> Measure:
    remedy = (
        "Read the rows below: what no model could foresee is noise, another language, or a broken encoding."
    )
    if of.problem:
        return inconclusive(name, of.problem, remedy)
    found = of.perplexity
    means = np.divide(of.losses[:, 0], of.losses[:, 1], out=np.zeros(len(of.rows)), where=of.losses[:, 1] > 0)
    order = np.argsort(-means, kind="stable")[:WORST].tolist()
    return Measure(
        name=name,
        value=round(found.value, 3),
        interval=rounded(found.interval),
        meaning=f"Perplexity of the base on {int(np.sum(of.losses[:, 1] > 0))} rows of {of.name}, over the "
        f"{int(of.losses[:, 1].sum())} tokens that carry loss among the first {length} of each: among how many tokens it "
        "hesitates. Near 1 it knows them already; in the thousands they are no language that it knows.",
        remedy=remedy,
        worst=[
            f"{means[row]:.2f} nats a token: {row_name(of.rows, row)}: {extract(of.rows, row)}"
            for row in order
        ],
    )


def _ratio(there: _Scored, home: _Scored) -> Measure:
    name = f"perplexity_ratio_{there.name}"
    remedy = f"Where {there.name} surprises the base far more than the training rows do, train on rows like its own."
    if reason := home.problem or there.problem:
        return inconclusive(name, reason, remedy)
    value, interval = ratio(there.perplexity, home.perplexity)
    return Measure(
        name=name,
        value=round(value, 4),
        interval=rounded(interval),
        meaning=f"Perplexity of the base on {there.name} over that on the training rows: 1 is equally well known.",
        remedy=remedy,
    )
