"""Join what belongs together: union-find over rows, named by the first row of each cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rows = NDArray[np.int64]


def find(parent: Rows, row: int) -> int:
    """Return the first row of the cluster of `row`, and shorten the way there."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def union(parent: Rows, one: int, other: int) -> None:
    """Make one cluster of those of two rows."""
    first, second = sorted((find(parent, one), find(parent, other)))
    parent[second] = first


def roots(parent: Rows) -> Rows:
    """Return for each row the first row of its cluster."""
    return np.array([find(parent, row) for row in range(len(parent))], dtype=np.int64)


def join(first: Rows, one: Rows, other: Rows) -> Rows:
    """Return `first` (the first row of each row's cluster) after joining the rows `one` with the rows `other`."""
    left, right = first[one], first[other]
    apart = left != right
    if not apart.any():
        return first
    left, right = left[apart], right[apart]
    # Only the clusters that are joined are looked at: few, beside all rows.
    joined = np.zeros(len(first), dtype=bool)
    joined[left] = joined[right] = True
    named = np.flatnonzero(joined)
    number = np.cumsum(joined, dtype=np.int32) - 1
    pairs = coo_array(
        (np.ones(len(left), dtype=bool), (number[left], number[right])), shape=(len(named), len(named))
    )
    component = connected_components(pairs, directed=False)[1]
    # Components are numbered in no promised order: each is named by its first row.
    smallest = np.full(int(component.max()) + 1, len(first), dtype=np.int64)
    np.minimum.at(smallest, component, named)
    renamed = np.arange(len(first))
    renamed[named] = smallest[component]
    return renamed[first]
