"""Find rows that say the same: exactly after normalisation, nearly, across splits, and with other labels.

Near-duplicates are pairs whose sets of 5-character shingles have a Jaccard similarity of at least a
threshold. MinHash LSH proposes candidates (`tasks/measures/minhash.py`), and each candidate is verified on the true
sets, so what is reported is never an estimate: only a pair may be missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.measures.clusters import join
from tasks.measures.minhash import Keys, ShingleSets, alike, band_keys, bands, shingle_sets
from tasks.progress_lines import ProgressLines

CLUSTER_MEMBERS_COMPARED = 20
OF_NUMBERS = "-/*.,:"
"""Before a digit, and not after a letter, these are part of what a text says."""
_SPACE = re.compile(r"\s+")
_SIGN = re.compile(r"[^\w\s]")

Rows = NDArray[np.int64]


def normalise(text: str) -> str:
    """Return `text` in the form in which two equal texts are equal: NFKC, casefolded, words and symbols only.

    Punctuation counts as a space (banking77 leaks 25 test rows, 18 of them by punctuation alone); symbols such as
    emoji, + and € stay, and so does what makes another number of a number: -5, 6/2, 3.5. A text of nothing but
    punctuation stays as it is.
    """
    form = unicodedata.normalize("NFKC", text).casefold()
    words = _SPACE.sub(" ", _SIGN.sub(_space_for_punctuation, form)).strip()
    return words or _SPACE.sub(" ", form).strip()


def _space_for_punctuation(sign: re.Match[str]) -> str:
    before = sign.string[sign.start() - 1] if sign.start() else " "
    after = sign.string[sign.end() : sign.end() + 1]
    if sign.group() in OF_NUMBERS and after.isdigit() and not before.isalpha():
        return sign.group()
    return " " if unicodedata.category(sign.group()).startswith("P") else sign.group()


def exact_clusters(texts: Sequence[str]) -> Rows:
    """Return for each row the first row with the same normal form, shape (rows,)."""
    return _first_equal([normalise(text) for text in texts])


def near_clusters(texts: Sequence[str], similarity: float) -> Rows:
    """Return for each row the first row of its cluster of near-duplicates, shape (rows,).

    Clusters are connected components. Of the rows that a band proposes together, only the first 20 of a cluster are
    held against later rows, which keeps the work linear when a template makes thousands of rows alike.
    """
    forms = [normalise(text) for text in texts]
    exact = _first_equal(forms)
    distinct = np.flatnonzero(exact == np.arange(len(texts)))
    sets = shingle_sets([forms[row] for row in distinct.tolist()])
    del forms
    cluster = np.arange(len(distinct))
    say = ProgressLines("near-duplicates", "bands")
    for number, keys in enumerate(band_keys(sets, similarity), start=1):
        cluster = _joined_by(keys, cluster, sets, similarity)
        say(number, bands(similarity)[0])
    return distinct[cluster][np.searchsorted(distinct, exact)]


def leaks(texts: Sequence[str], train: Sequence[str], similarity: float) -> Rows:
    """Return for each of `texts` a row of `train` that equals it or nearly does, or -1; shape (rows,)."""
    forms = [normalise(text) for text in train]
    seen: dict[str, int] = {}
    for row, form in enumerate(forms):
        seen.setdefault(form, row)
    asked = [normalise(text) for text in texts]
    found = np.array([seen.get(form, -1) for form in asked], dtype=np.int64)
    known = np.array(list(seen.values()), dtype=np.int64)
    new = np.flatnonzero(found < 0)
    sets = shingle_sets([*seen, *(asked[row] for row in new.tolist())])
    near = np.full(len(new), -1, dtype=np.int64)
    say = ProgressLines("leaks", "bands")
    for number, keys in enumerate(band_keys(sets, similarity), start=1):
        _look_up(keys, near, sets, similarity)
        say(number, bands(similarity)[0])
    found[new[near >= 0]] = known[near[near >= 0]]
    return found


def conflicts(texts: Sequence[str], labels: Sequence[int]) -> NDArray[np.bool_]:
    """Say for each row whether a row of the same normal form has another label, shape (rows,)."""
    clusters = exact_clusters(texts)
    given: dict[int, set[int]] = {}
    for cluster, label in zip(clusters.tolist(), labels, strict=True):
        given.setdefault(cluster, set()).add(int(label))
    return np.array([len(given[cluster]) > 1 for cluster in clusters.tolist()], dtype=bool)


def shingle(text: str) -> NDArray[np.uint32]:
    """Return the distinct 5-character shingles of the normal form, hashed to 32 bits and sorted."""
    return shingle_sets([normalise(text)]).values


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Return the Jaccard similarity of two sets given as sorted distinct arrays."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _first_equal(forms: Sequence[str]) -> Rows:
    first: dict[str, int] = {}
    return np.array([first.setdefault(form, row) for row, form in enumerate(forms)], dtype=np.int64)


def _joined_by(keys: Keys, cluster: Rows, sets: ShingleSets, similarity: float) -> Rows:
    """Return the clusters after joining alike rows of the same key: the first of each key is held against the others,
    then the next, until every row has been, or 20 of its cluster have."""
    members, bucket = _shared_keys(np.argsort(keys, kind="stable"), keys)
    compared = np.zeros(len(members), dtype=np.int64)
    while len(members):
        first = np.concatenate(([True], bucket[1:] != bucket[:-1]))
        one = members[first][np.cumsum(first) - 1][~first]
        members, bucket, compared = members[~first], bucket[~first], compared[~first]
        apart = np.flatnonzero(cluster[one] != cluster[members])
        hits = apart[alike(sets, one[apart], members[apart], similarity)]
        cluster = join(cluster, one[hits], members[hits])
        compared = compared + (cluster[one] == cluster[members])
        left = compared < CLUSTER_MEMBERS_COMPARED
        members, bucket, compared = members[left], bucket[left], compared[left]
        several = np.zeros(len(bucket), dtype=bool)
        several[1:] = bucket[1:] == bucket[:-1]
        several[:-1] |= several[1:]
        members, bucket, compared = members[several], bucket[several], compared[several]
    return cluster


def _shared_keys(order: Rows, keys: Keys) -> tuple[Rows, Rows]:
    """Return the rows that share their key with others, those of a key together, and a number for each key."""
    ordered = keys[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(order)]
    bucket = np.cumsum(new) - 1
    shared = np.bincount(bucket, minlength=1)[bucket] > 1
    return order[shared], bucket[shared]


def _look_up(keys: Keys, near: Rows, sets: ShingleSets, similarity: float) -> None:
    """Set for each text without a match the first alike training row of its key; the texts come after those rows."""
    known = len(keys) - len(near)
    order = np.argsort(keys[:known], kind="stable")
    ordered = keys[:known][order]
    waiting = np.flatnonzero(near < 0)
    place = np.searchsorted(ordered, keys[known + waiting], side="left")
    end = np.searchsorted(ordered, keys[known + waiting], side="right")
    width = 1
    while len(waiting):
        more = np.minimum(end - place, width)
        owner = np.repeat(np.arange(len(waiting)), more)
        step = np.arange(int(more.sum())) - np.repeat(np.cumsum(more) - more, more)
        proposed = order[place[owner] + step]
        hits = np.flatnonzero(alike(sets, proposed, known + waiting[owner], similarity))
        matched, at = np.unique(owner[hits], return_index=True)
        near[waiting[matched]] = proposed[hits[at]]
        left = (place + more < end) & (near[waiting] < 0)
        waiting, place, end = waiting[left], (place + more)[left], end[left]
        width *= 2
