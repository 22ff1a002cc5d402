"""Find rows that mean the same in other words: pairs whose embeddings point nearly the same way.

Exact and quadratic, so it is for a sample of rows, after exact copies and near-copies are known (as SemDeDup, Abbas
et al. 2023, which makes it affordable for larger sets by clustering first). What a cosine means depends on the encoder:
a threshold is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.measures.clusters import join

BLOCK = 2_048
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SemanticCopies:
    """Which rows mean the same."""

    clusters: Rows
    """For each row the first row of its cluster, shape (rows,): connected components of the pairs."""
    pairs: int
    """How many pairs reach the threshold, of rows that were not known to be copies."""
    closest: list[tuple[int, int, float]]
    """The pairs most alike, (row, later row, cosine), most alike first."""


def semantic_copies(
    vectors: NDArray[np.floating], similarity: float, known: Rows | None = None, most: int = 20
) -> SemanticCopies:
    """Return the pairs of rows (rows, dim) whose cosine is at least `similarity`, and their clusters.

    `known` gives for each row the first row of a cluster known already (`duplicates.near_clusters`): only those first
    rows are compared, and the clusters are joined. Every pair of them is looked at, in products of 2,048 rows by 2,048,
    so memory is linear in the rows; cosines are of single precision. A row of zeros is like no other.

    Raises: ValueError: `similarity` is not above 0 and at most 1.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"a cosine of {similarity} is no threshold; give one above 0 and at most 1")
    clusters = np.arange(len(vectors)) if known is None else known.astype(np.int64)
    compared = np.unique(clusters)
    unit = _unit(vectors[compared])
    threshold = np.float32(similarity - 1e-6)
    found = _Closest(most)
    for top in range(0, len(unit), BLOCK):
        for left in range(top, len(unit), BLOCK):
            cosines = unit[top : top + BLOCK] @ unit[left : left + BLOCK].T
            alike = cosines >= threshold
            if top == left:
                alike = np.triu(alike, 1)
            row, column = np.nonzero(alike)
            if len(row):
                found.add(compared[row + top], compared[column + left], cosines[row, column])
                clusters = join(clusters, compared[row + top], compared[column + left])
    return SemanticCopies(clusters, found.pairs, found.listed())


class _Closest:
    """Counts pairs, and keeps the most alike."""

    def __init__(self, most: int) -> None:
        self.pairs = 0
        self._most = most
        self._kept: list[tuple[float, int, int]] = []

    def add(self, first: Rows, second: Rows, cosines: NDArray[np.float32]) -> None:
        self.pairs += len(first)
        best = np.lexsort((second, first, -cosines))[: self._most]
        fresh = zip(-cosines[best].astype(float), first[best].tolist(), second[best].tolist(), strict=True)
        self._kept = sorted([*self._kept, *fresh])[: self._most]

    def listed(self) -> list[tuple[int, int, float]]:
        return [(first, second, min(-cosine, 1.0)) for cosine, first, second in self._kept]


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    wide = vectors.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
