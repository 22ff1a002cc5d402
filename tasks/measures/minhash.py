"""Find pairs of alike sets among millions: MinHash LSH over arrays, every proposal verified on the true sets.

MinHash (Broder 1997) and banding (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3). The libraries keep
an object and a dictionary entry for each text and each band, which takes longer for a million short texts than all else
(`make bench-check` shows one beside this); here signatures are minima over slices of one array, and bands are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE_CHARACTERS = 5
PERMUTATIONS = 64
CANDIDATE_RECALL = 0.99
_SEED = 1
_CHARACTERS_AT_ONCE = 2_000_000
_VALUES_AT_ONCE = 100_000
_VERIFIED_AT_ONCE = 4_000_000

Rows = NDArray[np.int64]
Values = NDArray[np.uint32]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class ShingleSets:
    """The sets of hashed shingles of many texts, in one array."""

    values: Values
    """Shape (shingles,): those of one text after those of the one before, sorted and distinct."""
    starts: Rows
    """Shape (texts + 1,): where the set of each text begins; the last is where all end."""

    def sizes(self) -> Rows:
        """Return the number of shingles of each text, shape (texts,)."""
        return np.diff(self.starts)


def shingle_sets(forms: Sequence[str]) -> ShingleSets:
    """Return the distinct 5-character shingles of each form, hashed to 32 bits; a shorter form is one shingle."""
    values, sizes = [np.zeros(0, dtype=np.uint32)], [np.zeros(0, dtype=np.int64)]
    for part in _by_size([len(form) for form in forms], _CHARACTERS_AT_ONCE):
        found, counts = _shingled(forms[part])
        values.append(found)
        sizes.append(counts)
    return ShingleSets(np.concatenate(values), np.concatenate(([0], np.cumsum(np.concatenate(sizes)))))


def band_keys(sets: ShingleSets, similarity: float) -> Iterator[Keys]:
    """Yield for each band a key a text, shape (texts,): texts that share a key in some band may be alike."""
    count, rows = bands(similarity)
    chance = np.random.default_rng(_SEED)
    factors = chance.integers(0, 2**31, (count, rows), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = chance.integers(0, 2**32, (count, rows), dtype=np.uint32)
    slices = list(_by_size(sets.sizes().tolist(), _VALUES_AT_ONCE))
    for band in range(count):
        keys = np.zeros(len(sets.starts) - 1, dtype=np.uint64)
        for part in slices:
            first, last = sets.starts[part.start], sets.starts[part.stop]
            begins = sets.starts[part] - first
            for factor, offset in zip(factors[band], offsets[band], strict=True):
                # A linear map with an odd factor permutes the 32-bit numbers.
                least = np.minimum.reduceat(sets.values[first:last] * factor + offset, begins)
                keys[part] = _mixed(keys[part] ^ least)
        yield keys


def alike(sets: ShingleSets, one: Rows, other: Rows, similarity: float) -> NDArray[np.bool_]:
    """Say of each pair of texts whether the Jaccard similarity of their sets reaches `similarity`, shape (pairs,)."""
    sizes = sets.sizes()
    small, large = np.minimum(sizes[one], sizes[other]), np.maximum(sizes[one], sizes[other])
    found = small >= similarity * large - 1e-9  # no pair of such unlike sizes can reach it
    pairs = np.flatnonzero(found)
    for part in _by_size((small + large)[pairs].tolist(), _VERIFIED_AT_ONCE):
        now = pairs[part]
        shared = _shared(sets, one[now], other[now])
        found[now] = shared / (small[now] + large[now] - shared) >= similarity
    return found


def bands(similarity: float) -> tuple[int, int]:
    """Return (bands, rows a band): the most selective LSH that finds 99 % of the pairs at `similarity`."""
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if count > 1 and 1 - (1 - similarity**rows) ** count >= CANDIDATE_RECALL:
            return count, rows
    return PERMUTATIONS, 1


def _by_size(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Cut a sequence into slices whose sizes sum to at most `most`, or hold one item."""
    start, total = 0, 0
    for place, size in enumerate(sizes):
        if place > start and total + size > most:
            yield slice(start, place)
            start, total = place, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _shingled(forms: Sequence[str]) -> tuple[Values, Rows]:
    """Return the shingles of some forms, distinct and sorted for each, and how many each has."""
    padded = [form.ljust(SHINGLE_CHARACTERS, "\0") for form in forms]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.array([len(form) for form in padded], dtype=np.int64)
    positions = len(codes) - SHINGLE_CHARACTERS + 1
    mixed = np.zeros(positions, dtype=np.uint64)
    for offset in range(SHINGLE_CHARACTERS):
        mixed = _mixed(mixed ^ codes[offset : offset + positions])
    inside = np.ones(len(codes), dtype=bool)
    for back in range(1, SHINGLE_CHARACTERS):
        inside[np.cumsum(lengths) - back] = False  # a shingle that begins here would run into the next text
    owners = np.repeat(np.arange(len(forms), dtype=np.uint64), lengths - SHINGLE_CHARACTERS + 1)
    keys = (owners << np.uint64(32)) | (mixed[inside[:positions]] >> np.uint64(32))
    keys.sort()
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(forms))
    return keys.astype(np.uint32), counts.astype(np.int64)


def _mixed(keys: Keys) -> Keys:
    keys = keys * np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(29)
    return keys


def _shared(sets: ShingleSets, one: Rows, other: Rows) -> Rows:
    """Return how many shingles the two texts of each pair share."""
    keys = np.concatenate([_keyed(sets, one), _keyed(sets, other)])
    keys.sort()
    twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
    return np.bincount(twice.astype(np.int64), minlength=len(one))


def _keyed(sets: ShingleSets, texts: Rows) -> Keys:
    """Return the shingles of some texts, each with the position of its text in the high bits."""
    sizes = sets.sizes()[texts]
    ends = np.cumsum(sizes)
    places = np.arange(ends[-1]) + np.repeat(sets.starts[texts] - (ends - sizes), sizes)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), sizes)
    return (owners << np.uint64(32)) | sets.values[places]
