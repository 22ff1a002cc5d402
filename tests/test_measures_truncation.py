"""Texts cut at one length are told from long ones, in characters and in bytes."""

import numpy as np
import pytest

from tasks.measures.truncation import cut_texts
from tests.bench.planted import texts


def test_texts_cut_at_200_characters_are_found_and_no_other() -> None:
    whole = texts(2000, seed=1)
    cut = [text[:200] for text in whole]
    planted = np.array([len(text) > 200 for text in whole])
    assert planted.sum() > 50
    found = cut_texts(cut)
    assert found[planted].all()
    assert planted[found].mean() > 0.9, "some texts have 200 characters by chance"
    assert not cut_texts(whole).any()


def test_a_limit_in_bytes_is_found() -> None:
    whole = [text.replace("e", "é") for text in texts(1000, seed=2)]
    cut = [text.encode()[:180].decode(errors="ignore") for text in whole]
    found = cut_texts(cut)
    assert found.sum() >= 0.4 * sum(len(text.encode()) > 180 for text in whole)
    assert not found[[len(text.encode()) < 170 for text in whole]].any()


@pytest.mark.parametrize(
    "rows", [[], ["a"], ["one", "two"], ["same text"] * 50, [f"{number:08}" for number in range(100)]]
)
def test_no_rows_copies_and_codes_of_one_length_are_not_cut(rows: list[str]) -> None:
    assert not cut_texts(rows).any()
