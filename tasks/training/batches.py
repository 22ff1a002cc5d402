"""Which rows make a batch: functions of the recipe and the epoch alone, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

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
    """Yield row indices in batches of rows of like length, the longest first, at most `tokens` padded tokens each."""
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(tokens // longest, 1)
        yield order[start : start + size]
        start += size


def micro_batches(
    batch: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int
) -> list[NDArray[np.int64]]:
    """Cut a global batch into parts of at most `tokens` padded tokens (one row at the least)."""
    longest = max(int(lengths[batch].max()), 1)
    size = max(tokens // longest, 1)
    return [batch[start : start + size] for start in range(0, len(batch), size)]
