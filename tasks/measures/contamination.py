"""Find the benchmark examples that the training rows contain: their scores would measure memory.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): an example is contaminated when one of its n-grams of words
occurs in a training row, where n is the 5th percentile of the benchmark's lengths in words, at least 8 and at most 13.
With it goes Llama's figure (Touvron et al. 2023, appendix A.6; Llama 3, section 5.1.4): the share of an example's words
that lie in such n-grams, which tells a copied example from a quoted phrase.

Two things differ, and on purpose. Words are those of `duplicates.normalise`, so that a leak and a contamination mean the
same text. And n-grams that more than 10 of the benchmark's own examples share (instructions, templates) are left out;
GPT-3 left out those that more than 10 training documents share, which would hide an example that was copied often.
An example of fewer than n words is contaminated when a training row has its normal form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.measures.duplicates import normalise

FEWEST_WORDS, MOST_WORDS = 8, 13
COMMON_TO = 10
"""An n-gram of more examples than this identifies none of them."""
_ROWS_A_CHUNK = 10_000
_UNKNOWN = 0
_MIX = np.uint64(0x9E3779B97F4A7C15)

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Contamination:
    """What the training rows hold of each benchmark example."""

    words: int
    """The n of the n-grams."""
    by: Rows
    """The training row that shares most of the example's n-grams, or -1: not contaminated; shape (examples,)."""
    share: NDArray[np.float64]
    """The share of the example's words in shared n-grams, over all training rows; 1 for an equal short text."""
    short: NDArray[np.bool_]
    """Whether the example has fewer than n words and was compared as a whole."""

    @property
    def contaminated(self) -> NDArray[np.bool_]:
        """Say of each example whether a training row contains a part that identifies it."""
        return self.by >= 0


def contamination(benchmark: Sequence[str], train: Iterable[str], words: int | None = None) -> Contamination:
    """Say of each benchmark example whether the training texts contain it, by which row, and how much of it.

    Time is linear in the words of both sides, memory in those of the benchmark; `train` may be a generator. N-grams
    are compared by hashes of 64 bits, so a false match is to be expected once in about 10^19 comparisons.

    Raises: ValueError: `words` is below 1.
    """
    if words is not None and words < 1:
        raise ValueError(f"n-grams of {words} words do not exist; give 1 or more")
    forms = [normalise(text) for text in benchmark]
    split = [form.split(" ") if form else [] for form in forms]
    size = words or ngram_words([len(each) for each in split])
    index = _Index(forms, split, size)
    for start, chunk in _chunks(train):
        index.read(start, [normalise(text) for text in chunk])
    return index.result()


def ngram_words(lengths: Sequence[int]) -> int:
    """Return GPT-3's n: the 5th percentile of the examples' lengths in words, within 8 and 13."""
    fifth = int(np.percentile(lengths, 5)) if len(lengths) else MOST_WORDS
    return min(max(fifth, FEWEST_WORDS), MOST_WORDS)


