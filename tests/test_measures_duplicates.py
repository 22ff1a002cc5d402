"""Copies, near-copies, leaks and conflicts: planted ones are found, all of them and no others."""

import random
import time

import numpy as np
import pytest

from tasks.measures.duplicates import bands, conflicts, exact_clusters, jaccard, leaks, near_clusters, shingle
from tests.gate_data import reviews


def distinct_texts(count: int, seed: int) -> list[str]:
    """Return texts of 12 random words: no two alike."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("aeioulmnrst", k=6)) for _ in range(2000)]
    return [" ".join(chance.choices(words, k=12)) for _ in range(count)]


def edited(text: str, seed: int) -> str:
    """Replace one letter."""
    place = random.Random(seed).randrange(len(text))
    return text[:place] + "x" + text[place + 1 :]


def test_exact_copies_differ_in_case_spacing_and_unicode_form_only() -> None:
    texts = ["Straße  A", "strasse a", " STRASSE\tA\n", "Strasse B", "ﬁne", "fine!", "cafe\u0301", "café"]
    assert exact_clusters(texts).tolist() == [0, 0, 0, 3, 4, 4, 6, 6]
    assert len(set(exact_clusters(["ok 😀", "ok 😡", "?!", "...", "", "C++", "C"]).tolist())) == 7


def test_what_makes_another_number_makes_another_text() -> None:
    texts = ["moved -5% today", "moved 5% today", "What is 6-2?", "what is 6/2", "what is 6 2"]
    assert exact_clusters(texts).tolist() == [0, 1, 2, 3, 4]
    assert exact_clusters(["covid-19, again", "Covid 19 again!", "$5.", "$5"]).tolist() == [0, 0, 2, 2]


def test_planted_near_copies_are_found_with_high_recall_and_precision() -> None:
    originals = distinct_texts(400, seed=1)
    texts = originals + [edited(text, number) for number, text in enumerate(originals[:100])]
    clusters = near_clusters(texts, 0.8)
    planted = [jaccard(shingle(texts[number]), shingle(texts[400 + number])) >= 0.8 for number in range(100)]
    assert sum(planted) > 90
    found = [clusters[400 + number] == number for number in range(100)]
    assert sum(np.logical_and(found, planted)) >= 0.98 * sum(planted)
    assert not np.logical_and(found, np.logical_not(planted)).any()
    assert clusters[:400].tolist() == list(range(400))


def test_a_chain_of_near_copies_is_one_cluster() -> None:
    text = distinct_texts(1, seed=3)[0]
    chain = [text, text + " abcd", text + " abcd efgh", text + " abcd efgh ijkl"]
    assert len(set(near_clusters(chain, 0.85).tolist())) == 1
    assert jaccard(shingle(chain[0]), shingle(chain[-1])) < 0.86


def test_leaks_name_the_training_row_and_spare_the_rest() -> None:
    train = distinct_texts(300, seed=5)
    test = [*distinct_texts(50, seed=6), train[7].upper(), edited(train[11], 1), edited(train[12], 2)]
    assert leaks(test, train, 0.8).tolist() == [-1] * 50 + [7, 11, 12]


def test_leaks_are_found_in_a_template_of_thousands_in_time_that_grows_with_them() -> None:
    template = "Dear customer, your parcel number {} is on its way to you, please be at home. Kind regards"
    seconds = []
    for rows in (1_000, 8_000):
        train = [template.format(number) for number in range(rows)]
        started = time.process_time()
        assert len(set(near_clusters(train, 0.8).tolist())) == 1
        assert (leaks([template.format("A7")], train, 0.8) >= 0).all()
        seconds.append(time.process_time() - started)
    assert seconds[1] < 24 * seconds[0], "64 times, where each is held against each"


def test_conflicts_are_equal_texts_with_other_labels() -> None:
    assert conflicts(["Good.", "good.", "bad", "bad"], [0, 1, 1, 1]).tolist() == [True, True, False, False]


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["ab", "ab", "cd"]])
def test_tiny_and_short_sets(texts: list[str]) -> None:
    assert len(set(near_clusters(texts, 0.8).tolist())) == len(set(texts))
    assert len(leaks(texts, [], 0.8)) == len(texts)


def test_a_text_of_ten_megabytes_is_measured_whole() -> None:
    chance = random.Random(9)
    long = "".join(chance.choices("abcdefgh ", k=10_000_000))
    assert near_clusters([long, long + "z", "short"], 0.8).tolist() == [0, 0, 2]


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_99_of_100_pairs_at_the_threshold(similarity: float) -> None:
    count, rows = bands(similarity)
    assert count * rows <= 64
    assert 1 - (1 - similarity**rows) ** count >= 0.99


def test_made_reviews_are_no_copies_of_each_other() -> None:
    texts = [text for text, _ in reviews(300)]
    assert len(set(near_clusters(texts, 0.8).tolist())) == 300
