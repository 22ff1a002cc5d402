"""Benchmark contamination: planted copies and quotes are found with their row, templates and strangers are not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tasks.measures.contamination import contamination, ngram_words

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrstk"]


def sentences(count: int, seed: int, words: int = 20) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=words)) for _ in range(count)]


def test_a_copy_inside_a_longer_training_row_is_found_whatever_its_case_and_punctuation() -> None:
    benchmark = sentences(50, 1)
    train = sentences(500, 2)
    train[77] = "As the question goes: " + benchmark[7].upper().replace(" ", ", ") + "! What do you say?"
    found = contamination(benchmark, train)
    assert found.words == 13
    assert found.by.tolist() == [-1] * 7 + [77] + [-1] * 42
    assert found.share[7] == 1
    assert found.share.sum() == 1
    assert found.contaminated.sum() == 1


def test_a_quote_of_thirteen_words_counts_and_one_of_twelve_does_not() -> None:
    benchmark = sentences(2, 3, words=26)
    first, second = (text.split() for text in benchmark)
    train = ["he said " + " ".join(first[4:17]) + " and left", "she " + " ".join(second[4:16]) + " too"]
    found = contamination(benchmark, train)
    assert found.by.tolist() == [0, -1]
    assert found.share.tolist() == [0.5, 0]


def test_the_row_named_is_the_one_that_holds_most() -> None:
    (example,) = sentences(1, 4, words=40)
    words = example.split()
    train = [" ".join(words[:14]), "nothing of it", " ".join(words[10:40])]
    found = contamination([example], train)
    assert found.by.tolist() == [2]
    assert found.share.tolist() == [1]


def test_short_texts_are_compared_as_a_whole() -> None:
    benchmark = ["What is a bond?", "Who?", "", "Is it?"]
    found = contamination(benchmark, ["so what is a bond after all", "WHO", "", "is it", "is it"])
    assert found.words == 8
    assert found.short.all()
    assert found.by.tolist() == [-1, 1, -1, 3]
    assert found.share.tolist() == [0, 1, 0, 1]


def test_a_template_of_the_benchmark_identifies_none_of_its_examples() -> None:
    frame = "which of the following is the best answer to the question that was put about {} and why so"
    benchmark = [frame.format(word) for word in sentences(30, 5, words=3)]
    train = [frame.format("something else entirely"), benchmark[12]]
    found = contamination(benchmark, train)
    assert found.by.tolist() == [-1] * 12 + [1] + [-1] * 17
    # Copies of one example make no template of it.
    copies = contamination([benchmark[0]] * 30, [benchmark[0] + " indeed"])
    assert (copies.by == 0).all()


def test_an_example_copied_many_times_is_found() -> None:
    benchmark = sentences(3, 6)
    assert contamination(benchmark, ["oh " + benchmark[1]] * 500).by.tolist() == [-1, 0, -1]


def test_n_is_the_fifth_percentile_within_eight_and_thirteen() -> None:
    assert ngram_words([10] * 100) == 10
    assert ngram_words([3] * 100) == 8
    assert ngram_words([50] * 100) == 13
    assert ngram_words([]) == 13
    assert contamination(sentences(20, 7, words=10), []).words == 10
    with pytest.raises(ValueError, match="n-grams of 0 words"):
        contamination(["a"], ["a"], words=0)


def test_nothing_is_contaminated_by_nothing_and_rows_do_not_run_together() -> None:
    assert len(contamination([], ["a text"]).by) == 0
    (example,) = sentences(1, 8)
    words = example.split()
    halves = [" ".join(words[:10]), " ".join(words[10:])]
    assert contamination([example], halves).by.tolist() == [-1]
    assert contamination([example], []).by.tolist() == [-1]


def test_training_rows_may_be_a_generator_across_chunks() -> None:
    benchmark = sentences(40, 9)

    def train() -> Iterator[str]:
        yield from sentences(25_000, 10, words=15)
        yield benchmark[3] + " tail"

    found = contamination(benchmark, train())
    assert found.by[3] == 25_000
    assert found.contaminated.sum() == 1


def test_ten_times_the_rows_take_about_ten_times_as_long() -> None:
    benchmark = sentences(2_000, 11)
    seconds = []
    for rows in (5_000, 50_000):
        train = sentences(rows, 12)
        started = time.process_time()
        contamination(benchmark, train)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 25 * seconds[0]
