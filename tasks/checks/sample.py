"""The rows that are embedded: a stratified, seeded sample, and whether it can say anything."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.tables import has_label_lists, label_codes, label_places, unlabelled

if TYPE_CHECKING:
    import pandas as pd

SMALLEST_SAMPLE = 30
SMALLEST_GROUPS = 10


@dataclass(frozen=True)
class Sample:
    """The rows of one table that are embedded, and their vectors (rows, dim)."""

    name: str
    rows: pd.DataFrame
    vectors: NDArray[np.float32]

    @property
    def groups(self) -> list[str]:
        return [str(group) for group in self.rows["group"]]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.rows["label"].to_numpy(dtype=np.int64)

    @property
    def has_label_lists(self) -> bool:
        return has_label_lists(self.rows)

    @property
    def label_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and labels, one pair for each label that a row has."""
        return label_places(self.rows)


def enough(sample: Sample) -> bool:
    return too_small(sample) is None


def too_small(sample: Sample) -> str | None:
    """Return why nothing can be estimated from this sample, or None."""
    return too_few(sample.name, len(sample.rows), sample.groups)


def too_few(name: str, rows: int, groups: Sequence[str]) -> str | None:
    """Return why nothing can be estimated from so many rows of these groups, or None."""
    if rows < SMALLEST_SAMPLE:
        return f"Inconclusive: {name} has {rows} rows, and fewer than {SMALLEST_SAMPLE} say nothing."
    if len(set(groups)) < SMALLEST_GROUPS:
        return f"Inconclusive: {name} has {len(set(groups))} groups, and fewer than {SMALLEST_GROUPS} say nothing."
    return None


def sampled_target(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most `most` rows of a target; where some have labels, up to half of those rows are labelled ones.

    Without that, the few labelled rows of a large target would be drawn as seldom as the others.
    """
    if len(table) <= most or not (absent := unlabelled(table)).any():
        return sampled(table, most, seed)
    import pandas as pd

    known = sampled(table[~absent], most // 2, seed)
    return pd.concat([known, sampled(table[absent], most - len(known), seed)], ignore_index=True)


def sampled(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most `most` rows with the table's shares of labels, in its order.

    Rows are ranked by a hash of seed, id and text, so that a table that grows keeps most of its sample (and
    its embeddings).
    """
    if len(table) <= most:
        return table.reset_index(drop=True)
    named = zip(table["id"], table["text"], strict=True)
    hashes = [
        hashlib.sha256(f"{seed}:{name}:{text}".encode("utf-8", "surrogatepass")).hexdigest()
        for name, text in named
    ]
    label = label_codes(table)
    order = np.argsort(np.array(hashes), kind="stable")
    rank_in_class = np.empty(len(table))
    for value in np.unique(label):
        mine = order[label[order] == value]
        rank_in_class[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    chosen = np.sort(order[np.argsort(rank_in_class[order], kind="stable")][:most])
    return table.iloc[chosen].reset_index(drop=True)
