"""Copies in meaning: every pair above the threshold and no other, in bounded memory, joined with known copies."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tasks.measures import semantic
from tasks.measures.clusters import join
from tasks.measures.semantic import semantic_copies


def planted(rows: int, copies: int, cosine: float, seed: int, dim: int = 64) -> np.ndarray:
    """Return rows of random directions, the last `copies` of them at `cosine` to the first ones."""
    chance = np.random.default_rng(seed)
    vectors = chance.standard_normal((rows, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    source = vectors[:copies]
    aside = chance.standard_normal((copies, dim))
    aside -= np.sum(aside * source, axis=1, keepdims=True) * source
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    vectors[rows - copies :] = cosine * source + np.sqrt(1 - cosine**2) * aside
    return (vectors * chance.uniform(0.5, 3, (rows, 1))).astype(np.float32)


def test_planted_copies_are_found_and_named_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "BLOCK", 64)  # many blocks: no pair lies between them
    vectors = planted(500, 40, 0.95, 1)
    found = semantic_copies(vectors, 0.9, most=5)
    assert found.clusters.tolist() == [*range(460), *range(40)]
    assert found.pairs == 40
    assert len(found.closest) == 5
    assert all(
        later == first + 460 and cosine == pytest.approx(0.95, abs=1e-4)
        for first, later, cosine in found.closest
    )
    assert semantic_copies(vectors, 0.96).pairs == 0


def test_pairs_are_those_of_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "BLOCK", 37)
    vectors = np.random.default_rng(3).standard_normal((300, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = np.triu(unit @ unit.T >= 0.97, 1)
    found = semantic_copies(vectors, 0.97, most=10_000)
    assert sorted((first, second) for first, second, _ in found.closest) == list(
        zip(*(side.tolist() for side in np.nonzero(alike)), strict=True)
    )
    cosines = [cosine for _, _, cosine in found.closest]
    assert cosines == sorted(cosines, reverse=True)
    assert len(np.unique(found.clusters)) < 300
    assert all(found.clusters[first] == found.clusters[second] for first, second, _ in found.closest)


def test_known_copies_are_not_compared_but_join() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0.01], [0, 1]], dtype=np.float32)
    found = semantic_copies(vectors, 0.99, known=np.array([0, 0, 2, 3, 3]))
    assert found.pairs == 1  # rows 0 and 3; row 4 was known to be row 3's
    assert found.clusters.tolist() == [0, 0, 2, 0, 0]


def test_identical_rows_are_one_cluster_in_linear_memory() -> None:
    vectors = np.ones((6_000, 8), dtype=np.float32)
    tracemalloc.start()
    found = semantic_copies(vectors, 0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.pairs == 6_000 * 5_999 // 2
    assert (found.clusters == 0).all()
    assert peak < 500e6  # a list of the pairs alone would be 290 MB, with cosines and indices over 500


@pytest.mark.parametrize("vectors", [np.zeros((0, 3)), np.ones((1, 3)), np.zeros((2, 3))])
def test_nothing_is_like_nothing(vectors: np.ndarray) -> None:
    found = semantic_copies(vectors, 0.5)
    assert found.clusters.tolist() == list(range(len(vectors)))
    assert found.pairs == 0
    assert found.closest == []


@pytest.mark.parametrize("similarity", [0, -1, 1.5, float("nan")])
def test_what_is_no_threshold_is_said(similarity: float) -> None:
    with pytest.raises(ValueError, match="is no threshold; give one above 0 and at most 1"):
        semantic_copies(np.ones((2, 2)), similarity)


def test_join_names_a_cluster_by_its_first_row() -> None:
    first = np.arange(6)
    first = join(first, np.array([5, 4]), np.array([4, 2]))
    assert first.tolist() == [0, 1, 2, 3, 2, 2]
    assert join(first, np.array([3]), np.array([5])).tolist() == [0, 1, 2, 2, 2, 2]
    assert join(first, np.array([4]), np.array([5])).tolist() == first.tolist()
