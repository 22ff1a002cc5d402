"""Diversity: right at the ends, the same for few and many rows, and low for copies."""

import numpy as np
import pytest

from tasks.measures.diversity import (
    class_counts,
    class_entropy,
    distinct_bigrams,
    effective_diversity,
    vendi,
)


def cloud(rows: int, seed: int, dim: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def test_vendi_counts_orthogonal_rows_and_ignores_copies_and_length() -> None:
    assert vendi(np.eye(7)) == pytest.approx(7)
    assert vendi(np.repeat(np.eye(7) * 3, 50, axis=0)) == pytest.approx(7)
    assert vendi(np.ones((40, 5))) == pytest.approx(1)
    assert vendi(np.zeros((0, 5))) == 0


def test_vendi_by_covariance_is_vendi_by_kernel() -> None:
    rows = cloud(60, 1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / 60)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi(rows) == pytest.approx(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def test_effective_diversity_is_the_same_for_500_and_50000_rows() -> None:
    reference = cloud(200, 0, 128)
    few = effective_diversity(cloud(500, 1, 128), reference, seed=7)
    many = effective_diversity(cloud(50_000, 2, 128), reference, seed=7)
    assert few.value == pytest.approx(1, abs=0.02)
    assert many.value == pytest.approx(few.value, abs=0.02)
    assert few.interval is not None
    assert few.interval[0] < many.value < few.interval[1]


@pytest.mark.parametrize("rows", [60, 1_050, 20_000])
def test_ten_distinct_texts_are_clearly_bad_however_often_repeated(rows: int) -> None:
    copies = cloud(10, 3, 128)[np.arange(rows) % 10]
    assert effective_diversity(copies, cloud(200, 0, 128), seed=7).value < (0.25 if rows == 60 else 0.12)


def test_effective_diversity_interval_covers_the_population_value() -> None:
    reference, covered = cloud(50, 0), 0
    truth = effective_diversity(cloud(50_000, 99), reference, seed=1, draws=200).value
    for seed in range(60):
        interval = effective_diversity(cloud(200, seed), reference, seed=seed).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 54


def test_distinct_bigrams_does_not_depend_on_the_number_of_texts() -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in chance.zipf(1.5, 12)) for _ in range(20_000)]
    few, drawn = distinct_bigrams(texts[:1_000])
    many, _ = distinct_bigrams(texts)
    assert drawn == 2_000
    assert many == pytest.approx(few, abs=0.03)
    assert distinct_bigrams(["same words here"] * 5_000)[0] == pytest.approx(0.001)


def test_distinct_bigrams_of_a_small_set_is_the_plain_ratio() -> None:
    assert distinct_bigrams(["a b a b"]) == (pytest.approx(2 / 3), 3)
    assert distinct_bigrams(["word", ""]) == (0.0, 0)


def test_class_entropy() -> None:
    assert class_entropy(class_counts([0, 1, 0, 1], 2)) == pytest.approx(1)
    assert class_entropy(class_counts([0, 0, 0], 2)) == 0
    assert 0 < class_entropy(class_counts([0] * 9 + [1], 3)) < 0.5
