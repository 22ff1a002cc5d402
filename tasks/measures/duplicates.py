"""Find rows that say the same: exactly after normalisation, nearly, across splits, and with other labels.

Near-duplicates are pairs whose sets of 5-character shingles have a Jaccard similarity of at least a
threshold. MinHash LSH (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3)
proposes candidates, and each candidate is verified on the true sets, so what is reported is never an
estimate: only a pair may be missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from tasks.measures.clusters import find, roots, union

SHINGLE_CHARACTERS = 5
PERMUTATIONS = 64
CANDIDATE_RECALL = 0.99
CLUSTER_MEMBERS_INDEXED = 20
_SLICE = 100_000
_SPACE = re.compile(r"\s+")
_SIGN = re.compile(r"[^\w\s]")

Rows = NDArray[np.int64]


def normalise(text: str) -> str:
    """Return `text` in the form in which two equal texts are equal: NFKC, casefolded, words and symbols only.

    Punctuation counts as a space (banking77 leaks 25 test rows, 18 of them by punctuation alone); symbols such as
    emoji, + and € stay. A text of nothing but punctuation stays as it is.
    """
    form = unicodedata.normalize("NFKC", text).casefold()
    words = _SPACE.sub(" ", _SIGN.sub(_space_for_punctuation, form)).strip()
    return words or _SPACE.sub(" ", form).strip()


def _space_for_punctuation(sign: re.Match[str]) -> str:
    return " " if unicodedata.category(sign.group()).startswith("P") else sign.group()


def exact_clusters(texts: Sequence[str]) -> Rows:
    """Return for each row the first row with the same normal form, shape (rows,)."""
    first: dict[str, int] = {}
    return np.array(
        [first.setdefault(normalise(text), row) for row, text in enumerate(texts)], dtype=np.int64
    )


def near_clusters(texts: Sequence[str], similarity: float) -> Rows:
    """Return for each row the first row of its cluster of near-duplicates, shape (rows,).

    Clusters are connected components (union-find). Of a cluster only the first 20 distinct texts are held
    against later rows, which keeps the work linear when a template makes thousands of rows alike.
    """
    exact = exact_clusters(texts)
    parent = exact.copy()
    members = np.zeros(len(texts), dtype=np.int64)
    index = NearIndex(similarity)
    for row in np.flatnonzero(exact == np.arange(len(texts))).tolist():
        shingles = shingle(texts[row])
        matches = index.matches(shingles, skip_known=parent)
        for other in matches:
            union(parent, row, other)
        root = find(parent, row)
        if members[root] < CLUSTER_MEMBERS_INDEXED:
            members[root] += 1
            index.add(row, shingles)
    return roots(parent)


def leaks(texts: Sequence[str], train: Sequence[str], similarity: float) -> Rows:
    """Return for each of `texts` a row of `train` that equals it or nearly does, or -1; shape (rows,)."""
    index = NearIndex(similarity)
    seen: dict[str, int] = {}
    for row, text in enumerate(train):
        if seen.setdefault(normalise(text), row) == row:
            index.add(row, shingle(text))
    found = np.full(len(texts), -1, dtype=np.int64)
    for row, text in enumerate(texts):
        exact = seen.get(normalise(text))
        if exact is not None:
            found[row] = exact
        elif matches := index.matches(shingle(text), first_only=True):
            found[row] = matches[0]
    return found


def conflicts(texts: Sequence[str], labels: Sequence[int]) -> NDArray[np.bool_]:
    """Say for each row whether a row of the same normal form has another label, shape (rows,)."""
    clusters = exact_clusters(texts)
    given: dict[int, set[int]] = {}
    for cluster, label in zip(clusters.tolist(), labels, strict=True):
        given.setdefault(cluster, set()).add(int(label))
    return np.array([len(given[cluster]) > 1 for cluster in clusters.tolist()], dtype=bool)


def shingle(text: str) -> NDArray[np.uint32]:
    """Return the distinct 5-character shingles of the normal form, hashed to 32 bits and sorted.

    A text shorter than a shingle is one shingle.
    """
    form = normalise(text)
    codes = np.frombuffer(
        form.ljust(SHINGLE_CHARACTERS, "\0").encode("utf-32-le", "surrogatepass"), dtype=np.uint32
    )
    count = len(codes) - SHINGLE_CHARACTERS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE_CHARACTERS):
        mixed = (mixed ^ codes[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Return the Jaccard similarity of two sets given as sorted distinct arrays."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


@dataclass
class NearIndex:
    """Texts that can be asked for their near-duplicates."""

    similarity: float
    shingles: dict[int, NDArray[np.uint32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._blank = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=bands(self.similarity))
        self._last: tuple[NDArray[np.uint32], MinHash] | None = None

    def add(self, row: int, shingles: NDArray[np.uint32]) -> None:
        """Remember the text of `row`."""
        self._lsh.insert(row, self._signature(shingles))
        self.shingles[row] = shingles

    def matches(
        self, shingles: NDArray[np.uint32], first_only: bool = False, skip_known: Rows | None = None
    ) -> list[int]:
        """Return rows whose true similarity reaches the threshold, in order.

        `skip_known` is a union-find forest: once one row of a tree matches, its other rows are not compared.
        """
        found: list[int] = []
        known: set[int] = set()
        for row in sorted(self._lsh.query(self._signature(shingles))):
            if skip_known is not None and find(skip_known, row) in known:
                continue
            if jaccard(shingles, self.shingles[row]) >= self.similarity:
                found.append(row)
                if skip_known is not None:
                    known.add(find(skip_known, row))
                if first_only:
                    break
        return found

    def _signature(self, shingles: NDArray[np.uint32]) -> MinHash:
        if self._last is None or self._last[0] is not shingles:
            signature = self._blank.copy()
            for start in range(0, len(shingles), _SLICE):
                signature.update_batch(shingles[start : start + _SLICE].tolist())
            self._last = (shingles, signature)
        return self._last[1]


def bands(similarity: float) -> tuple[int, int]:
    """Return (bands, rows a band): the most selective LSH that finds 99 % of the pairs at `similarity`."""
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if count > 1 and 1 - (1 - similarity**rows) ** count >= CANDIDATE_RECALL:
            return count, rows
    return PERMUTATIONS, 1