class _Index:
    """The benchmark's n-grams, and which training row was first to hold each."""

    def __init__(self, forms: list[str], split: list[list[str]], size: int) -> None:
        self.size = size
        self.lengths = np.array([len(each) for each in split], dtype=np.int64)
        self.short = self.lengths < size
        self.forms = {form: -1 for form in forms}
        self._of_example = forms
        vocabulary = dict.fromkeys(word for each in split for word in each)
        self._number = {word: number for number, word in enumerate(vocabulary, start=_UNKNOWN + 1)}
        hashes, self._example, self._place = self._ngrams(split)
        self.grams, self._gram = np.unique(hashes, return_inverse=True)
        self.seen = np.full(len(self.grams), -1, dtype=np.int64)
        # One look in a table of bits spares nearly every n-gram that is not the benchmark's the binary search.
        bits = max(16, int(np.ceil(np.log2(max(len(self.grams), 1)))) + 4)
        self._mask = np.uint64((1 << bits) - 1)
        self._maybe = np.zeros(1 << bits, dtype=bool)
        self._maybe[self.grams & self._mask] = True

    def read(self, start: int, forms: list[str]) -> None:
        """Note which n-grams and which whole texts the training rows `start`, `start` + 1, … hold."""
        for row, form in enumerate(forms, start):
            if self.forms.get(form, row) == -1:
                self.forms[form] = row
        hashes, of_text, _ = self._ngrams([form.split(" ") if form else [] for form in forms])
        candidates = np.flatnonzero(self._maybe[hashes & self._mask])
        place = np.searchsorted(self.grams, hashes[candidates])
        place = np.minimum(place, max(len(self.grams) - 1, 0))
        held = self.grams[place] == hashes[candidates] if len(self.grams) else np.zeros(0, dtype=bool)
        grams, rows = place[held], of_text[candidates][held] + start
        new = self.seen[grams] < 0
        # Reversed, so that of several rows the first is the one that stays.
        self.seen[grams[new][::-1]] = rows[new][::-1]

    def result(self) -> Contamination:
        """Return what the rows read so far hold of each example."""
        by = np.full(len(self.lengths), -1, dtype=np.int64)
        share = np.zeros(len(self.lengths))
        hit = (self.seen[self._gram] >= 0) & ~self._common()[self._gram]
        for example, grams, places in _by_example(self._example[hit], self._gram[hit], self._place[hit]):
            rows, counts = np.unique(self.seen[grams], return_counts=True)
            by[example] = rows[int(counts.argmax())]
            covered = np.zeros(self.lengths[example], dtype=bool)
            covered[places[:, None] + np.arange(self.size)] = True
            share[example] = covered.mean()
        equal = np.array([self.forms[form] for form in self._of_example], dtype=np.int64)
        whole = (equal >= 0) & (self.lengths > 0)
        by[whole], share[whole] = equal[whole], 1.0
        return Contamination(self.size, by, share, self.short)

    def _common(self) -> NDArray[np.bool_]:
        """Say of each n-gram whether more than ten different examples hold it."""
        if not len(self.grams):
            return np.zeros(0, dtype=bool)
        first = {form: example for example, form in reversed(list(enumerate(self._of_example)))}
        distinct = np.array([first[form] for form in self._of_example], dtype=np.int64)
        pairs = np.unique(np.stack([self._gram, distinct[self._example]]), axis=1)
        return np.bincount(pairs[0], minlength=len(self.grams)) > COMMON_TO

    def _ngrams(self, split: list[list[str]]) -> tuple[Hashes, Rows, Rows]:
        """Return the hash of each n-gram, which text it is of, and the word it begins at."""
        lengths = np.array([len(each) for each in split], dtype=np.int64)
        numbers = np.fromiter(
            (self._number.get(word, _UNKNOWN) for each in split for word in each), dtype=np.uint64
        )
        count = max(len(numbers) - self.size + 1, 0)
        mixed = np.zeros(count, dtype=np.uint64)
        for offset in range(self.size):
            mixed = (mixed ^ (numbers[offset : offset + count] + np.uint64(1))) * _MIX
            mixed ^= mixed >> np.uint64(29)
        text = np.repeat(np.arange(len(lengths)), lengths)
        begins = np.cumsum(lengths) - lengths
        inside = text[:count] == text[self.size - 1 : self.size - 1 + count]
        place = np.arange(len(text)) - begins[text]
        return mixed[inside], text[:count][inside], place[:count][inside]


def _chunks(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    start, chunk = 0, []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _ROWS_A_CHUNK:
            yield start, chunk
            start, chunk = start + len(chunk), []
    if chunk:
        yield start, chunk


def _by_example(example: Rows, gram: Rows, place: Rows) -> Iterator[tuple[int, Rows, Rows]]:
    """Yield each example with its n-grams and the words they begin at; `example` is sorted."""
    names, begins = np.unique(example, return_index=True)
    begins_and_end = [*begins.tolist(), len(example)]
    for name, (begin, end) in zip(names.tolist(), itertools.pairwise(begins_and_end), strict=True):
        yield name, gram[begin:end], place[begin:end]
