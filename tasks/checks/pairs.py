"""What only pairs of texts can have wrong: a partner shared, a score contradicted, one side known from training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.checks.words import WORST, row_name, short
from tasks.measures.duplicates import normalise
from tasks.reports import Measure

if TYPE_CHECKING:
    import pandas as pd

CONTRADICTION = 0.2
"""Scores of one pair further apart than this, of the range 0 to 1, contradict each other."""


def pairs(tables: dict[str, pd.DataFrame]) -> Iterator[Measure]:
    """Take what is measured of pairs beside what is measured of all rows."""
    train = tables["train"]
    yield _contradicted(train) if "score" in train else _shared(train)
    for split in ("test", "validation"):
        yield _half_leaked(train, tables[split], split)


def _shared(train: pd.DataFrame) -> Measure:
    """Say how many rows have a positive that is also the positive of another text."""
    texts, positives = _sides(train)
    askers = defaultdict(set)
    for text, positive in zip(texts, positives, strict=True):
        askers[positive].add(text)
    return Measure(
        name="shared_positive_share",
        value=float(np.mean([len(askers[positive]) > 1 for positive in positives])),
        meaning="Share of training rows whose positive is also the positive of another text: in one batch it would be "
        "taken for a wrong answer.",
        remedy="Give such rows one label each and take the supervised-contrastive loss, or keep one of them.",
        worst=[
            f"{len(askers[positive])} texts share: {short(positive)}"
            for positive in sorted(askers, key=lambda positive: (-len(askers[positive]), positive))[:WORST]
            if len(askers[positive]) > 1
        ],
    )


def _contradicted(train: pd.DataFrame) -> Measure:
    """Say how many rows are pairs that occur with quite another score, in either order."""
    rows = defaultdict(list)
    for row, pair in enumerate(zip(*_sides(train), strict=True)):
        rows[tuple(sorted(pair))].append(row)
    scores = train["score"].to_numpy(dtype=np.float64)
    apart = {pair: float(np.ptp(scores[mine])) for pair, mine in rows.items()}
    bad = sorted((pair for pair in rows if apart[pair] > CONTRADICTION), key=lambda pair: -apart[pair])
    return Measure(
        name="conflicting_score_share",
        value=sum(len(rows[pair]) for pair in bad) / len(train),
        meaning="Share of training rows whose pair occurs again, in either order, with a score more than "
        f"{CONTRADICTION:g} of the range away.",
        remedy="Decide which score is right, or drop the pair.",
        worst=[
            f"{', '.join(row_name(train, row) for row in rows[pair])} "
            f"({', '.join(f'{scores[row]:.2f}' for row in rows[pair])}): {short(' | '.join(pair))}"
            for pair in bad[:WORST]
        ],
    )


def _half_leaked(train: pd.DataFrame, held: pd.DataFrame, split: str) -> Measure:
    """Say how many held-out pairs have a text, though not the pair, that training has seen."""
    known = set().union(*map(set, _sides(train)))
    seen: NDArray[np.bool_] = np.array(
        [one in known or other in known for one, other in zip(*_sides(held), strict=True)], dtype=bool
    )
    return Measure(
        name=f"half_leaked_{split}_share",
        value=float(seen.mean()) if len(held) else None,
        meaning=f"Share of {split} pairs of which one text at least also stands in a training pair: the pair is "
        "no leak, but it is less new than it looks."
        if len(held)
        else f"Inconclusive: {split} has no rows.",
        remedy="Give pairs that share a text one group (`group`), to keep them together.",
        worst=[
            f"{row_name(held, row)}: {short(held['text'].iloc[row])} | {short(held['positive'].iloc[row])}"
            for row in np.flatnonzero(seen)[:WORST].tolist()
        ],
    )


def _sides(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    return [normalise(text) for text in table["text"]], [normalise(text) for text in table["positive"]]
