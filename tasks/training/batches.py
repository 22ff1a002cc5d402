"""Which rows make a batch: functions of the recipe and the epoch alone, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tasks.progress_lines import ProgressLines

GROUPED_BATCHES = 32
"""Batches among which rows of like length are put together."""


def epoch_batches(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return the epoch's batches of row indices: a seeded shuffle, rows of like length together."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * GROUPED_BATCHES):
        group = order[start : start + batch_size * GROUPED_BATCHES]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += [group[first : first + batch_size] for first in range(0, len(group), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def length_batches(lengths: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield row indices in batches of rows of like length, the longest first, at most `tokens` padded tokens each.

    Where reading them takes long, a line in the log says how far it is.
    """
    progress = ProgressLines("reading", "rows")
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(tokens // longest, 1)
        yield order[start : start + size]
        start += size
        progress(min(start, len(order)), len(order))


def micro_batches(
    batch: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int, *, packed: bool = False
) -> list[NDArray[np.int64]]:
    """Cut a global batch into parts of at most `tokens` tokens (one row at the least), as even as can be.

    Rows cost what they are long where they are `packed`, else what the longest of the batch is long.
    """
    costs = np.maximum(lengths[batch], 1)
    if not packed:
        costs = np.full(len(batch), costs.max())
    fewest = -(-int(costs.sum()) // tokens)
    # A part ends where its even share is reached, and before it grows beyond what is allowed.
    share = max(float(costs.sum()) / fewest, 1.0)
    parts: list[list[int]] = [[]]
    spent = 0
    for place, cost in enumerate(costs.tolist()):
        if parts[-1] and (spent + cost > tokens or spent + cost / 2 > share):
            parts.append([])
            spent = 0
        parts[-1].append(place)
        spent += cost
    return [batch[part] for part in parts]
